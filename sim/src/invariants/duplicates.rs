//! Nothing is delivered twice (ARCHITECTURE, invariant 1).

pub fn delivered(twice: bool, what: &str) -> Option<String> {
    twice.then(|| format!("{what} was delivered a second time"))
}
