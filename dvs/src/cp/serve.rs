//! The other end of `dvs cp`: files at hand, lent to commands on other nodes. Started by the command itself on a node
//! of its own machine, or by an operator with `dvs cp --serve`.
//!
//! Key type: [`Server`]. Neighbours: `end` (the files), `remote` (who asks).

use std::path::Path;

use abi::Endpoint;
use abi::limits::{CP_BLOCK_BYTES, CP_SESSIONS_MAX};
use anyhow::{Context, Result};
use dvk::{Access, Binding, GrantError, GrantSegment, Wait};

use super::end::{Base, End};
use super::wire::{Aim, Entry, Files, LinkText, Mark, Name, Piece, Placed, Rel, Said, Side, VERSION, len_of};
use crate::workers::report;

/// Whom it serves, and what.
pub struct Server<'a> {
    /// A folder for everybody in the DC; or everything, for one.
    who: Who<'a>,
    sessions: Vec<Session>,
}

#[derive(Clone, Copy)]
enum Who<'a> {
    Only(Endpoint),
    Anybody { folder: &'a Path },
}

/// One command that copies.
struct Session {
    client: Endpoint,
    end: End,
    readable: GrantSegment,
    writable: GrantSegment,
    grants: (Vec<u8>, Vec<u8>),
    /// Bytes of a block of the open file, on their way.
    bytes: Vec<u8>,
    len: u64,
}

/// Serves the command that started this program, until its standard input ends.
pub fn work(me: &mut Binding, client: Endpoint) -> Result<()> {
    me.set_wait(Wait::Block);
    report(&me.whoami().to_string())?;
    Server { who: Who::Only(client), sessions: Vec::new() }.run(me)
}

/// Serves a folder to everybody in the DC, until a signal comes.
pub fn lend(me: &mut Binding, folder: &Path) -> Result<()> {
    me.set_wait(Wait::Block);
    Server { who: Who::Anybody { folder }, sessions: Vec::new() }.run(me)
}

impl Server<'_> {
    fn run(&mut self, me: &mut Binding) -> Result<()> {
        let served = rpc::serve(me, |me, request| {
            self.admit(me, request.source());
            self.answer(me, request)
        });
        served.context("the node's daemon can no longer be asked")
    }

    /// Makes room for whom there is none yet. Who gets none is told so when he asks for something.
    fn admit(&mut self, me: &mut Binding, client: Endpoint) {
        if self.sessions.iter().any(|session| session.client == client) {
            return;
        }
        self.sessions.retain(|session| me.lookup(session.client.slot) == Some(session.client));
        let base = match self.who {
            Who::Only(one) if one != client => return,
            Who::Only(_) => Base::Anywhere,
            Who::Anybody { folder } => Base::Below { folder: folder.to_owned() },
        };
        if self.sessions.len() < CP_SESSIONS_MAX
            && let Ok(session) = Session::begin(me, client, End::new(base))
        {
            self.sessions.push(session);
        }
    }

    fn of(&mut self, client: Endpoint) -> Result<&mut Session, Said> {
        let who = self.who;
        self.sessions.iter_mut().find(|session| session.client == client).ok_or_else(|| match who {
            Who::Only(one) => {
                Said::failed(format!("files are served to {one} only"), "start a `dvs cp` of your own")
            }
            Who::Anybody { .. } => {
                Said::failed(format!("{CP_SESSIONS_MAX} commands are served already"), "try it later")
            }
        })
    }
}

impl Session {
    fn begin(me: &mut Binding, client: Endpoint, end: End) -> Result<Session, GrantError> {
        let readable = me.grant_segment(CP_BLOCK_BYTES, Access::Read)?;
        let writable = me.grant_segment(CP_BLOCK_BYTES, Access::Write)?;
        let mut lend =
            |segment| me.grant(segment, 0, CP_BLOCK_BYTES, client).map(|grant| grant.to_bytes().to_vec());
        let grants = (lend(&readable)?, lend(&writable)?);
        Ok(Session { client, end, readable, writable, grants, bytes: Vec::new(), len: 0 })
    }

    /// The bytes of a block of the open file.
    fn room(&mut self, block: u64) -> Result<&mut Vec<u8>, Said> {
        let no_block = || Said::failed("the open file has no such block", "is the other end sound?");
        self.bytes.resize(len_of(block, self.len).ok_or_else(no_block)?, 0);
        Ok(&mut self.bytes)
    }
}

fn lent_wrongly(_: impl Sized) -> Said {
    Said::failed("a block is longer than what is lent", "is the other end sound?")
}

impl Files for Server<'_> {
    fn hello(&mut self, caller: Endpoint) -> Result<(u32, Vec<u8>, Vec<u8>), Said> {
        let (readable, writable) = self.of(caller)?.grants.clone();
        Ok((VERSION, readable, writable))
    }

    fn place(&mut self, caller: Endpoint, path: Vec<u8>, aim: Aim) -> Result<Placed, Said> {
        self.of(caller)?.end.place(&path, &aim)
    }

    fn look(&mut self, caller: Endpoint, at: Rel) -> Result<Option<Entry>, Said> {
        self.of(caller)?.end.look(&at)
    }

    fn list(&mut self, caller: Endpoint, at: Rel, from: u32) -> Result<Vec<(Name, Entry)>, Said> {
        self.of(caller)?.end.list(&at, from)
    }

    fn open(&mut self, caller: Endpoint, at: Rel) -> Result<Entry, Said> {
        let session = self.of(caller)?;
        let entry = session.end.open(&at)?;
        session.len = entry.len();
        Ok(entry)
    }

    fn begin(&mut self, caller: Endpoint, at: Rel, len: u64) -> Result<u64, Said> {
        let session = self.of(caller)?;
        session.len = len;
        session.end.begin(&at, len)
    }

    fn marks(&mut self, caller: Endpoint, first: u64, count: u32) -> Result<Vec<Mark>, Said> {
        self.of(caller)?.end.marks(first, count)
    }

    fn read(&mut self, caller: Endpoint, block: u64) -> Result<Piece, Said> {
        let session = self.of(caller)?;
        session.room(block)?;
        let piece = session.end.read(block, &mut session.bytes)?;
        session.readable.write_from(0, &session.bytes).map_err(lent_wrongly)?;
        Ok(piece)
    }

    fn write(&mut self, caller: Endpoint, block: u64) -> Result<(), Said> {
        let session = self.of(caller)?;
        session.room(block)?;
        // Copied out first: whoever it is lent to may still write it.
        session.writable.read_into(0, &mut session.bytes).map_err(lent_wrongly)?;
        session.end.write(block, &session.bytes)
    }

    fn finish(&mut self, caller: Endpoint, entry: Entry) -> Result<(), Said> {
        self.of(caller)?.end.finish(&entry)
    }

    fn make_folder(&mut self, caller: Endpoint, at: Rel) -> Result<(), Said> {
        self.of(caller)?.end.make_folder(&at)
    }

    fn make_link(&mut self, caller: Endpoint, at: Rel, to: LinkText) -> Result<(), Said> {
        self.of(caller)?.end.make_link(&at, &to)
    }

    fn dress(&mut self, caller: Endpoint, at: Rel, entry: Entry) -> Result<(), Said> {
        self.of(caller)?.end.dress(&at, &entry)
    }
}
