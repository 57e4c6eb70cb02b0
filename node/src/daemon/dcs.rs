//! DCs that are made, changed and ended while the daemon runs: the operator's requests, their memory, and the file by which
//! a successor knows of them.
//!
//! The file is text: a first line that says what it is, then a line of hexadecimal words for each description. It is
//! replaced as a whole, and read as a claim.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use abi::limits::{DCS_FILE_BYTES_MAX, DCS_MAX};
use abi::{DcId, Name, NodeId};
use serde_json::{Value, json};

use super::admin::refusal;
use super::{Driver, Hands};
use crate::NodeError;
use crate::admin::Request;
use crate::config::SLOTS_PER_NODE;
use crate::core::{DcChange, DcSpec, Input};
use crate::place::{NodePlace, own_uid};

const FIRST_LINE: &str = "dvs dcs 1";

/// What an earlier life of the node has written down; nothing, if there was none.
pub(super) fn read_kept(path: &Path) -> Result<Vec<DcSpec>, NodeError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(NodeError::file("open", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(DCS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(NodeError::file("read", path))?;
    parse(&bytes).ok_or_else(|| NodeError::Place {
        path: path.to_owned(),
        what: "is not the list of DCs that a daemon writes: remove it; other nodes that run tell what they know",
    })
}

fn parse(bytes: &[u8]) -> Option<Vec<DcSpec>> {
    let whole = bytes.len() as u64 <= DCS_FILE_BYTES_MAX && bytes.ends_with(b"\n");
    let mut lines = str::from_utf8(bytes).ok().filter(|_| whole)?.lines();
    if lines.next() != Some(FIRST_LINE) {
        return None;
    }
    let word = |text: &str| u64::from_str_radix(text, 16).ok();
    let spec = |line: &str| DcSpec::from_words(&line.split(' ').map(word).collect::<Option<Vec<_>>>()?);
    let specs = lines.map(spec).collect::<Option<Vec<_>>>()?;
    (specs.len() <= usize::from(DCS_MAX)).then_some(specs)
}

fn text(specs: &[DcSpec]) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for spec in specs {
        let words: Vec<String> = spec.to_words().iter().map(|word| format!("{word:x}")).collect();
        text += &words.join(" ");
        text.push('\n');
    }
    text
}

/// Writes beside the file and puts that in its place: it is whole at every moment.
pub(super) fn keep(path: &Path, specs: &[DcSpec]) -> Result<(), NodeError> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let wrote = options.open(&new).and_then(|mut file| file.write_all(text(specs).as_bytes()));
    wrote.and_then(|()| std::fs::rename(&new, path)).map_err(NodeError::file("write", path))
}

/// Lets other users pass to the sockets as soon as some DC lets them bind; who may bind, the daemon asks at every hello.
pub(super) fn let_pass(place: &NodePlace, specs: &[DcSpec]) {
    let own = own_uid();
    let is_foreign = |uid: &u32| *uid != own && *uid != 0;
    if specs.iter().any(|spec| !spec.ended && spec.uids.iter().any(is_foreign))
        && let Err(why) = place.make(true)
    {
        tracing::error!("{why}: users that a DC lets in do not reach this node's sockets");
    }
}

impl Hands {
    /// Table, doorbells and the proxies' bells of a DC: all, or none.
    pub(super) fn make_dc(&mut self, dc: DcId, proxies: &[u16]) -> bool {
        let made = self
            .vault
            .add_dc(dc)
            .and_then(|()| proxies.iter().try_for_each(|proxy| self.vault.add_bell(*proxy, dc)));
        if let Err(why) = &made {
            tracing::error!(%dc, "{why}");
            self.vault.drop_dc(dc);
        }
        made.is_ok()
    }
}

impl Driver {
    /// An operator's request about DCs.
    pub(super) fn answer_dc(&mut self, request: &Request) -> Value {
        let change = match self.change(request) {
            Ok(change) => change,
            Err(answer) => return answer,
        };
        let mut effects = Vec::new();
        let now = self.now();
        self.journal.write(now, &Input::Change(change.clone()), &self.hands.keep);
        match self.core.change_dc(now, &change, &mut effects) {
            Ok(spec) => {
                self.carry_out(effects);
                json!({ "done": true, "dc": self.core.spec_view(&spec) })
            }
            Err(why) => refusal(&why.to_string(), &why.hint()),
        }
    }

