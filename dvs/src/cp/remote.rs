//! The end of a copy that another process has at hand, on another node or on this one.
//!
//! What is asked travels by `rpc`, a block by `copy` through the server's grants: it lends one block to be read and
//! one to be written. Key type: [`Remote`]. Neighbours: `wire` ([`Side`]), `serve` (the other half).

use abi::limits::{CP_BLOCK_BYTES, CP_PAGE_ENTRIES};
use abi::{Endpoint, Name as NodeName};
use anyhow::{Context, Result};
use dvk::{Access, Binding, CopyEnd, Grant, GrantSegment, Timeout};
use rpc::CallError;

use super::wire::{Aim, Entry, FilesClient, LinkText, Mark, Name, Piece, Placed, Rel, Said, Side, VERSION};
use crate::failure::{Exit, failure};

/// What an answer may take: a whole file goes to the disk in one.
const PATIENCE: Timeout = Timeout::After(std::time::Duration::from_secs(120));

/// Files of another process.
pub struct Remote<'a> {
    me: &'a mut Binding,
    files: FilesClient,
    node: NodeName,
    /// Our own block: what is read comes into it, what is written goes out of it.
    block: GrantSegment,
    readable: Grant,
    writable: Grant,
}

impl Remote<'_> {
    /// Asks a server for its grants.
    pub fn meet(me: &mut Binding, server: Endpoint, node: NodeName) -> Result<Remote<'_>> {
        let block = me.grant_segment(CP_BLOCK_BYTES, Access::Write).context("no memory for a block")?;
        let files = FilesClient { server, timeout: PATIENCE };
        let hello = files.hello(me);
        let hello = hello.map_err(call_said).and_then(|said| said).map_err(|said| {
            let said = said.of_node(node.as_str());
            failure(Exit::Failed, said.what, said.next)
        });
        let (version, readable, writable) = hello?;
        let grants = (Grant::from_bytes(&readable), Grant::from_bytes(&writable));
        let lent = |grant: &Grant| grant.owner == server && grant.len_bytes >= CP_BLOCK_BYTES;
        match grants {
            (Some(readable), Some(writable)) if version == VERSION && lent(&readable) && lent(&writable) => {
                Ok(Remote { me, files, node, block, readable, writable })
            }
            _ => {
                let what = format!("the `dvs cp` of node {node} is of version {version}, not {VERSION}");
                Err(failure(Exit::Failed, what, "use one version of dvs on both nodes"))
            }
        }
    }

    fn ask<T>(
        &mut self,
        call: impl FnOnce(&FilesClient, &mut Binding) -> Result<Result<T, Said>, CallError>,
    ) -> Result<T, Said> {
        let answer = call(&self.files, self.me);
        answer.map_err(call_said).and_then(|said| said).map_err(|said| said.of_node(self.node.as_str()))
    }

    fn copied(&self, why: dvk::CopyError) -> Said {
        Said::failed(format!("a block from or to node {}: {why}", self.node), AGAIN)
    }

    fn broken(&self, what: &str) -> Said {
        Said::failed(format!("node {} answered {what}", self.node), "use one version of dvs on both nodes")
    }
}

const AGAIN: &str = "`dvs status` shows how the nodes do; then run it again: what has arrived is kept";

fn call_said(why: CallError) -> Said {
    Said::failed(format!("the other end did not answer: {why}"), AGAIN)
}

impl Side for Remote<'_> {
    fn place(&mut self, path: &[u8], aim: &Aim) -> Result<Placed, Said> {
        self.ask(|files, me| files.place(me, &path.to_vec(), aim))
    }

    fn look(&mut self, at: &Rel) -> Result<Option<Entry>, Said> {
        self.ask(|files, me| files.look(me, at))
    }

    fn list(&mut self, at: &Rel, from: u32) -> Result<Vec<(Name, Entry)>, Said> {
        let page = self.ask(|files, me| files.list(me, at, &from))?;
        if page.len() > CP_PAGE_ENTRIES { Err(self.broken("more entries than it may")) } else { Ok(page) }
    }

    fn open(&mut self, at: &Rel) -> Result<Entry, Said> {
        self.ask(|files, me| files.open(me, at))
    }

    fn begin(&mut self, at: &Rel, len: u64) -> Result<u64, Said> {
        self.ask(|files, me| files.begin(me, at, &len))
    }

    fn marks(&mut self, first: u64, count: u32) -> Result<Vec<Mark>, Said> {
        let marks = self.ask(|files, me| files.marks(me, &first, &count))?;
        if marks.len() == count as usize {
            Ok(marks)
        } else {
            Err(self.broken("other digests than asked for"))
        }
    }

    fn read(&mut self, block: u64, out: &mut [u8]) -> Result<Piece, Said> {
        let piece = self.ask(|files, me| files.read(me, &block))?;
        if piece == Piece::Data {
            let (from, to) = (CopyEnd::Granted(&self.readable, 0), CopyEnd::Own(&self.block, 0));
            let copied = self.me.copy(from, to, out.len() as u64, PATIENCE);
            copied.map_err(|why| self.copied(why))?;
            self.block.read_into(0, out).map_err(|_| self.broken("a block that is too long"))?;
        }
        Ok(piece)
    }

    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Said> {
        self.block.write_from(0, bytes).map_err(|_| self.broken("a block that is too long"))?;
        let (from, to) = (CopyEnd::Own(&self.block, 0), CopyEnd::Granted(&self.writable, 0));
        let copied = self.me.copy(from, to, bytes.len() as u64, PATIENCE);
        copied.map_err(|why| self.copied(why))?;
        self.ask(|files, me| files.write(me, &block))
    }

    fn finish(&mut self, entry: &Entry) -> Result<(), Said> {
        self.ask(|files, me| files.finish(me, entry))
    }

    fn make_folder(&mut self, at: &Rel) -> Result<(), Said> {
        self.ask(|files, me| files.make_folder(me, at))
    }

    fn make_link(&mut self, at: &Rel, to: &LinkText) -> Result<(), Said> {
        self.ask(|files, me| files.make_link(me, at, to))
    }

    fn dress(&mut self, at: &Rel, entry: &Entry) -> Result<(), Said> {
        self.ask(|files, me| files.dress(me, at, entry))
    }
}
