//! One who binds, answers once and unbinds, again and again, and one who looks for whoever is bound there.

use std::time::{Duration, Instant};

use abi::{Endpoint, Slot};
use dvk::{BindOptions, Binding, Message, SendrecError, Timeout, Wait, WaitError};

use super::talk::{MEAL_BYTES, now_ms};
use super::{Life, Orders, report};

const MESSAGE: u32 = 5;
/// For the one who looks to come.
const STAYS: Duration = Duration::from_millis(300);
const GLANCE: Timeout = Timeout::After(Duration::from_millis(20));
const LOOKS: Timeout = Timeout::After(Duration::from_millis(200));
/// The slowest call of one who is there or not.
const AFTER: Timeout = Timeout::After(Duration::from_secs(20));
const PAUSE: Duration = Duration::from_millis(20);

/// Binds, answers one request, unbinds, until it is told to stop. Reports each binding and each failure.
pub fn bind_again(orders: &Orders, socket: &str, dc: &str, slot: Slot) {
    orders.next();
    let options = BindOptions::new(socket, dc).slot(slot).wait(Wait::Block);
    let mut slowest = Duration::ZERO;
    let mut meal: Vec<u8> = Vec::new();
    loop {
        match orders.look().as_deref() {
            // More than its memory group has.
            Some("eat") => {
                meal.resize(MEAL_BYTES, 1);
                std::hint::black_box(&meal);
            }
            Some(_) => break,
            None => {}
        }
        let began = Instant::now();
        match Binding::bind(&options) {
            Ok(mut me) => {
                slowest = slowest.max(began.elapsed());
                report(format_args!("bound {}", me.whoami()));
                answer_once(&mut me);
                if let Err(why) = me.unbind() {
                    report(format_args!("saw {} unbind: {why:?}", now_ms()));
                }
            }
            Err(why) => {
                report(format_args!("saw {} {why:?}", now_ms()));
                std::thread::sleep(PAUSE);
            }
        }
    }
    report(format_args!("slowest {}", slowest.as_millis()));
    orders.next();
}

fn answer_once(me: &mut Binding) {
    let until = Instant::now() + STAYS;
    while Instant::now() < until {
        if let Ok(request) = me.receive_request(GLANCE) {
            let own = me.whoami().to_word().to_le_bytes();
            // A client that has given up waits no more.
            let _ = me.reply(&request, Message::new(MESSAGE).inline(&own));
            return;
        }
    }
}

/// Calls whoever is bound in a slot, over and over, until it is told to stop. Reports each who answered.
pub fn look(life: Life, slot: Slot) {
    let Life { mut me, orders } = life;
    let mut last: Option<Endpoint> = None;
    while !orders.is_there() {
        let found = match me.wait_bind(slot, LOOKS) {
            Ok(found) => found,
            Err(WaitError::TimedOut) => continue,
            Err(why) => {
                report(format_args!("wrong: wait_bind: {why:?}"));
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        if last == Some(found) {
            // It answers once.
            std::thread::sleep(PAUSE);
            continue;
        }
        match me.sendrec(found, Message::new(MESSAGE), AFTER) {
            Ok(reply) => {
                assert_eq!(reply.inline(), found.to_word().to_le_bytes(), "who was called has answered");
                report(format_args!("met {found}"));
                last = Some(found);
            }
            // It went before it took the request, or with it.
            Err(
                SendrecError::DeadDestination
                | SendrecError::DeadSource
                | SendrecError::Abandoned
                | SendrecError::DeliveryUnknown,
            ) => {}
            Err(why) => report(format_args!("wrong: sendrec: {why:?}")),
        }
    }
    report("looked");
    orders.next();
}
