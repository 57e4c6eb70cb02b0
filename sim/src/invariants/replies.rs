//! A client is given the reply to its own call and no other (PROTOCOL, "Slots and calls").

pub fn received(published: Option<u64>, got: u64, what: &str) -> Option<String> {
    (published != Some(got))
        .then(|| format!("{what} was answered with {got:#x}, published was {published:x?}"))
}
