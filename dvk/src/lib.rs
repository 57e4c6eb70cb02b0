//! The distributed virtualization kernel: endpoints that talk by send, post, receive, sendrec, reply and notify, the
//! same for a peer on this node and on any other.
//!
//! [`Binding`] is the handle that a process works with: it joins the pure [`core::Core`] (pairs, lanes, deaths; no
//! clock, no socket) to the daemon (`daemon`), the clock and the futex (`binding`). Vocabulary: `docs/glossary.md`.
//!
//! ```no_run
//! use dvk::{BindOptions, Binding, From, Message, Timeout};
//!
//! let mut me = Binding::bind(&BindOptions::new("/run/dvs/n1/member.sock", "main"))?;
//! let server = me.lookup(abi::Slot(0)).ok_or("nobody is bound in slot 0")?;
//! let reply = me.sendrec(server, Message::new(7).inline(b"hello"), Timeout::Forever)?;
//! println!("{}", String::from_utf8_lossy(reply.inline()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![expect(
    clippy::result_large_err,
    reason = "`Full` gives the message back by value: nothing is boxed on the message path"
)]

pub mod binding;
pub mod core;
pub mod daemon;
pub mod error;
mod granted;
pub mod message;
mod peer;
mod polling;
mod timeout;
mod waiting;

pub use abi::grant::{Access, Grant};
pub use binding::copy::CopyEnd;
pub use binding::{BindOptions, Binding, Calling, Privileges, Sending, Wait, Whereabouts};
pub use error::{
    BindError, CopyError, GrantError, LoanError, NotifyError, PostError, ReceiveError, RelayError,
    ReplyError, SendError, SendrecError, Unavailable, WaitError,
};
pub use granted::GrantSegment;
pub use message::{Delivery, From, Message, View, What};
pub use shm::pool::Loan;
pub use timeout::Timeout;
