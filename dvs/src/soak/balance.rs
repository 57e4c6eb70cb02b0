//! The books of all who live, laid side by side: what was accepted has been delivered, once and in order.
//!
//! Key types: [`Balance`], [`Books`]. Pure. Neighbour: `workers::soak`, who keeps a book.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::workers::soak::Book;

const NAMED_MAX: usize = 20;

/// By endpoint.
pub type Books = BTreeMap<String, Book>;

/// Of all messages between two who both live.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Balance {
    pub accepted: u64,
    pub delivered: u64,
    /// Accepted and not delivered yet. At rest: lost.
    pub under_way: u64,
    /// Delivered, and nobody had them accepted.
    pub doubled: u64,
    /// Twice, or after a later one, as the receiver saw it.
    pub out_of_turn: u64,
    pub damaged: u64,
    /// Their senders do not know whether they were delivered.
    pub unsure: u64,
    /// Loans that have not come home. At rest only.
    pub loans: u64,
    /// The first of what is wrong, at rest.
    pub named: Vec<String>,
}

impl Balance {
    /// `came`: asked for before `sent` was, so that nothing has come that is not in the senders' books.
    pub fn of(came: &Books, sent: &Books) -> Balance {
        let mut balance = Balance::default();
        for (sender, book) in sent {
            for (receiver, out) in &book.sent {
                let Some(receiver) = came.get(receiver) else { continue };
                let taken = receiver.came.get(sender).copied().unwrap_or_default();
                balance.accepted += out.accepted;
                balance.unsure += out.unsure;
                balance.delivered += taken.taken;
                balance.under_way += out.accepted.saturating_sub(taken.taken);
                balance.doubled += taken.taken.saturating_sub(out.accepted + out.unsure);
            }
        }
        for book in came.values() {
            balance.out_of_turn += book.came.values().map(|came| came.out_of_turn).sum::<u64>();
            balance.damaged += book.came.values().map(|came| came.damaged).sum::<u64>();
            balance.loans += book.loans;
        }
        balance
    }

    /// At rest, from the lists of numbers: what was accepted and did not come, and what was refused and came.
    pub fn of_numbers(books: &Books) -> Balance {
        let mut balance = Balance::of(books, books);
        (balance.under_way, balance.doubled) = (0, 0);
        for (sender, book) in books {
            for (receiver, out) in &book.sent {
                let Some(theirs) = books.get(receiver) else { continue };
                let numbers = |of: &BTreeMap<String, Vec<u64>>, who: &String| -> BTreeSet<u64> {
                    of.get(who).into_iter().flatten().copied().collect()
                };
                let refused: BTreeMap<u64, &str> = book
                    .refused_numbers
                    .get(receiver)
                    .into_iter()
                    .flatten()
                    .map(|(number, why)| (*number, why.as_str()))
                    .collect();
                let unsure = numbers(&book.unsure_numbers, receiver);
                let missed = numbers(&theirs.missed, sender);
                let last = theirs.came.get(sender).copied().unwrap_or_default().number;
                let accepted = |n: &u64| !refused.contains_key(n) && !unsure.contains(n);
                for number in missed.iter().copied().chain(last + 1..=out.number).filter(accepted) {
                    balance.under_way += 1;
                    balance.name(format!("{number} of {sender} to {receiver} was accepted and did not come"));
                }
                for (number, why) in refused.iter().filter(|(n, _)| **n <= last && !missed.contains(n)) {
                    balance.doubled += 1;
                    balance.name(format!("{number} of {sender} to {receiver} came, and was refused: {why}"));
                }
            }
        }
        balance
    }

    fn name(&mut self, what: String) {
        if self.named.len() < NAMED_MAX {
            self.named.push(what);
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_sound(&self) -> bool {
        self.doubled == 0 && self.out_of_turn == 0 && self.damaged == 0
    }

    /// At rest: whether everything has come, and everything lent is home.
    pub fn is_settled(&self) -> bool {
        self.is_sound() && self.under_way == 0 && self.loans == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::soak::{Came, Sent};

    #[test]
    fn each_number_is_accounted_for_at_rest() {
        let at_rest = |missed: &[u64], last: u64| {
            let mut books = books(8, 1, 8);
            let a = books.get_mut("a").unwrap();
            a.sent.insert("b".into(), Sent { number: 10, accepted: 8, unsure: 1 });
            a.refused_numbers.insert("b".into(), vec![(3, "Full".into())]);
            a.unsure_numbers.insert("b".into(), vec![5]);
            let b = books.get_mut("b").unwrap();
            b.missed.insert("a".into(), missed.to_vec());
            b.came.insert("a".into(), Came { number: last, taken: 8, ..Came::default() });
            Balance::of_numbers(&books)
        };
        assert!(at_rest(&[3, 5], 10).is_settled());
        assert!(at_rest(&[3], 10).is_settled());
        assert_eq!(at_rest(&[3, 4], 10).under_way, 1);
        assert_eq!(at_rest(&[3], 9).under_way, 1);
        assert_eq!(at_rest(&[], 10).named, ["3 of a to b came, and was refused: Full"]);
    }

    fn books(accepted: u64, unsure: u64, taken: u64) -> Books {
        let mut a = Book::default();
        a.sent.insert("b".into(), Sent { number: 99, accepted, unsure });
        a.sent.insert("of one who died".into(), Sent { number: 7, accepted: 7, unsure: 0 });
        let mut b = Book::default();
        b.came.insert("a".into(), Came { number: 99, taken, ..Came::default() });
        b.came.insert("who died".into(), Came { number: 5, taken: 5, ..Came::default() });
        [("a".to_owned(), a), ("b".to_owned(), b)].into()
    }

    fn balance(accepted: u64, unsure: u64, taken: u64) -> Balance {
        let books = books(accepted, unsure, taken);
        Balance::of(&books, &books)
    }

    #[test]
    fn what_was_accepted_and_came_is_settled_and_the_dead_do_not_count() {
        let whole = balance(10, 0, 10);
        assert!(whole.is_settled());
        assert_eq!((whole.accepted, whole.delivered), (10, 10));
    }

    #[test]
    fn one_too_few_is_under_way_and_one_too_many_is_doubled() {
        assert_eq!(balance(10, 0, 9).under_way, 1);
        assert!(balance(10, 0, 9).is_sound() && !balance(10, 0, 9).is_settled());
        assert_eq!(balance(10, 0, 11).doubled, 1);
        assert!(!balance(10, 0, 11).is_sound());
    }

    #[test]
    fn what_nobody_is_sure_of_may_have_come_or_not() {
        assert!(balance(10, 2, 10).is_settled());
        assert!(balance(10, 2, 12).is_settled());
        assert_eq!(balance(10, 2, 13).doubled, 1);
    }

    #[test]
    fn damage_and_what_is_out_of_turn_are_never_sound() {
        let mut books = books(1, 0, 1);
        books.get_mut("b").unwrap().came.get_mut("a").unwrap().damaged = 1;
        assert!(!Balance::of(&books, &books).is_sound());
        let came = books.get_mut("b").unwrap().came.get_mut("a").unwrap();
        (came.damaged, came.out_of_turn) = (0, 1);
        assert!(!Balance::of(&books, &books).is_sound());
    }
}
