//! What a daemon's successor does: the same request is not done twice, and what was asked for and not answered is asked for
//! again.

use super::*;

fn numbered(world: &mut World, conn: ConnId, number: u64, request: Request) -> Vec<Effect> {
    world.done.clear();
    world.step(Input::Asked { conn, number, request: Some(request), fresh: [1, 2] });
    std::mem::take(&mut world.done)
}

fn answers(effects: &[Effect]) -> Vec<Reply> {
    let reply = |effect: &Effect| match effect {
        Effect::Reply { reply, .. } => Some(*reply),
        _ => None,
    };
    effects.iter().filter_map(reply).collect()
}

/// A killed daemon's successor, as far as the core goes.
fn succeed(world: &mut World, lost: Vec<u32>) {
    world.core = Core::from_bytes(&world.core.to_bytes()).expect("its own bytes");
    world.done.clear();
    world.step(Input::Succeeded { lost });
}

/// The core alone takes it: the hands were killed before they did anything.
fn unheeded(world: &mut World, input: Input) {
    let mut effects = Vec::new();
    world.core.step(world.now, input, &mut effects);
}

#[test]
fn a_request_that_is_read_again_is_answered_as_before_and_not_done_again() {
    let mut world = World::up(None);
    let (conn, _) = world.bind(None);
    let more = Request::NewSegment { kind: SegmentKind::Pool, len_bytes: 4096 };
    let first = answers(&numbered(&mut world, conn, 7, more));
    let again = numbered(&mut world, conn, 7, more);
    assert_eq!(answers(&again), first);
    assert!(!again.iter().any(|effect| matches!(effect, Effect::MakeSegment { .. })));
    let next = answers(&numbered(&mut world, conn, 8, more));
    assert_ne!(next, first, "another request makes another segment");
}

#[test]
fn requests_without_a_number_are_each_done() {
    let mut world = World::up(None);
    let (conn, _) = world.bind(None);
    let more = Request::NewSegment { kind: SegmentKind::Pool, len_bytes: 4096 };
    assert_ne!(answers(&numbered(&mut world, conn, 0, more)), answers(&numbered(&mut world, conn, 0, more)));
}

#[test]
fn a_state_survives_its_bytes_and_bytes_that_are_cut_are_none() {
    let mut world = World::up(Some(5));
    let (a, _) = world.bind(None);
    let (_, at_b) = world.bind(None);
    world.ask(a, Request::Introduce { to: at_b });
    let bytes = world.core.to_bytes();
    assert_eq!(Core::from_bytes(&bytes).expect("its own bytes").to_bytes(), bytes);
    assert!(Core::from_bytes(&bytes[..bytes.len() - 1]).is_none());
}

#[test]
fn a_bind_that_was_under_way_is_finished_and_answered() {
    let mut world = World::up(None);
    let conn = world.hello(5);
    let bind = Request::Bind { slot: Some(Slot(3)), name: Name::NONE, private: false };
    unheeded(&mut world, Input::Asked { conn, number: 1, request: Some(bind), fresh: [1, 2] });
    succeed(&mut world, Vec::new());
    assert!(matches!(answers(&world.done)[..], [Reply::Bound { .. }]), "{:?}", world.done);
    unheeded(&mut world, Input::Asked { conn, number: 2, request: Some(Request::Ready), fresh: [1, 2] });
    succeed(&mut world, Vec::new());
    assert_eq!(answers(&world.done), [Reply::Done]);
    assert_eq!(world.state(3), State::Bound);
    assert_eq!(world.core.successions(), 2);
}

#[test]
fn endpoints_stay_bound_and_proxies_begin_anew_at_once() {
    let mut world = World::up(Some(5));
    let (conn, at) = world.bind(Some(4));
    let incarnation = world.core.incarnation();
    succeed(&mut world, Vec::new());
    assert_eq!((world.state(4), world.core.incarnation()), (State::Bound, incarnation));
    assert!(world.done.contains(&Effect::StartProxy { proxy: 1, incarnation }));
    assert_eq!(world.ask(conn, Request::Pull), Reply::Nothing);
    assert!(world.core.locals.contains_key(&at));
}

#[test]
fn whose_memory_is_not_as_it_was_has_ended_and_nobody_else() {
    let mut world = World::up(None);
    let (_, lost) = world.bind(Some(4));
    world.bind(Some(5));
    let memory = world.core.locals[&lost].memory;
    succeed(&mut world, vec![memory]);
    assert_eq!((world.state(4), world.state(5)), (State::Dead, State::Bound));
}

#[test]
fn a_process_that_was_bound_by_another_is_found_again_or_has_ended() {
    let mut world = World::up(None);
    let conn = world.hello(5);
    let ask = Request::BindOther { pid: 77, slot: Some(Slot(6)), name: Name::NONE, private: false };
    world.step(Input::Asked { conn, number: 0, request: Some(ask), fresh: [1, 2] });
    let process = Process { pid: 77, uid: 5, start_time: 9 };
    world.step(Input::ProcessOpened { ticket: 1, process: Some(process) });
    assert_eq!(world.state(6), State::Bound);
    succeed(&mut world, Vec::new());
    assert!(world.done.contains(&Effect::OpenProcess { ticket: 1, pid: 77 }));
    world.step(Input::ProcessOpened { ticket: 1, process: Some(process) });
    assert_eq!(world.state(6), State::Bound);
    succeed(&mut world, Vec::new());
    // Another process has its number by now.
    world.step(Input::ProcessOpened { ticket: 1, process: Some(Process { start_time: 10, ..process }) });
    assert_eq!(world.state(6), State::Dead);
}
