//! `dvs rdma` on the command line.

use clap::Subcommand;

use super::examples;

#[derive(Subcommand, Debug)]
pub enum RdmaCommand {
    /// List the RDMA devices of this machine, with their addresses (GIDs)
    #[command(after_help = examples(&["dvs rdma ls", "dvs rdma ls --json"], ""))]
    Ls,
    /// A device in software (soft-RoCE), for a machine whose network card is none
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = examples(&["dvs rdma softroce up eth0", "dvs rdma softroce down eth0"], ""))]
    Softroce(SoftroceCommand),
}

#[derive(Subcommand, Debug)]
pub enum SoftroceCommand {
    /// Make one on a network interface; one that is there stays as it is
    #[command(after_help = examples(
        &["dvs rdma softroce up", "dvs rdma softroce up eth0 --json"],
        "Needs root, rdma(8) of iproute2, and a kernel with `rdma_rxe`. Whoever can send to the interface's UDP port 4791 can send to the device.",
    ))]
    Up {
        /// On which [default: that of the default route]
        #[arg(value_name = "INTERFACE")]
        interface: Option<String>,
    },
    /// Remove it
    #[command(after_help = examples(&["dvs rdma softroce down", "dvs rdma softroce down eth0"], "A device of a card is never touched."))]
    Down {
        /// On which [default: that of the default route]
        #[arg(value_name = "INTERFACE")]
        interface: Option<String>,
    },
}
