//! Where the demonstration is: a bar on a terminal, plain lines elsewhere; always on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::colours_wanted;

/// The steps, one after the other.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    at: u64,
    what: String,
    began: Instant,
}

impl Progress {
    pub fn new(steps: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal() && colours_wanted();
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(steps);
            // The template is a constant: if it were wrong, the default would do.
            if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {pos}/{len} {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { bar, steps, at: 0, what: String::new(), began: Instant::now() }
    }

    pub fn step(&mut self, what: &str) {
        self.at += 1;
        what.clone_into(&mut self.what);
        self.began = Instant::now();
        self.note("");
    }

    /// What happens in it just now; shown on a terminal only.
    pub fn note(&self, what: &str) {
        if let Some(bar) = &self.bar {
            let text = if what.is_empty() { self.what.clone() } else { format!("{}: {what}", self.what) };
            bar.set_message(text);
        }
    }

    pub fn done(&self, result: &str) {
        let line = format!(
            "[{}/{}] {}: {result} ({:.1} s)",
            self.at,
            self.steps,
            self.what,
            self.began.elapsed().as_secs_f64()
        );
        match &self.bar {
            Some(bar) => {
                bar.println(line);
                bar.set_position(self.at);
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
