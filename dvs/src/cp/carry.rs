//! A copy from one end to the other, whichever of them is far: first what there is to copy, then each of it, at last
//! the folders' permissions. Pure but for the two ends.
//!
//! Key types: [`Job`], [`Copied`]. Of a partial file whatever has the digests of the source's blocks stays; all blocks'
//! digests are compared before a file gets its name.

use abi::limits::{CP_BLOCK_BYTES, CP_ENTRIES_MAX, CP_MARKS_MAX};
use serde::Serialize;

use super::bar::Bar;
use super::disk::{mark_of, mark_of_zeros};
use super::wire::{Aim, Entry, Kind, Mark, Piece, Rel, Said, Side, blocks, len_of};

/// What is asked for.
pub struct Job<'a> {
    pub source: &'a [u8],
    pub target: &'a [u8],
    pub folders: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Copied {
    pub files: u64,
    pub folders: u64,
    pub links: u64,
    /// Of all files.
    pub bytes: u64,
    /// Bytes that went over.
    pub carried_bytes: u64,
    /// Bytes of an interrupted copy that were there, with the same digests.
    pub resumed_bytes: u64,
    /// Files that were there already, with the same digests.
    pub unchanged: u64,
    /// Other copies' partial files in the source.
    pub left_out: u64,
}

/// An entry of the source, and where it goes.
struct Item {
    from: Rel,
    to: Rel,
    entry: Entry,
}

/// The two ends at work.
pub struct Carrier<'a> {
    pub from: &'a mut dyn Side,
    pub to: &'a mut dyn Side,
    pub bar: &'a Bar,
    pub copied: Copied,
}

