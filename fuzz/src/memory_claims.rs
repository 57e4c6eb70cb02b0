//! A kernel's core beside a peer that writes what it likes into its own memory, while calls go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use abi::limits::LANE_SLOTS;
use abi::slot::{self, WORDS};
use abi::table::{Entry, State};
use abi::{Allowed, DcId, Endpoint, Generation, Level, NodeId, Slot, doorbell, side, table};
use arbitrary::{Arbitrary, Unstructured};
use dvk::core::{Accepts, Call, Core, Host, Introduced, PeerIndex, Pulled, Sent};
use dvk::{Delivery, Message, Unavailable};
use shm::doorbell::Doorbells;
use shm::map::Mapping;
use shm::pool::Pool;
use shm::side::OwnSide;
use shm::sync::Ordering;
use shm::words::OwnWords;

thread_local! {
    /// The page is large; what an input leaves in it is taken out before the next.
    static DOORBELLS: Doorbells = Doorbells::heap();
}

/// What is done next: by the peer, to its memory, or by us.
#[derive(Arbitrary, Debug)]
enum Act {
    /// A word of the peer's side, anywhere.
    Word(u16, u64),
    /// One of its control words, to a small number.
    Control(u8, u8),
    /// A slot of its lane, as it should be but for what is turned over.
    Slot {
        kind: u8,
        flags: u8,
        len: u8,
        call: u8,
        claim: Option<[u16; 3]>,
        spoilt: Option<(u8, u64)>,
    },
    /// A reply to our call of this number.
    Reply {
        call: u8,
        flags: u8,
        len: u8,
        word: u64,
        source: bool,
    },
    Returns(u8, u8),
    Raise(u8, u8),
    Die,
    Receive,
    ReceiveFrom,
    Post(u8, bool),
    Send,
    PollSent,
    Withdraw,
    Call,
    PollCall,
    GiveUp,
    Answer,
    Relay,
    DropViews,
    Suspect,
    Notify,
}

const POOL_BYTES: usize = 64 << 10;
const PEER_BYTES: usize = 32 << 10;
const ACTS_MAX: usize = 200;
const ME: Endpoint = Endpoint::new(DcId(1), Slot(1), Generation(7));
const PEER: Endpoint = Endpoint::new(DcId(1), Slot(9), Generation(7));
const FRIEND: Endpoint = Endpoint::new(DcId(1), Slot(5), Generation(7));

/// What a daemon would do.
struct Hands {
    maps: BTreeMap<(u32, u32), Arc<Mapping>>,
}

impl Host for Hands {
    fn map_granted(&mut self, memory: u32, segment: u32, _: bool) -> Result<Arc<Mapping>, Unavailable> {
        self.map_segment(memory, segment)
    }

    fn map_segment(&mut self, memory: u32, segment: u32) -> Result<Arc<Mapping>, Unavailable> {
        let there = self.maps.get(&(memory, segment)).cloned();
        there.ok_or(Unavailable::Refused(abi::member::Refusal::BadRequest))
    }

    fn recycled(&mut self, _: Endpoint) {}

    fn pull(&mut self, _: bool) -> Result<Option<Pulled>, Unavailable> {
        Ok(None)
    }
}

fn bind(table: &OwnWords, endpoint: Endpoint, state: State) {
    let entry =
        Entry { state, node: NodeId(1), proxy: 0, generation: endpoint.generation, level: Level::Server };
    table.store(table::of_slot(endpoint.slot), entry.to_word(), Ordering::Release);
}

fn introduced(peer: Endpoint, own: &OwnSide, theirs: &OwnSide, memory: u32) -> Introduced {
    let doorbell = doorbell::of_slot(peer.slot);
    let allowed = Allowed::ALL;
    let (own, side) = (own.clone(), theirs.as_peer());
    Introduced { peer, own, side, memory, doorbell, proxied: false, allowed, ring: None }
}

/// The peer's memory, and how far its lane has come.
struct Peer {
    own: OwnSide,
    next: u64,
    raises: u64,
}

impl Peer {
    fn store(&self, at: usize, word: u64) {
        self.own.words().store(at % side::WORDS, word, Ordering::Release);
    }

    fn slot(&mut self, words: &[u64; WORDS]) {
        let at = side::LANE + (self.next % LANE_SLOTS) as usize * WORDS;
        for (n, word) in words.iter().enumerate().rev() {
            self.store(at + n, *word);
        }
        self.next += 1;
    }
}

fn head(lap: u32, kind: u8, flags: u8, len: u8) -> u64 {
    u64::from(lap) | u64::from(kind) << 32 | u64::from(flags) << 40 | u64::from(len) << 48
}

