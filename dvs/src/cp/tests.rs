//! Ends that say what is not so, and a target that is not what it should be.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::bar::Bar;
use super::carry::{Carrier, Copied, Job};
use super::end::{Base, End};
use super::far;
use super::wire::{Aim, Entry, Kind, LinkText, Mark, Name, Piece, Placed, Rel, Said, Side};

/// Files at hand, but for one lie.
struct Liar {
    end: End,
    lie: Lie,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// A byte of what is read is another.
    Read,
    /// More empty blocks than there are.
    Zeros(u64),
    /// A folder without an end.
    Endless,
    /// A link is a folder, with a file in it.
    LinkIsFolder,
    /// What was there stays for ever.
    Have,
}

type Answer<T> = Result<T, Said>;

impl Side for Liar {
    fn place(&mut self, path: &[u8], aim: &Aim) -> Answer<Placed> {
        self.end.place(path, aim)
    }

    fn look(&mut self, at: &Rel) -> Answer<Option<Entry>> {
        self.end.look(at)
    }

    fn list(&mut self, at: &Rel, from: u32) -> Answer<Vec<(Name, Entry)>> {
        let folder = || Entry { kind: Kind::Folder, mode: 0o700, mtime_s: 0, mtime_ns: 0 };
        let name = Name::try_from(b"in".to_vec()).unwrap();
        match self.lie {
            Lie::Endless => Ok(vec![(name, folder()); 256]),
            Lie::LinkIsFolder if at.names().len() == 1 && from == 0 => Ok(vec![(name, folder())]),
            Lie::LinkIsFolder if from == 0 => {
                let kind = Kind::File { len: 1 };
                Ok(vec![(name, Entry { kind, mode: 0o600, mtime_s: 0, mtime_ns: 0 })])
            }
            Lie::LinkIsFolder => Ok(Vec::new()),
            _ => self.end.list(at, from),
        }
    }

    fn open(&mut self, at: &Rel) -> Answer<Entry> {
        self.end.open(at)
    }

    fn begin(&mut self, at: &Rel, len: u64) -> Answer<u64> {
        let have = self.end.begin(at, len)?;
        Ok(if self.lie == Lie::Have { u64::MAX } else { have })
    }

    fn marks(&mut self, first: u64, count: u32) -> Answer<Vec<Mark>> {
        self.end.marks(first, count)
    }

    fn read(&mut self, block: u64, out: &mut [u8]) -> Answer<Piece> {
        let piece = self.end.read(block, out)?;
        match self.lie {
            Lie::Zeros(blocks) => return Ok(Piece::Zeros { blocks }),
            Lie::Read => out[0] ^= 1,
            _ => {}
        }
        Ok(piece)
    }

    fn write(&mut self, block: u64, bytes: &[u8]) -> Answer<()> {
        let mut bytes = bytes.to_vec();
        bytes[0] ^= u8::from(self.lie == Lie::Read);
        self.end.write(block, &bytes)
    }

    fn finish(&mut self, entry: &Entry) -> Answer<()> {
        self.end.finish(entry)
    }

    fn make_folder(&mut self, at: &Rel) -> Answer<()> {
        self.end.make_folder(at)
    }

    fn make_link(&mut self, at: &Rel, to: &LinkText) -> Answer<()> {
        self.end.make_link(at, to)
    }

    fn dress(&mut self, at: &Rel, entry: &Entry) -> Answer<()> {
        self.end.dress(at, entry)
    }
}

fn honest() -> End {
    End::new(Base::Anywhere)
}

fn carry(from: &mut dyn Side, to: &mut dyn Side, source: &Path, target: &Path) -> Answer<Copied> {
    let bar = Bar::new(true);
    let (source, target) = (source.as_os_str().as_bytes(), target.as_os_str().as_bytes());
    let job = Job { source, target, folders: true };
    Carrier { from, to, bar: &bar, copied: Copied::default() }.run(&job)
}

