//! What a node without rules says to others: one function each, by name.
//!
//! Where an act is to meet a certain check, everything before that check is as it must be.

use std::time::Duration;

use abi::grant::{CopyRequest, OWN, Range, Role};
use abi::limits::{LANE_SLOTS, LOAN_BYTES_MAX};
use abi::record::{self, Kind, Record};
use abi::slot::{self, Kind as SlotKind, SlotCopy};
use abi::{Claim, DcId, Endpoint, Generation, Name, NodeId, Pair, Slot};
use node::core::{ChunkKind, DirectoryEntry};

use super::acts::slot_of;
use super::foreign::Foreign;

type Act = fn(&mut Foreign<'_>);

pub const ACTS: &[(&str, Act)] = &[
    ("bytes that are no record", garbage),
    ("a record of a wrong length", wrong_length),
    ("a record of nobody", nobody),
    ("a record of another node's endpoint", another_node),
    ("slots out of their sequence", sequence),
    ("slots in another's name", source),
    ("a reply on a lane", reply_on_lane),
    ("slots of no kind", no_kind),
    ("slots beyond the lane", beyond_lane),
    ("an extent that is never announced", never_announced),
    ("an extent of another length", another_length),
    ("an extent that is too long", too_long),
    ("announcements of nothing", of_nothing),
    ("credits forged", words),
    ("bits of nobody's raising", raised),
    ("replies to no call", replies),
    ("requests passed on that nobody made", relays),
    ("anything withdrawn", withdraws),
    ("ends that are none", ends),
    ("pairs opened, refused and closed at random", states),
    ("copies of what is not granted", copies),
    ("copies in no state", copy_states),
    ("a directory that is none", directory),
    ("a directory of others' slots", others_slots),
    ("a directory out of order", out_of_order),
    ("a flood of posts", flood),
    ("a flood of extents", flood_of_extents),
    ("bytes changed on the way", dents),
    ("nothing for a while", silence),
    ("the node begins anew", anew),
];

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn garbage(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for _ in 0..4 {
        let len = foreign.chance.below(300) as usize;
        let mut said: Vec<u8> = (0..len).map(|_| foreign.chance.below(256) as u8).collect();
        if foreign.chance.below(2) == 0 && len >= record::BYTES {
            // Of two that there are, and of a kind that there is not.
            said[..record::BYTES].copy_from_slice(&Record::of(Kind::Open, pair, 0).to_bytes());
            said[0] = 17 + foreign.chance.below(200) as u8;
        }
        let (head, body) = said.split_at(len.min(record::BYTES));
        foreign.say(node, head, body);
    }
}

fn wrong_length(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let kinds = [Kind::Open, Kind::Slots, Kind::Words, Kind::Raised, Kind::Reply, Kind::Ended, Kind::Copy];
    let kind = kinds[foreign.chance.below(kinds.len() as u64) as usize];
    let count = foreign.chance.below(600) as u16;
    let body = vec![1; 1 + foreign.chance.below(2000) as usize];
    foreign.record(node, Record { kind, count, pair: Some(pair), arg: 0 }, &body);
}

fn nobody(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let elsewhere = Endpoint { dc: DcId(2), ..pair.destination };
    let across = Pair { source: pair.source, destination: elsewhere };
    foreign.record(node, Record::of(Kind::Open, across, 0), &[]);
    let mut head = Record::of(Kind::Open, pair, 0).to_bytes();
    head[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    foreign.say(node, &head, &[]);
    let unborn = Endpoint { generation: Generation(1 << 30), ..pair.destination };
    let of_nobody = Pair { source: pair.source, destination: unborn };
    foreign.record(node, Record::of(Kind::Open, of_nobody, 0), &[]);
    let two_there = Pair { source: unborn, destination: pair.destination };
    foreign.record(node, Record::of(Kind::Open, two_there, 0), &[]);
}

/// Speaks for an endpoint of the node that hears it, or of a third.
fn another_node(foreign: &mut Foreign<'_>) {
    let (Some((node, victim)), Some((_, other))) = (foreign.victim(), foreign.victim()) else { return };
    let pair = Pair { source: other, destination: victim };
    let slot = slot_of(other, SlotKind::Post, 0);
    for (kind, count, body) in [
        (Kind::Open, 0, Vec::new()),
        (Kind::Slots, 1, bytes(&slot.to_words())),
        (Kind::Words, 0, vec![0xff; record::WORDS_BYTES]),
        (Kind::Ended, 0, bytes(&[0, 0])),
        (Kind::Closed, 0, Vec::new()),
    ] {
        foreign.record(node, Record { kind, count, pair: Some(pair), arg: 0 }, &body);
    }
}

fn sequence(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |words| words[2] += 5);
}

fn source(foreign: &mut Foreign<'_>) {
    let (Some((node, pair)), Some((_, other))) = (foreign.pair(), foreign.victim()) else { return };
    let forged = other.to_word();
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |words| words[1] = forged);
}

