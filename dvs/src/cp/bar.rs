//! How far a copy is: a bar on a terminal, nothing elsewhere; always on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::wire::Rel;
use crate::output::colours_wanted;

/// Shared by whoever copies and whoever waits for a signal.
#[derive(Clone)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    pub fn new(json: bool) -> Bar {
        let wanted = !json && std::io::stderr().is_terminal() && colours_wanted();
        Bar(wanted.then(|| {
            let bar = ProgressBar::new(0);
            let shown = "{spinner} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec} {wide_msg}";
            // The template is a constant: if it were wrong, the default would do.
            if let Ok(style) = ProgressStyle::with_template(shown) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }

    pub fn begin(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(bytes);
        }
    }

    pub fn name(&self, at: &Rel) {
        if let Some(bar) = &self.0 {
            bar.set_message(at.to_string());
        }
    }

    pub fn carried(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// What need not be carried says nothing of the speed.
    pub fn skip(&self, bytes: u64) {
        self.carried(bytes);
    }

    pub fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
