//! A first program: a server that greets, and its client, on whichever nodes. The book begins with it.
//!
//! ```text
//! dvs run --dc main --node 1 --slot 0 -- hello serve
//! dvs run --dc main --node 2 -- hello ask Ada
//! ```

// ANCHOR: all
use dvk::{Binding, Message, Timeout, What};

/// The server's place in the table of the DC: the first one of the first node.
const SERVER: abi::Slot = abi::Slot(0);
/// What a message means is up to its sender and its receiver.
const HELLO: u32 = 1;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Taken over from `dvs run`, which bound this process in a DC.
    let mut me = Binding::from_env()?;
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve(&mut me),
        ["ask", name] => ask(&mut me, name),
        _ => Err("usage: hello serve | ask NAME".into()),
    }
}
// ANCHOR_END: all

// ANCHOR: serve
/// Greets whoever asks, until it is woken.
fn serve(me: &mut Binding) -> Result<(), Box<dyn std::error::Error>> {
    loop {
        let request = me.receive_request(Timeout::Forever)?;
        match request.what() {
            What::Woken => return Ok(()),
            What::Request { .. } => {
                let answer = [b"hello, ", request.inline()].concat();
                let answer = &answer[..answer.len().min(abi::limits::INLINE_BYTES_MAX)];
                // A client that no longer waits is no trouble of a server's.
                let _ = me.reply(&request, Message::new(HELLO).inline(answer));
            }
            _ => {}
        }
    }
}
// ANCHOR_END: serve

// ANCHOR: ask
/// One question, one answer.
fn ask(me: &mut Binding, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    if name.len() > abi::limits::INLINE_BYTES_MAX {
        return Err("a name has at most 96 bytes".into());
    }
    let server = me.wait_bind(SERVER, Timeout::Forever)?;
    let question = Message::new(HELLO).inline(name.as_bytes());
    let reply = me.sendrec(server, question, Timeout::Forever)?;
    println!("{}", String::from_utf8_lossy(reply.inline()));
    Ok(())
}
// ANCHOR_END: ask
