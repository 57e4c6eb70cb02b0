//! Every descriptor the daemon keeps for others: DC tables, doorbell pages, segments, the eventfds of proxies.
//!
//! Key type: [`Vault`]. Tables are mapped writable here alone and handed out by read-only descriptors, mode 0600 so
//! that no other user reopens them; doorbell pages are everybody's and can neither shrink nor grow.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use abi::member::SegmentKind;
use abi::table::Entry;
use abi::{DcId, Endpoint, Slot, doorbell, table};
use rustix::fs::{Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, fstat, open};
use rustix::io::Errno;
use shm::doorbell::{Doorbells, Wake};
use shm::map::{Access, HUGE_PAGE_BYTES, MapError, Mapping};
use shm::os::events::EventFd;
use shm::os::memfd;
use shm::sync::Ordering;
use shm::words::{NotWithin, OwnWords};

use super::heritage::Held;
use super::polled::Polled;
use crate::NodeError;
use crate::core::{Descriptor, HeldSegment, Holdings};
use crate::keeper::{Keep, Key};

struct DcMemory {
    table: OwnWords,
    table_fd: Arc<OwnedFd>,
    doorbells: Doorbells,
    doorbells_fd: Arc<OwnedFd>,
}

struct Bell {
    event: EventFd,
    fd: Arc<OwnedFd>,
}

struct Kept {
    fd: Arc<OwnedFd>,
    kind: SegmentKind,
}

pub(super) struct Vault {
    keep: Arc<Keep>,
    dcs: BTreeMap<DcId, DcMemory>,
    segments: BTreeMap<(u32, u32), Kept>,
    bells: BTreeMap<(u16, DcId), Bell>,
    polled: Polled,
}

fn memory(what: &'static str) -> impl Fn(MapError) -> NodeError {
    move |source| NodeError::Memory { what, source }
}

impl Vault {
    pub fn new(keep: Arc<Keep>) -> Vault {
        let polled = Polled::new(Arc::clone(&keep));
        Vault { keep, dcs: BTreeMap::new(), segments: BTreeMap::new(), bells: BTreeMap::new(), polled }
    }

    /// Takes over a predecessor's descriptors: those that the state needs. The memories that are not as it says are
    /// returned.
    pub fn regain(&mut self, held: &mut Held, holdings: &Holdings) -> Result<Vec<u32>, NodeError> {
        for dc in &holdings.dcs {
            let mut take =
                |key| held.remove(&key).ok_or_else(|| NodeError::system("a DC's pages")(Errno::BADF));
            let (table, doorbells) = (take(Key::Table(*dc))?, take(Key::Doorbells(*dc))?);
            self.open_dc(*dc, table, doorbells)?;
        }
        let mut lost = Vec::new();
        for segment in &holdings.segments {
            let HeldSegment { memory, segment: index, kind, .. } = *segment;
            let fd = held.remove(&Key::Segment { memory, segment: index });
            match fd.filter(|fd| is_as_said(fd.as_fd(), segment)) {
                Some(fd) => drop(self.segments.insert((memory, index), Kept { fd: Arc::new(fd), kind })),
                None if segment.made => lost.push(memory),
                None => {}
            }
        }
        let keys: Vec<Key> = held.keys().copied().collect();
        for key in keys {
            match key {
                Key::ProxyBell { proxy, dc } if holdings.dcs.contains(&dc) => {
                    if let Some(fd) = held.remove(&key) {
                        self.hang_bell(
                            proxy,
                            dc,
                            EventFd::adopt(fd).map_err(NodeError::system("an eventfd"))?,
                        )?;
                    }
                }
                Key::Rings { polls, by } if holdings.polls.contains(&polls) => {
                    let ends = held.remove(&key).zip(held.remove(&Key::Rung { polls, by }));
                    if let Some((rings, rung)) = ends {
                        self.polled.regain(polls, by, rings, rung);
                    }
                }
                _ => {}
            }
        }
        lost.dedup();
        Ok(lost)
    }

    /// Makes the table and the doorbell page of a DC.
    pub fn add_dc(&mut self, dc: DcId) -> Result<(), NodeError> {
        let (table, doorbells) = (make_table(dc)?, make_doorbells(dc)?);
        self.keep.put(Key::Table(dc), &table);
        self.keep.put(Key::Doorbells(dc), &doorbells);
        self.open_dc(dc, table, doorbells)
    }

