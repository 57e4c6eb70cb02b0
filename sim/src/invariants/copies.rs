//! A copy through a grant that was not its copier's, or was taken back before, writes and reads nothing; `Ok` means that
//! all bytes are there, any other end that a beginning of them is, and none after a revocation (IPC, `copy`).

use abi::Endpoint;

/// What stands in the range that a copy was to write, once it has ended for certain.
pub fn ended(wanted: &[u8], before: &[u8], now: &[u8], whole: bool, what: &str) -> Option<String> {
    let came = wanted.iter().zip(now).take_while(|(wanted, now)| wanted == now).count();
    if whole {
        return (came != wanted.len()).then(|| format!("{what}: {came} bytes of {} are there", wanted.len()));
    }
    // What is there may look like what was there before: the first byte that is not of the copy is of before.
    let rest = now[came..] == before[came..];
    (!rest).then(|| format!("{what}: not a beginning of {} bytes, wrong behind {came}", wanted.len()))
}

/// A copy has ended well.
pub fn allowed(may: bool, what: &str) -> Option<String> {
    (!may).then(|| format!("{what} succeeded without a grant"))
}

/// Since a revocation returned, nobody was granted anything.
pub fn revoked(then: u64, now: u64, owner: Endpoint) -> Option<String> {
    (then != now).then(|| format!("memory of {owner} was written after its grant was taken back"))
}
