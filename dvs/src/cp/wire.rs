//! What the two ends of `dvs cp` say to one another: names, entries, errors, the service.
//!
//! What comes from the other end is a claim. A [`Name`] or a [`Rel`] that exists is checked: reading one from bytes
//! refuses what could lead out of the folder. Key items: [`Side`] (what an end can do, near or far), [`Files`] (the
//! same as a service). Neighbours: `end` (near), `remote` (far), `serve` (answers).

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use abi::limits::{
    CP_BLOCK_BYTES, CP_DEPTH_MAX, CP_LINK_BYTES_MAX, CP_MARKS_MAX, CP_NAME_BYTES_MAX, CP_PAGE_ENTRIES,
};
use serde::{Deserialize, Serialize};

use crate::talk::one_line;

/// Both ends must be of one version.
pub const VERSION: u32 = 1;
/// What a partial file's name ends with; it begins with a dot.
const PARTIAL_END: &[u8] = b".dvs-part";
/// Characters of an error that are shown.
const SAID_CHARS_MAX: usize = 1000;

/// One name of a path: neither empty nor `.` nor `..`, without `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

impl Name {
    pub fn os(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Where a file of this name is put together.
    pub fn partial(&self) -> Name {
        let around = |middle: &[u8]| [b".", middle, PARTIAL_END].concat();
        let plain = around(&self.0);
        if plain.len() <= CP_NAME_BYTES_MAX {
            return Name(plain);
        }
        Name(around(blake3::hash(&self.0).to_hex().as_bytes()))
    }

    pub fn is_partial(&self) -> bool {
        self.0.starts_with(b".") && self.0.ends_with(PARTIAL_END)
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Name, &'static str> {
        let is_name = !bytes.is_empty() && bytes.len() <= CP_NAME_BYTES_MAX;
        let leads_away = matches!(&bytes[..], b"." | b"..") || bytes.iter().any(|b| matches!(b, b'/' | 0));
        if is_name && !leads_away { Ok(Name(bytes)) } else { Err("no name of a file in a folder") }
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0
    }
}

/// A path below the folder that both ends mean; without names: that folder itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Name>", into = "Vec<Name>")]
pub struct Rel(Vec<Name>);

impl Rel {
    pub fn names(&self) -> &[Name] {
        &self.0
    }

    /// One further down; `None` when it is as deep as it goes.
    pub fn below(&self, name: Name) -> Option<Rel> {
        let mut names = self.0.clone();
        names.push(name);
        Rel::try_from(names).ok()
    }

    /// The same path below another beginning.
    pub fn moved(&self, from: &Rel, to: &Rel) -> Option<Rel> {
        let rest = self.0.get(from.0.len()..)?;
        Rel::try_from([&to.0[..], rest].concat()).ok()
    }
}

impl TryFrom<Vec<Name>> for Rel {
    type Error = &'static str;

    fn try_from(names: Vec<Name>) -> Result<Rel, &'static str> {
        if names.len() <= CP_DEPTH_MAX { Ok(Rel(names)) } else { Err("folders in folders, too deep") }
    }
}

impl From<Rel> for Vec<Name> {
    fn from(rel: Rel) -> Vec<Name> {
        rel.0
    }
}

impl fmt::Display for Rel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|name| one_line(&String::from_utf8_lossy(&name.0))).collect();
        f.write_str(&names.join("/"))
    }
}

/// What a symbolic link leads to: bytes that are kept, never followed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct LinkText(Vec<u8>);

impl LinkText {
    pub fn os(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl TryFrom<Vec<u8>> for LinkText {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<LinkText, &'static str> {
        let fits = (1..=CP_LINK_BYTES_MAX).contains(&bytes.len()) && !bytes.contains(&0);
        if fits { Ok(LinkText(bytes)) } else { Err("nothing a symbolic link can lead to") }
    }
}

impl From<LinkText> for Vec<u8> {
    fn from(text: LinkText) -> Vec<u8> {
        text.0
    }
}

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    File { len: u64 },
    Folder,
    Link { to: LinkText },
    Pipe,
    Socket,
    Device,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::File { .. } => "a file",
            Kind::Folder => "a folder",
            Kind::Link { .. } => "a symbolic link",
            Kind::Pipe => "a named pipe",
            Kind::Socket => "a socket",
            Kind::Device => "a device",
        })
    }
}

/// A file, a folder or a link, as it is copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub kind: Kind,
    /// Permissions, without set-user-id and set-group-id.
    pub mode: u32,
    pub mtime_s: i64,
    pub mtime_ns: u32,
}

impl Entry {
    /// Bytes of a file; of anything else none.
    pub fn len(&self) -> u64 {
        if let Kind::File { len } = self.kind { len } else { 0 }
    }
}

/// The digest of a block.
pub type Mark = [u8; 32];

/// What a path is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Aim {
    Source,
    /// To be written; `name` is the source's.
    Target {
        name: Name,
        folder: bool,
    },
}

/// Where a path led.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placed {
    pub at: Rel,
    pub name: Name,
}

/// What reading a block came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Piece {
    Data,
    /// This block and the next ones, so many together, hold nothing but zeros.
    Zeros {
        blocks: u64,
    },
}

/// Why an end did not do what it was asked, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Said {
    /// The command line is at fault, and nothing was begun.
    pub wrong: bool,
    pub what: String,
    pub next: String,
}

impl Said {
    pub fn wrong(what: impl Into<String>, next: impl Into<String>) -> Said {
        Said { wrong: true, what: what.into(), next: next.into() }
    }

    pub fn failed(what: impl Into<String>, next: impl Into<String>) -> Said {
        Said { wrong: false, what: what.into(), next: next.into() }
    }