    fn open_dc(&mut self, dc: DcId, table: OwnedFd, doorbells: OwnedFd) -> Result<(), NodeError> {
        let (table, table_fd) = open_table(&table)?;
        let (doorbells, doorbells_fd) = open_doorbells(doorbells)?;
        self.dcs.insert(dc, DcMemory { table, table_fd, doorbells, doorbells_fd });
        Ok(())
    }

    /// Closes all of a DC, bells included. Its segments have gone with their memories.
    pub fn drop_dc(&mut self, dc: DcId) {
        if self.dcs.remove(&dc).is_some() {
            self.keep.give_up(Key::Table(dc));
            self.keep.give_up(Key::Doorbells(dc));
        }
        for proxy in self.bells.keys().filter(|(_, of)| *of == dc).map(|(proxy, _)| *proxy) {
            self.keep.give_up(Key::ProxyBell { proxy, dc });
        }
        self.bells.retain(|(_, of), _| *of != dc);
        self.polled.drop_dc(dc);
    }

    /// Makes the eventfd that a DC's members ring for a proxy.
    pub fn add_bell(&mut self, proxy: u16, dc: DcId) -> Result<(), NodeError> {
        let event = EventFd::new().map_err(NodeError::system("an eventfd"))?;
        self.keep.put(Key::ProxyBell { proxy, dc }, &event);
        self.hang_bell(proxy, dc, event)
    }

    fn hang_bell(&mut self, proxy: u16, dc: DcId, event: EventFd) -> Result<(), NodeError> {
        let refused = |e| NodeError::system("an eventfd")(e);
        let fd = rustix::io::fcntl_dupfd_cloexec(&event, 0).map_err(refused)?;
        self.bells.insert((proxy, dc), Bell { event, fd: Arc::new(fd) });
        Ok(())
    }

