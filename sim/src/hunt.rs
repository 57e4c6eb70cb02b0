//! Driver: breaks the code that ships on purpose, one promise at a time, and says by which invariant each break was found.
//!
//! The faults are in the crates themselves (`shm::mutants`), compiled in with the feature `mutants` alone. A build without
//! them builds one that has them and lets it do the work. A panic counts as found: it is a check of the code's own.

use crate::Options;

/// Returns whether every mutant was found.
#[cfg(not(feature = "mutants"))]
pub fn run(_options: &Options) -> bool {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = std::process::Command::new(cargo)
        .args(["run", "--quiet", "--release", "-p", "sim", "--features", "mutants", "--"])
        .args(std::env::args_os().skip(1))
        .status();
    match done {
        Ok(status) => status.success(),
        Err(why) => {
            eprintln!(
                "cannot run cargo: {why}; run `cargo run --release -p sim --features mutants -- --mutants`"
            );
            false
        }
    }
}

#[cfg(feature = "mutants")]
pub use with::run;

#[cfg(feature = "mutants")]
mod with {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Instant;

    use serde_json::json;
    use shm::mutants::{Mutant, switch};

    use super::Options;
    use crate::{MUTANT_SEEDS, many};

    /// How a mutant was found.
    struct Found {
        seed: u64,
        by: &'static str,
        what: String,
        last_lines: String,
    }

    /// Returns whether every mutant was found.
    pub fn run(options: &Options) -> bool {
        // Panics are expected, and told in one line.
        std::panic::set_hook(Box::new(|_| {}));
        let seeds = options.seeds.unwrap_or(MUTANT_SEEDS);
        let chosen = |mutant: &&Mutant| options.only.as_ref().is_none_or(|o| *o == format!("{mutant:?}"));
        let mutants: Vec<Mutant> = Mutant::ALL.iter().filter(chosen).copied().collect();
        if mutants.is_empty() {
            eprintln!("there is no such mutant; --mutants alone names all");
            return false;
        }
        let began = Instant::now();
        let mut lines = Vec::new();
        let mut survivors = Vec::new();
        for mutant in mutants {
            let found = hunt(mutant, options.from, seeds);
            let name = format!("{mutant:?}");
            if !options.json {
                let how = match &found {
                    Some(found) => format!("seed {}, {}: {}", found.seed, found.by, found.what),
                    None => format!("SURVIVES {seeds} seeds"),
                };
                println!("{:<15} {name:<24} {how}", mutant.part());
                if let Some(found) = found.as_ref().filter(|_| options.only.is_some()) {
                    println!("{}", found.last_lines);
                }
            }
            lines.push(json!({
                "mutant": name,
                "part": mutant.part(),
                "breaks": mutant.what(),
                "seed": found.as_ref().map(|f| f.seed),
                "found_by": found.as_ref().map(|f| f.by),
                "what": found.as_ref().map(|f| f.what.as_str()),
            }));
            if found.is_none() {
                survivors.push(name);
            }
        }
        if options.json {
            println!("{}", json!({ "mutants": lines, "survivors": survivors }));
        } else {
            let seconds = began.elapsed().as_secs_f64();
            println!("{} mutants, {} survive; {seconds:.0} s", lines.len(), survivors.len());
        }
        survivors.is_empty()
    }

    fn hunt(mutant: Mutant, from: u64, seeds: u64) -> Option<Found> {
        let mut found = None;
        let all = from..from.saturating_add(seeds);
        many::each(
            all,
            many::jobs(),
            |seed| try_one(mutant, seed),
            |_, one| {
                found = one;
                found.is_none()
            },
        );
        found
    }

    fn try_one(mutant: Mutant, seed: u64) -> Option<Found> {
        switch(Some(mutant));
        let run = catch_unwind(AssertUnwindSafe(|| sim::run(seed, false)));
        switch(None);
        let found = |by, what, last_lines| Some(Found { seed, by, what, last_lines });
        match run {
            Ok(outcome) => {
                let first = outcome.findings.into_iter().next()?;
                found(first.invariant, first.what, outcome.last_lines)
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
                found("a check of its own", text.unwrap_or_default(), String::new())
            }
        }
    }
}
