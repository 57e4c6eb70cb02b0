//! Who waits for one binding: many tasks, woken together by its one descriptor.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The wakers of tasks that have looked and found nothing.
#[derive(Default)]
pub(crate) struct Crowd(Mutex<Vec<Waker>>);

impl Crowd {
    /// Takes a task in, once.
    pub(crate) fn enter(&self, waker: &Waker) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|known| known.will_wake(waker)) {
            all.push(waker.clone());
        }
    }

    /// Wakes them all; who finds nothing enters again.
    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in all {
            waker.wake();
        }
    }
}

impl Wake for Crowd {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}
