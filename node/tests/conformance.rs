//! What every call and every death means, as a suite written once and run on one node, over two loopback fabrics and
//! over TCP. Each test is a row of the calls' or the deaths' table in `docs/ipc.md`, or a trap of its own.

mod support;

mod conformance {
    mod calls;
    mod deaths;
    mod payload;
    mod relay;
    mod service;
    mod timeouts;

    /// Makes each row a test in each world.
    macro_rules! rows {
        ($($row:ident),* $(,)?) => {
            mod one_node { $(#[test] fn $row() { super::$row(crate::support::World::new(crate::support::Apart::OneNode)); })* }
            mod loopback { $(#[test] fn $row() { super::$row(crate::support::World::new(crate::support::Apart::Loopback)); })* }
            mod one_sided { $(#[test] fn $row() { super::$row(crate::support::World::new(crate::support::Apart::OneSided)); })* }
            #[cfg(feature = "lz4")]
            mod tcp_lz4 { $(#[test] fn $row() { super::$row(crate::support::World::new(crate::support::Apart::TcpLz4)); })* }
            mod tcp { $(#[test] fn $row() { super::$row(crate::support::World::new(crate::support::Apart::Tcp)); })* }
        };
    }
    pub(crate) use rows;
}
