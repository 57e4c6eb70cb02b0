//! A proxy's memory: what of it is sealed when is told, and carries pairs from then on.

use super::*;

#[test]
fn a_proxy_hears_that_a_segment_is_sealed_before_pairs_stand_in_it_and_not_before_it_has_a_pool() {
    let mut world = World::up(Some(50));
    let remote = far(16, 1);
    world.directory(50, ChunkKind::Delta, &[(remote, true)]);
    let (a, own) = world.bind(None);
    assert!(matches!(world.ask(a, Request::Introduce { to: remote }), Reply::Introduced(_)));
    world.done.clear();
    world.obeys = false;
    world.step(Input::ProxyExited { proxy: 1 });
    world.step(Input::Tick);
    let given: Vec<_> = world
        .told_proxy()
        .into_iter()
        .filter_map(|m| match m {
            ToProxy::Segment { memory, index, kind, .. } => Some((memory, index, kind)),
            _ => None,
        })
        .collect();
    let [(memory, sides, SegmentKind::Sides), (_, pool, SegmentKind::Pool)] = given[..] else {
        panic!("its first two: {given:?}")
    };
    world.done.clear();
    world.said(FromProxy::Mapped { memory, index: sides });
    assert_eq!(world.told_proxy(), [ToProxy::Sealed { memory, index: sides }], "no side before a pool");
    world.done.clear();
    world.said(FromProxy::Mapped { memory, index: pool });
    let told = world.told_proxy();
    let attached = |m: &ToProxy| matches!(m, ToProxy::Attach { attach } if attach.local == own);
    assert_eq!(told.first(), Some(&ToProxy::Sealed { memory, index: pool }));
    assert!(told.iter().any(attached), "{told:?}");
}
