//! The end of a copy that has the files at hand: every path is walked a folder at a time and no link is followed, so
//! that nothing outside of what was named is read or written, whatever the other end says.
//!
//! Key type: [`End`]. Neighbours: `wire` ([`Side`]), `disk` (what is done to one file), `serve` (lends it to others).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use abi::limits::{CP_ENTRIES_MAX, CP_LINK_BYTES_MAX, CP_MARKS_MAX, CP_PAGE_ENTRIES};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::disk::{self, Content};
use super::wire::{Aim, Entry, Kind, LinkText, Mark, Name, Piece, Placed, Rel, Said, Side, blocks, len_of};
use crate::talk::one_line;

/// Folders are opened, never links to them.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Nothing that is opened to be looked at may wait, or become our terminal.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Whoever was killed holds its lock a little longer.
const LOCKED_WITHIN: Duration = Duration::from_secs(1);

/// What paths may name.
pub enum Base {
    /// Whatever the user who runs this may name; links in it are followed.
    Anywhere,
    /// What is below a folder; no link is followed.
    Below { folder: PathBuf },
}

/// Files at hand.
pub struct End {
    base: Base,
    /// What paths are relative to since `place`, and how it is shown.
    root: Option<(OwnedFd, PathBuf)>,
    open: Option<Open>,
    listed: Option<(Rel, Vec<Name>)>,
}

struct Open {
    at: Rel,
    content: Content,
    /// Where it is put together, if it is.
    target: Option<Target>,
}

struct Target {
    parent: OwnedFd,
    name: Name,
}

impl End {
    pub fn new(base: Base) -> End {
        End { base, root: None, open: None, listed: None }
    }

    fn root(&self) -> Result<&(OwnedFd, PathBuf), Said> {
        self.root
            .as_ref()
            .ok_or_else(|| Said::failed("no path was named yet", "are both ends of one version?"))
    }

    fn show(&self, at: &Rel) -> String {
        let root = self.root.as_ref().map_or(Path::new(""), |(_, shown)| shown);
        root.join(at.to_string()).display().to_string().trim_end_matches('/').to_owned()
    }

    fn said(&self, at: &Rel, done: &str, why: Errno) -> Said {
        said(&self.show(at), done, why)
    }

    fn folder(&self, at: &Rel, names: &[Name]) -> Result<OwnedFd, Said> {
        let (root, _) = self.root()?;
        let mut folder = rustix::fs::openat(root, c".", FOLDER, Mode::empty());
        for name in names {
            folder = folder.and_then(|f| rustix::fs::openat(f, name.os(), FOLDER, Mode::empty()));
        }
        folder.map_err(|why| self.said(at, "reached", why))
    }

