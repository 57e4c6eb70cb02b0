//! What stands in a cluster file: the shapes that TOML is read into, and the reference that is made of them.
//!
//! One definition gives both: the macro `tables!` takes the structs as serde needs them, and keeps what their comments say.
//! `{NAME}` in a comment is a limit's or a default's value. Key item: [`reference`]. Neighbour: `checks`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use abi::limits::{
    DCS_MAX, LINK_DOWN_AFTER_MS, NAME_BYTES_MAX, NODE_DEAD_AFTER_MS, NODES_MAX, PROXIES_PER_NODE_MAX,
    SLOTS_PER_DC,
};
use serde::Deserialize;
use toml::Spanned;

/// Slots of one node in a DC, unless the file says otherwise.
pub const SLOTS_PER_NODE: u16 = 256;
/// The shortest and the longest time that a file may give.
pub(super) const MS_MIN: u64 = 100;
pub(super) const MS_MAX: u64 = 3_600_000;

/// What comments name in braces.
const FIGURES: &[(&str, u64)] = &[
    ("NODES_MAX", NODES_MAX as u64),
    ("DCS_MAX", DCS_MAX as u64),
    ("SLOTS_PER_DC", SLOTS_PER_DC as u64),
    ("SLOTS_PER_NODE", SLOTS_PER_NODE as u64),
    ("PROXIES_MAX", PROXIES_PER_NODE_MAX as u64 - 1),
    ("NAME_BYTES_MAX", NAME_BYTES_MAX as u64),
    ("NODE_DEAD_AFTER_MS", NODE_DEAD_AFTER_MS),
    ("LINK_DOWN_AFTER_MS", LINK_DOWN_AFTER_MS),
    ("MS_MIN", MS_MIN),
    ("MS_MAX", MS_MAX),
];

/// A table of the file, for the reference.
struct Table {
    heading: &'static str,
    /// Lines of comments, as rustc keeps them.
    says: &'static [&'static str],
    keys: &'static [Key],
}

struct Key {
    name: &'static str,
    value: &'static str,
    is_required: bool,
    says: &'static [&'static str],
}

/// How a value of this type is written, and whether there must be one.
trait Written {
    const VALUE: &'static str;
    const IS_REQUIRED: bool = true;
}

