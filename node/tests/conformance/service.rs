//! Rows: typed services over sendrec.

use std::collections::BTreeMap;

use abi::Endpoint;
use dvk::{Message, SendrecError, Timeout};
use rpc::{CallError, Refused, interface};

use super::rows;
use crate::support::{LONG, Life, Place, SHORT, World};

rows!(
    a_service_is_called_wherever_it_is,
    what_an_interface_does_not_know_is_refused_and_the_service_goes_on,
    a_call_ends_as_its_sendrec_does,
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
