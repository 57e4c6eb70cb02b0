//! Who is at the other end of a connection: challenge and response both ways, without a socket.
//!
//! Key type: [`Handshake`]. The opener says `Hello` with a nonce; the acceptor answers `Welcome` with its own nonce and a
//! MAC; the opener checks it and sends `Proof`, its own MAC; the acceptor checks that and says `Ready`. The MAC is keyed
//! BLAKE3 over a domain, the role, the verdict, the wire version and both ends' node ids, incarnations, nonces and offers,
//! under the cluster key. It proves who is there, once; it does not guard the bytes that follow. Neighbour: `half` runs it.
//! Source: ISO/IEC 9798-4 (mutual authentication by keyed check function, three passes).

use abi::courier::LinkState;
use abi::wire::{HEADER_BYTES, Header, HeaderError, Kind, Refused, VERSION};
use abi::{Incarnation, NodeId};

/// What makes a challenge fresh.
pub type Nonce = [u8; 32];

const DOMAIN: &[u8] = b"dvs tcp handshake";
/// Node, expected node, incarnation, nonce.
const HELLO_BYTES: usize = 40;
/// Node, zero, incarnation, nonce, MAC.
const WELCOME_BYTES: usize = 72;
const MAC_BYTES: usize = 32;
/// Bytes of any handshake frame with its header, and a little more.
pub const FRAME_BYTES_MAX: usize = 128;

/// What stands under every MAC of a node without a cluster key.
pub const NO_KEY: [u8; 32] = [0; 32];

/// This node, as it presents itself.
#[derive(Clone)]
pub struct Own {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub key: [u8; 32],
    /// What it could do with a session beyond the wire version, by bits; both ends must offer it.
    pub offers: u64,
}

/// What one frame led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// More is to come.
    More,
    /// Both ends have proven themselves.
    Done { peer: NodeId, incarnation: Incarnation, offers: u64 },
    /// Close it. `peer` is who it claims to be, as far as known; `state` what to tell of it, if anything.
    Failed { peer: Option<NodeId>, state: Option<LinkState> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaits {
    Hello,
    Welcome,
    Proof,
    Ready,
}

/// One end of one handshake.
pub struct Handshake {
    stage: Awaits,
    nonce: Nonce,
    peer: Option<NodeId>,
    incarnation: Incarnation,
    their_nonce: Nonce,
    their_offers: u64,
}

/// The lowest incarnation of a node that is talked to; `None`: that node is not talked to this way round.
pub type Floor<'a> = &'a dyn Fn(NodeId) -> Option<Incarnation>;

struct End<'a> {
    node: NodeId,
    incarnation: Incarnation,
    nonce: &'a Nonce,
    offers: u64,
}

fn mac(key: &[u8; 32], role: u8, verdict: u64, opener: &End<'_>, acceptor: &End<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(DOMAIN).update(&[VERSION, role]).update(&verdict.to_le_bytes());
    for end in [opener, acceptor] {
        hasher.update(&end.node.0.to_le_bytes()).update(&end.incarnation.0.to_le_bytes()).update(end.nonce);
    }
    // Nobody between can take an offer out, or put one in.
    if (opener.offers, acceptor.offers) != (0, 0) {
        hasher.update(&opener.offers.to_le_bytes()).update(&acceptor.offers.to_le_bytes());
    }
    hasher.finalize()
}

const OPENER: u8 = 1;
const ACCEPTOR: u8 = 2;

impl Handshake {
    /// Begins one with `peer`: its `Hello` is appended to `out`.
    pub fn open(own: &Own, peer: NodeId, nonce: Nonce, out: &mut Vec<u8>) -> Handshake {
        let mut hello = [0; HELLO_BYTES];
        hello[..2].copy_from_slice(&own.node.0.to_le_bytes());
        hello[2..4].copy_from_slice(&peer.0.to_le_bytes());
        hello[4..8].copy_from_slice(&own.incarnation.0.to_le_bytes());
        hello[8..].copy_from_slice(&nonce);
        say(own, Kind::Hello, own.offers, &hello, out);
        let incarnation = Incarnation(0);
        Handshake {
            stage: Awaits::Welcome,
            nonce,
            peer: Some(peer),
            incarnation,
            their_nonce: [0; 32],
            their_offers: 0,
        }
    }

