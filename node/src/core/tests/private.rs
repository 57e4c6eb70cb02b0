//! Private endpoints: whose each segment is, and that it goes with its pair.

use abi::limits::{POOL_BYTES_FIRST, SIDES_PRIVATE_FIRST};

use super::*;

impl World {
    fn bind_private(&mut self, slot: u16) -> (ConnId, Endpoint) {
        let conn = self.hello(5);
        let bind = Request::Bind { slot: Some(Slot(slot)), name: Name::NONE, private: true };
        let reply = self.ask(conn, bind);
        let Reply::Bound { endpoint, sides, private: true, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(sides, SIDES_PRIVATE_FIRST);
        assert_eq!(self.ask(conn, Request::Ready), Reply::Done);
        (conn, endpoint)
    }

    /// A pool segment of a private endpoint for one peer.
    fn pool_for(&mut self, conn: ConnId, peer: Endpoint) -> u32 {
        let reply = self.ask(conn, Request::PairSegment { peer, len_bytes: POOL_BYTES_FIRST });
        let Reply::Segment { index, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(self.ask(conn, Request::Ready), Reply::Done);
        index
    }

    /// As a member does: asked again when it is not ready, for a proxy's memory is made for the first pair.
    fn introduce(&mut self, conn: ConnId, to: Endpoint) -> abi::member::Introduction {
        let mut answer = self.ask(conn, Request::Introduce { to });
        if answer == Reply::Refused(Refusal::NotReady) {
            let told = std::mem::take(&mut self.done);
            answer = self.ask(conn, Request::Introduce { to });
            self.done.splice(..0, told);
        }
        match answer {
            Reply::Introduced(introduction) => introduction,
            other => panic!("not introduced: {other:?}"),
        }
    }

    fn map(&mut self, conn: ConnId, memory: u32, segment: u32) -> Result<(), Refusal> {
        match self.ask(conn, Request::MapSegment { memory, segment }) {
            Reply::Segment { .. } => Ok(()),
            Reply::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    fn segments(&self, endpoint: Endpoint) -> Vec<u32> {
        let memory = self.core.locals[&endpoint].memory;
        self.core.memories[&memory].segments.keys().copied().collect()
    }

    fn private_remote(&mut self, remote: Endpoint, private: bool) {
        let entry = DirectoryEntry { endpoint: remote, bound: true, name: Name::NONE, uid: 5, private };
        let chunk = Chunk { kind: ChunkKind::Delta, version: 1, entries: vec![entry] };
        let message = FromProxy::Directory { node: FAR, incarnation: Incarnation(50) };
        self.step(Input::ProxySaid { proxy: 1, message: Some(message), tail: chunk.to_bytes() });
    }

    fn attached(&self, remote: Endpoint) -> abi::courier::Attach {
        let told = self.told_proxy();
        let attach = told.into_iter().find_map(|m| match m {
            ToProxy::Attach { attach } if attach.remote == remote => Some(attach),
            _ => None,
        });
        attach.expect("the proxy carries it")
    }
}

#[test]
fn a_segment_of_a_private_endpoint_goes_to_its_peer_alone() {
    let mut world = World::up(None);
    let (a, own) = world.bind_private(0);
    let (b, one) = world.bind(Some(1));
    let (c, other) = world.bind(Some(2));
    let (of_one, of_other) = (world.introduce(b, own), world.introduce(c, own));
    assert_ne!(of_one.segment, of_other.segment, "a segment of sides for each");
    assert_eq!((of_one.side, of_other.side), (0, 0));
    let pool = world.pool_for(a, one);
    let memory = of_one.memory;
    assert_eq!(world.map(b, memory, pool), Ok(()));
    assert_eq!(world.map(b, memory, of_one.segment), Ok(()));
    assert_eq!(world.map(c, memory, pool), Err(Refusal::Private));
    assert_eq!(world.map(c, memory, of_one.segment), Err(Refusal::Private));
    // The pool that it had from the beginning is for nobody.
    for conn in [b, c] {
        assert_eq!(world.map(conn, memory, SIDES_PRIVATE_FIRST), Err(Refusal::Private));
    }
    let pair = |peer| Request::PairSegment { peer, len_bytes: POOL_BYTES_FIRST };
    assert_eq!(world.ask(a, pair(far(16, 1))), Reply::Refused(Refusal::NoSuchEndpoint), "no pair");
    assert_eq!(world.ask(b, pair(other)), Reply::Refused(Refusal::BadRequest), "not private");
}

#[test]
fn a_private_granters_table_is_read_by_grantees_alone() {
    let mut world = World::up(None);
    let (a, own) = world.bind_private(0);
    let (b, one) = world.bind(Some(1));
    let (c, _) = world.bind(Some(2));
    let memory = world.introduce(b, own).memory;
    world.introduce(c, own);
    let segment = |world: &mut World, kind, len_bytes| {
        let Reply::Segment { index, .. } = world.ask(a, Request::NewSegment { kind, len_bytes }) else {
            panic!("no segment")
        };
        assert_eq!(world.ask(a, Request::Ready), Reply::Done);
        index
    };
    let table = segment(&mut world, SegmentKind::Grants, abi::grant::TABLE_BYTES as u64);
    let granted = segment(&mut world, SegmentKind::GrantRead, 4096);
    assert_eq!(world.map(b, memory, table), Err(Refusal::Private));
    assert_eq!(world.map(b, memory, granted), Err(Refusal::NotAllowed));
    assert_eq!(world.ask(a, Request::Grant { segment: granted, to: one }), Reply::Done);
    assert_eq!((world.map(b, memory, table), world.map(b, memory, granted)), (Ok(()), Ok(())));
    assert_eq!(world.map(c, memory, table), Err(Refusal::Private));
    assert_eq!(world.map(c, memory, granted), Err(Refusal::NotAllowed));
}

#[test]
fn what_a_pair_had_goes_with_it_and_is_nobodys_next() {
    let mut world = World::up(None);
    let (a, own) = world.bind_private(0);
    let before = world.segments(own);
    let (b, one) = world.bind(Some(1));
    let given = world.introduce(b, own);
    assert!(matches!(world.ask(a, Request::Pull), Reply::Introduced(_)));
    let pool = world.pool_for(a, one);
    world.step(Input::Disconnected { conn: b });
    world.done.clear();
    assert_eq!(world.ask(a, Request::Recycled { peer: one }), Reply::Done);
    for segment in [pool, given.segment] {
        assert!(world.done.contains(&Effect::DropSegment { memory: given.memory, segment }));
        assert!(!world.segments(own).contains(&segment));
    }
    assert_eq!(world.segments(own).len(), before.len() - 1, "its side, which is made anew");
    let (c, _) = world.bind(Some(1));
    assert!(world.introduce(c, own).segment != given.segment);
}

#[test]
fn a_side_of_a_peer_that_was_never_told_of_is_let_go() {
    let mut world = World::up(None);
    let (a, own) = world.bind_private(0);
    let (b, _) = world.bind(Some(1));
    let given = world.introduce(b, own);
    world.step(Input::Disconnected { conn: b });
    world.until(ms(ORPHAN_KEEP_MS));
    assert_eq!(world.ask(a, Request::Pull), Reply::Spent { segment: given.segment });
    assert_eq!(world.ask(a, Request::Pull), Reply::Nothing);
    assert!(!world.segments(own).contains(&given.segment));
}

#[test]
fn a_proxy_speaks_to_a_private_endpoint_where_it_alone_may_read() {
    let mut world = World::up(Some(50));
    let (remote, open) = (far(16, 1), far(17, 1));
    world.private_remote(remote, false);
    world.private_remote(open, false);
    let (a, own) = world.bind_private(0);
    let (b, everybodys) = world.bind(Some(1));
    world.done.clear();
    let pair = world.introduce(a, remote);
    let of_dc = world.introduce(b, open);
    assert_ne!(pair.memory, of_dc.memory);
    assert_eq!(world.core.memories[&pair.memory].owner, Owner::Proxy { proxy: 1, dc: DC, only: Some(own) });
    assert_eq!(world.map(a, pair.memory, 1), Ok(()));
    assert_eq!(world.map(b, pair.memory, 1), Err(Refusal::Private));
    assert_eq!(world.map(b, of_dc.memory, 1), Ok(()));
    assert_eq!(world.map(a, of_dc.memory, 1), Err(Refusal::NoSuchEndpoint));
    // What the endpoint has for a peer elsewhere the proxy may map, what it has for one here it may not.
    let attach = {
        world.done.clear();
        world.step(Input::ProxyExited { proxy: 1 });
        world.step(Input::Tick);
        world.attached(remote)
    };
    assert_eq!(attach.own_memory, world.core.proxies[&1].private[&own]);
    let here = world.introduce(a, everybodys);
    let (to_far, to_near) = (world.pool_for(a, remote), world.pool_for(a, everybodys));
    let want = |world: &mut World, segment| {
        world.done.clear();
        world.said(FromProxy::WantSegment { memory: attach.memory, segment });
        world.told_proxy()
    };
    assert!(matches!(want(&mut world, to_far)[..], [ToProxy::PeerSegment { .. }]));
    let memory = attach.memory;
    assert_eq!(want(&mut world, to_near), [ToProxy::ForgetSegment { memory, segment: to_near }]);
    let what = "wants what a private endpoint has for another peer";
    assert!(world.done.contains(&Effect::Note(Note::ProxyWrong { proxy: 1, what })));
    assert!(here.memory != memory, "the other's own");
}

#[test]
fn a_private_far_end_is_heard_where_its_peer_alone_may_read() {
    let mut world = World::up(Some(50));
    let (known, unheard_of) = (far(16, 1), far(17, 1));
    world.private_remote(known, true);
    let (a, own) = world.bind(Some(0));
    let pair = world.introduce(a, known);
    assert_eq!(world.core.memories[&pair.memory].owner, Owner::Proxy { proxy: 1, dc: DC, only: Some(own) });
    // Nobody has said yet what this one is.
    world.done.clear();
    world.said(FromProxy::RemoteOpen { local: own, remote: unheard_of, node: FAR });
    assert_eq!(world.attached(unheard_of).own_memory, pair.memory);
}

#[test]
fn a_proxys_memory_for_a_private_endpoint_goes_with_its_last_pair() {
    let mut world = World::up(Some(50));
    let remotes = [far(16, 1), far(17, 1)];
    for remote in remotes {
        world.private_remote(remote, false);
    }
    let before = world.core.memories.len();
    let (a, own) = world.bind_private(0);
    let memory = remotes.map(|remote| world.introduce(a, remote).memory)[0];
    let pools = remotes.map(|remote| world.pool_for(a, remote));
    for (n, remote) in remotes.into_iter().enumerate() {
        world.done.clear();
        assert_eq!(world.ask(a, Request::Recycled { peer: remote }), Reply::Done);
        let own_memory = world.core.locals[&own].memory;
        assert!(
            world.told_proxy().contains(&ToProxy::ForgetSegment { memory: own_memory, segment: pools[n] })
        );
        let gone = world.told_proxy().contains(&ToProxy::ForgetMemory { memory });
        assert_eq!((gone, world.memories.contains(&memory)), (n == 1, n == 0));
    }
    world.private_remote(far(18, 1), false);
    world.introduce(a, far(18, 1));
    world.step(Input::Disconnected { conn: a });
    world.until(ms(ORPHAN_KEEP_MS));
    assert_eq!(world.core.memories.len(), before, "of an endpoint that ended without a word, too");
    assert!(world.core.proxies[&1].private.is_empty());
}

#[test]
fn no_memory_for_a_private_pair_does_not_end_the_proxy() {
    let mut world = World::up(Some(50));
    let remote = far(16, 1);
    world.private_remote(remote, false);
    let (a, _) = world.bind_private(0);
    world.no_memory = true;
    assert_eq!(world.ask(a, Request::Introduce { to: remote }), Reply::Refused(Refusal::NotReady));
    assert!(!world.done.contains(&Effect::KillProxy { proxy: 1 }));
    world.no_memory = false;
    world.introduce(a, remote);
}
