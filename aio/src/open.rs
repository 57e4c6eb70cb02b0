//! Calls that are open while their future lives. Dropped, they are given up.

use dvk::{Binding, Calling, Delivery, SendError, Sending, SendrecError};

use crate::Inner;

pub(crate) struct OpenSend<'a> {
    pub inner: &'a Inner,
    pub sending: Option<Sending>,
}

impl OpenSend<'_> {
    pub(crate) fn poll(&mut self, binding: &mut Binding) -> Option<Result<(), SendError>> {
        let ended = binding.poll_send(self.sending.as_ref()?)?;
        self.sending = None;
        Some(ended)
    }
}

impl Drop for OpenSend<'_> {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take() {
            // Nobody is left to hear whether it had been taken.
            let _ = self.inner.binding.borrow_mut().end_send(sending);
        }
    }
}

pub(crate) struct OpenCall<'a> {
    pub inner: &'a Inner,
    pub calling: Option<Calling>,
}

impl OpenCall<'_> {
    pub(crate) fn poll(&mut self, binding: &mut Binding) -> Option<Result<Delivery, SendrecError>> {
        let ended = binding.poll_call(self.calling.as_mut()?)?;
        self.calling = None;
        // Another task may wait to call the same server.
        self.inner.crowd.wake_all();
        Some(ended)
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        if let Some(calling) = self.calling.take() {
            // Nobody is left to hear what became of it.
            let _ = self.inner.binding.borrow_mut().end_call(calling);
            self.inner.crowd.wake_all();
        }
    }
}
