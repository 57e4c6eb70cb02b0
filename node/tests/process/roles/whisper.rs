//! Roles of secrets: one tells, others hear. What each has mapped is searched from outside.

use abi::Slot;
use dvk::{From, Message, Timeout};

use super::{AFTER, Life, find, report};

/// What is told under a number: found nowhere by chance, and in nobody's memory before it is told.
pub fn secret(number: u8) -> Vec<u8> {
    (0..48u32).map(|at| (at + 1).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ number).collect()
}

/// Each order is a slot and a number: tells that one that secret, inline and in extents; without words it looks after its
/// pairs.
pub fn tell(life: Life) {
    let Life { mut me, orders } = life;
    loop {
        let order = orders.next();
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            [slot, number] => {
                let to = find(&mut me, Slot(slot.parse().expect("a slot")));
                let secret = secret(number.parse().expect("a number"));
                me.send(to, Message::new(0).inline(&secret), AFTER).expect("taken");
                for times in [1, 2000] {
                    let mut loan = me.loan(secret.len() * times).expect("a buffer");
                    loan.copy_from_slice(&secret.repeat(times));
                    me.send(to, Message::new(0).with(loan), AFTER).expect("taken");
                }
                report("told");
            }
            ["look"] => {
                let looked = me.receive(From::Any, Timeout::After(std::time::Duration::from_millis(20)));
                assert!(looked.is_err(), "nobody speaks to it");
                report("looked");
            }
            _ => return,
        }
    }
}

/// Takes what comes, each extent copied out, until an order comes.
pub fn hear(life: Life) {
    let Life { mut me, orders } = life;
    while !orders.is_there() {
        if let Ok(got) = me.receive(From::Any, Timeout::After(std::time::Duration::from_millis(20)))
            && let Some(view) = got.view()
        {
            assert!(!view.to_vec().is_empty());
        }
    }
}