impl Carrier<'_> {
    pub fn run(mut self, job: &Job<'_>) -> Result<Copied, Said> {
        let source = self.from.place(job.source, &Aim::Source)?;
        let gone = || Said::wrong("the source is gone", "check the path");
        let entry = self.from.look(&source.at)?.ok_or_else(gone)?;
        let folder = entry.kind == Kind::Folder;
        if folder && !job.folders {
            let what = format!("{} is a folder", source.at);
            return Err(Said::wrong(what, "give -r to copy it with all that is in it"));
        }
        let aim = Aim::Target { name: source.name, folder };
        let items = self.plan(source.at, entry)?;
        let target = self.to.place(job.target, &aim)?;
        let Some(first) = items.first().map(|item| item.from.clone()) else { return Ok(self.copied) };
        let mut folders = Vec::new();
        for mut item in items {
            let moved = item.from.moved(&first, &target.at);
            item.to = moved.ok_or_else(|| Said::failed("the target is too deep", "name another target"))?;
            match &item.entry.kind {
                Kind::Folder => {
                    self.to.make_folder(&item.to)?;
                    self.copied.folders += 1;
                    folders.push(item);
                }
                Kind::Link { to } => {
                    self.to.make_link(&item.to, to)?;
                    self.copied.links += 1;
                }
                _ => self.file(&item)?,
            }
        }
        // The innermost first: what is made in a folder changes its time, and some folders may then not be written.
        for item in folders.iter().rev() {
            self.to.dress(&item.to, &item.entry)?;
        }
        Ok(self.copied)
    }

    /// Everything that is to be copied, folders before what is in them.
    fn plan(&mut self, at: Rel, entry: Entry) -> Result<Vec<Item>, Said> {
        let (mut items, mut bytes) = (Vec::new(), 0_u64);
        let mut open = vec![(at, entry)];
        while let Some((at, entry)) = open.pop() {
            if let Kind::Pipe | Kind::Socket | Kind::Device = entry.kind {
                let what = format!("{at} is {}: files, folders and symbolic links are copied", entry.kind);
                return Err(Said::wrong(what, "leave it out: copy what is beside it"));
            }
            if items.len() + open.len() >= CP_ENTRIES_MAX {
                let what = format!("more than {CP_ENTRIES_MAX} files, folders and links");
                return Err(Said::wrong(what, "copy parts of it"));
            }
            if entry.kind == Kind::Folder {
                self.look_into(&at, &mut open)?;
            }
            bytes = bytes.saturating_add(entry.len());
            items.push(Item { from: at, to: Rel::default(), entry });
        }
        self.bar.begin(bytes);
        self.copied.bytes = bytes;
        Ok(items)
    }

    fn look_into(&mut self, at: &Rel, open: &mut Vec<(Rel, Entry)>) -> Result<(), Said> {
        let mut seen = 0_u32;
        loop {
            let page = self.from.list(at, seen)?;
            if page.is_empty() {
                return Ok(());
            }
            seen = seen.saturating_add(page.len() as u32);
            if open.len() + page.len() > CP_ENTRIES_MAX {
                let what = format!("{at} has more than {CP_ENTRIES_MAX} entries");
                return Err(Said::wrong(what, "copy parts of it"));
            }
            for (name, entry) in page {
                if name.is_partial() {
                    self.copied.left_out += 1;
                    continue;
                }
                let deep =
                    || Said::wrong(format!("{at} has folders in folders, too deep"), "copy parts of it");
                open.push((at.below(name).ok_or_else(deep)?, entry));
            }
        }
    }

    fn file(&mut self, item: &Item) -> Result<(), Said> {
        self.bar.name(&item.to);
        self.copied.files += 1;
        if self.is_there(item)? {
            self.copied.unchanged += 1;
            self.bar.skip(item.entry.len());
            return self.to.dress(&item.to, &item.entry);
        }
        let opened = self.from.open(&item.from)?;
        let len = opened.len();
        let have = self.to.begin(&item.to, len)?.min(len);
        let mut marks = Vec::new();
        self.compare(have, len, &mut marks)?;
        let count = blocks(len);
        let mut block = 0;
        let mut bytes = Vec::new();
        while block < count {
            // Compared, and the same on both ends.
            if let Some(Some(_)) = marks.get(block as usize) {
                block += 1;
                continue;
            }
            block += self.block(block, (have, len), &mut bytes, &mut marks)?;
        }
        self.verify(item, &opened, &marks)?;
        self.to.finish(&opened)
    }

    /// Carries a block, or leaves out a run of empty ones; how many it was.
    fn block(
        &mut self,
        block: u64,
        (have, len): (u64, u64),
        bytes: &mut Vec<u8>,
        marks: &mut Vec<Option<Mark>>,
    ) -> Result<u64, Said> {
        let unsound = || Said::failed("the source names blocks that it has not", "is the other end sound?");
        bytes.resize(len_of(block, len).ok_or_else(unsound)?, 0);
        let run = match self.from.read(block, bytes)? {
            Piece::Data => {
                self.to.write(block, bytes)?;
                note(marks, block, mark_of(bytes));
                self.copied.carried_bytes += bytes.len() as u64;
                self.bar.carried(bytes.len() as u64);
                return Ok(1);
            }
            Piece::Zeros { blocks: run } => run,
        };
        let end = block.checked_add(run).filter(|end| run > 0 && *end <= blocks(len)).ok_or_else(unsound)?;
        for at in block..end {
            if let Some(Some(_)) = marks.get(at as usize) {
                continue;
            }
            let len = len_of(at, len).ok_or_else(unsound)?;
            if at * CP_BLOCK_BYTES < have {
                bytes.clear();
                bytes.resize(len, 0);
                self.to.write(at, bytes)?;
            }
            note(marks, at, mark_of_zeros(len));
            self.bar.skip(len as u64);
        }
        Ok(run)
    }

    /// Whether the target is there already: as long, as old, with the same digests.
    fn is_there(&mut self, item: &Item) -> Result<bool, Said> {
        let Some(there) = self.to.look(&item.to)? else { return Ok(false) };
        let time = |entry: &Entry| (entry.mtime_s, entry.mtime_ns);
        if there.kind != item.entry.kind || time(&there) != time(&item.entry) {
            return Ok(false);
        }
        let (ours, theirs) = (self.from.open(&item.from)?, self.to.open(&item.to)?);
        if ours.kind != theirs.kind {
            return Ok(false);
        }
        let count = blocks(ours.len());
        let mut first = 0;
        while first < count {
            let part = (count - first).min(u64::from(CP_MARKS_MAX)) as u32;
            if self.from.marks(first, part)? != self.to.marks(first, part)? {
                return Ok(false);
            }
            first += u64::from(part);
        }
        Ok(true)
    }

    /// Notes the digests of those blocks of a partial file that are the source's.
    fn compare(&mut self, have: u64, len: u64, marks: &mut Vec<Option<Mark>>) -> Result<(), Said> {
        let whole = if have == len { blocks(len) } else { have / CP_BLOCK_BYTES };
        let mut first = 0;
        while first < whole {
            let part = (whole - first).min(u64::from(CP_MARKS_MAX)) as u32;
            let (ours, theirs) = (self.from.marks(first, part)?, self.to.marks(first, part)?);
            for (at, (ours, theirs)) in (first..).zip(ours.into_iter().zip(theirs)) {
                marks.push((ours == theirs).then_some(ours));
                if ours == theirs {
                    let len = len_of(at, len).unwrap_or(0) as u64;
                    self.copied.resumed_bytes += len;
                    self.bar.skip(len);
                }
            }
            first += u64::from(part);
        }
        Ok(())
    }

    /// What the target has is what the source had, and still is.
    fn verify(&mut self, item: &Item, opened: &Entry, marks: &[Option<Mark>]) -> Result<(), Said> {
        let mut first = 0;
        for part in marks.chunks(CP_MARKS_MAX as usize) {
            let theirs = self.to.marks(first, part.len() as u32)?;
            if theirs.iter().zip(part).any(|(theirs, ours)| Some(theirs) != ours.as_ref()) {
                let what = format!("{} arrived with another digest", item.to);
                let next = "does anybody else write it? Run it again: only what differs is carried";
                return Err(Said::failed(what, next));
            }
            first += part.len() as u64;
        }
        if self.from.look(&item.from)?.as_ref() != Some(opened) {
            let what = format!("{} changed while it was copied", item.from);
            return Err(Said::failed(what, "run it again: only what differs is carried"));
        }
        Ok(())
    }
}

fn note(marks: &mut Vec<Option<Mark>>, block: u64, mark: Mark) {
    let at = block as usize;
    marks.resize(marks.len().max(at + 1), None);
    marks[at] = Some(mark);
}
