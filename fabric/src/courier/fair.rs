//! Whose turn it is, and how much may be on the way: no DC waits for more of another's bytes than the limits say.
//!
//! Key types: [`Turns`], deficit round robin in bytes over the DCs of a link and in turn over the pairs within one;
//! [`Ledger`], what was posted and has not completed. Neighbours: `outgoing`, which is told whom to serve; `bulk`, which
//! asks whether an extent may be pulled. Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round
//! robin"; Choudhury and Hahne, "Dynamic queue length thresholds" (an equal share that leaves room for who comes next).

use std::collections::{BTreeMap, BTreeSet};

use abi::limits::{LINK_POSTED_BYTES_MAX, PULLED_BYTES_PER_DC_MAX, TURN_BYTES};
use abi::{DcId, NodeId};

use super::pair::PairIndex;

/// One DC on one link.
#[derive(Default)]
struct Share {
    /// Pairs with something to say.
    dirty: BTreeSet<PairIndex>,
    /// Where its next round starts, so that no pair is served twice before the others.
    turn: u32,
    /// What it may still send in this turn; below zero, what it has had of its next one.
    credit_bytes: i64,
    /// Extents announced and not completed.
    bulk_out: usize,
    /// Its DC is not served any more: it goes with the last of its extents.
    dropped: bool,
}

impl Share {
    fn is_over(&self) -> bool {
        self.dropped && self.bulk_out == 0
    }
}

/// The DCs of one link, in turn.
pub(super) struct Turns {
    shares: BTreeMap<DcId, Share>,
    turn: DcId,
    posted_bytes: u64,
    bulk_out: usize,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { shares: BTreeMap::new(), turn: DcId(0), posted_bytes: 0, bulk_out: 0 }
    }
}

impl Turns {
    pub(super) fn insert(&mut self, dc: DcId, pair: PairIndex) {
        let share = self.shares.entry(dc).or_default();
        share.dropped = false;
        share.dirty.insert(pair);
    }

    /// A DC is served no more. What it has announced stays counted until it completes.
    pub(super) fn drop_dc(&mut self, dc: DcId) {
        if let Some(share) = self.shares.get_mut(&dc) {
            share.dirty.clear();
            share.dropped = true;
        }
        self.shares.retain(|_, share| !share.is_over());
    }

    #[cfg(test)]
    pub(super) fn knows(&self, dc: DcId) -> bool {
        self.shares.contains_key(&dc)
    }

    pub(super) fn remove(&mut self, dc: DcId, pair: PairIndex) {
        if let Some(share) = self.shares.get_mut(&dc) {
            share.dirty.remove(&pair);
        }
    }

    /// Nobody has anything to say any more. What is on the way still is.
    pub(super) fn clear(&mut self) {
        self.shares.values_mut().for_each(|share| share.dirty.clear());
    }

    /// Takes out the pair whose turn it is.
    pub(super) fn next(&mut self) -> Option<(DcId, PairIndex)> {
        loop {
            let dc = self.turn;
            if let Some(share) = self.shares.get_mut(&dc)
                && share.credit_bytes > 0
            {
                let from = PairIndex(share.turn);
                let pair = share.dirty.range(from..).next().or(share.dirty.first()).copied();
                if let Some(pair) = pair {
                    share.turn = pair.0 + 1;
                    share.dirty.remove(&pair);
                    return Some((dc, pair));
                }
            }
            // What is left of a turn is not kept: who has nothing to say saves nothing up.
            let after = self.shares.range(DcId(dc.0.saturating_add(1))..).chain(self.shares.range(..=dc));
            let next = after.filter(|(_, share)| !share.dirty.is_empty()).map(|(dc, _)| *dc).next()?;
            self.turn = next;
            if let Some(share) = self.shares.get_mut(&next) {
                share.credit_bytes = share.credit_bytes.min(0) + TURN_BYTES as i64;
            }
        }
    }

    /// A DC has sent so many bytes of its turn, or has not after all (negative).
    pub(super) fn charge(&mut self, dc: DcId, bytes: i64) {
        if let Some(share) = self.shares.get_mut(&dc) {
            share.credit_bytes -= bytes;
        }
    }

    /// The DC could go on with its turn, were its pairs not waiting for what was just gathered of them.
    pub(super) fn would_go_on(&self, dc: DcId) -> bool {
        self.shares.get(&dc).is_some_and(|share| share.dirty.is_empty() && share.credit_bytes > 0)
    }

