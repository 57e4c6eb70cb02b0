//! The stages `demo` and `netns`: the demonstration, and what its JSON must say.

use super::Job;
use crate::process::Finished;
use crate::report::excerpt;
use crate::workspace::Workspace;
use anyhow::Result;
use serde_json::Value;
use std::process::Command;

/// Messages of a demonstration that is only to show that it works here too.
pub const MESSAGES_SHORT: &str = "100000";

pub fn run(job: &mut Job) -> Result<()> {
    let command = job.cargo(&["run", "--release", "--", "demo", "--json"]);
    let done = job.run(command)?;
    judge(job, "demo", &done);
    Ok(())
}

pub fn netns(job: &mut Job) -> Result<()> {
    if let Some(why) = no_netns(job)? {
        job.not_run("netns", why);
        return Ok(());
    }
    let mut command = Command::new(job.dvs_executable()?);
    command
        .args(["demo", "--netns", "--json", "--messages", MESSAGES_SHORT])
        .current_dir(&job.workspace.root);
    let done = job.run(command)?;
    judge(job, "netns", &done);
    Ok(())
}

/// Why there can be no network namespaces here, found by making one.
fn no_netns(job: &mut Job) -> Result<Option<String>> {
    if !job.workspace.is_root_user {
        return Ok(Some("needs root".into()));
    }
    let Some(ip) = Workspace::find_program("ip") else {
        return Ok(Some("needs `ip` (apt-get install iproute2)".into()));
    };
    let name = format!("ci-probe-{}", std::process::id());
    let mut results = Vec::new();
    for verb in ["add", "delete"] {
        let mut command = Command::new(&ip);
        command.args(["netns", verb, &name]);
        results.push(job.run(command)?);
    }
    let refused = results.iter().find(|r| !r.is_ok());
    Ok(refused.map(|r| {
        let said = r.log.back().map_or_else(|| r.ending(), Clone::clone);
        format!("`ip netns` does not work here: {said}")
    }))
}

/// Records whether a demonstration ended well *and* its figures say so.
pub fn judge(job: &mut Job, name: &str, done: &Finished) {
    let figures = last_object(&done.stdout.iter().map(String::as_str).collect::<Vec<_>>().join("\n"));
    let faults = match &figures {
        Some(figures) => faults(figures),
        None => vec!["standard output holds no JSON object".into()],
    };
    job.relay_not_run(done);
    if !done.is_ok() {
        let why = std::iter::once(done.ending()).chain(faults).collect::<Vec<_>>().join("; ");
        job.failed(name, why, excerpt(done.log.iter()));
    } else if !faults.is_empty() {
        job.failed(name, faults.join("; "), excerpt(done.log.iter()));
    } else {
        let figure = |field: &str| figures.as_ref().map_or(0, |f| f[field].as_u64().unwrap_or(0));
        let note = format!(
            "{} messages and a file of {} bytes, {} proxy kills, nothing lost, duplicated or reordered",
            figure("messages"),
            figure("file_bytes"),
            figure("proxy_kills")
        );
        job.passed(name, note);
    }
}

/// What is wrong with the figures; empty when all is well.
fn faults(figures: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["ok", "digest_ok"] {
        if figures[field] != Value::Bool(true) {
            found.push(format!("{field} is {}, not true", figures[field]));
        }
    }
    for field in ["lost", "duplicated", "reordered"] {
        if figures[field].as_u64() != Some(0) {
            found.push(format!("{field} is {}, not 0", figures[field]));
        }
    }
    for field in ["proxy_kills", "messages", "file_bytes"] {
        if figures[field].as_u64().is_none_or(|n| n == 0) {
            found.push(format!("{field} is {}, not above 0", figures[field]));
        }
    }
    found
}

/// The last JSON object that stands in `text`, lines before and after it allowed.
fn last_object(text: &str) -> Option<Value> {
    let mut found = None;
    let mut from = 0;
    while let Some(at) = text[from..].find('{').map(|i| from + i) {
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) => {
                found = Some(value);
                from = at + stream.byte_offset();
            }
            _ => from = at + 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({"ok": true, "digest_ok": true, "lost": 0, "duplicated": 0, "reordered": 0,
               "proxy_kills": 1, "messages": 7, "file_bytes": 1})
    }

    #[test]
    fn good_figures_have_no_faults() {
        assert!(faults(&good()).is_empty());
    }

    #[test]
    fn every_figure_is_looked_at() {
        for (field, bad) in [
            ("ok", json!(false)),
            ("digest_ok", Value::Null),
            ("lost", json!(1)),
            ("duplicated", json!(1)),
            ("reordered", Value::Null),
            ("proxy_kills", json!(0)),
            ("messages", json!(0)),
            ("file_bytes", json!("many")),
        ] {
            let mut figures = good();
            figures[field] = bad;
            assert_eq!(faults(&figures).len(), 1, "{field}");
        }
    }

    #[test]
    fn the_object_is_found_among_other_lines() {
        assert_eq!(last_object("start {\n{\n \"a\": {\"b\": 1}\n}\ndone"), Some(json!({"a": {"b": 1}})));
        assert_eq!(last_object("nothing"), None);
    }
}
