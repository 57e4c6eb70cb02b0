//! One TCP connection with blocking reads and writes and no delay for small segments.
//!
//! Key type: [`Stream`]. Neighbour: `bare` drives it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::io::Errno;

use super::{BareError, Buffer, PingPong, Samples, Wire, ask, echo, start_echo};

/// The measuring side. The echo inherits a socket that listens already, so nobody waits for anybody.
pub(super) fn measure(cfg: &PingPong) -> Result<Samples, BareError> {
    let listener = TcpListener::bind(cfg.address).map_err(of)?;
    let address = listener.local_addr().map_err(of)?;
    let other = start_echo(cfg, "tcp", listener.into())?;
    let mut stream = Stream(TcpStream::connect(address).map_err(of)?);
    stream.0.set_nodelay(true).map_err(of)?;
    let samples = ask(cfg, &mut stream, Buffer::new(cfg.size_bytes.max(8), 0).bytes())?;
    other.wait()?;
    Ok(samples)
}

/// The echo's side.
pub(super) fn serve(listener: &TcpListener, size_bytes: usize) -> Result<(), BareError> {
    let (stream, _) = listener.accept().map_err(of)?;
    stream.set_nodelay(true).map_err(of)?;
    echo(&mut Stream(stream), Buffer::new(size_bytes.max(8), 0).bytes())
}

struct Stream(TcpStream);

impl Wire for Stream {
    #[inline]
    fn send(&mut self, buffer: &mut [u8]) -> Result<(), BareError> {
        self.0.write_all(buffer).map_err(of)
    }

    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), BareError> {
        self.0.read_exact(buffer).map_err(of)
    }
}

fn of(error: std::io::Error) -> BareError {
    Errno::from_io_error(&error).map_or(BareError::EchoEnded, BareError::Refused)
}