    /// Bytes that may be posted now beside what is on its way. The last record may exceed them.
    pub(super) fn room_bytes(&self) -> u64 {
        LINK_POSTED_BYTES_MAX.saturating_sub(self.posted_bytes)
    }

    /// Whether a pair of the DC may announce one more extent, with `pair_out` of its own announced and `gathered` by all
    /// in the batch being made. Everybody may have twice what is left free, so something always is.
    pub(super) fn may_announce(&self, dc: DcId, pair_out: usize, gathered: usize, most: usize) -> bool {
        let out = self.bulk_out + gathered;
        let Some(free) = most.checked_sub(out).filter(|free| *free > 0) else { return false };
        let of_dc = self.shares.get(&dc).map_or(0, |share| share.bulk_out) + gathered;
        let share = 2 * free;
        of_dc == 0 || (of_dc < share && pair_out <= share - of_dc)
    }

    fn note(&mut self, entry: &Posted) {
        if entry.bulk {
            self.bulk_out += 1;
            if let Some(dc) = entry.dc {
                self.shares.entry(dc).or_default().bulk_out += 1;
            }
        } else {
            self.posted_bytes += entry.bytes;
        }
    }

    fn strike(&mut self, entry: &Posted) {
        if entry.bulk {
            self.bulk_out = self.bulk_out.saturating_sub(1);
            let Some(dc) = entry.dc else { return };
            if let Some(share) = self.shares.get_mut(&dc) {
                share.bulk_out = share.bulk_out.saturating_sub(1);
                if share.is_over() {
                    self.shares.remove(&dc);
                }
            }
        } else {
            self.posted_bytes = self.posted_bytes.saturating_sub(entry.bytes);
        }
    }
}

/// Something posted.
#[derive(Clone, Copy)]
pub(super) struct Posted {
    pub(super) dc: Option<DcId>,
    /// The pair and its number: the index alone may be another's by now.
    pub(super) pair: Option<(PairIndex, u64)>,
    pub(super) bytes: u64,
    pub(super) bulk: bool,
}

/// What was posted to all links, by token. Grows to what the fabric takes, once.
#[derive(Default)]
pub(super) struct Ledger {
    entries: Vec<Option<(NodeId, Posted)>>,
    vacant: Vec<u32>,
}

impl Ledger {
    /// A token for something that is about to be posted.
    pub(super) fn add(&mut self, node: NodeId, posted: Posted, turns: &mut Turns) -> u64 {
        turns.note(&posted);
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[at as usize] = Some((node, posted));
        at as u64
    }

    #[cfg(test)]
    pub(super) fn is_owed(&self) -> bool {
        self.entries.iter().any(Option::is_some)
    }

    /// It completed, or was not taken.
    pub(super) fn strike(&mut self, node: NodeId, token: u64, turns: &mut Turns) -> Option<Posted> {
        let place = usize::try_from(token).ok().and_then(|at| self.entries.get_mut(at))?;
        let (_, posted) = place.take_if(|(of, _)| *of == node)?;
        self.vacant.push(token as u32);
        turns.strike(&posted);
        Some(posted)
    }
}

/// Whether a pair may have an extent of so many bytes pulled, beside what is coming for it and for its DC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pull {
    Now,
    /// The pair has its share of what is coming: others of its DC go first.
    PairWaits,
    /// The DC has its share, and nothing comes for this pair: nobody of the DC goes before it.
    DcWaits,
}

