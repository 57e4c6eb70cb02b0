//! The bricks: ids, message and wire layouts, error codes and limits. No logic beyond checks.
//!
//! What two processes or two nodes must agree on stands here once: the message slot (`slot`), the shared side of a
//! pair (`side`), the doorbell page (`doorbell`), the DC table (`table`), extents (`extent`), what may be called (`privilege`),
//! the frames between nodes (`wire`, `record`) and the words between a process and its daemon (`member`, `courier`).
#![forbid(unsafe_code)]

pub mod courier;
pub mod doorbell;
pub mod extent;
pub mod grant;
pub mod ids;
pub mod limits;
pub mod member;
pub mod name;
pub mod privilege;
pub mod record;
pub mod side;
pub mod slot;
pub mod table;
pub mod wire;

pub use extent::{Claim, Corrupt};
pub use ids::{DcId, Endpoint, Generation, Incarnation, NodeId, Pair, Slot};
pub use name::Name;
pub use privilege::{Allowed, Kinds, Level};
