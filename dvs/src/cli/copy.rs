//! The arguments of `dvs cp`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::SeatArgs;

/// What else is worth knowing, at the end of the help.
pub const NOTE: &str = "One of SRC and DST is NODE:PATH, a path on that node; the other is a path here (./a:b for one with a colon).
A file goes into DST if that is a folder, a folder only if DST ends in `/`; otherwise DST is the new name.

Run it again after an interruption: blocks of `.NAME.dvs-part` with the source's digests are not carried again.
Every file is compared by BLAKE3 digests, synced, then renamed into place. Holes stay holes, symbolic links are
copied as links and never followed, permissions and times are kept, but for set-user-id and set-group-id.

For a node of this machine the command starts the other end itself. For a node elsewhere run there
`dvs cp --dc DC --node NODE --serve FOLDER` first: everybody bound in the DC can then read and write what is below
FOLDER, and PATH is below it.";

#[derive(Args, Debug)]
pub struct CpArgs {
    #[command(flatten)]
    pub seat: SeatArgs,
    /// Folders too, with all that is in them
    #[arg(long, short)]
    pub recursive: bool,
    /// Through whoever serves the node's files under this name [default for a node elsewhere: cp-NODE]
    #[arg(long, value_name = "NAME", conflicts_with = "serve")]
    pub via: Option<String>,
    /// Serve this folder of the node to all in the DC, until Ctrl-C
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["source", "target", "recursive"])]
    pub serve: Option<PathBuf>,
    /// What to copy: a path, or NODE:PATH
    #[arg(value_name = "SRC", required_unless_present = "serve")]
    pub source: Option<OsString>,
    /// Where to: NODE:PATH, or a path
    #[arg(value_name = "DST", required_unless_present = "serve")]
    pub target: Option<OsString>,
}
