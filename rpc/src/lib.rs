//! Typed services: a trait becomes a client and a server. For people who write services, not messages.
//!
//! Arguments and results travel as `postcard` bytes: in the message where they fit (96 bytes), else in a loan that the
//! receiver maps. A large field is a [`Bulk`]: bytes that stay in the loan they were written into, and are read there. Key
//! items: [`service!`], [`CallError`]. Neighbour: `dvk` (`sendrec`, `reply`).
//!
//! ```no_run
//! rpc::service! {
//!     /// Counts.
//!     pub trait Counter, client CounterClient {
//!         /// Adds, and returns the sum so far.
//!         fn add(number: u64) -> u64 = 1;
//!     }
//! }
//!
//! struct Sum(u64);
//!
//! impl Counter for Sum {
//!     fn add(&mut self, _caller: abi::Endpoint, number: u64) -> u64 {
//!         self.0 += number;
//!         self.0
//!     }
//! }
//!
//! // The server, bound by `dvs run --name counter`:
//! let mut me = dvk::Binding::from_env()?;
//! Sum(0).serve(&mut me)?;
//!
//! // A client, on whichever node:
//! let server = me.lookup_name("counter")?.ok_or("nobody is bound as counter")?;
//! let sum = CounterClient::new(server).add(&mut me, &5)?;
//! # let _ = sum;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod bulk;
mod client;
mod codec;
mod server;

pub use abi::Endpoint;
pub use bulk::Bulk;
pub use client::{CallError, call};
pub use codec::{Malformed, PAYLOAD_BYTES_MAX, interface};
pub use dvk::{Binding, Delivery, Message, ReceiveError, ReplyError, Timeout};
pub use server::{Refused, accepted, arguments, method, refused, serve};

/// Makes a trait that a server implements, with `answer` and `serve`, and a client that calls it.
///
/// Each call has a number, which must stay what it is once programs of two versions may meet. A server's calls get who
/// calls; the client's get the binding to call with, and each argument by reference. Results must be owned.
#[macro_export]
macro_rules! service {
    (
        $(#[$about:meta])*
        $vis:vis trait $service:ident, client $client:ident {
            $(
                $(#[$says:meta])*
                fn $call:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $out:ty)? = $number:literal;
            )*
        }
    ) => {
        $(#[$about])*
        $vis trait $service {
            $(
                $(#[$says])*
                fn $call(&mut self, caller: $crate::Endpoint, $($arg: $kind),*) $(-> $out)?;
            )*

            /// Answers one request; what the interface does not know is refused.
            fn answer(
                &mut self,
                me: &mut $crate::Binding,
                request: &mut $crate::Delivery,
            ) -> Result<(), $crate::ReplyError> {
                let caller = request.source();
                let _ = caller;
                let reply = match $crate::method(request, $crate::interface(stringify!($service))) {
                    $(
                        Some($number) => match $crate::arguments::<($($kind,)*)>(request) {
                            Ok(($($arg,)*)) => {
                                let result = self.$call(caller, $($arg),*);
                                $crate::accepted(me, &result)
                            }
                            Err(_) => $crate::refused($crate::Refused::Malformed),
                        },
                    )*
                    Some(_) => $crate::refused($crate::Refused::NoSuchCall),
                    None => $crate::refused($crate::Refused::NoSuchService),
                };
                me.reply(request, reply)
            }

            /// Answers requests until somebody wakes this endpoint (`Binding::wake`), or a signal ends the wait.
            fn serve(&mut self, me: &mut $crate::Binding) -> Result<(), $crate::ReceiveError>
            where
                Self: Sized,
            {
                $crate::serve(me, |me, request| self.answer(me, request))
            }
        }

        /// Calls the service of the same name.
        #[derive(Clone, Copy, Debug)]
        $vis struct $client {
            pub server: $crate::Endpoint,
            pub timeout: $crate::Timeout,
        }

        impl $client {
            /// Of this server, waiting for its answers as long as it takes.
            pub fn new(server: $crate::Endpoint) -> Self {
                $client { server, timeout: $crate::Timeout::Forever }
            }

            $(
                $(#[$says])*
                pub fn $call(
                    &self,
                    me: &mut $crate::Binding,
                    $($arg: &$kind),*
                ) -> Result<$crate::service!(@out $($out)?), $crate::CallError> {
                    let interface = $crate::interface(stringify!($service));
                    $crate::call(me, self.server, self.timeout, (interface, $number), &($($arg,)*))
                }
            )*
        }
    };
    (@out) => { () };
    (@out $out:ty) => { $out };
}