    fn change(&self, request: &Request) -> Result<DcChange, Value> {
        Ok(match request.clone() {
            Request::DcCreate { name, nodes, slots_per_node, uids, like } => {
                let next = "choose a name of these; `dvs dc ls` shows those in use";
                let name = Name::new(&name).map_err(|why| refusal(&format!("{name:?} is {why}"), next))?;
                let model = match like.map(|like| self.core.running_dc(&like).cloned()) {
                    Some(Err(why)) => return Err(refusal(&why.to_string(), &why.hint())),
                    Some(Ok(spec)) => Some(spec),
                    None => None,
                };
                let named = !nodes.is_empty();
                let nodes = match &model {
                    _ if named => self.known(&nodes)?,
                    Some(model) => model.nodes().collect(),
                    None => self.all_nodes(),
                };
                self.check_wires(&nodes)?;
                let as_model = model.as_ref().map_or(SLOTS_PER_NODE, |m| m.slots_per_node);
                let slots_per_node = slots_per_node.unwrap_or(as_model);
                let (model_uids, rules) =
                    model.map(|m| (m.uids.clone(), self.core.plan().of(&m).rules)).unwrap_or_default();
                let uids = if uids.is_empty() { model_uids } else { uids };
                DcChange::Create { name, nodes, named, slots_per_node, uids, rules }
            }
            Request::DcGrow { name, nodes } => {
                let nodes = self.known(&nodes)?;
                let mut all = nodes.clone();
                let there = self.core.dc_specs().into_iter().find(|d| d.name == name && d.state == "running");
                all.extend(there.iter().flat_map(|d| d.nodes.iter().map(|n| NodeId(n.node))));
                self.check_wires(&all)?;
                DcChange::Grow { name, nodes }
            }
            Request::DcShrink { name, nodes, force } => {
                DcChange::Shrink { name, nodes: self.known(&nodes)?, force }
            }
            Request::DcStop { name, force } => DcChange::Stop { name, force },
            Request::Status
            | Request::Ps
            | Request::Proxies
            | Request::Dcs
            | Request::ProxyRestart { .. }
            | Request::ProxyStop { .. }
            | Request::Stop => return Err(refusal("not a change of a DC", "send a dc_ request")),
        })
    }

    fn all_nodes(&self) -> Vec<NodeId> {
        self.core.plan().node_names.keys().copied().collect()
    }

    /// Each node once, and none that the cluster file does not have.
    fn known(&self, asked: &[u16]) -> Result<Vec<NodeId>, Value> {
        let names = &self.core.plan().node_names;
        if let Some(strange) = asked.iter().find(|id| !names.contains_key(&NodeId(**id))) {
            let known: Vec<String> = names.iter().map(|(id, name)| format!("{id} ({name})")).collect();
            let hint = format!("there are: {}", known.join(", "));
            return Err(refusal(&format!("the cluster has no node {strange}"), &hint));
        }
        if asked.is_empty() {
            return Err(refusal("no node is named", "name one or more, by id"));
        }
        let once: BTreeSet<NodeId> = asked.iter().map(|id| NodeId(*id)).collect();
        Ok(once.into_iter().collect())
    }

    /// Every two nodes that share a DC must share a proxy.
    fn check_wires(&self, nodes: &[NodeId]) -> Result<(), Value> {
        for (k, a) in nodes.iter().enumerate() {
            for b in &nodes[k + 1..] {
                if !self.hands.wires.iter().any(|wire| wire.contains(a) && wire.contains(b)) {
                    let hint = "list both in one proxy's `nodes` in the cluster file, or name others";
                    return Err(refusal(&format!("nodes {a} and {b} share no proxy"), hint));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{DcPlan, Range, Rules};
    use abi::Slot;
    use std::collections::BTreeMap;

    fn specs() -> Vec<DcSpec> {
        let ranges = BTreeMap::from([(NodeId(1), Range { first: Slot(0), count: 8 })]);
        let rules = Rules { rules: Some(Vec::new()) };
        let plan = DcPlan { name: Name::new("a").unwrap(), uids: BTreeSet::from([7]), ranges, rules };
        vec![DcSpec { revision: 2, by: NodeId(1), ..DcSpec::of_file(DcId(3), 8, &plan) }]
    }

    #[test]
    fn what_was_written_down_is_read_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dcs");
        assert_eq!(read_kept(&path).unwrap(), []);
        keep(&path, &[]).unwrap();
        keep(&path, &specs()).unwrap();
        assert_eq!(read_kept(&path).unwrap(), specs());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_other_file_is_refused_and_the_way_out_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dcs");
        let good = text(&specs());
        for bad in ["", "dvs dcs 2\n", "dvs dcs 1", "dvs dcs 1\n1 2\n", &good.replace("1", "zz"), &good[..20]]
        {
            std::fs::write(&path, bad).unwrap();
            let why = read_kept(&path).unwrap_err().to_string();
            assert!(why.contains("remove it"), "{bad:?}: {why}");
        }
    }
}
