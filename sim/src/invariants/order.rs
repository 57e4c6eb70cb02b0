//! Within a stream, messages are delivered in the order of their publication (ARCHITECTURE, invariant 1).

pub fn delivered(number: u64, next: u64, twice: bool, what: &str) -> Option<String> {
    (number < next && !twice).then(|| format!("{what} was delivered after number {}", next - 1))
}
