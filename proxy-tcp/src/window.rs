//! How many bulk bytes of a session may be on their way: what stands in the kernels' buffers is before every message that comes
//! after it, so a session that several DCs use never has more there than its path needs. One that a single DC uses keeps the
//! kernels as full as they like: nobody else waits, and with few processors that is faster.
//!
//! Key type: [`Window`], pure; the receiver says every `BULK_TAKEN_EVERY_BYTES` what it has taken. The window grows while
//! the answer comes about as soon as on an idle path, and shrinks when it takes longer: then bytes wait somewhere.
//! Neighbour: `outbox`. Source: Brakmo and Peterson, "TCP Vegas".

use std::collections::VecDeque;
use std::time::Duration;

use abi::extent::Corrupt;
use abi::limits::{BULK_TAKEN_EVERY_BYTES, BULK_TURN_BYTES, BULK_WINDOW_BYTES_MAX, BULK_WINDOW_BYTES_MIN};
use fabric::Time;

/// Bytes may wait for a quarter of the time that the path itself takes, and this: below it a clock measures the scheduler.
const SLACK: Duration = Duration::from_micros(30);
/// So long after a flow's last message it counts as one that uses the session.
const USES_FOR: Duration = Duration::from_secs(1);

// Else all that may be sent could be on its way without a word about any of it.
const _: () = assert!(BULK_WINDOW_BYTES_MIN >= BULK_TAKEN_EVERY_BYTES + BULK_TURN_BYTES as u64);

/// Of one direction of one session, in payload bytes of bulk frames as they are on the wire.
pub struct Window {
    window_bytes: u64,
    sent_bytes: u64,
    taken_bytes: u64,
    /// How much was sent at which time.
    marks: VecDeque<(u64, Time)>,
    /// The shortest time from a frame to the word that it was taken.
    shortest: Duration,
    /// When this much is taken, the window is judged anew.
    round_end: u64,
    /// It held something up in this round.
    was_full: bool,
    /// The flow that used the session last, and until when another one counts too: looked at whenever something comes.
    flow: Option<u16>,
    shared_until: Time,
    is_shared: bool,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            window_bytes: BULK_WINDOW_BYTES_MIN,
            sent_bytes: 0,
            taken_bytes: 0,
            marks: VecDeque::new(),
            shortest: Duration::MAX,
            round_end: 0,
            was_full: false,
            flow: None,
            shared_until: Duration::ZERO,
            is_shared: false,
        }
    }
}

impl Window {
    pub fn has_room(&self) -> bool {
        let most = if self.is_shared { self.window_bytes } else { BULK_WINDOW_BYTES_MAX };
        self.sent_bytes - self.taken_bytes < most
    }

    /// This flow has something for the session. Zero is nobody's: what the couriers say to each other.
    pub fn used_by(&mut self, flow: u16, now: Time) {
        if flow != 0 && self.flow.replace(flow).is_some_and(|other| other != flow) {
            self.shared_until = now + USES_FOR;
        }
        self.is_shared = now < self.shared_until;
    }

    /// Something would be sent, and must wait.
    pub fn is_full(&mut self) {
        self.was_full = true;
    }

    pub fn sent(&mut self, bytes: u32, now: Time) {
        self.sent_bytes += u64::from(bytes);
        self.marks.push_back((self.sent_bytes, now));
    }

    /// The peer says how much it has taken in all.
    pub fn taken(&mut self, bytes: u64, now: Time) -> Result<(), Corrupt> {
        if bytes < self.taken_bytes || bytes > self.sent_bytes {
            return Err(Corrupt::new("bulk bytes taken that were not sent, or fewer than before", bytes));
        }
        self.taken_bytes = bytes;
        self.is_shared = now < self.shared_until;
        let mut last = None;
        while let Some((_, at)) = self.marks.front().filter(|(sent, _)| *sent <= bytes) {
            last = Some(*at);
            self.marks.pop_front();
        }
        let Some(at) = last else { return Ok(()) };
        let time = now.saturating_sub(at);
        self.shortest = self.shortest.min(time);
        if bytes >= self.round_end {
            self.judge(time);
        }
        Ok(())
    }