fn reply_on_lane(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Reply, 0), |_| {});
}

fn no_kind(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let spoilt = [0x70 << 32, 0x80 << 40, 0xffff << 48][foreign.chance.below(3) as usize];
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |words| words[0] |= spoilt);
}

fn beyond_lane(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for _ in 0..LANE_SLOTS / 16 + 2 {
        let first = foreign.streams[&pair].next;
        let mut body = Vec::new();
        for sequence in first..first + 16 {
            let slot = SlotCopy { sequence, ..slot_of(pair.source, SlotKind::Post, 0) };
            body.extend(bytes(&slot.to_words()));
        }
        foreign.record(node, Record { kind: Kind::Slots, count: 16, pair: Some(pair), arg: first }, &body);
        foreign.streams.entry(pair).or_default().next += 16;
    }
}

fn claim(foreign: &mut Foreign<'_>, node: NodeId, pair: Pair, len_bytes: u64) {
    let mut slot = slot_of(pair.source, SlotKind::Post, slot::EXTENT);
    slot.set_claim(Claim { segment: 1, token: 1, offset_bytes: 0, len_bytes });
    foreign.slot(node, pair, slot, |_| {});
}

/// Then the pair ends, and the extent can never come.
fn never_announced(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    claim(foreign, node, pair, 100);
    let ended = bytes(&[foreign.streams[&pair].next, 0]);
    foreign.record(node, Record::of(Kind::Ended, pair, abi::side::END_DEAD), &ended);
}

fn another_length(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let sequence = foreign.streams[&pair].next;
    claim(foreign, node, pair, 100);
    let head = Record::of(Kind::SlotExtent, pair, sequence).to_bytes();
    foreign.say_bulk(node, &head, &[7; 50]);
}

fn too_long(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let beyond = foreign.chance.below(u64::MAX / 2);
    claim(foreign, node, pair, LOAN_BYTES_MAX as u64 + 1 + beyond);
}

fn of_nothing(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for kind in [Kind::SlotExtent, Kind::ReplyExtent, Kind::CopyData] {
        let body: &[u8] = if kind == Kind::CopyData { &[0; 8] } else { &[] };
        let head = Record::of(kind, pair, foreign.chance.below(9)).to_bytes();
        let mut all = head.to_vec();
        all.extend(body);
        foreign.say_bulk(node, &all, &[7; 100]);
        if foreign.chance.below(3) == 0 {
            foreign.say(node, &all, &[]);
        }
    }
}

fn words(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let far = 1 + foreign.chance.below(1 << 30);
    let body = bytes(&[far, far * 2, far, foreign.chance.below(2) * far]);
    foreign.record(node, Record::of(Kind::Words, pair, 0), &body);
}

fn raised(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let counters: Vec<u64> = (0..abi::side::RAISED_WORDS).map(|_| foreign.chance.below(1 << 40)).collect();
    let raises = foreign.chance.below(1 << 40);
    foreign.record(node, Record::of(Kind::Raised, pair, raises), &bytes(&counters));
}

fn replies(foreign: &mut Foreign<'_>) {
    let (Some((node, pair)), Some((_, other))) = (foreign.pair(), foreign.victim()) else { return };
    let first = foreign.chance.below(3);
    for call in first..first + 3 {
        let flags = [0, slot::EXTENT, slot::ABANDONED, slot::REDIRECT][foreign.chance.below(4) as usize];
        let kind = if foreign.chance.below(4) == 0 { SlotKind::Post } else { SlotKind::Reply };
        let by = if foreign.chance.below(3) == 0 { other } else { pair.source };
        let slot = SlotCopy { sequence: call, ..slot_of(by, kind, flags) };
        foreign.record(node, Record::of(Kind::Reply, pair, call), &bytes(&slot.to_words()));
    }
}

fn relays(foreign: &mut Foreign<'_>) {
    let (Some((node, pair)), Some((_, other))) = (foreign.pair(), foreign.victim()) else { return };
    let client = [0, u64::MAX, other.to_word(), pair.destination.to_word()][foreign.chance.below(4) as usize];
    for kind in [SlotKind::Via, SlotKind::Relayed, SlotKind::Confirm] {
        let mut slot = slot_of(pair.source, kind, 0);
        (slot.body[0], slot.body[1]) = (client, foreign.chance.below(5));
        foreign.slot(node, pair, slot, |_| {});
    }
}

fn withdraws(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Send, slot::WITHDRAWABLE | slot::TELL), |_| {});
    for _ in 0..8 {
        let sequence =
            [foreign.chance.below(8), foreign.chance.below(u64::MAX)][foreign.chance.below(2) as usize];
        foreign.record(node, Record::of(Kind::Withdraw, pair, sequence), &[]);
    }
}