    /// The folder that has it, and its name there.
    fn parent<'a>(&self, at: &'a Rel) -> Result<(OwnedFd, &'a Name), Said> {
        let Some((name, above)) = at.names().split_last() else {
            let next = "name a path below it";
            return Err(Said::wrong(format!("{} is a folder", self.show(at)), next));
        };
        Ok((self.folder(at, above)?, name))
    }

    fn entry(&self, parent: &OwnedFd, name: &Name, at: &Rel) -> Result<Option<Entry>, Said> {
        let stat = match rustix::fs::statat(parent, name.os(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(why) => return Err(self.said(at, "looked at", why)),
        };
        let link = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let text = rustix::fs::readlinkat(parent, name.os(), Vec::with_capacity(CP_LINK_BYTES_MAX));
            let text = text.map_err(|why| self.said(at, "read", why))?.into_bytes();
            Some(
                LinkText::try_from(text)
                    .map_err(|why| Said::failed(format!("{}: {why}", self.show(at)), "leave it out"))?,
            )
        } else {
            None
        };
        Ok(Some(entry_of(&stat, link)))
    }

    fn names(&self, at: &Rel) -> Result<Vec<Name>, Said> {
        let folder = self.folder(at, at.names())?;
        let read = |why| self.said(at, "read", why);
        let mut names = Vec::new();
        for entry in Dir::new(folder).map_err(read)? {
            let name = entry.map_err(read)?.file_name().to_bytes().to_vec();
            if matches!(&name[..], b"." | b"..") {
                continue;
            }
            let name = Name::try_from(name);
            names.push(
                name.map_err(|why| Said::failed(format!("in {}: {why}", self.show(at)), "leave it out"))?,
            );
            if names.len() > CP_ENTRIES_MAX {
                let what = format!("{} has more than {CP_ENTRIES_MAX} entries", self.show(at));
                return Err(Said::failed(what, "copy parts of it"));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn content(&self) -> Result<(&Content, &Rel), Said> {
        let open = self.open.as_ref();
        let open = open.ok_or_else(|| Said::failed("no file is open", "are both ends of one version?"))?;
        Ok((&open.content, &open.at))
    }

    /// A path of the user's own, to be read.
    fn place_source(&mut self, path: &Path) -> Result<Placed, Said> {
        let whole = path.canonicalize().map_err(|why| path_said(path, &why))?;
        let called = path.file_name().or(whole.file_name());
        let (Some(parent), Some(name), Some(called)) = (whole.parent(), whole.file_name(), called) else {
            return Err(Said::wrong(
                format!("{} cannot be copied whole", path.display()),
                "name a folder in it",
            ));
        };
        self.set_root(parent)?;
        Ok(Placed { at: Rel::default().below(name_of(name)?).unwrap_or_default(), name: name_of(called)? })
    }

    /// A path of the user's own, to be written.
    fn place_target(&mut self, path: &Path, source: &Name, folder: bool) -> Result<Placed, Said> {
        let ends_open = path.as_os_str().as_bytes().ends_with(b"/") || path.file_name().is_none();
        let into = ends_open || (!folder && path.is_dir());
        let (parent, name) = match path.file_name() {
            Some(name) if !into => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                (parent.unwrap_or(Path::new(".")), name_of(name)?)
            }
            _ => (path, source.clone()),
        };
        let parent = parent.canonicalize().map_err(|why| path_said(parent, &why))?;
        self.set_root(&parent)?;
        Ok(Placed { at: Rel::default().below(name.clone()).unwrap_or_default(), name })
    }

    /// A path that somebody else names, below our folder.
    fn place_below(&mut self, path: &[u8], aim: &Aim) -> Result<Placed, Said> {
        let shown = || one_line(&String::from_utf8_lossy(path));
        let refused = |why: &str| {
            let next = "name a path in the folder that is served, without `..` and links";
            Said::wrong(format!("{} {why}", shown()), next)
        };
        if path.starts_with(b"/") {
            return Err(refused("is an absolute path"));
        }
        let parts = path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let names = parts.map(|part| Name::try_from(part.to_vec())).collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|_| refused("leads out of the folder, or is no path"))?;
        let at = Rel::try_from(names).map_err(|_| refused("is too deep"))?;
        let Base::Below { folder } = &self.base else { return Err(refused("is not served")) };
        let folder = folder.clone();
        self.set_root(&folder)?;
        self.root = self.root.take().map(|(root, _)| (root, PathBuf::new()));
        match aim {
            Aim::Source => {
                let name = at.names().last().cloned().or_else(|| name_of(folder.file_name()?).ok());
                Ok(Placed { at, name: name.ok_or_else(|| refused("has no name"))? })
            }
            Aim::Target { name, folder } => {
                let is_folder = |found: Option<Entry>| found.is_some_and(|entry| entry.kind == Kind::Folder);
                let into =
                    at.names().is_empty() || path.ends_with(b"/") || (!folder && is_folder(self.look(&at)?));
                let inside = if into { at.below(name.clone()) } else { Some(at) };
                let at = inside.ok_or_else(|| refused("is too deep"))?;
                Ok(Placed { name: at.names().last().unwrap_or(name).clone(), at })
            }
        }
    }

    fn set_root(&mut self, path: &Path) -> Result<(), Said> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty());
        let root = root.map_err(|why| path_said(path, &why.into()))?;
        (self.open, self.listed) = (None, None);
        self.root = Some((root, path.to_owned()));
        Ok(())
    }

    /// Two copies of one target would spoil each other's.
    fn begin_partial(&self, at: &Rel, len: u64) -> Result<(Content, Target), Said> {
        let (parent, name) = self.parent(at)?;
        if i64::try_from(len).is_err() {
            return Err(Said::failed(
                format!("{} bytes are no length of a file", len),
                "is the other end sound?",
            ));
        }
        let found = self.entry(&parent, name, at)?;
        if let Some(Entry { kind: Kind::Folder, .. }) = found {
            let what = format!("{} is a folder, and a file is to get its place", self.show(at));
            return Err(Said::wrong(what, "remove it, or name another target"));
        }
        let flags = FILE | OFlags::RDWR | OFlags::CREATE;
        let partial = name.partial();
        let file = rustix::fs::openat(&parent, partial.os(), flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|why| self.said(at, "written", why))?);
        let stat = rustix::fs::fstat(&file).map_err(|why| self.said(at, "written", why))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            let what = format!("{} has a partial file that is none of ours: {partial:?}", self.show(at));
            return Err(Said::failed(what, "remove it"));
        }
        let patience = match self.base {
            Base::Anywhere => LOCKED_WITHIN,
            // Others want to be served meanwhile.
            Base::Below { .. } => Duration::ZERO,
        };
        if !disk::lock(&file, patience) {
            let what = format!("{} is being written by another `dvs cp`", self.show(at));
            return Err(Said::failed(what, "wait for that one"));
        }
        let content = Content::of_partial(file, len).map_err(|why| self.said(at, "written", errno(&why)))?;
        Ok((content, Target { parent, name: name.clone() }))
    }
}