    /// Waits for one.
    pub fn accept(nonce: Nonce) -> Handshake {
        let incarnation = Incarnation(0);
        Handshake {
            stage: Awaits::Hello,
            nonce,
            peer: None,
            incarnation,
            their_nonce: [0; 32],
            their_offers: 0,
        }
    }

    /// Takes one frame from the front of `bytes`; says how long it was, 0 when it is not complete. What is to be sent is
    /// appended to `out`, also when the step is `Failed`.
    pub fn feed(&mut self, own: &Own, floor: Floor<'_>, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return (0, Step::More) };
        let header = match Header::check(head) {
            Ok(header) => header,
            Err(HeaderError::Version { .. }) => return (HEADER_BYTES, self.other_version(own, head, out)),
            Err(HeaderError::Corrupt(_)) => return (HEADER_BYTES, self.broken()),
        };
        let len = HEADER_BYTES + header.len_bytes as usize;
        if len > FRAME_BYTES_MAX {
            return (HEADER_BYTES, self.broken());
        }
        let Some(payload) = bytes.get(HEADER_BYTES..len) else { return (0, Step::More) };
        let step = match (self.stage, header.kind) {
            (Awaits::Hello, Kind::Hello) => self.on_hello(own, floor, &header, payload, out),
            (Awaits::Welcome, Kind::Welcome) => self.on_welcome(own, floor, &header, payload, out),
            (Awaits::Proof, Kind::Proof) => self.on_proof(own, floor, &header, payload, out),
            (Awaits::Ready, Kind::Ready) => self.done(own),
            (_, Kind::Refused) => self.on_refused(header.arg),
            _ => self.broken(),
        };
        (len, step)
    }

    fn broken(&self) -> Step {
        Step::Failed { peer: self.peer, state: None }
    }

    fn done(&self, own: &Own) -> Step {
        match self.peer {
            Some(peer) => {
                let offers = own.offers & self.their_offers;
                Step::Done { peer, incarnation: self.incarnation, offers }
            }
            None => self.broken(),
        }
    }

    fn refuse(&self, own: &Own, why: Refused, out: &mut Vec<u8>) -> Step {
        say(own, Kind::Refused, why as u64, &[], out);
        Step::Failed { peer: self.peer, state: Some(state_of(why)) }
    }

    /// The header's place for the token holds the sender's node in every version.
    fn other_version(&mut self, own: &Own, head: &[u8; HEADER_BYTES], out: &mut Vec<u8>) -> Step {
        let token = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        match self.stage {
            Awaits::Hello => {
                self.peer = u16::try_from(token).ok().map(NodeId);
                self.refuse(own, Refused::Version, out)
            }
            _ => Step::Failed { peer: self.peer, state: Some(LinkState::WrongVersion) },
        }
    }

    fn on_hello(
        &mut self,
        own: &Own,
        floor: Floor<'_>,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Step {
        let Ok(hello) = <&[u8; HELLO_BYTES]>::try_from(payload) else { return self.broken() };
        let peer = NodeId(u16::from_le_bytes([hello[0], hello[1]]));
        let expected = NodeId(u16::from_le_bytes([hello[2], hello[3]]));
        self.peer = Some(peer);
        self.incarnation = Incarnation(u32::from_le_bytes([hello[4], hello[5], hello[6], hello[7]]));
        self.their_nonce.copy_from_slice(&hello[8..]);
        self.their_offers = header.arg;
        if expected != own.node || floor(peer).is_none() {
            return self.refuse(own, Refused::Node, out);
        }
        let mut welcome = [0; WELCOME_BYTES];
        welcome[..2].copy_from_slice(&own.node.0.to_le_bytes());
        welcome[4..8].copy_from_slice(&own.incarnation.0.to_le_bytes());
        welcome[8..40].copy_from_slice(&self.nonce);
        welcome[40..].copy_from_slice(self.accepted_mac(own, ACCEPTOR, 0).as_bytes());
        say(own, Kind::Welcome, own.offers, &welcome, out);
        self.stage = Awaits::Proof;
        Step::More
    }

