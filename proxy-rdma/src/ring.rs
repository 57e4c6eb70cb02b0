//! Registered memory for what is being sent: given out in order, and back in the same order.
//!
//! Key type: [`Ring`].

/// Places in a ring of so many bytes. The bytes are elsewhere.
#[derive(Debug)]
pub struct Ring {
    size: u64,
    /// Where the next place begins, and where the oldest that is in use does; both only grow.
    head: u64,
    tail: u64,
}

impl Ring {
    pub fn new(size: usize) -> Ring {
        Ring { size: size as u64, head: 0, tail: 0 }
    }

    /// A place of so many bytes in one piece, if there is one: its offset, and what to give back.
    pub fn take(&mut self, len_bytes: usize) -> Option<(usize, u64)> {
        let (len, at) = (len_bytes as u64, self.head % self.size);
        let skipped = if at + len > self.size { self.size - at } else { 0 };
        // Where nothing is in use, what is skipped is no loss.
        let used = if self.head == self.tail { 0 } else { self.head - self.tail + skipped };
        if used + len > self.size {
            return None;
        }
        if used == 0 {
            self.tail = self.head + skipped;
        }
        let begin = self.head + skipped;
        self.head = begin + len;
        Some(((begin % self.size) as usize, self.head))
    }

    /// All places up to this one are free.
    pub fn give_back(&mut self, end: u64) {
        self.tail = self.tail.max(end.min(self.head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_come_again() {
        let mut ring = Ring::new(100);
        assert_eq!(ring.take(40), Some((0, 40)));
        assert_eq!(ring.take(40), Some((40, 80)));
        assert_eq!(ring.take(40), None, "the end is too short and the beginning in use");
        assert_eq!(ring.take(20), Some((80, 100)));
        assert_eq!(ring.take(1), None);
        ring.give_back(40);
        assert_eq!(ring.take(40), Some((0, 140)));
        ring.give_back(100);
        assert_eq!(ring.take(61), None);
        assert_eq!(ring.take(60), Some((40, 200)));
        ring.give_back(u64::MAX);
        assert_eq!(ring.take(100), Some((0, 300)));
        assert_eq!(ring.take(101), None);
        ring.give_back(300);
        assert_eq!(ring.take(30), Some((0, 330)));
        ring.give_back(330);
        assert_eq!(ring.take(90), Some((0, 490)), "what does not fit behind begins anew");
    }
}
