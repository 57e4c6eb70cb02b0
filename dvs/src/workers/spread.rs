//! How round trips are spread: all of them as a histogram that can be sent, joined with others and drawn, and the
//! figures that are shown of it.
//!
//! Key types: [`Spread`], [`Latency`].

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use shm::bare::Samples;

/// What takes longer counts as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Rows of a drawing, the one for the slowest thousandth apart.
const ROWS_MAX: usize = 20;

/// Round trips, in nanoseconds, to three digits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Counts", into = "Counts")]
pub struct Spread {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

/// A spread as it is sent: each value that occurred, and how often.
#[derive(Serialize, Deserialize)]
struct Counts {
    sum_ns: u64,
    counts: Vec<(u64, u64)>,
}

impl Default for Spread {
    fn default() -> Spread {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Spread { histogram: histogram.expect("the bounds are constants that fit"), sum_ns: 0 }
    }
}

impl From<Counts> for Spread {
    fn from(sent: Counts) -> Spread {
        let mut spread = Spread::default();
        for (ns, count) in sent.counts {
            spread.histogram.saturating_record_n(ns, count);
        }
        Spread { sum_ns: sent.sum_ns, ..spread }
    }
}

impl From<Spread> for Counts {
    fn from(spread: Spread) -> Counts {
        let counts = spread.histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value()));
        Counts { sum_ns: spread.sum_ns, counts: counts.collect() }
    }
}

impl Spread {
    /// Of a bare ping-pong.
    pub fn of(samples: &Samples) -> Spread {
        let mut spread = Spread::default();
        samples.sorted_ns().iter().for_each(|ns| spread.record(*ns as u64));
        spread
    }

    pub fn record(&mut self, ns: u64) {
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.histogram.saturating_record(ns);
    }

    /// Takes another's round trips in.
    pub fn join(&mut self, other: &Spread) {
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        for value in other.histogram.iter_recorded() {
            self.histogram.saturating_record_n(value.value_iterated_to(), value.count_at_value());
        }
    }

    pub fn latency(&self) -> Latency {
        let at = |fraction| self.histogram.value_at_quantile(fraction);
        let rounds = self.histogram.len();
        let per_second = (rounds as f64 * 1e9 / (self.sum_ns as f64).max(1.0)) as u64;
        let (p50_ns, p99_ns, p999_ns) = (at(0.5), at(0.99), at(0.999));
        Latency { rounds, p50_ns, p99_ns, p999_ns, max_ns: self.histogram.max(), per_second }
    }

    /// Rows whose ends are a constant factor apart, up to the slowest thousandth, which has one of its own.
    pub fn rows(&self) -> Vec<Row> {
        if self.histogram.is_empty() {
            return Vec::new();
        }
        let (low, high, max) =
            (self.histogram.min().max(1), self.histogram.value_at_quantile(0.999), self.histogram.max());
        let octaves = (high as f64 / low as f64).log2();
        // The finest that fits; beyond the bounds of a spread there are no more than 36 octaves.
        let per_octave = [8.0, 4.0, 2.0, 1.0, 0.5].into_iter().find(|n| octaves * n < ROWS_MAX as f64);
        let factor = (1.0 / per_octave.unwrap_or(0.5)).exp2();
        let mut rows = Vec::new();
        let (mut from_ns, mut edge) = (low, low as f64);
        while from_ns <= high {
            edge *= factor;
            let to_ns = (edge as u64).max(from_ns + 1);
            rows.push(Row { from_ns, to_ns, count: 0 });
            from_ns = to_ns;
        }
        if max >= from_ns {
            rows.push(Row { from_ns, to_ns: max + 1, count: 0 });
        }
        for value in self.histogram.iter_recorded() {
            let at = rows.partition_point(|row| row.to_ns <= value.value_iterated_to());
            // What lies beyond the last row's end by the histogram's own rounding belongs to it.
            let last = rows.len() - 1;
            rows[at.min(last)].count += value.count_at_value();
        }
        rows
    }
}

/// How many took this long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    pub from_ns: u64,
    /// The first that no longer belongs to it.
    pub to_ns: u64,
    pub count: u64,
}

/// The figures of a spread, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub rounds: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
    /// One after the other: how many in a second.
    pub per_second: u64,
}

impl Latency {
    /// The middle of several runs, figure by figure.
    pub fn middle(runs: &[Latency]) -> Latency {
        let of = |figure: fn(&Latency) -> u64| {
            let mut figures: Vec<u64> = runs.iter().map(figure).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied().unwrap_or(0)
        };
        Latency {
            rounds: runs.iter().map(|r| r.rounds).sum(),
            p50_ns: of(|r| r.p50_ns),
            p99_ns: of(|r| r.p99_ns),
            p999_ns: of(|r| r.p999_ns),
            max_ns: runs.iter().map(|r| r.max_ns).max().unwrap_or(0),
            per_second: of(|r| r.per_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(samples_ns: impl IntoIterator<Item = u64>) -> Spread {
        let mut spread = Spread::default();
        samples_ns.into_iter().for_each(|ns| spread.record(ns));
        spread
    }

    #[test]
    fn the_middle_is_taken_figure_by_figure() {
        let run = |p50_ns, p99_ns| Latency { rounds: 1, p50_ns, p99_ns, ..Latency::default() };
        let middle = Latency::middle(&[run(3, 10), run(1, 30), run(2, 20)]);
        assert_eq!((middle.rounds, middle.p50_ns, middle.p99_ns), (3, 2, 20));
    }

    #[test]
    fn quantiles_are_of_the_samples() {
        let latency = spread((1..=1000).map(|n| n * 100)).latency();
        assert_eq!(latency.rounds, 1000);
        assert!((49_900..=50_200).contains(&latency.p50_ns), "{latency:?}");
        assert!((98_900..=99_400).contains(&latency.p99_ns), "{latency:?}");
        assert!((100_000..=100_100).contains(&latency.max_ns), "{latency:?}");
    }

    #[test]
    fn a_spread_is_the_same_when_sent_and_twice_as_many_when_joined_with_itself() {
        let one = spread([5, 700, 700, 1_000_000]);
        let sent: Spread = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
        assert_eq!(format!("{:?}", sent.latency()), format!("{:?}", one.latency()));
        let mut both = one.clone();
        both.join(&sent);
        assert_eq!((both.latency().rounds, both.latency().per_second), (8, one.latency().per_second));
    }

    #[test]
    fn every_round_trip_is_in_one_row_and_rows_have_no_gap() {
        for slowest in [1, 2, 500, 5_000, LATENCY_NS_MAX, 2 * LATENCY_NS_MAX] {
            let rows = spread((1..=5_000).chain([slowest])).rows();
            assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 5_001);
            assert!(
                rows.windows(2).all(|w| w[0].to_ns == w[1].from_ns) && rows.len() <= ROWS_MAX + 2,
                "{rows:?}"
            );
        }
        assert_eq!(spread([300; 9]).rows().len(), 1);
        assert_eq!(Spread::default().rows(), []);
    }
}
