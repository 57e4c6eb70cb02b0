//! Rows: typed services over sendrec.

use std::collections::BTreeMap;

use abi::Endpoint;
use dvk::{LoanError, Message, SendrecError, Timeout, Unavailable};
use rpc::{Bulk, CallError, PAYLOAD_BYTES_MAX, Refused, interface};

use super::rows;
use crate::support::{Apart, LONG, Life, Place, SHORT, World};

rows!(
    a_service_is_called_wherever_it_is,
    what_an_interface_does_not_know_is_refused_and_the_service_goes_on,
    a_call_ends_as_its_sendrec_does,
    large_fields_are_read_where_they_are,
    large_fields_that_lie_are_malformed,
);

rpc::service! {
    /// A map of bytes.
    pub trait Store, client StoreClient {
        /// Puts a value, and returns the one before.
        fn put(key: String, value: Vec<u8>) -> Option<Vec<u8>> = 1;
        fn get(key: String) -> Option<Vec<u8>> = 2;
        /// How many keys there are, and who asks.
        fn count() -> (u64, u16) = 3;
        fn clear() = 4;
    }
}

// The same calls under another name.
rpc::service! {
    pub trait Shelf, client ShelfClient {
        fn clear() = 4;
    }
}

// A later version, which knows more.
mod later {
    rpc::service! {
        pub trait Store, client StoreClient {
            fn get(key: u64) -> Option<Vec<u8>> = 2;
            fn keys() -> Vec<String> = 5;
        }
    }
}

#[derive(Default)]
struct Map(BTreeMap<String, Vec<u8>>);

impl Store for Map {
    fn put(&mut self, _: Endpoint, key: String, value: Vec<u8>) -> Option<Vec<u8>> {
        self.0.insert(key, value)
    }

    fn get(&mut self, _: Endpoint, key: String) -> Option<Vec<u8>> {
        self.0.get(&key).cloned()
    }

    fn count(&mut self, caller: Endpoint) -> (u64, u16) {
        (self.0.len() as u64, caller.slot.0)
    }

    fn clear(&mut self, _: Endpoint) {
        self.0.clear();
    }
}

/// A store that serves until it is woken; returns what it holds then.
fn store(world: &World) -> Life<usize> {
    world.spawn(Place::There, 0, |mut me| {
        let mut map = Map::default();
        map.serve(&mut me).expect("the daemon is there");
        map.0.len()
    })
}

fn a_service_is_called_wherever_it_is(world: World) {
    let store = store(&world);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, store.endpoint);
    let client = StoreClient { server: store.endpoint, timeout: Timeout::After(LONG) };
    for len in [0, 1, 80, 96, 97, 100_000, 1 << 20] {
        let (key, value) = (format!("of {len} bytes"), vec![len as u8; len]);
        assert_eq!(client.put(&mut me, &key, &value), Ok(None));
        assert_eq!(client.get(&mut me, &key), Ok(Some(value.clone())), "{key}");
        assert_eq!(client.put(&mut me, &key, &vec![1]), Ok(Some(value)));
    }
    assert_eq!(client.count(&mut me), Ok((7, me.whoami().slot.0)));
    assert_eq!(client.clear(&mut me), Ok(()));
    assert_eq!(client.get(&mut me, &"of 1 bytes".to_owned()), Ok(None));
    assert_eq!(client.put(&mut me, &"last".to_owned(), &vec![]), Ok(None));
    me.wake(store.endpoint).expect("alive");
    assert_eq!(store.join(), 1);
    assert_eq!(me.audit().expect("a sound pool").loans, 0);
}

fn what_an_interface_does_not_know_is_refused_and_the_service_goes_on(world: World) {
    let store = store(&world);
    let server = store.endpoint;
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server);
    let refused = |why| Err(CallError::Refused(why));
    assert_eq!(ShelfClient::new(server).clear(&mut me), refused(Refused::NoSuchService));
    let later = later::StoreClient::new(server);
    assert_eq!(later.keys(&mut me).map(|_| ()), refused(Refused::NoSuchCall));
    assert_eq!(later.get(&mut me, &(u64::MAX)).map(|_| ()), refused(Refused::Malformed));
    // A plain message is no request, and nothing that is sent stops the service.
    me.send(server, Message::new(4), Timeout::After(LONG)).expect("taken");
    let kind = u32::from(interface("Store")) << 16 | 2;
    for bytes in [&[0xff; 96][..], &[5, b'x'], &[]] {
        let reply = me.sendrec(server, Message::new(kind).inline(bytes), Timeout::After(LONG));
        assert_eq!(reply.expect("an answer").kind(), Refused::Malformed as u32);
    }
    assert_eq!(StoreClient::new(server).count(&mut me).map(|(count, _)| count), Ok(0));
    me.wake(server).expect("alive");
    store.join();
}

