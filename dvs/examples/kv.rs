//! A key/value server and its client, on whichever nodes.
//!
//! ```text
//! cargo build --release --examples
//! dvs run --dc main --node 1 --name kv -- target/release/examples/kv serve
//! dvs run --dc main --node 2 -- target/release/examples/kv put colour blue
//! dvs run --dc main --node 3 -- target/release/examples/kv get colour
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dvk::{Binding, Timeout};

// ANCHOR: service
rpc::service! {
    /// Text by key.
    pub trait Store, client StoreClient {
        /// Puts a value, and returns the one before.
        fn put(key: String, value: String) -> Option<String> = 1;
        fn get(key: String) -> Option<String> = 2;
        /// All keys, in order.
        fn keys() -> Vec<String> = 3;
    }
}
// ANCHOR_END: service

// ANCHOR: server
#[derive(Default)]
struct Map(BTreeMap<String, String>);

impl Store for Map {
    fn put(&mut self, _caller: abi::Endpoint, key: String, value: String) -> Option<String> {
        self.0.insert(key, value)
    }

    fn get(&mut self, _caller: abi::Endpoint, key: String) -> Option<String> {
        self.0.get(&key).cloned()
    }

    fn keys(&mut self, _caller: abi::Endpoint) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}
// ANCHOR_END: server

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut me = Binding::from_env()?;
    if words == ["serve"] {
        // ANCHOR: serve
        Map::default().serve(&mut me)?;
        // ANCHOR_END: serve
        return Ok(ExitCode::SUCCESS);
    }
    // ANCHOR: client
    let server = me.lookup_name("kv")?.context("nobody is bound as kv: start `kv serve` under that name")?;
    let mut client = StoreClient::new(server);
    client.timeout = Timeout::After(Duration::from_secs(10));
    // ANCHOR_END: client
    // ANCHOR: calls
    match words[..] {
        ["put", key, value] => {
            if let Some(before) = client.put(&mut me, &key.to_owned(), &value.to_owned())? {
                println!("was {before}");
            }
        }
        ["get", key] => match client.get(&mut me, &key.to_owned())? {
            Some(value) => println!("{value}"),
            None => return Ok(ExitCode::FAILURE),
        },
        ["keys"] => client.keys(&mut me)?.iter().for_each(|key| println!("{key}")),
        _ => bail!("usage: kv serve | put KEY VALUE | get KEY | keys"),
    }
    // ANCHOR_END: calls
    Ok(ExitCode::SUCCESS)
}
