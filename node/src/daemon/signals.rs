//! SIGTERM and SIGINT, turned into the ring of an eventfd.

use std::sync::Arc;
use std::thread::JoinHandle;

use shm::os::events::EventFd;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::NodeError;

/// While this lives, the signals ring; afterwards they do nothing.
pub(crate) struct EndSignals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

pub(crate) fn ring_on_end(stop: Arc<EventFd>) -> Result<EndSignals, NodeError> {
    let here = std::path::Path::new("this process");
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(NodeError::file("handle the signals of", here))?;
    let handle = signals.handle();
    let wait = move || {
        for signal in signals.forever() {
            tracing::info!(signal, "told to stop");
            // An eventfd of our own can always be rung.
            let _ = stop.ring();
        }
    };
    let thread = std::thread::Builder::new().name("dvs-signals".into()).spawn(wait);
    let thread = thread.map_err(NodeError::file("start a thread in", here))?;
    Ok(EndSignals { handle, thread: Some(thread) })
}

impl Drop for EndSignals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It ends by itself once its handle is closed.
            let _ = thread.join();
        }
    }
}