fn a_call_ends_as_its_sendrec_does(world: World) {
    let silent = world.spawn(Place::There, 0, |mut me| {
        let request = me.receive_request(Timeout::After(LONG)).expect("the first");
        me.receive_request(Timeout::After(LONG)).expect("the word to end");
        drop(me);
        drop(request);
    });
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, silent.endpoint);
    let mut client = StoreClient::new(silent.endpoint);
    client.timeout = Timeout::After(SHORT * 20);
    let ended = client.count(&mut me);
    let expected = [SendrecError::TimedOutTaken, SendrecError::TimedOutUnknown].map(CallError::Sendrec);
    assert!(ended.is_err_and(|why| expected.contains(&why)), "{ended:?}");
    me.send(silent.endpoint, Message::new(0), Timeout::After(LONG)).expect("taken");
    silent.join();
    client.timeout = Timeout::After(LONG);
    assert_eq!(client.count(&mut me), Err(CallError::Sendrec(SendrecError::DeadDestination)));
}

#[test]
fn what_does_not_fit_is_refused_at_the_end_that_sees_it() {
    let mut world = World::new(Apart::OneNode);
    let server = world.spawn(Place::Here, 0, |mut me| {
        rpc::serve(&mut me, |me, request| {
            let reply = match request.kind() as u16 {
                1 => rpc::accepted(me, &vec![0u8; PAYLOAD_BYTES_MAX + 1]),
                // Accepted, and no text.
                _ => Message::new(0).inline(&[0xff; 96]),
            };
            me.reply(request, reply)
        })
    });
    let (to, after) = (server.endpoint, Timeout::After(LONG));
    let mut me = world.bind(Place::Here, 1);
    let of = |number| (interface("Odd"), number);
    let long: Result<Vec<u8>, _> = rpc::call(&mut me, to, after, of(1), &());
    assert_eq!(long, Err(CallError::Refused(Refused::NoRoom)));
    let odd: Result<String, _> = rpc::call(&mut me, to, after, of(2), &());
    assert_eq!(odd, Err(CallError::Malformed));
    let long: Result<(), _> = rpc::call(&mut me, to, after, of(2), &vec![0u8; PAYLOAD_BYTES_MAX + 1]);
    assert_eq!(long, Err(CallError::TooLong));
    me.wake(to).expect("alive");
    server.join().expect("served to its end");
    world.lose_the_daemon();
    let none: Result<(), _> = rpc::call(&mut me, to, after, of(2), &vec![0u8; PAYLOAD_BYTES_MAX - 8]);
    assert_eq!(none, Err(CallError::Loan(LoanError::Unavailable(Unavailable::Broken))));
}

rpc::service! {
    pub trait Blobs, client BlobsClient {
        /// Its length, its last byte, and what the label says.
        fn look(label: String, bytes: Bulk) -> (u64, Option<u8>, String) = 1;
        /// Both, the other way round, and what is between them.
        fn swap(one: Bulk, between: Vec<u8>, other: Bulk) -> (Bulk, Vec<u8>, Bulk) = 2;
        /// Keeps it, and returns the one before.
        fn keep(bytes: Bulk) -> Option<Bulk> = 3;
    }
}

#[derive(Default)]
struct Blob(Option<Bulk>);

impl Blobs for Blob {
    fn look(&mut self, _: Endpoint, label: String, bytes: Bulk) -> (u64, Option<u8>, String) {
        let mut last = [0];
        let at = bytes.len().checked_sub(1);
        if let Some(at) = at {
            bytes.read_into(at, &mut last);
        }
        (bytes.len() as u64, at.map(|_| last[0]), label)
    }

    fn swap(&mut self, _: Endpoint, one: Bulk, between: Vec<u8>, other: Bulk) -> (Bulk, Vec<u8>, Bulk) {
        (other, between, one)
    }

    fn keep(&mut self, _: Endpoint, bytes: Bulk) -> Option<Bulk> {
        self.0.replace(bytes)
    }
}

fn blobs(world: &World) -> Life<()> {
    world.spawn(Place::There, 0, |mut me| Blob::default().serve(&mut me).expect("the daemon is there"))
}

fn numbered(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + seed) as u8).collect()
}