    /// A descriptor to give away; `None`: there is none, or none left.
    pub fn find(&mut self, descriptor: Descriptor) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(match descriptor {
            Descriptor::Table(dc) => &self.dcs.get(&dc)?.table_fd,
            Descriptor::Doorbells(dc) => &self.dcs.get(&dc)?.doorbells_fd,
            Descriptor::Segment { memory, segment } => &self.segments.get(&(memory, segment))?.fd,
            Descriptor::ProxyBell { proxy, dc } => &self.bells.get(&(proxy, dc))?.fd,
            Descriptor::Ringer { polls, by } => &self.polled.bell(polls, Some(by))?.rings,
            Descriptor::Rung { polls, by } => &self.polled.bell(polls, by)?.rung,
        }))
    }

    /// Makes a segment, every page present; what is there to be granted may be long, so that its owner makes the pages.
    pub fn make(
        &mut self,
        memory: u32,
        segment: u32,
        kind: SegmentKind,
        len_bytes: u64,
    ) -> Result<(), MapError> {
        // A predecessor has made it, and was killed before it knew.
        if self.segments.contains_key(&(memory, segment)) {
            return Ok(());
        }
        let len = usize::try_from(len_bytes).map_err(|_| MapError::Misaligned)?;
        let name = match kind {
            SegmentKind::Sides => format!("dvs-sides-{memory}.{segment}"),
            SegmentKind::Pool => format!("dvs-pool-{memory}.{segment}"),
            SegmentKind::Grants => format!("dvs-grants-{memory}.{segment}"),
            SegmentKind::GrantRead | SegmentKind::GrantWrite => format!("dvs-granted-{memory}.{segment}"),
        };
        let fd = if kind.is_granted() {
            memfd::empty_fd(&name, len)?
        } else {
            let want_huge = kind == SegmentKind::Pool && len.is_multiple_of(HUGE_PAGE_BYTES);
            memfd::segment_fd(&name, len, want_huge)?.0
        };
        self.keep.put(Key::Segment { memory, segment }, &fd);
        self.segments.insert((memory, segment), Kept { fd: Arc::new(fd), kind });
        Ok(())
    }

    /// Seals segments, and checks that their owner has not cut or emptied them before.
    pub fn seal(&self, memory: u32, segments: &[(u32, u64)]) -> bool {
        segments.iter().all(|(segment, len_bytes)| {
            let Some(Kept { fd, kind }) = self.segments.get(&(memory, *segment)) else { return false };
            let whole = || fstat(fd).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(*len_bytes));
            let sealed = if *kind == SegmentKind::GrantWrite {
                // Another writes it; nobody opens it anew.
                fchmod(fd, Mode::RUSR | Mode::WUSR).is_ok() && memfd::seal_len(fd.as_fd()).is_ok()
            } else {
                memfd::seal(fd.as_fd()).is_ok()
            };
            sealed && whole() && memfd::is_full(fd.as_fd()) == Ok(true)
        })
    }

    pub fn drop_segment(&mut self, memory: u32, segment: u32) {
        if self.segments.remove(&(memory, segment)).is_some() {
            self.keep.give_up(Key::Segment { memory, segment });
        }
    }

    pub fn drop_memory(&mut self, memory: u32) {
        let there: Vec<(u32, u32)> =
            self.segments.range((memory, 0)..=(memory, u32::MAX)).map(|(key, _)| *key).collect();
        for (memory, segment) in there {
            self.drop_segment(memory, segment);
        }
    }

    pub fn set_table(&self, dc: DcId, slot: Slot, entry: Entry) {
        let Some(there) = self.dcs.get(&dc) else { return };
        // Pairs with: every member's acquire load of the entry, which then finds the endpoint's memory sealed.
        there.table.store(table::of_slot(slot), entry.to_word(), Ordering::Release);
        // Pairs with: a member's load of the version before it sleeps on it.
        there.table.cell(table::VERSION).fetch_add(1, Ordering::AcqRel);
        shm::futex::wake_all(there.table.futex(table::VERSION));
    }

    /// Closes the bells of an endpoint that polls: those of one peer, or all.
    pub fn drop_bells(&mut self, polls: Endpoint, by: Option<Endpoint>) {
        self.polled.drop_bells(polls, by);
    }

    /// Rings one doorbell, as a peer would, and wakes its owner.
    pub fn ring(&self, dc: DcId, bell: u32, source: Option<Slot>, pull: bool) {
        let Some(there) = self.dcs.get(&dc) else { return };
        let at = bell as usize;
        if at >= doorbell::COUNT {
            return;
        }
        let mut wakes = [Wake::Nothing; 2];
        if let Some(slot) = source {
            wakes[0] = there.doorbells.ring(at, slot.0);
        }
        if pull {
            wakes[1] = there.doorbells.ring_for_pull(at);
        }
        if let Ok(slot) = u16::try_from(at) {
            self.polled.ring(dc, Slot(slot));
        }
        for wake in wakes {
            match wake {
                Wake::Nothing => {}
                Wake::Futex => there.doorbells.wake(at),
                Wake::EventFd => {
                    let proxy = at.checked_sub(doorbell::of_proxy(0)).and_then(|p| u16::try_from(p).ok());
                    if let Some(bell) = proxy.and_then(|p| self.bells.get(&(p, dc))) {
                        // A full eventfd is rung; nothing else can go wrong with our own.
                        let _ = bell.event.ring();
                    }
                }
            }
        }
    }
}

fn make_table(dc: DcId) -> Result<OwnedFd, NodeError> {
    let (fd, _pages) =
        memfd::segment_fd(&format!("dvs-table-{dc}"), table::BYTES, false).map_err(memory("a DC table"))?;
    let refused = |e: Errno| NodeError::system("a DC table")(e);
    // Mode 0600: a read-only descriptor of it cannot be reopened writable by another user.
    fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(refused)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(refused)?;
    Ok(fd)
}

fn open_table(fd: &OwnedFd) -> Result<(OwnWords, Arc<OwnedFd>), NodeError> {
    let refused = |e: Errno| NodeError::system("a DC table")(e);
    let map =
        Mapping::shared(fd.as_fd(), 0, table::BYTES, Access::ReadWrite).map_err(memory("a DC table"))?;
    let words = OwnWords::mapped(&map, 0, table::VERSION + 1).map_err(beyond)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    let read_only = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
    Ok((words, Arc::new(read_only)))
}

fn make_doorbells(dc: DcId) -> Result<OwnedFd, NodeError> {
    let what = "a doorbell page";
    let (fd, _pages) =
        memfd::segment_fd(&format!("dvs-bells-{dc}"), doorbell::BYTES, false).map_err(memory(what))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals).map_err(|e| NodeError::system(what)(e))?;
    Ok(fd)
}

