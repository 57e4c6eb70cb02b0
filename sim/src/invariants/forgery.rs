//! What is delivered was sent, by the endpoint that it is said to be of (ARCHITECTURE, decision 1).

pub fn delivered(was_sent: bool, what: &str) -> Option<String> {
    (!was_sent).then(|| format!("{what} was delivered and never sent"))
}