pub(super) fn may_pull(len_bytes: u64, of_pair: u64, of_dc: u64) -> Pull {
    let left = PULLED_BYTES_PER_DC_MAX.saturating_sub(of_dc);
    match of_pair {
        // One extent longer than the share is let through alone.
        _ if of_dc == 0 => Pull::Now,
        0 if len_bytes <= left => Pull::Now,
        0 => Pull::DcWaits,
        of_pair if of_pair + len_bytes <= left => Pull::Now,
        _ => Pull::PairWaits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_BYTES: i64 = 8 << 10;

    /// Serves so many runs of pairs that always have more; how many each DC had.
    fn serve(turns: &mut Turns, runs: usize, bytes: impl Fn(DcId) -> i64) -> BTreeMap<DcId, i64> {
        let mut had = BTreeMap::new();
        for _ in 0..runs {
            let (dc, pair) = turns.next().unwrap();
            turns.charge(dc, bytes(dc));
            turns.insert(dc, pair);
            *had.entry(dc).or_default() += bytes(dc);
        }
        had
    }

    #[test]
    fn dcs_share_by_bytes_whatever_their_pairs_and_the_length_of_their_runs() {
        let mut turns = Turns::default();
        (0..40).for_each(|n| turns.insert(DcId(1), PairIndex(n)));
        turns.insert(DcId(2), PairIndex(40));
        let had = serve(&mut turns, 3000, |dc| if dc == DcId(1) { RUN_BYTES } else { RUN_BYTES / 8 });
        let (one, two) = (had[&DcId(1)], had[&DcId(2)]);
        assert!((one - two).abs() <= 2 * TURN_BYTES as i64, "{one} and {two}");
    }

    #[test]
    fn pairs_of_a_dc_have_their_turns() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.insert(DcId(1), PairIndex(n)));
        let mut served = Vec::new();
        for _ in 0..10 {
            let (dc, pair) = turns.next().unwrap();
            turns.charge(dc, RUN_BYTES);
            turns.insert(dc, pair);
            served.push(pair.0);
        }
        assert_eq!(served, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn who_was_silent_has_saved_nothing_up() {
        let mut turns = Turns::default();
        turns.insert(DcId(2), PairIndex(9));
        for _ in 0..100 {
            let (dc, pair) = turns.next().unwrap();
            assert_eq!((dc, pair), (DcId(2), PairIndex(9)));
            turns.insert(dc, pair);
        }
        turns.insert(DcId(1), PairIndex(1));
        let had = serve(&mut turns, 400, |_| RUN_BYTES);
        assert!((had[&DcId(1)] - had[&DcId(2)]).abs() <= 2 * TURN_BYTES as i64, "{had:?}");
    }

    #[test]
    fn a_flood_of_extents_leaves_room_for_the_next_dc_and_the_next_pair() {
        let (mut turns, mut ledger) = (Turns::default(), Ledger::default());
        let posted = |dc| Posted { dc: Some(dc), pair: None, bytes: 1, bulk: true };
        let mut flood = |turns: &mut Turns, dc| {
            let mut out = 0;
            while turns.may_announce(dc, out, 0, 128) {
                ledger.add(NodeId(1), posted(dc), turns);
                out += 1;
            }
            out
        };
        let pair = flood(&mut turns, DcId(1));
        let next_pair = flood(&mut turns, DcId(1));
        let next_dc = flood(&mut turns, DcId(2));
        assert!(pair < 128 && next_pair > 0 && next_dc > next_pair, "{pair}, {next_pair}, {next_dc}");
        assert!(turns.bulk_out < 128);
    }

    #[test]
    fn what_completes_is_struck_once_and_only_by_its_link() {
        let (mut turns, mut ledger) = (Turns::default(), Ledger::default());
        let posted = Posted { dc: None, pair: None, bytes: 100, bulk: false };
        let token = ledger.add(NodeId(1), posted, &mut turns);
        assert_eq!(turns.room_bytes(), LINK_POSTED_BYTES_MAX - 100);
        assert!(ledger.strike(NodeId(2), token, &mut turns).is_none());
        assert!(ledger.strike(NodeId(1), token, &mut turns).is_some());
        assert!(ledger.strike(NodeId(1), token, &mut turns).is_none());
        assert!(ledger.strike(NodeId(1), u64::MAX, &mut turns).is_none());
        assert_eq!(turns.room_bytes(), LINK_POSTED_BYTES_MAX);
    }

    #[test]
    fn pulls_leave_room_for_the_next_pair_and_a_long_extent_gets_its_time() {
        const ALL: u64 = PULLED_BYTES_PER_DC_MAX;
        assert_eq!(may_pull(1 << 30, 0, 0), Pull::Now);
        assert_eq!(may_pull(ALL / 4, ALL / 4, ALL / 4), Pull::Now);
        assert_eq!(may_pull(ALL / 4, ALL / 2, ALL / 2), Pull::PairWaits);
        assert_eq!(may_pull(ALL / 2, 0, ALL / 2), Pull::Now);
        assert_eq!(may_pull(ALL / 2 + 1, 0, ALL / 2), Pull::DcWaits);
    }
}