pub fn run(data: &[u8]) {
    let Ok(acts) = Vec::<Act>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let (table, doorbells) = (OwnWords::heap(table::VERSION + 1), DOORBELLS.with(Doorbells::clone));
    for endpoint in [ME, PEER, FRIEND] {
        bind(&table, endpoint, State::Bound);
        doorbells.drain(doorbell::of_slot(endpoint.slot), |_| {});
        doorbells.awake(doorbell::of_slot(endpoint.slot));
    }
    let map = Mapping::heap(POOL_BYTES);
    let mut pool = Pool::new(1 << 20);
    pool.add_segment(1, map.clone());
    let mut core = Core::new(ME, doorbells, table.as_peer(), pool);
    let mut hands = Hands { maps: BTreeMap::from([((9, 1), Mapping::heap(PEER_BYTES))]) };
    let mut peer = Peer { own: OwnSide::heap(), next: 0, raises: 0 };
    let own = OwnSide::heap();
    let index = core.introduce(introduced(PEER, &own, &peer.own, 9));
    let friend = core.introduce(introduced(FRIEND, &OwnSide::heap(), &OwnSide::heap(), 5));
    let mut us = Us { index, friend, sent: None, call: None, kept: Vec::new() };
    for act in acts.into_iter().take(ACTS_MAX) {
        match act {
            Act::Word(at, word) => peer.store(at as usize, word),
            Act::Control(at, word) => peer.store(at as usize % 40, word.into()),
            Act::Slot { kind, flags, len, call, claim, spoilt } => {
                let mut words = [0x6161; WORDS];
                words[0] = head(slot::lap(peer.next), kind % 9, flags, len % 100);
                words[1] = PEER.to_word();
                words[2] = peer.next;
                words[3] = u64::from(call) << 32 | 7;
                if let Some([segment, offset, len]) = claim {
                    words[4] = u64::from(segment % 3) | u64::from(len) << 32;
                    (words[5], words[6]) = (offset.into(), len.into());
                }
                if let Some((at, word)) = spoilt {
                    words[at as usize % WORDS] ^= word;
                }
                peer.slot(&words);
            }
            Act::Reply { call, flags, len, word, source } => {
                let call = u64::from(call % 8);
                let at = side::REPLIES + (call % abi::limits::REPLY_SLOTS) as usize * WORDS;
                let by = if source { FRIEND } else { PEER };
                let words = [
                    head(slot::lap_of_reply(call), 4, flags, len % 100),
                    by.to_word(),
                    call,
                    call << 32,
                    word,
                ];
                for (n, word) in words.iter().enumerate().rev() {
                    peer.store(at + n, *word);
                }
            }
            Act::Returns(token, count) => {
                peer.store(side::RETURNS + count as usize % 8, u64::from(token) | 1 << 32);
                peer.store(side::RETURNS_TAIL, count.into());
            }
            Act::Raise(bit, count) => {
                peer.raises += u64::from(count);
                peer.store(side::RAISED + bit as usize % side::RAISED_WORDS, count.into());
                peer.store(side::RAISES, peer.raises);
            }
            Act::Die => bind(&table, PEER, State::Dead),
            ours => us.act(&ours, &mut core, &mut hands),
        }
    }
    drop(us);
    core.audit().expect("a pool that is whole");
}

/// What we have under way.
struct Us {
    index: PeerIndex,
    friend: PeerIndex,
    sent: Option<Sent>,
    call: Option<Call>,
    kept: Vec<Delivery>,
}

impl Us {
    fn act(&mut self, act: &Act, core: &mut Core, hands: &mut Hands) {
        let all = Accepts { notifications: true, attend: false };
        match act {
            Act::Receive => {
                if let Ok(Some(delivery)) = core.poll_any(all, hands) {
                    self.got(delivery);
                }
            }
            Act::ReceiveFrom => {
                if let Ok(Some(delivery)) = core.poll_from(PEER, all, hands) {
                    self.got(delivery);
                }
                let _ = core.poll_from_end(PEER, hands);
            }
            Act::Post(len, lends) => {
                let mut message = Message::new(1).inline(&vec![3; *len as usize % 60]);
                if *lends && let Some(loan) = core.pool().loan(64) {
                    message = message.with(loan);
                }
                let _ = core.post(self.index, message);
            }
            Act::Send => {
                self.sent = core.start_send(self.index, &mut Message::new(2), true).ok().or(self.sent.take());
            }
            Act::PollSent => {
                if let Some(sent) = self.sent {
                    let _ = (core.poll_sent(sent), core.poll_sent_end(sent));
                }
            }
            Act::Withdraw => {
                if let Some(sent) = self.sent {
                    let _ = core.withdraw(sent, hands);
                }
            }
            Act::Call if self.call.is_none() => {
                self.call = core.start_call(self.index, &mut Message::new(3), true).ok();
            }
            Act::PollCall => {
                let Some(call) = self.call else { return };
                match core.poll_call(call, hands) {
                    Some(Ok(reply)) => {
                        assert_eq!(reply.source(), PEER, "a reply of whom was asked");
                        self.call = None;
                        self.kept.push(reply);
                    }
                    Some(Err(_)) => self.call = None,
                    None => {
                        let _ = core.redirected(call);
                        if core.call_end(call).is_some() {
                            self.call = None;
                        }
                    }
                }
            }
            Act::GiveUp => {
                if let Some(call) = self.call.take() {
                    core.give_up(call, true, hands);
                }
            }
            Act::Answer => {
                if let Some(request) = self.kept.last() {
                    let _ = core.reply(request, Message::new(4).inline(b"answer"));
                }
            }
            Act::Relay => {
                if let Some(request) = self.kept.last() {
                    let _ = core.relay(request, self.friend, Message::new(5));
                }
            }
            Act::DropViews => self.kept.clear(),
            Act::Suspect => core.suspect_all(Duration::ZERO),
            Act::Notify => {
                let _ = core.notify(self.index, 5);
            }
            _ => {}
        }
    }

    fn got(&mut self, delivery: Delivery) {
        assert_eq!(delivery.source(), PEER, "nobody else has said anything");
        assert!(delivery.inline().len() <= abi::limits::INLINE_BYTES_MAX);
        if let Some(view) = delivery.view() {
            assert!(view.len() <= PEER_BYTES, "no more than there is");
            std::hint::black_box(view.to_vec());
        }
        self.kept.push(delivery);
    }
}
