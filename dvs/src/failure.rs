//! What went wrong, whose fault it is, what to do next, and the exit code that says so. Key type:
//! [`Failure`].

use std::fmt;
use std::path::PathBuf;

/// The exit codes, as every `--help` names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// It was begun, and something in it failed.
    Failed = 1,
    /// The cluster file is missing or wrong, or names no such node, DC or proxy.
    Config = 3,
    /// No daemon answers.
    NotRunning = 4,
    /// The daemon, or the state of things, says no: already running, a slot taken, not allowed.
    Refused = 5,
    /// `dvs send`, `notify`, `receive`: the time was over before it was done.
    TimedOut = 6,
    /// `dvs run`: the program cannot be executed.
    NotExecutable = 126,
    /// `dvs run`: there is no such program.
    NotFound = 127,
    /// Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// The exit codes, for the end of every `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0    done
  1    begun, and something in it failed
  2    the command line is wrong
  3    the cluster file is missing or wrong, or names no such node, DC or proxy
  4    no daemon answers: the cluster is not up, or a node of it is dead
  5    refused: already running, a port or slot is taken, not allowed
  6    (send, notify, receive) the time was over before it was done
  126  (run) the program cannot be executed; 127 (run) there is no such program
  130  interrupted";

/// An error for people: what happened, and the way out.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub what: String,
    pub next: String,
    /// Where in a file it is, for programs that want to go there.
    pub spot: Option<Spot>,
}

/// A place in a file that a user wrote.
#[derive(Debug)]
pub struct Spot {
    pub file: PathBuf,
    /// Line and column, from 1; `None`: the file as a whole.
    pub at: Option<(usize, usize)>,
}

impl Failure {
    pub fn new(exit: Exit, what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure { exit, what: what.into(), next: next.into(), spot: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

/// The error as `anyhow` carries it.
pub fn failure(exit: Exit, what: impl Into<String>, next: impl Into<String>) -> anyhow::Error {
    Failure::new(exit, what, next).into()
}

/// The innermost failure of a chain, if it has one: it knows exit code and way out.
pub fn of(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>())
}

/// "x" among names: the nearest of them, or all.
pub fn did_you_mean(wanted: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "there are none".to_owned();
    }
    let near = known.iter().map(|name| (distance(wanted, name), name)).min();
    match near {
        // What would have to be written anew is not near.
        Some((far, name)) if far <= 2 && far < wanted.chars().count() => {
            format!("did you mean {name}? Known: {}", known.join(", "))
        }
        _ => format!("use one of {}", known.join(", ")),
    }
}

/// How many letters must be put in, taken out or replaced to get from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_gets_the_list() {
        let known = ["tcp".to_owned(), "rdma".to_owned()];
        assert!(did_you_mean("tpc", &known).starts_with("did you mean tcp?"));
        assert_eq!(did_you_mean("something", &known), "use one of tcp, rdma");
        assert_eq!(did_you_mean("x", &[]), "there are none");
        assert_eq!(did_you_mean("n2", &["n1".to_owned()]), "did you mean n1? Known: n1");
        assert_eq!(did_you_mean("9", &["n1".to_owned()]), "use one of n1");
        assert_eq!((distance("abc", "abc"), distance("", "abc"), distance("kitten", "sitting")), (0, 3, 3));
    }
}
