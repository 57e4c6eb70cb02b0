//! The bytes of everything that crosses between two parties, as they are: other bytes want another version.

use abi::record::{Kind as RecordKind, Record};
use abi::slot::{
    BODY_WORDS, EXTENT, Head, Heading, Kind as SlotKind, REDIRECT, SlotCopy, TELL, WITHDRAWABLE, lap,
};
use abi::wire::{Header, Kind as FrameKind};
use abi::{Claim, DcId, Endpoint, Generation, Pair, Slot};

const PAIR: Pair = Pair {
    source: Endpoint::new(DcId(0x0102), Slot(0x0304), Generation(0x0506_0708)),
    destination: Endpoint::new(DcId(0x0102), Slot(0x0a0b), Generation(0x0c0d_0e0f)),
};

fn line(name: &str, bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {hex}\n")
}

fn slot(kind: SlotKind, flags: u8, sequence: u64) -> SlotCopy {
    let head = Head { lap: lap(sequence), kind, flags, len: 0 };
    let heading = Heading { head, source: PAIR.source.to_word(), kind: 0x1122_3344, call: 0x5566_7788 };
    SlotCopy::of(heading, sequence, [0; BODY_WORDS])
}

#[test]
fn layouts_are_these_bytes() {
    let mut got = String::new();
    let kinds = [
        (RecordKind::Open, 0, 0),
        (RecordKind::Slots, 3, 0x0102_0304_0506_0708),
        (RecordKind::Reply, 0, 0x1_0000_0007),
        (RecordKind::Withdraw, 0, 9),
        (RecordKind::SlotExtent, 0, 10),
    ];
    for (kind, count, arg) in kinds {
        let record = Record { kind, count, pair: Some(PAIR), arg };
        got += &line(&format!("{kind:?}"), &record.to_bytes());
    }
    let record = Record { kind: RecordKind::Directory, count: 0, pair: None, arg: 5 << 32 };
    got += &line("Directory", &record.to_bytes());

    let mut inline = slot(SlotKind::Request, WITHDRAWABLE | TELL, 0x1_0000_00ff);
    inline.set_inline(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let mut extent = slot(SlotKind::Post, EXTENT, 0);
    extent.set_claim(Claim { segment: 3, token: 4, offset_bytes: 64, len_bytes: 1 << 20 });
    extent.set_inline(b"beside");
    let mut confirm = slot(SlotKind::Confirm, 0, 1);
    confirm.set_inline(&[PAIR.destination.to_word(), 7, 8].map(u64::to_le_bytes).concat());
    let via = slot(SlotKind::Via, 0, 2);
    let relayed = slot(SlotKind::Relayed, 0, 3);
    let redirect = slot(SlotKind::Reply, REDIRECT, 4);
    for (name, slot) in [
        ("inline", inline),
        ("extent", extent),
        ("confirm", confirm),
        ("via", via),
        ("relayed", relayed),
        ("redirect", redirect),
    ] {
        let bytes: Vec<u8> = slot.to_words().iter().flat_map(|word| word.to_le_bytes()).collect();
        got += &line(name, &bytes);
    }

    let header = Header { kind: FrameKind::Message, len_bytes: 0x1234, token: 0x0102_0304_0506_0708, arg: 9 };
    got += &line("Header", &header.to_bytes());
    assert_eq!(got, include_str!("golden/layouts.hex"), "other bytes want another version");
}