#[test]
fn what_arrives_otherwise_than_it_left_never_gets_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("file"), folder.path().join("copy"));
    std::fs::write(&file, vec![7; 3_000_000]).unwrap();
    // Spoilt on its way to the disk.
    let mut spoils = Liar { end: honest(), lie: Lie::Read };
    let why = carry(&mut honest(), &mut spoils, &file, &copy).unwrap_err();
    assert!(why.what.contains("arrived with another digest"), "{}", why.what);
    drop(spoils);
    assert!(!copy.exists() && folder.path().join(".copy.dvs-part").exists());
    let done = carry(&mut honest(), &mut honest(), &file, &copy).unwrap();
    assert_eq!((done.carried_bytes, done.resumed_bytes), (3_000_000, 0));
    assert!(std::fs::read(&copy).unwrap() == vec![7; 3_000_000]);
}

#[test]
fn runs_of_empty_blocks_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("file"), folder.path().join("copy"));
    std::fs::write(&file, vec![7; 3_000_000]).unwrap();
    for blocks in [0, 4, u64::MAX] {
        let mut liar = Liar { end: honest(), lie: Lie::Zeros(blocks) };
        let why = carry(&mut liar, &mut honest(), &file, &copy).unwrap_err();
        assert!(why.what.contains("blocks that it has not"), "{blocks}: {}", why.what);
    }
    assert!(!copy.exists());
}

#[test]
fn a_target_that_claims_to_have_all_is_compared_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("file"), folder.path().join("copy"));
    std::fs::write(&file, vec![7; 3_000_000]).unwrap();
    let mut liar = Liar { end: honest(), lie: Lie::Have };
    assert_eq!(carry(&mut honest(), &mut liar, &file, &copy).unwrap().carried_bytes, 3_000_000);
}

#[test]
fn a_folder_without_an_end_is_refused_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, copy) = (folder.path().join("tree"), folder.path().join("copy"));
    std::fs::create_dir(&tree).unwrap();
    let mut liar = Liar { end: honest(), lie: Lie::Endless };
    let why = carry(&mut liar, &mut honest(), &tree, &copy).unwrap_err();
    assert!(why.what.contains("more than 1048576 entries"), "{}", why.what);
    assert!(!copy.exists());
}

#[test]
fn a_source_that_goes_through_a_link_of_the_target_gets_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, copy, outside) = ("tree", "copy", "outside");
    for name in [tree, copy, outside] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink("../outside", folder.path().join("copy/in")).unwrap();
    let mut liar = Liar { end: honest(), lie: Lie::LinkIsFolder };
    let (tree, copy) = (folder.path().join(tree), folder.path().join(copy));
    let why = carry(&mut liar, &mut honest(), &tree, &copy).unwrap_err();
    assert!(
        why.what.ends_with("copy/in is a symbolic link, and a folder is to get its place"),
        "{}",
        why.what
    );
    // Asked for the file in it at once.
    let mut end = honest();
    let name = Name::try_from(b"copy".to_vec()).unwrap();
    let placed = end.place(copy.as_os_str().as_bytes(), &Aim::Target { name, folder: true }).unwrap();
    let name = Name::try_from(b"in".to_vec()).unwrap();
    let below = placed.at.below(name.clone()).and_then(|at| at.below(name)).unwrap();
    for refused in [end.begin(&below, 1).map(drop), end.make_folder(&below), end.open(&below).map(drop)] {
        assert!(refused.unwrap_err().next.contains("links are not followed"));
    }
    assert!(std::fs::read_dir(folder.path().join(outside)).unwrap().next().is_none());
}

#[test]
fn what_has_a_slash_before_its_colon_is_a_path_of_this_node() {
    assert_eq!(far("2:/srv/x:y".as_ref()), Some(("2", &b"/srv/x:y"[..])));
    assert_eq!(far("n2:".as_ref()), Some(("n2", &b""[..])));
    assert_eq!((far("./2:x".as_ref()), far(":x".as_ref()), far("x".as_ref())), (None, None, None));
}
