//! Driver: the calls of a binding as futures, on tokio. A crate of its own, so that whoever does not want a runtime does
//! not build one.
//!
//! Key type: [`Endpoint`], which is not `Send`, as a binding is not: it lives in a `LocalSet`, or under `block_on`, and makes a
//! clone for each task. Neighbours: `dvk::Binding::poll_fd` (what is waited on), its calls in steps (what is looked at).
//!
//! Dropping a future ends its call: a request or message that was not taken is withdrawn; of a request that was, the late
//! reply is dropped and the server told `NotWaiting`; a `receive` hands out what it took at once, so none is lost. Such a drop
//! may look for `limits::WITHDRAW_WAIT_MS` for whether it was taken.
#![forbid(unsafe_code)]

mod crowd;
mod open;

use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use abi::limits::INTRODUCTION_WAIT_MS;
use dvk::{
    Binding, Delivery, From, Message, NotifyError, PostError, ReceiveError, ReplyError, SendError,
    SendrecError, Unavailable,
};
use futures_core::Stream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use crowd::Crowd;
use open::{OpenCall, OpenSend};

/// The pause between two looks at an introduction that is under way.
const INTRODUCTION_PAUSE: Duration = Duration::from_millis(1);

struct Inner {
    binding: RefCell<Binding>,
    fd: AsyncFd<OwnedFd>,
    /// All tasks that wait for something of this binding; the descriptor wakes them together.
    crowd: Arc<Crowd>,
    waker: Waker,
}

/// A bound endpoint whose calls are futures. Clones are the same endpoint. The last one dropped, it is unbound.
#[derive(Clone)]
pub struct Endpoint {
    inner: Rc<Inner>,
}

fn of_meeting(why: NotifyError) -> SendError {
    match why {
        NotifyError::DeadDestination => SendError::DeadDestination,
        NotifyError::NotPermitted => SendError::NotPermitted,
        NotifyError::Unavailable(why) => SendError::Unavailable(why),
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that change their descriptor; an `OwnedFd` keeps it"
)]
fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

impl Endpoint {
    /// Takes a binding over. Within a tokio runtime whose I/O and time are enabled.
    ///
    /// Errors: `NoMemory` when there are no descriptors left.
    pub fn new(mut binding: Binding) -> Result<Endpoint, Unavailable> {
        let fd = binding.poll_fd()?.try_clone_to_owned().map_err(|_| Unavailable::NoMemory)?;
        let fd = watched(fd).map_err(|_| Unavailable::NoMemory)?;
        let crowd = Arc::new(Crowd::default());
        let waker = Waker::from(Arc::clone(&crowd));
        Ok(Endpoint { inner: Rc::new(Inner { binding: RefCell::new(binding), fd, crowd, waker }) })
    }

    /// The binding itself, for calls that do not wait: `lookup`, `loan`, `counters`.
    pub fn with<T>(&self, act: impl FnOnce(&mut Binding) -> T) -> T {
        act(&mut self.inner.binding.borrow_mut())
    }

    /// Who we are.
    pub fn whoami(&self) -> abi::Endpoint {
        self.with(|binding| binding.whoami())
    }