impl Side for End {
    fn place(&mut self, path: &[u8], aim: &Aim) -> Result<Placed, Said> {
        if let Base::Below { .. } = self.base {
            return self.place_below(path, aim);
        }
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        match aim {
            Aim::Source => self.place_source(&path),
            Aim::Target { name, folder } => self.place_target(&path, name, *folder),
        }
    }

    fn look(&mut self, at: &Rel) -> Result<Option<Entry>, Said> {
        if at.names().is_empty() {
            let stat = rustix::fs::fstat(&self.root()?.0).map_err(|why| self.said(at, "looked at", why))?;
            return Ok(Some(entry_of(&stat, None)));
        }
        let (parent, name) = self.parent(at)?;
        self.entry(&parent, name, at)
    }

    fn list(&mut self, at: &Rel, from: u32) -> Result<Vec<(Name, Entry)>, Said> {
        if from == 0 || self.listed.as_ref().is_none_or(|(listed, _)| listed != at) {
            self.listed = Some((at.clone(), self.names(at)?));
        }
        let folder = self.folder(at, at.names())?;
        let names = self.listed.iter().flat_map(|(_, names)| names);
        let mut page = Vec::new();
        for name in names.skip(from as usize).take(CP_PAGE_ENTRIES) {
            let gone = || Said::failed(format!("{name:?} in {} is gone", self.show(at)), "run it again");
            let below = at.below(name.clone()).unwrap_or_default();
            page.push((name.clone(), self.entry(&folder, name, &below)?.ok_or_else(gone)?));
        }
        Ok(page)
    }

    fn open(&mut self, at: &Rel) -> Result<Entry, Said> {
        let (parent, name) = self.parent(at)?;
        let read = |why| self.said(at, "read", why);
        let file =
            rustix::fs::openat(parent, name.os(), FILE | OFlags::RDONLY, Mode::empty()).map_err(read)?;
        let entry = entry_of(&rustix::fs::fstat(&file).map_err(read)?, None);
        let Kind::File { len } = entry.kind else {
            return Err(Said::failed(format!("{} is {}", self.show(at), entry.kind), "run it again"));
        };
        self.open = Some(Open { at: at.clone(), content: Content::to_read(file.into(), len), target: None });
        Ok(entry)
    }

    fn begin(&mut self, at: &Rel, len: u64) -> Result<u64, Said> {
        // The last one's lock goes first.
        self.open = None;
        let (content, target) = self.begin_partial(at, len)?;
        let have = content.have();
        self.open = Some(Open { at: at.clone(), content, target: Some(target) });
        Ok(have)
    }

    fn marks(&mut self, first: u64, count: u32) -> Result<Vec<Mark>, Said> {
        let (content, at) = self.content()?;
        let end = first.saturating_add(u64::from(count));
        if count > CP_MARKS_MAX || end > blocks(content.len()) {
            return Err(Said::failed(
                format!("{} has no such blocks", self.show(at)),
                "is the other end sound?",
            ));
        }
        let marks = (first..end).map(|block| content.mark(block)).collect::<std::io::Result<_>>();
        marks.map_err(|why| self.said(at, "read", errno(&why)))
    }

