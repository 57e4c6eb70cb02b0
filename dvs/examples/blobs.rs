//! A service with large fields: files kept by name. Their bytes are read from disk into the memory that the server sees.
//!
//! ```text
//! dvs run --dc main --node 1 --name blobs -- blobs serve
//! dvs run --dc main --node 2 -- blobs put logo logo.png
//! dvs run --dc main --node 3 -- blobs get logo copy.png
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dvk::{Binding, Timeout};
use rpc::Bulk;

// ANCHOR: service
rpc::service! {
    /// Files by name.
    pub trait Blobs, client BlobsClient {
        /// Keeps the bytes; returns how many were kept under the name before.
        fn put(name: String, bytes: Bulk) -> Option<u64> = 1;
        fn get(name: String) -> Option<Bulk> = 2;
    }
}

#[derive(Default)]
struct Shelf(BTreeMap<String, Vec<u8>>);

impl Blobs for Shelf {
    fn put(&mut self, _caller: abi::Endpoint, name: String, bytes: Bulk) -> Option<u64> {
        // A copy: what is kept in place keeps the client's buffer away, and can still be changed by it.
        self.0.insert(name, bytes.to_vec()).map(|before| before.len() as u64)
    }

    fn get(&mut self, _caller: abi::Endpoint, name: String) -> Option<Bulk> {
        self.0.get(&name).map(|bytes| bytes.clone().into())
    }
}
// ANCHOR_END: service

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    if words == ["serve"] {
        Shelf::default().serve(&mut me)?;
        return Ok(ExitCode::SUCCESS);
    }
    let server =
        me.lookup_name("blobs")?.context("nobody is bound as blobs: start `blobs serve` under that name")?;
    let mut client = BlobsClient::new(server);
    client.timeout = Timeout::After(Duration::from_secs(20));
    match words[..] {
        ["put", name, path] => {
            // ANCHOR: put
            let mut file = File::open(path).with_context(|| path.to_owned())?;
            let mut loan = me.loan(file.metadata()?.len().try_into()?)?;
            file.read_exact(&mut loan)?;
            let before = client.put(&mut me, &name.to_owned(), &Bulk::from(loan))?;
            // ANCHOR_END: put
            if let Some(before) = before {
                println!("instead of {before} bytes");
            }
        }
        ["get", name, path] => {
            // ANCHOR: get
            let Some(bytes) = client.get(&mut me, &name.to_owned())? else { return Ok(ExitCode::FAILURE) };
            let mut file = File::create(path).with_context(|| path.to_owned())?;
            let mut piece = [0; 64 << 10];
            for at in (0..bytes.len()).step_by(piece.len()) {
                let piece = &mut piece[..(bytes.len() - at).min(64 << 10)];
                bytes.read_into(at, piece);
                file.write_all(piece)?;
            }
            // ANCHOR_END: get
            println!("{} bytes", bytes.len());
        }
        _ => bail!("usage: blobs serve | put NAME FILE | get NAME FILE"),
    }
    Ok(ExitCode::SUCCESS)
}