    /// One look, and what is to be done until the next one is worth while.
    fn poll_look<T>(
        &self,
        task: &mut Context<'_>,
        look: &mut impl FnMut(&mut Binding) -> Option<T>,
    ) -> Poll<Result<T, Unavailable>> {
        let Inner { binding, fd, crowd, waker } = &*self.inner;
        loop {
            if let Some(found) = look(&mut binding.borrow_mut()) {
                return Poll::Ready(Ok(found));
            }
            crowd.enter(task.waker());
            match fd.poll_read_ready(&mut Context::from_waker(waker)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Unavailable::Broken)),
                Poll::Ready(Ok(mut guard)) => {
                    // First this: what comes after it makes an edge of its own.
                    guard.clear_ready();
                    if let Err(why) = binding.borrow_mut().arm() {
                        return Poll::Ready(Err(why));
                    }
                    // What was cleared may have been meant for any of them.
                    crowd.wake_all();
                }
            }
        }
    }

    async fn look<T>(&self, mut look: impl FnMut(&mut Binding) -> Option<T>) -> Result<T, Unavailable> {
        poll_fn(|task| self.poll_look(task, &mut look)).await
    }

    /// Waits for the introduction to an endpoint, at most `limits::INTRODUCTION_WAIT_MS`.
    async fn meet(&self, to: abi::Endpoint) -> Result<(), NotifyError> {
        let bound = Instant::now() + Duration::from_millis(INTRODUCTION_WAIT_MS);
        while !self.with(|binding| binding.meet(to))? {
            if Instant::now() >= bound {
                return Err(NotifyError::Unavailable(Unavailable::Slow));
            }
            sleep(INTRODUCTION_PAUSE).await;
        }
        Ok(())
    }

    /// Receives a message, a request or a notification, as [`Binding::receive`]. Dropped, it has taken nothing.
    pub async fn receive(&self) -> Result<Delivery, ReceiveError> {
        self.receive_by(From::Any, true).await
    }

    /// As [`Endpoint::receive`], of one endpoint alone.
    pub async fn receive_from(&self, source: abi::Endpoint) -> Result<Delivery, ReceiveError> {
        self.receive_by(From::Endpoint(source), true).await
    }

    /// Receives a request or a plain message, as [`Binding::receive_request`].
    pub async fn receive_request(&self) -> Result<Delivery, ReceiveError> {
        self.receive_by(From::Any, false).await
    }

    async fn receive_by(&self, from: From, notifications: bool) -> Result<Delivery, ReceiveError> {
        let looked = self.look(|binding| binding.look(from, notifications).transpose()).await;
        looked.map_err(ReceiveError::Unavailable)?
    }

    /// All that [`Endpoint::receive`] would return, one after the other; it ends after an error.
    pub fn deliveries(&self) -> Deliveries {
        Deliveries { endpoint: Some(self.clone()), notifications: true }
    }

    /// All that [`Endpoint::receive_request`] would return, one after the other; it ends after an error.
    pub fn requests(&self) -> Deliveries {
        Deliveries { endpoint: Some(self.clone()), notifications: false }
    }

    /// Sends, and returns when the receiver has taken it, as [`Binding::send`]. Dropped, the message is withdrawn, unless it
    /// had been taken.
    pub async fn send(&self, to: abi::Endpoint, mut message: Message) -> Result<(), SendError> {
        self.meet(to).await.map_err(of_meeting)?;
        let sending = self.with(|binding| binding.start_send(to, &mut message))?;
        let mut open = OpenSend { inner: &self.inner, sending: Some(sending) };
        match self.look(|binding| open.poll(binding)).await {
            Ok(ended) => ended,
            Err(why) => Err(SendError::Unavailable(why)),
        }
    }

    /// Sends a request and returns its reply, as [`Binding::sendrec`]. A second one to the same server waits for the first.
    /// Dropped, a request that was not taken is withdrawn, and the late reply of one that was is dropped.
    pub async fn sendrec(&self, to: abi::Endpoint, mut message: Message) -> Result<Delivery, SendrecError> {
        self.meet(to).await.map_err(|why| match why {
            NotifyError::DeadDestination => SendrecError::DeadDestination,
            NotifyError::NotPermitted => SendrecError::NotPermitted,
            NotifyError::Unavailable(why) => SendrecError::Unavailable(why),
        })?;
        let started = self.look(|binding| match binding.start_call(to, &mut message) {
            // Another task's call; its end wakes us.
            Err(SendrecError::WouldBlock) => None,
            started => Some(started),
        });
        let calling = started.await.map_err(SendrecError::Unavailable)??;
        let mut open = OpenCall { inner: &self.inner, calling: Some(calling) };
        match self.look(|binding| open.poll(binding)).await {
            Ok(ended) => ended,
            Err(why) => Err(SendrecError::Unavailable(why)),
        }
    }

    /// Puts a message into the lane, as [`Binding::post`], waiting for room. Dropped while it waits, nothing is posted.
    pub async fn post(&self, to: abi::Endpoint, message: Message) -> Result<(), SendError> {
        self.meet(to).await.map_err(of_meeting)?;
        let mut kept = Some(message);
        let posted = self.look(|binding| match binding.post(to, kept.take()?) {
            Ok(()) => Some(Ok(())),
            Err(PostError::Full(back)) => {
                kept = Some(back);
                None
            }
            Err(PostError::DeadDestination) => Some(Err(SendError::DeadDestination)),
            Err(PostError::NotPermitted) => Some(Err(SendError::NotPermitted)),
            Err(PostError::Corrupt(why)) => Some(Err(SendError::Corrupt(why))),
            Err(PostError::Unavailable(why)) => Some(Err(SendError::Unavailable(why))),
        });
        posted.await.map_err(SendError::Unavailable)?
    }

    /// Raises bits at an endpoint, as [`Binding::notify`].
    pub async fn notify(&self, to: abi::Endpoint, bits: u32) -> Result<(), NotifyError> {
        self.meet(to).await?;
        self.with(|binding| binding.notify(to, bits))
    }

    /// Answers a request that was received, at once, as [`Binding::reply`].
    pub fn reply(&self, request: &Delivery, message: Message) -> Result<(), ReplyError> {
        self.with(|binding| binding.reply(request, message))
    }
}

/// What an endpoint receives, as a stream.
pub struct Deliveries {
    /// `None`: it has ended.
    endpoint: Option<Endpoint>,
    notifications: bool,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, ReceiveError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let notifications = self.notifications;
        let Some(endpoint) = &self.endpoint else { return Poll::Ready(None) };
        let looked =
            endpoint.poll_look(task, &mut |binding| binding.look(From::Any, notifications).transpose());
        let item = match looked {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(item)) => item,
            Poll::Ready(Err(why)) => Err(ReceiveError::Unavailable(why)),
        };
        if item.is_err() {
            self.endpoint = None;
        }
        Poll::Ready(Some(item))
    }
}