fn open_doorbells(fd: OwnedFd) -> Result<(Doorbells, Arc<OwnedFd>), NodeError> {
    let what = "a doorbell page";
    let map = Mapping::shared(fd.as_fd(), 0, doorbell::BYTES, Access::ReadWrite).map_err(memory(what))?;
    let words = OwnWords::mapped(&map, 0, doorbell::COUNT * doorbell::WORDS).map_err(beyond)?;
    Ok((Doorbells::new(words), Arc::new(fd)))
}

/// Whether a segment that was kept is what the state says: its length, and, once sealed, seals and pages.
fn is_as_said(fd: BorrowedFd<'_>, said: &HeldSegment) -> bool {
    let long = fstat(fd).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(said.len_bytes));
    let sealed = || match said.kind {
        SegmentKind::GrantWrite => memfd::check_sealed_len(fd).is_ok(),
        _ => memfd::check_sealed(fd).is_ok(),
    };
    long && (!said.sealed || (sealed() && memfd::is_full(fd) == Ok(true)))
}

fn beyond(_: NotWithin) -> NodeError {
    NodeError::Memory { what: "a page of a DC", source: MapError::Misaligned }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const LEN: usize = 8192;

    fn sealed(len: usize) -> OwnedFd {
        let (fd, _) = memfd::segment_fd("dvs-test", len, false).expect("memory");
        memfd::seal(fd.as_fd()).expect("seals");
        fd
    }

    /// What becomes of a segment that is said to be sealed and of this length.
    fn regained(fd: Option<OwnedFd>, made: bool) -> Vec<u32> {
        let held = HeldSegment {
            memory: 3,
            segment: 1,
            kind: SegmentKind::Pool,
            len_bytes: LEN as u64,
            made,
            sealed: made,
        };
        let holdings = Holdings {
            conns: Vec::new(),
            conn_last: 0,
            dcs: BTreeSet::new(),
            segments: vec![held],
            polls: BTreeSet::new(),
        };
        let mut kept: Held = fd.map(|fd| (Key::Segment { memory: 3, segment: 1 }, fd)).into_iter().collect();
        let mut vault = Vault::new(Arc::new(Keep::new(None)));
        let lost = vault.regain(&mut kept, &holdings).expect("nothing else is needed");
        let there = vault.find(Descriptor::Segment { memory: 3, segment: 1 }).is_some();
        assert_eq!(there, made && lost.is_empty());
        lost
    }

    #[test]
    fn pages_of_a_dc_that_were_not_kept_or_are_too_short_end_a_successor_with_why() {
        let dc = DcId(3);
        let holdings = Holdings {
            conns: Vec::new(),
            conn_last: 0,
            dcs: [dc].into(),
            segments: Vec::new(),
            polls: BTreeSet::new(),
        };
        let mut vault = Vault::new(Arc::new(Keep::new(None)));
        let lost = vault.regain(&mut Held::new(), &holdings);
        assert!(matches!(lost, Err(NodeError::System { source: Errno::BADF, .. })), "{lost:?}");
        let (short, bells) = (sealed(4096), make_doorbells(dc).expect("memory"));
        let mut held = Held::from([(Key::Table(dc), short), (Key::Doorbells(dc), bells)]);
        let refused = vault.regain(&mut held, &holdings);
        let too_short = MapError::TooShort { file_bytes: 4096 };
        assert!(
            matches!(refused, Err(NodeError::Memory { source, .. }) if source == too_short),
            "{refused:?}"
        );
    }

    #[test]
    fn a_memory_that_is_not_what_it_was_is_not_taken_over() {
        let (unsealed, _) = memfd::segment_fd("dvs-test", LEN, false).expect("memory");
        let elsewhere = std::fs::File::open("/proc/self/exe").expect("this program");
        assert_eq!(regained(Some(sealed(LEN)), true), [0; 0]);
        for (what, fd) in [
            ("nothing", None),
            ("shorter", Some(sealed(LEN / 2))),
            ("longer", Some(sealed(LEN * 2))),
            ("not sealed", Some(unsealed)),
            ("a file", Some(elsewhere.into())),
        ] {
            assert_eq!(regained(fd, true), [3], "{what}");
        }
        assert_eq!(regained(None, false), [0; 0], "it was not made yet");
    }
}
