//! What every call and every death means, as a suite written once and run on one node, over two loopback fabrics and
//! over TCP. Each test is a row of the calls' or the deaths' table in `docs/ipc.md`, or a trap of its own.

mod support;

mod conformance {
    mod calls;
    mod copy;
    mod deaths;
    mod errors;
    mod futures;
    mod misuse;
    mod payload;
    mod polls;
    mod private;
    mod privileges;
    mod relay;
    mod service;
    mod timeouts;

    /// Makes each row a test in each world; `apart`: it makes its world itself.
    macro_rules! rows {
        (apart: $($row:ident),* $(,)?) => { $crate::conformance::rows!(std::convert::identity; $($row),*); };
        ($($row:ident),* $(,)?) => { $crate::conformance::rows!(crate::support::World::new; $($row),*); };
        ($world:path; $($row:ident),*) => {
            mod one_node { $(#[test] fn $row() { super::$row($world(crate::support::Apart::OneNode)); })* }
            mod loopback { $(#[test] fn $row() { super::$row($world(crate::support::Apart::Loopback)); })* }
            mod one_sided { $(#[test] fn $row() { super::$row($world(crate::support::Apart::OneSided)); })* }
            #[cfg(feature = "lz4")]
            mod tcp_lz4 { $(#[test] fn $row() { super::$row($world(crate::support::Apart::TcpLz4)); })* }
            mod tcp { $(#[test] fn $row() { super::$row($world(crate::support::Apart::Tcp)); })* }
        };
    }
    pub(crate) use rows;
}