fn large_fields_are_read_where_they_are(world: World) {
    let blobs = blobs(&world);
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, blobs.endpoint);
    let client = BlobsClient { server: blobs.endpoint, timeout: Timeout::After(LONG) };
    // A label that fits beside the loan, and one that goes behind the bytes in it.
    for label in ["", "small", &"a long label ".repeat(50)] {
        let label = label.to_owned();
        for len in [0, 1, 4096, 5 << 20] {
            let bytes = numbered(len, 3);
            let said = (len as u64, bytes.last().copied(), label.clone());
            let mut loan = me.loan(len).expect("a buffer");
            loan.copy_from_slice(&bytes);
            let bulk = Bulk::from(loan);
            assert_eq!(client.look(&mut me, &label, &bulk), Ok(said.clone()), "a loan of {len} bytes");
            // As it is, unless the label is behind it.
            assert_eq!(bulk.is_sent(), label.len() < 60, "{bulk:?}, {} bytes of label", label.len());
            if bulk.is_sent() {
                assert_eq!(client.look(&mut me, &label, &bulk), Err(CallError::Sent));
            }
            let bulk = Bulk::from(bytes);
            for _ in 0..2 {
                assert_eq!(client.look(&mut me, &label, &bulk), Ok(said.clone()), "a vector of {len} bytes");
            }
        }
    }
    for (one, between, other) in [(0, 0, 0), (1, 0, 70_000), (3 << 20, 9, 0), (10, 1 << 20, 4097)] {
        let lens = (one, between, other);
        let [one, between, other] =
            [(one, 1), (between, 2), (other, 3)].map(|(len, seed)| numbered(len, seed));
        let (first, second) = (Bulk::from(one.clone()), Bulk::from(other.clone()));
        let swapped = client.swap(&mut me, &first, &between, &second).expect("swapped");
        assert!(swapped.0.to_vec() == other && swapped.1 == between && swapped.2.to_vec() == one, "{lens:?}");
        // What came goes on as an argument.
        let back = client.swap(&mut me, &swapped.0, &swapped.1, &swapped.2).expect("swapped back");
        assert!(back.0.to_vec() == one && back.1 == between && back.2.to_vec() == other, "{lens:?}");
    }
    // A server may keep it: on one node the loan is out meanwhile, elsewhere it is home once its bytes are there.
    for round in 0..5 {
        let before = client.keep(&mut me, &Bulk::from(numbered(9000, round))).expect("kept");
        let wanted = round.checked_sub(1).map(|round| numbered(9000, round));
        assert_eq!(before.map(|bulk| bulk.to_vec()), wanted);
    }
    assert!(me.audit().expect("a sound pool").loans <= 1);
    me.wake(blobs.endpoint).expect("alive");
    blobs.join();
}

fn large_fields_that_lie_are_malformed(world: World) {
    let blobs = blobs(&world);
    let server = blobs.endpoint;
    let mut me = world.bind(Place::Here, 0);
    world.meet(&mut me, server);
    let look = u32::from(interface("Blobs")) << 16 | 1;
    let word = |tail: u32, rest: &[u8]| [&tail.to_le_bytes()[..], rest].concat();
    // An empty label, and a length: (label length, bulk length) as postcard writes them.
    for (what, inline, loan) in [
        ("no loan", Some(word(0, &[0, 10])), None),
        ("more than came", Some(word(0, &[0, 11])), Some(10)),
        ("less than came", Some(word(0, &[0, 9])), Some(10)),
        (
            "a length beyond all",
            Some(word(0, &[0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1])),
            Some(10),
        ),
        ("a tail longer than the loan", Some(word(11, &[])), Some(10)),
        ("a tail beyond all", Some(word(u32::MAX, &[])), Some(10)),
        ("a tail, and a value", Some(word(2, &[0, 8])), Some(10)),
        ("a tail of zeros that says there are none", Some(word(2, &[])), Some(10)),
        ("half a word", Some(vec![0, 0]), Some(10)),
        ("a bulk that nothing announces", Some(word(0, &[])), Some(10)),
        ("a value in the loan, without a word", None, Some(10)),
    ] {
        let mut request = Message::new(look).inline(&inline.unwrap_or_default());
        if let Some(len) = loan {
            let mut loan = me.loan(len).expect("a buffer");
            loan.fill(0);
            request = request.with(loan);
        }
        let reply = me.sendrec(server, request, Timeout::After(LONG)).expect("an answer");
        assert_eq!(reply.kind(), Refused::Malformed as u32, "{what}");
    }
    let client = BlobsClient::new(server);
    let seen = client.look(&mut me, &"still here".to_owned(), &Bulk::from(vec![1]));
    assert_eq!(seen, Ok((1, Some(1), "still here".to_owned())));
    me.wake(server).expect("alive");
    blobs.join();
    assert_eq!(me.audit().expect("a sound pool").loans, 0);
}