macro_rules! written {
    ($($kind:ty: $value:literal;)*) => { $(impl Written for $kind { const VALUE: &'static str = $value; })* };
}

written! {
    u16: "number";
    u64: "number";
    String: "text";
    PathBuf: "path";
    BTreeSet<u32>: "list of numbers";
    Vec<Spanned<u16>>: "list of numbers";
    Vec<NodeShape>: "tables";
    Vec<DcShape>: "tables";
    Vec<ProxyShape>: "tables";
    Vec<RuleShape>: "tables";
    u32: "number";
    Vec<Spanned<String>>: "list of texts";
}

impl<T: Written> Written for Spanned<T> {
    const VALUE: &'static str = T::VALUE;
}

impl<T: Written> Written for Option<T> {
    const VALUE: &'static str = T::VALUE;
    const IS_REQUIRED: bool = false;
}

macro_rules! tables {
    ($(
        $(#[doc = $about:literal])*
        struct $shape:ident = $heading:literal {
            $($(#[doc = $says:literal])* $(#[serde($default:ident)])? $key:ident: $kind:ty,)*
        }
    )*) => {
        $(
            $(#[doc = $about])*
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields)]
            pub(super) struct $shape {
                $($(#[doc = $says])* $(#[serde($default)])? pub(super) $key: $kind,)*
            }
        )*

        const TABLES: &[Table] = &[$(Table {
            heading: $heading,
            says: &[$($about),*],
            keys: &[$(Key {
                name: stringify!($key),
                value: <$kind as Written>::VALUE,
                is_required: <$kind as Written>::IS_REQUIRED $(&& stringify!($default).is_empty())?,
                says: &[$($says),*],
            }),*],
        }),*];
    };
}

tables! {
    /// What concerns the whole cluster. It stands before the first heading.
    struct FileShape = "The top of the file" {
        /// The cluster's name, up to {NAME_BYTES_MAX} bytes. Two clusters on one machine may have the same: their folders are told apart by the file's path.
        name: Spanned<String>,
        /// The file with the cluster key, relative to this one. `dvs up` makes it where there is none; nodes on other machines need a copy. It must be readable by its user alone. Without it, a cluster of more than one node may only have loopback addresses.
        key_file: Option<PathBuf>,
        /// A node without a session for so many milliseconds is dead for the node that misses it. {MS_MIN} to {MS_MAX}; {NODE_DEAD_AFTER_MS} if it is not given.
        node_dead_after_ms: Option<Spanned<u64>>,
        /// A link without a sign of life for so many milliseconds is shown as cut. {MS_MIN} to {MS_MAX}; {LINK_DOWN_AFTER_MS} if it is not given.
        link_down_after_ms: Option<Spanned<u64>>,
        /// The nodes, at least one.
        node: Spanned<Vec<NodeShape>>,
        /// The distributed containers. Without any, nobody can bind.
        #[serde(default)]
        dc: Vec<DcShape>,
        /// The proxies. Without any, there is one of kind `tcp` on all nodes.
        #[serde(default)]
        proxy: Vec<ProxyShape>,
    }

    /// A node, up to {NODES_MAX} of them.
    struct NodeShape = "[[node]]" {
        /// 1 to {NODES_MAX}, and each once.
        id: Spanned<u16>,
        /// Each once, up to {NAME_BYTES_MAX} bytes, without a dot at its begin: it names the node's folder too.
        name: Spanned<String>,
        /// `IP:PORT` at which its proxy listens and others reach it, each once. It also says which machine the node lives on.
        address: Spanned<String>,
    }

    /// A distributed container, up to {DCS_MAX} of them.
    struct DcShape = "[[dc]]" {
        /// 1 to {DCS_MAX}, and each once.
        id: Spanned<u16>,
        /// Each once, up to {NAME_BYTES_MAX} bytes. Programs and commands say it with `--dc`.
        name: Spanned<String>,
        /// The ids of the nodes it spans; all if it is not given. Every two of them must share a proxy. Their order is that of their slots.
        nodes: Option<Spanned<Vec<Spanned<u16>>>>,
        /// How many slots each of its nodes binds in; {SLOTS_PER_NODE} if it is not given. All nodes together: at most {SLOTS_PER_DC}.
        slots_per_node: Option<Spanned<u16>>,
        /// Users that may bind in it, by number, besides root and the one whose daemon it is.
        #[serde(default)]
        uids: BTreeSet<u32>,
        /// Rules of who may call whom; the first that fits an endpoint counts. Without any, everybody may call everybody.
        privileges: Option<Vec<RuleShape>>,
    }

    /// A rule of a DC: which endpoints it fits (all three that are given must), and what they may do.
    struct RuleShape = "[[dc.privileges]]" {
        /// Slots `A-B`, or one.
        slots: Option<Spanned<String>>,
        /// The name that it is bound under.
        name: Option<Spanned<String>>,
        /// The user that it is bound as.
        uid: Option<u32>,
        /// `user`, `server`, `proxy` or `kernel`: what the rest is by default.
        level: Spanned<String>,
        /// The calls that it may make.
        calls: Option<Vec<Spanned<String>>>,
        /// It may call endpoints of these levels,
        to_levels: Option<Vec<Spanned<String>>>,
        /// in these slots,
        to_slots: Option<Vec<Spanned<String>>>,
        /// or with these names.
        to_names: Option<Vec<Spanned<String>>>,
        /// The slot that is told of its end.
        warn: Option<Spanned<u16>>,
    }

    /// A proxy that each of its nodes runs, up to {PROXIES_MAX} of them.
    struct ProxyShape = "[[proxy]]" {
        /// Each once. `dvs proxy` commands say it.
        name: Spanned<String>,
        /// `tcp`; `rdma`: by the program `proxy-rdma`, between two nodes that both have a device, and by TCP otherwise; `auto`: the same, and by TCP where that program is not.
        kind: Spanned<String>,
        /// `lz4` to pack what travels between nodes that both want it, or `none`, the default.
        compression: Option<Spanned<String>>,
        /// The ids of the nodes that it joins; all if it is not given. A node has one proxy.
        nodes: Option<Spanned<Vec<Spanned<u16>>>>,
    }
}

/// The reference of the cluster file, in Markdown.
pub fn reference() -> String {
    let mut page = "| key | value | | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    let head = std::mem::take(&mut page);
    for Table { heading, says, keys } in TABLES {
        let _ = write!(page, "## {}\n\n{}\n\n{head}", in_code(heading), filled(says));
        for Key { name, value, is_required, says } in *keys {
            let need = if *is_required { "required" } else { "optional" };
            let _ = writeln!(page, "| `{name}` | {value} | {need} | {} |", filled(says));
        }
        page.push('\n');
    }
    page.trim_end().to_owned() + "\n"
}

fn in_code(heading: &str) -> String {
    if heading.starts_with('[') { format!("`{heading}`") } else { heading.to_owned() }
}

/// What comments say, as one paragraph, with figures for their names.
fn filled(says: &[&str]) -> String {
    let text = says.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    FIGURES.iter().fold(text, |text, (name, value)| text.replace(&format!("{{{name}}}"), &value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_says_something_and_every_figure_has_its_value() {
        let page = reference();
        assert!(!page.contains(['{', '}']), "a name in braces that FIGURES does not have:\n{page}");
        for key in TABLES.iter().flat_map(|table| table.keys) {
            assert!(!filled(key.says).is_empty(), "`{}` has no comment", key.name);
        }
    }

    #[test]
    fn the_types_say_what_is_required() {
        let page = reference();
        assert!(page.contains("| `key_file` | path | optional |"), "{page}");
        assert!(page.contains("| `node` | tables | required |"), "{page}");
        assert!(page.contains("| `uids` | list of numbers | optional |"), "{page}");
        assert!(page.contains("| `address` | text | required |"), "{page}");
    }
}
