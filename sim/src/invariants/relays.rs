//! A call is answered by whoever owes it the answer: the server that it was passed on to last, which has the request then,
//! or, never passed on, the one that was called (IPC, `relay`).

use abi::Endpoint;

/// `passed`: to whom it was passed on last, and whether the request came out there.
pub fn answered(
    asked: Endpoint,
    passed: Option<(Endpoint, bool)>,
    by: Endpoint,
    what: &str,
) -> Option<String> {
    let (owes, has_it) = passed.unwrap_or((asked, true));
    (by != owes || !has_it).then(|| format!("{what} was answered by {by}, {owes} owed it the answer"))
}