    fn own_end<'a>(&'a self, own: &Own) -> End<'a> {
        let (node, incarnation, nonce) = (own.node, own.incarnation, &self.nonce);
        End { node, incarnation, nonce, offers: own.offers }
    }

    /// The MAC of a handshake that the other end opened.
    fn accepted_mac(&self, own: &Own, role: u8, verdict: u64) -> blake3::Hash {
        let node = self.peer.unwrap_or(NodeId(0));
        let (nonce, offers) = (&self.their_nonce, self.their_offers);
        let opener = End { node, incarnation: self.incarnation, nonce, offers };
        let acceptor = self.own_end(own);
        mac(&own.key, role, verdict, &opener, &acceptor)
    }

    fn on_welcome(
        &mut self,
        own: &Own,
        floor: Floor<'_>,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Step {
        let Ok(welcome) = <&[u8; WELCOME_BYTES]>::try_from(payload) else { return self.broken() };
        if welcome[2..4] != [0; 2] {
            return self.broken();
        }
        let node = NodeId(u16::from_le_bytes([welcome[0], welcome[1]]));
        self.incarnation = Incarnation(u32::from_le_bytes([welcome[4], welcome[5], welcome[6], welcome[7]]));
        self.their_nonce.copy_from_slice(&welcome[8..40]);
        self.their_offers = header.arg;
        let opener = self.own_end(own);
        let (nonce, offers) = (&self.their_nonce, self.their_offers);
        let acceptor = End { node, incarnation: self.incarnation, nonce, offers };
        if !is_mac(&welcome[40..], mac(&own.key, ACCEPTOR, 0, &opener, &acceptor)) {
            return self.refuse(own, Refused::Key, out);
        }
        if Some(node) != self.peer {
            return self.refuse(own, Refused::Node, out);
        }
        let fenced = floor(node).is_none_or(|lowest| self.incarnation < lowest);
        let verdict = if fenced { Refused::Fenced as u64 } else { 0 };
        let proof = mac(&own.key, OPENER, verdict, &opener, &acceptor);
        say(own, Kind::Proof, verdict, proof.as_bytes(), out);
        if fenced {
            return self.broken();
        }
        self.stage = Awaits::Ready;
        Step::More
    }

    fn on_proof(
        &mut self,
        own: &Own,
        floor: Floor<'_>,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Step {
        if !is_mac(payload, self.accepted_mac(own, OPENER, header.arg)) {
            return self.refuse(own, Refused::Key, out);
        }
        if header.arg != 0 {
            return Step::Failed { peer: self.peer, state: Some(LinkState::Fenced) };
        }
        if self.peer.and_then(floor).is_none_or(|lowest| self.incarnation < lowest) {
            // It is told, and is not itself a trouble of ours.
            say(own, Kind::Refused, Refused::Fenced as u64, &[], out);
            return self.broken();
        }
        say(own, Kind::Ready, 0, &[], out);
        self.done(own)
    }

    /// Only who has proven that it knows the key is believed that we are declared dead.
    fn on_refused(&self, code: u64) -> Step {
        let state = match Refused::from_word(code) {
            Some(Refused::Fenced) if self.stage != Awaits::Ready => None,
            Some(why) => Some(state_of(why)),
            None => None,
        };
        Step::Failed { peer: self.peer, state }
    }
}

fn state_of(why: Refused) -> LinkState {
    match why {
        Refused::Version => LinkState::WrongVersion,
        Refused::Key => LinkState::WrongKey,
        Refused::Node => LinkState::WrongNode,
        Refused::Fenced => LinkState::Fenced,
    }
}

/// Compares in constant time.
fn is_mac(claim: &[u8], mac: blake3::Hash) -> bool {
    <[u8; MAC_BYTES]>::try_from(claim).is_ok_and(|claim| blake3::Hash::from_bytes(claim) == mac)
}

fn say(own: &Own, kind: Kind, arg: u64, payload: &[u8], out: &mut Vec<u8>) {
    let header = Header { kind, len_bytes: payload.len() as u32, token: own.node.0 as u64, arg };
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