    /// As another end's words are shown: one line, not too long.
    pub fn of_node(self, node: &str) -> Said {
        let tame = |text: &str| one_line(&text.chars().take(SAID_CHARS_MAX).collect::<String>());
        Said { what: format!("on node {node}: {}", tame(&self.what)), next: tame(&self.next), ..self }
    }
}

/// How many blocks a file has.
pub fn blocks(len: u64) -> u64 {
    len.div_ceil(CP_BLOCK_BYTES)
}

/// Bytes of one block of a file: the last one is shorter. `None`: it has no such block.
pub fn len_of(block: u64, len: u64) -> Option<usize> {
    let left = len.checked_sub(block.checked_mul(CP_BLOCK_BYTES)?)?;
    (left > 0).then_some(left.min(CP_BLOCK_BYTES) as usize)
}

/// An end of a copy. One file is open at a time: what `open` or `begin` named last.
pub trait Side {
    /// What a path of the command line means; everything else is below it.
    fn place(&mut self, path: &[u8], aim: &Aim) -> Result<Placed, Said>;
    fn look(&mut self, at: &Rel) -> Result<Option<Entry>, Said>;
    /// Entries of a folder in the order of their names, from the `from`-th on; none: that was all.
    fn list(&mut self, at: &Rel, from: u32) -> Result<Vec<(Name, Entry)>, Said>;
    /// Opens a file for reading.
    fn open(&mut self, at: &Rel) -> Result<Entry, Said>;
    /// Opens the partial file of a target of `len` bytes, and says how many bytes it has.
    fn begin(&mut self, at: &Rel, len: u64) -> Result<u64, Said>;
    /// Digests of blocks of the open file.
    fn marks(&mut self, first: u64, count: u32) -> Result<Vec<Mark>, Said>;
    /// Reads a block into `out`, which has its length.
    fn read(&mut self, block: u64, out: &mut [u8]) -> Result<Piece, Said>;
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Said>;
    /// On the disk, then in place of what has that name.
    fn finish(&mut self, entry: &Entry) -> Result<(), Said>;
    fn make_folder(&mut self, at: &Rel) -> Result<(), Said>;
    fn make_link(&mut self, at: &Rel, to: &LinkText) -> Result<(), Said>;
    /// Sets permissions and time of a file or folder.
    fn dress(&mut self, at: &Rel, entry: &Entry) -> Result<(), Said>;
}

rpc::service! {
    /// An end of a copy on another node; what [`Side`] says of each call holds here.
    pub trait Files, client FilesClient {
        /// The server's version, and the grants of the two blocks: one to be read, one to be written.
        fn hello() -> Result<(u32, Vec<u8>, Vec<u8>), Said> = 1;
        fn place(path: Vec<u8>, aim: Aim) -> Result<Placed, Said> = 2;
        fn look(at: Rel) -> Result<Option<Entry>, Said> = 3;
        fn list(at: Rel, from: u32) -> Result<Vec<(Name, Entry)>, Said> = 4;
        fn open(at: Rel) -> Result<Entry, Said> = 5;
        fn begin(at: Rel, len: u64) -> Result<u64, Said> = 6;
        fn marks(first: u64, count: u32) -> Result<Vec<Mark>, Said> = 7;
        /// Into the block to be read, if it is data.
        fn read(block: u64) -> Result<Piece, Said> = 8;
        /// From the block to be written.
        fn write(block: u64) -> Result<(), Said> = 9;
        fn finish(entry: Entry) -> Result<(), Said> = 10;
        fn make_folder(at: Rel) -> Result<(), Said> = 11;
        fn make_link(at: Rel, to: LinkText) -> Result<(), Said> = 12;
        fn dress(at: Rel, entry: Entry) -> Result<(), Said> = 13;
    }
}

const _: () =
    assert!(CP_PAGE_ENTRIES * (CP_NAME_BYTES_MAX + CP_LINK_BYTES_MAX + 64) < rpc::PAYLOAD_BYTES_MAX);
const _: () = assert!(CP_MARKS_MAX as usize * size_of::<Mark>() < rpc::PAYLOAD_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_a_folder_are_refused_wherever_they_come_from() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b", &"x".repeat(256)] {
            assert!(Name::try_from(bad.as_bytes().to_vec()).is_err(), "{bad:?}");
            let text = serde_json::to_string(&vec![bad.as_bytes()]).unwrap();
            assert!(serde_json::from_str::<Rel>(&text).is_err(), "{bad:?}");
        }
        let longest = Name::try_from(vec![0xff; 255]).unwrap();
        assert!(longest.partial().0.len() <= 255 && longest.partial().is_partial());
        let deepest = Rel::try_from(vec![longest.clone(); CP_DEPTH_MAX]).unwrap();
        assert!(deepest.below(longest).is_none());
    }

    #[test]
    fn the_last_block_ends_with_the_file_and_none_is_behind_it() {
        let len = CP_BLOCK_BYTES + 1;
        assert_eq!((blocks(0), blocks(1), blocks(len)), (0, 1, 2));
        assert_eq!((len_of(0, len), len_of(1, len), len_of(2, len)), (Some(1 << 20), Some(1), None));
        assert_eq!((len_of(0, 0), len_of(u64::MAX, u64::MAX)), (None, None));
    }

    #[test]
    fn what_another_end_says_stays_one_line_of_a_bounded_length() {
        let said = Said::failed("a\nb\x1b[2J".repeat(1000), "x").of_node("n2");
        assert!(said.what.starts_with("on node n2: a\\nb\\u{1b}") && said.what.len() < 10_000);
    }
}
