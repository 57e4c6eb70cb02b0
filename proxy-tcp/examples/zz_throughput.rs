use std::io::{Read, Write};
use std::time::Duration;
use abi::{Incarnation, NodeId};
use fabric::*;
use proxy_tcp::*;
use shm::map::Mapping;
fn cpu() -> f64 { let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime); t.tv_sec as f64 + t.tv_nsec as f64 / 1e9 }
fn main() {
    let ids = [NodeId(1), NodeId(2)];
    let l = [std::net::TcpListener::bind("127.0.0.1:0").unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap()];
    let at = [l[0].local_addr().unwrap(), l[1].local_addr().unwrap()];
    let mut f: Vec<TcpFabric> = l.into_iter().enumerate().map(|(i, l)| {
        let mut c = TcpConfig::new(ids[i], Incarnation(1), at[i]); c.peers = vec![(ids[1 - i], at[1 - i])];
        TcpFabric::with_listener(c, l, Duration::ZERO).unwrap() }).collect();
    let mut done = Vec::with_capacity(256);
    let map = Mapping::heap(64 << 16);
    let big = Mapping::heap(64 << 20);
    for i in (0..big.len_bytes()).step_by(4096) { big.write_from(i, &[1]).unwrap(); }
    let mut r = vec![]; let mut rb = vec![];
    for x in &mut f { let k = x.attach(&map); r.push(k); rb.push(x.attach(&big));
        let bufs: Vec<Piece> = (0..64u64).map(|i| Piece { region: k, offset_bytes: i << 16, len_bytes: 1 << 16 }).collect();
        x.post_recv(&bufs); }
    let now = Duration::from_millis(1);
    let mut ups = 0;
    while ups < 2 { for x in &mut f { x.poll(now, &mut done); for c in done.drain(..) { if matches!(c, Completion::Up{..}) { ups += 1 } } } }
    let head = [7u8; 64];
    let n = 100_000;
    let c0 = cpu();
    for _ in 0..n { for i in 0..2 {
        assert_eq!(f[i].post_send(ids[1 - i], &[Desc { token: 0, head: &head, pieces: &[], bulk: false }]), 1);
        let mut got = false;
        while !got { f[1 - i].poll(now, &mut done); for c in done.drain(..) { if let Completion::Received { buffer, .. } = c { f[1 - i].post_recv(&[buffer]); got = true } } }
    } }
    println!("64 B round trip: cpu {:.2} us", (cpu() - c0) * 1e6 / n as f64);
    { let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
      let mut a = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap(); let mut b = l.accept().unwrap().0;
      a.set_nodelay(true).unwrap(); b.set_nodelay(true).unwrap();
      let c0 = cpu(); let mut buf = [0; 96];
      for _ in 0..n { a.write_all(&buf).unwrap(); b.read_exact(&mut buf).unwrap(); b.write_all(&buf).unwrap(); a.read_exact(&mut buf).unwrap(); }
      println!("bare socket round trip: cpu {:.2} us", (cpu() - c0) * 1e6 / n as f64); }
    for (size, total) in [(64usize, 2_000_000u64), (1024, 1_000_000), (32 << 10, 100_000)] {
        let c0 = cpu();
        let piece = [Piece { region: r[0], offset_bytes: 0, len_bytes: (size - 64) as u32 }];
        let pieces: &[Piece] = if size > 64 { &piece } else { &[] };
        let batch = vec![Desc { token: 1, head: &head, pieces, bulk: false }; 64];
        let (mut posted, mut got) = (0u64, 0u64); let mut back = Vec::with_capacity(256);
        while got < total {
            let want = (total - posted).min(64) as usize;
            posted += f[0].post_send(ids[1], &batch[..want]) as u64;
            f[0].poll(now, &mut done); done.clear();
            f[1].poll(now, &mut done);
            for c in done.drain(..) { if let Completion::Received { buffer, .. } = c { back.push(buffer); got += 1 } }
            f[1].post_recv(&back); back.clear();
        }
        let s = cpu() - c0;
        println!("{size} B one way: cpu {:.0} ns/msg both ends, {:.2} GB per cpu-s", s * 1e9 / total as f64, total as f64 * size as f64 / s / 1e9);
    }
    let rounds = 40u32; let c0 = cpu(); let (mut posted, mut got) = (0, 0);
    while got < rounds {
        let whole = Piece { region: rb[0], offset_bytes: 0, len_bytes: 64 << 20 };
        if posted - got < 2 && posted < rounds { posted += f[0].post_send(ids[1], &[Desc { token: 0, head: &head, pieces: &[whole], bulk: true }]) as u32; }
        f[0].poll(now, &mut done); done.clear();
        f[1].poll(now, &mut done);
        let v: Vec<_> = done.drain(..).collect();
        for c in v { match c { Completion::Announced { peer, token, buffer, .. } => { f[1].post_recv(&[buffer]); f[1].accept(peer, token, Piece { region: rb[1], ..whole }) } Completion::BulkReceived{..} => got += 1, _ => {} } }
    }
    println!("64 MiB bulk: {:.2} GB per cpu-s, both ends", rounds as f64 * (64 << 20) as f64 / 1e9 / (cpu() - c0));
    { let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
      let mut a = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap(); let mut b = l.accept().unwrap().0;
      a.set_nonblocking(true).unwrap(); b.set_nonblocking(true).unwrap();
      let src = vec![1u8; 64 << 20]; let mut dst = vec![1u8; 64 << 20];
      let c0 = cpu();
      for _ in 0..rounds { let (mut s, mut d) = (0, 0); while d < src.len() {
         if s < src.len() { if let Ok(k) = a.write(&src[s..(s + (2 << 20)).min(src.len())]) { s += k } }
         if let Ok(k) = b.read(&mut dst[d..]) { d += k } } }
      println!("bare socket bulk: {:.2} GB per cpu-s, both ends", rounds as f64 * (64 << 20) as f64 / 1e9 / (cpu() - c0)); }
}
