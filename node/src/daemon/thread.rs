//! A daemon in a thread, for tests: everything it made is gone when it has stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use shm::os::events::EventFd;

use super::run::{House, RunOptions};
use crate::NodeError;
use crate::place::NodePlace;

/// A running daemon. Dropped, it stops.
pub struct Daemon {
    place: NodePlace,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Result<(), NodeError>>>,
}

impl Daemon {
    /// Starts a daemon in a thread of this process; on return its sockets are there. No limit and no process-wide
    /// setting is changed.
    pub fn in_thread(options: RunOptions) -> Result<Daemon, NodeError> {
        let stop = Arc::new(EventFd::new().map_err(NodeError::system("an eventfd"))?);
        let mut house = House::build(options, Arc::clone(&stop))?;
        let place = house.place.clone();
        let live = move || {
            let result = house.live();
            house.leave(false);
            result
        };
        let thread = std::thread::Builder::new().name("dvs-daemon".into()).spawn(live);
        let thread = thread.map_err(NodeError::file("start a thread for", &place.node))?;
        Ok(Daemon { place, stop, thread: Some(thread) })
    }

    pub fn member_socket(&self) -> PathBuf {
        self.place.member_socket()
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.place.admin_socket()
    }

    /// Its files.
    pub fn place(&self) -> &NodePlace {
        &self.place
    }

    /// Stops it and waits for its end.
    ///
    /// # Panics
    /// If the daemon's thread did.
    pub fn stop(mut self) -> Result<(), NodeError> {
        match self.finish() {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Option<std::thread::Result<Result<(), NodeError>>> {
        let thread = self.thread.take()?;
        // An eventfd of our own can always be rung.
        let _ = self.stop.ring();
        Some(thread.join())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that fails has its own words to say.
        let _ = self.finish();
    }
}