    fn read(&mut self, block: u64, out: &mut [u8]) -> Result<Piece, Said> {
        let (content, at) = self.content()?;
        if len_of(block, content.len()) != Some(out.len()) {
            return Err(Said::failed(
                format!("{} has no such block", self.show(at)),
                "is the other end sound?",
            ));
        }
        content.read(block, out).map_err(|why| match why.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Said::failed(format!("{} became shorter while it was read", self.show(at)), "run it again")
            }
            _ => self.said(at, "read", errno(&why)),
        })
    }

    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Said> {
        let (content, at) = self.content()?;
        if len_of(block, content.len()) != Some(bytes.len()) || !content.is_partial() {
            return Err(Said::failed(
                format!("{} takes no such block", self.show(at)),
                "is the other end sound?",
            ));
        }
        content.write(block, bytes).map_err(|why| self.said(at, "written", errno(&why)))
    }

    fn finish(&mut self, entry: &Entry) -> Result<(), Said> {
        let Some(Open { at, content, target: Some(target) }) = self.open.take() else {
            return Err(Said::failed("no file is being written", "are both ends of one version?"));
        };
        let written = |why| self.said(&at, "written", why);
        content.complete().map_err(|why| written(errno(&why)))?;
        disk::dress(content.file().as_fd(), entry).map_err(written)?;
        content.file().sync_all().map_err(|why| written(errno(&why)))?;
        let Target { parent, name } = target;
        rustix::fs::renameat(&parent, name.partial().os(), &parent, name.os()).map_err(written)?;
        rustix::fs::fsync(&parent).map_err(written)
    }

    fn make_folder(&mut self, at: &Rel) -> Result<(), Said> {
        if at.names().is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(at)?;
        match rustix::fs::mkdirat(&parent, name.os(), Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match self.entry(&parent, name, at)? {
                Some(Entry { kind: Kind::Folder, .. }) => Ok(()),
                found => {
                    let kind = found.map_or("gone".to_owned(), |entry| entry.kind.to_string());
                    let what = format!("{} is {kind}, and a folder is to get its place", self.show(at));
                    Err(Said::wrong(what, "remove it, or name another target"))
                }
            },
            Err(why) => Err(self.said(at, "made", why)),
        }
    }

    fn make_link(&mut self, at: &Rel, to: &LinkText) -> Result<(), Said> {
        let (parent, name) = self.parent(at)?;
        match self.entry(&parent, name, at)?.map(|entry| entry.kind) {
            Some(Kind::Link { to: there }) if there == *to => return Ok(()),
            Some(Kind::Folder) => {
                let what = format!("{} is a folder, and a link is to get its place", self.show(at));
                return Err(Said::wrong(what, "remove it, or name another target"));
            }
            _ => {}
        }
        let made = |why| self.said(at, "made", why);
        let partial = name.partial();
        match rustix::fs::unlinkat(&parent, partial.os(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(why) => return Err(made(why)),
        }
        rustix::fs::symlinkat(to.os(), &parent, partial.os()).map_err(made)?;
        rustix::fs::renameat(&parent, partial.os(), &parent, name.os()).map_err(made)?;
        rustix::fs::fsync(&parent).map_err(made)
    }

    fn dress(&mut self, at: &Rel, entry: &Entry) -> Result<(), Said> {
        let dressed = |why| self.said(at, "given its permissions and time", why);
        let file = if entry.kind == Kind::Folder {
            self.folder(at, at.names())?
        } else {
            let (parent, name) = self.parent(at)?;
            rustix::fs::openat(parent, name.os(), FILE | OFlags::RDONLY, Mode::empty()).map_err(dressed)?
        };
        disk::dress(file.as_fd(), entry).map_err(dressed)?;
        rustix::fs::fsync(&file).map_err(dressed)
    }
}

fn entry_of(stat: &Stat, link: Option<LinkText>) -> Entry {
    let kind = match (FileType::from_raw_mode(stat.st_mode), link) {
        (FileType::RegularFile, _) => Kind::File { len: stat.st_size as u64 },
        (FileType::Directory, _) => Kind::Folder,
        (FileType::Symlink, Some(to)) => Kind::Link { to },
        (FileType::Fifo, _) => Kind::Pipe,
        (FileType::Socket, _) => Kind::Socket,
        _ => Kind::Device,
    };
    Entry {
        kind,
        mode: stat.st_mode & disk::MODE_BITS,
        mtime_s: stat.st_mtime,
        mtime_ns: stat.st_mtime_nsec as u32,
    }
}

fn name_of(name: &OsStr) -> Result<Name, Said> {
    Name::try_from(name.as_bytes().to_vec())
        .map_err(|why| Said::wrong(format!("{name:?} is {why}"), "name another path"))
}

fn errno(why: &std::io::Error) -> Errno {
    Errno::from_io_error(why).unwrap_or(Errno::IO)
}

fn path_said(path: &Path, why: &std::io::Error) -> Said {
    Said { wrong: true, ..said(&path.display().to_string(), "found", errno(why)) }
}

/// What the system said, and what helps.
fn said(shown: &str, done: &str, why: Errno) -> Said {
    let next = match why {
        Errno::NOENT => "check the path; the folder that is to have it must exist",
        Errno::LOOP | Errno::NOTDIR => "a link or a file stands where a folder must: links are not followed",
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            "see who may read and write there: that end runs as its user"
        }
        Errno::NOSPC | Errno::DQUOT => "make room, then run it again: what has arrived is kept",
        _ => "mend that, then run it again: what has arrived is kept",
    };
    Said::failed(format!("{shown} cannot be {done}: {}", std::io::Error::from(why)), next)
}
