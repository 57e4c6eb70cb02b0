//! Real daemons, proxies and programs: killed, stopped, cut off, flooded. What threads cannot show is shown here, as root
//! or as anybody, with no network but loopback.
//!
//! Nodes are started by `dvs` (`$DVS_BIN`, or the one beside this executable); their programs are this executable again,
//! in a role (`roles`), started by itself or by `dvs run`. Key types: `Ground` (a folder, and all that runs for it),
//! `Cluster`, `Program`.

mod process {
    mod attack;
    mod cluster;
    mod dcs;
    mod deaths;
    mod faults;
    mod ground;
    mod hostile;
    mod links;
    mod memory;
    mod operator;
    mod pressure;
    mod private;
    mod program;
    mod proxies;
    pub mod roles;
    mod run;
    mod successor;
    mod system;
}

/// Where this executable begins when it is a program of another test; without a role it does nothing.
#[test]
fn child_entry() {
    process::roles::play();
}