    fn judge(&mut self, time: Duration) {
        let step = self.window_bytes / 4;
        let changed = if time > self.shortest + self.shortest / 4 + SLACK {
            self.window_bytes - step
        } else if self.was_full {
            self.window_bytes + step
        } else {
            self.window_bytes
        };
        self.window_bytes = changed.clamp(BULK_WINDOW_BYTES_MIN, BULK_WINDOW_BYTES_MAX);
        self.was_full = false;
        self.round_end = self.sent_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u32 = BULK_TURN_BYTES;

    /// Sends as fast as the window lets it over a path that takes `delay` each round and carries `bytes_per_us`; what
    /// the path cannot carry at once waits in it. Returns the bytes carried, and the most that waited.
    fn flood(window: &mut Window, delay_us: u64, bytes_per_us: u64, rounds: u64) -> (u64, u64) {
        // What is on the path: when it is taken.
        let mut path: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut sent, mut free_at, mut most, mut told) = (0, 0, 0, 0);
        let time = Duration::from_micros;
        for now in 0..rounds {
            while let Some((bytes, _)) = path.front().copied().filter(|(_, at)| *at <= now) {
                path.pop_front();
                if bytes - told >= BULK_TAKEN_EVERY_BYTES {
                    told = bytes;
                    window.taken(bytes, time(now)).unwrap();
                }
            }
            [1, 2].into_iter().for_each(|flow| window.used_by(flow, time(now)));
            while window.has_room() {
                sent += u64::from(FRAME);
                window.sent(FRAME, time(now));
                free_at = now.max(free_at) + u64::from(FRAME) / bytes_per_us;
                path.push_back((sent, free_at + delay_us));
                most = most.max((free_at - now) * bytes_per_us);
            }
            window.is_full();
        }
        (told, most)
    }

    #[test]
    fn a_short_path_has_the_least_window_and_all_of_its_width() {
        let mut window = Window::default();
        // 2 GB/s, 30 µs.
        let (carried, most) = flood(&mut window, 30, 2000, 200_000);
        assert!(carried >= 2000 * 200_000 * 9 / 10, "{carried}");
        assert!(most <= 2 * BULK_WINDOW_BYTES_MIN, "{most} bytes waited");
    }

    #[test]
    fn a_long_path_gets_the_window_that_it_needs() {
        let mut window = Window::default();
        // 1 GB/s, 10 ms: 10 MB are on their way.
        let (carried, most) = flood(&mut window, 10_000, 1000, 3_000_000);
        assert!(carried >= 1000 * 3_000_000 * 8 / 10, "{carried}");
        assert!(window.window_bytes > 8 << 20 && most <= 12 << 20, "{} {most}", window.window_bytes);
    }

    #[test]
    fn what_waits_before_a_slow_receiver_is_bounded() {
        let mut window = Window::default();
        flood(&mut window, 30, 2000, 20_000);
        // It becomes slow: 50 MB/s.
        let (_, most) =
            flood(&mut Window { sent_bytes: 0, taken_bytes: 0, round_end: 0, ..window }, 30, 50, 500_000);
        assert!(most <= 2 * BULK_WINDOW_BYTES_MIN, "{most} bytes waited");
    }

    #[test]
    fn claims_beyond_what_was_sent_or_below_what_was_taken_are_corrupt() {
        let mut window = Window::default();
        window.sent(1000, Duration::ZERO);
        assert!(window.taken(1001, Duration::ZERO).is_err());
        assert!(window.taken(700, Duration::ZERO).is_ok());
        assert!(window.taken(699, Duration::ZERO).is_err());
        assert!(window.taken(u64::MAX, Duration::ZERO).is_err());
        assert!(window.taken(700, Duration::ZERO).is_ok());
        assert!(window.has_room() && window.marks.len() == 1);
    }

    #[test]
    fn a_single_flow_has_all_of_the_kernels_until_another_comes() {
        let time = Duration::from_millis;
        let mut window = Window::default();
        window.used_by(1, time(0));
        window.sent(8 * BULK_WINDOW_BYTES_MIN as u32, time(0));
        window.used_by(0, time(0));
        assert!(window.has_room());
        window.used_by(2, time(1));
        assert!(!window.has_room());
        window.taken(1, time(1000)).unwrap();
        assert!(!window.has_room());
        window.used_by(2, time(1001));
        assert!(window.has_room(), "the first has not been heard of for long");
        window.used_by(1, time(1002));
        assert!(!window.has_room());
        window.sent(BULK_WINDOW_BYTES_MAX as u32, time(1003));
        window.taken(2, time(9000)).unwrap();
        assert!(!window.has_room(), "not even alone more than the most");
    }
}