fn ends(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let (last, consumed) = (foreign.chance.below(1 << 20), foreign.chance.below(1 << 20));
    let how = foreign.chance.below(5);
    foreign.record(node, Record::of(Kind::Ended, pair, how), &bytes(&[last, consumed]));
    // Not so dead.
    foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |_| {});
}

fn states(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for _ in 0..6 {
        let kinds = [Kind::Open, Kind::Opened, Kind::Refused, Kind::Closed];
        let kind = kinds[foreign.chance.below(4) as usize];
        let why = foreign.chance.below(40);
        foreign.record(node, Record::of(kind, pair, why), &[]);
    }
}

fn copies(foreign: &mut Foreign<'_>) {
    let (Some((node, pair)), Some((_, other))) = (foreign.pair(), foreign.victim()) else { return };
    let invented = Range { place: foreign.chance.below(1 << 40), generation: 1, offset_bytes: 0 };
    let ranges = [Range { place: 1, generation: OWN, offset_bytes: 0 }, invented];
    let roles = [Role::Receive, Role::Send, Role::Within, Role::Cancel];
    let request = CopyRequest {
        role: roles[foreign.chance.below(4) as usize],
        node: NodeId(foreign.chance.below(5) as u16),
        begun: foreign.chance.below(2) == 0,
        len_bytes: foreign.chance.below(1 << 31),
        theirs: ranges[foreign.chance.below(2) as usize],
        range: ranges[foreign.chance.below(2) as usize],
        other: other.to_word(),
        beside: foreign.chance.below(4),
    };
    let number = foreign.chance.below(9);
    foreign.record(node, Record::of(Kind::Copy, pair, number), &bytes(&request.to_words()));
}

fn copy_states(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    let (number, state) = (foreign.chance.below(9), foreign.chance.below(40));
    foreign.record(node, Record::of(Kind::CopyState, pair, number), &bytes(&[state]));
}

fn directory(foreign: &mut Foreign<'_>) {
    let len = 8 * foreign.chance.below(40) as usize;
    let mut said: Vec<u8> = (0..len).map(|_| foreign.chance.below(256) as u8).collect();
    if len > 8 {
        // Of each kind that there is, and of two that there are not.
        said[..8].copy_from_slice(&foreign.chance.below(8).to_le_bytes());
    }
    foreign.say_directory((len as u64) << 32, &said);
}

fn others_slots(foreign: &mut Foreign<'_>) {
    let entry = |slot: u64, generation: u64| DirectoryEntry {
        endpoint: Endpoint::new(DcId(1), Slot(slot as u16), Generation(generation as u32)),
        bound: slot.is_multiple_of(2),
        name: Name::NONE,
        uid: 0,
        private: false,
    };
    let entries =
        (0..20).map(|_| entry(foreign.chance.below(128), 1 + foreign.chance.below(1 << 31))).collect();
    foreign.say_chunk(ChunkKind::Delta, entries);
}

fn out_of_order(foreign: &mut Foreign<'_>) {
    let total = foreign.chance.below(1 << 17);
    let offset = 1 + foreign.chance.below(1 << 10);
    foreign.say_directory(total << 32 | offset, &[3; 64]);
}

fn flood(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for n in 0..LANE_SLOTS / 2 {
        foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |_| {});
        if n % 32 == 0 {
            foreign.listen(Duration::ZERO);
        }
    }
}

fn flood_of_extents(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for _ in 0..24 {
        let sequence = foreign.streams[&pair].next;
        claim(foreign, node, pair, 30_000);
        let head = Record::of(Kind::SlotExtent, pair, sequence).to_bytes();
        foreign.say_bulk(node, &head, &[9; 30_000]);
        foreign.listen(Duration::ZERO);
    }
}

fn dents(foreign: &mut Foreign<'_>) {
    let before = foreign.dent.dented();
    foreign.dent.set(true);
    for _ in 0..6 {
        flood_a_little(foreign);
        foreign.listen(Duration::from_millis(1));
    }
    foreign.dent.set(false);
    let changed = foreign.dent.dented() > before;
    foreign.tally.count("bytes changed", if changed { "some" } else { "none" });
}

fn flood_a_little(foreign: &mut Foreign<'_>) {
    let Some((node, pair)) = foreign.pair() else { return };
    for _ in 0..8 {
        foreign.slot(node, pair, slot_of(pair.source, SlotKind::Post, 0), |_| {});
    }
}

fn silence(foreign: &mut Foreign<'_>) {
    std::thread::sleep(Duration::from_millis(foreign.chance.below(60)));
}

fn anew(foreign: &mut Foreign<'_>) {
    // Seldom: links take a while.
    if foreign.chance.below(6) == 0 {
        foreign.begin_anew();
    }
}
