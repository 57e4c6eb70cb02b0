//! A run of the real program, bounded in time.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const BOUND: Duration = Duration::from_secs(60);

/// What a run came to.
pub struct Ran {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("{e}: not one object: {:?}\n{}", self.out, self.err))
    }

    /// It failed with this code, and said all of this.
    pub fn refused(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code(), code, "{}{}", self.out, self.err);
        for words in said {
            assert!(self.err.contains(words), "{words:?} is missing in: {}", self.err);
        }
        assert!(self.err.contains("next: "), "no way out in: {}", self.err);
    }

    pub fn fine(self) -> Ran {
        assert_eq!(self.code(), 0, "{}{}", self.out, self.err);
        self
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("DVS_CLUSTER").env_remove("DVS_RUNTIME_DIR").env_remove("RUST_LOG").current_dir("/");
    command
}

pub fn finish(mut child: Child) -> Ran {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: &mut dyn Read| {
        let mut text = String::new();
        from.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    };
    let (out, err) = std::thread::scope(|s| {
        let (out, err) = (s.spawn(|| read(&mut out)), s.spawn(|| read(&mut err)));
        let until = Instant::now() + BOUND;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                child.kill().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        (out.join().unwrap(), err.join().unwrap())
    });
    let status = child.wait().unwrap();
    Ran { status, out, err }
}

pub fn dvs(args: &[&str]) -> Ran {
    finish(command(args).spawn().unwrap())
}
