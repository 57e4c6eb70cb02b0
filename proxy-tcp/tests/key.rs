//! The cluster key's file: made once, read back, refused when it is not fit.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proxy_tcp::{ClusterKey, KeyError};

/// A directory of this test's own, which is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_key_is_made_once_and_read_back() {
    let scratch = Scratch::new("cluster-key-made");
    let path = scratch.0.join("key");
    let key = ClusterKey::create(&path).unwrap();
    assert!(ClusterKey::load(&path).unwrap() == key);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(ClusterKey::create(&path), Err(KeyError::Create { .. })), "it is never overwritten");
    assert!(ClusterKey::create(&scratch.0.join("other")).unwrap() != key);
    assert_eq!(format!("{key:?}"), "ClusterKey(..)", "it is never printed");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let scratch = Scratch::new("cluster-key-open");
    let path = scratch.0.join("key");
    ClusterKey::create(&path).unwrap();
    for mode in [0o640, 0o604, 0o601] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let error = ClusterKey::load(&path).unwrap_err();
        assert!(matches!(error, KeyError::Open { mode: m, .. } if m == mode));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    assert!(ClusterKey::load(&path).is_ok());
}

#[test]
fn a_file_that_is_no_key_is_refused() {
    let scratch = Scratch::new("cluster-key-no");
    let path = scratch.0.join("key");
    assert!(matches!(ClusterKey::load(&path), Err(KeyError::Read { .. })));
    for text in [
        &b""[..],
        &[b'a'; 63],
        &[b'a'; 65],
        &[b'g'; 64],
        &[0xff; 64],
        &[b'a'; 10_000],
        "é".repeat(32).as_bytes(),
    ] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(matches!(ClusterKey::load(&path), Err(KeyError::Malformed { .. })), "{text:?}");
    }
    std::fs::write(&path, [b'a'; 64]).unwrap();
    assert!(ClusterKey::load(&path).unwrap() == ClusterKey::from_bytes([0xaa; 32]));
}
