//! A whole daemon in a thread, spoken to in the raw: by members, by proxies, by the operator.

#[path = "daemon/client.rs"]
mod client;
#[path = "daemon/fake.rs"]
mod fake;
#[path = "daemon/members.rs"]
mod members;
#[path = "daemon/operator.rs"]
mod operator;
#[path = "daemon/proxies.rs"]
mod proxies;
