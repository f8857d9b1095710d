//! The keys of a cache as a list: each with a number, with what leads to it and where it leads.
//! BuildKit's `util/cachestore`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cooper_solver::KeyGraph;
use serde_json::{Map, Value, json};

use super::answer::Shown;
use super::record::Record;

/// A way from one key to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) from: String,
    pub(super) input: usize,
    pub(super) output: usize,
    /// The operation.
    pub(super) digest: String,
    /// Empty for none.
    pub(super) selector: String,
    pub(super) to: String,
}

/// Keys by name, those of things without inputs named by their digests.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) keys: BTreeSet<String>,
    pub(super) ways: BTreeSet<Way>,
}

impl Graph {
    /// Adds the keys of a worker. Equal names mean the same in all of them.
    pub(super) fn add(&mut self, graph: &KeyGraph) {
        for key in &graph.keys {
            self.keys.insert(key.as_str().to_owned());
        }
        for (from, link, to) in &graph.links {
            let Some(parts) = link.parts() else { continue };
            self.ways.insert(Way {
                from: from.as_str().to_owned(),
                input: parts.input,
                output: parts.output,
                digest: parts.digest.to_string(),
                selector: parts.selector.map(|it| it.to_string()).unwrap_or_default(),
                to: to.as_str().to_owned(),
            });
        }
    }
}

/// What leads to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    /// Its number.
    id: usize,
    input: usize,
    output: usize,
    digest: String,
    selector: String,
}

/// One key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRecord {
    /// From 1.
    id: usize,
    /// Of what has no inputs.
    digest: Option<String>,
    random: bool,
    parents: Vec<Parent>,
    /// Where it leads, by the output of the operation there.
    children: BTreeMap<usize, BTreeSet<usize>>,
    /// What its digests were computed from.
    debug: Vec<Record>,
}

/// The keys that something leads to from a key without inputs, numbered from those on.
pub(super) fn records(graph: &Graph) -> Vec<KeyRecord> {
    let mut out: HashMap<&str, Vec<&Way>> = HashMap::new();
    for way in &graph.ways {
        out.entry(&way.from).or_default().push(way);
    }
    for ways in out.values_mut() {
        ways.sort_by_key(|way| (way.output, &way.to));
    }
    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut order: Vec<&str> = Vec::new();
    for root in graph.keys.iter().filter(|key| is_root(key)) {
        // In depth, the first child first. Keys may lead in circles.
        let mut open = vec![root.as_str()];
        while let Some(key) = open.pop() {
            if ids.contains_key(key) {
                continue;
            }
            order.push(key);
            ids.insert(key, order.len());
            let ways = out.get(key).map_or(&[][..], Vec::as_slice);
            open.extend(ways.iter().rev().map(|way| way.to.as_str()));
        }
    }
    let mut records: Vec<KeyRecord> = order.iter().map(|key| record(key, ids[key])).collect();
    for way in &graph.ways {
        let (Some(from), Some(to)) = (ids.get(&*way.from), ids.get(&*way.to)) else {
            continue;
        };
        let parent = &mut records[from - 1];
        parent.children.entry(way.output).or_default().insert(*to);
        records[to - 1].parents.push(Parent {
            id: *from,
            input: way.input,
            output: way.output,
            digest: way.digest.clone(),
            selector: way.selector.clone(),
        });
    }
    for record in &mut records {
        let order = |parent: &Parent| (parent.input, parent.digest.clone(), parent.id);
        record.parents.sort_by_cached_key(order);
    }
    records
}

fn is_root(key: &str) -> bool {
    key.starts_with("sha256:") || key.starts_with("random:")
}

fn record(key: &str, id: usize) -> KeyRecord {
    let random = key.strip_prefix("random:");
    let digest = match random {
        Some(name) => Some(format!("sha256:{name}")),
        None => is_root(key).then(|| key.to_owned()),
    };
    KeyRecord {
        id,
        digest,
        random: random.is_some(),
        ..KeyRecord::default()
    }
}

impl KeyRecord {
    /// The digests whose plaintexts explain it, each once.
    pub(super) fn digests(&self) -> Vec<String> {
        let mut all: Vec<String> = self.digest.iter().cloned().collect();
        let parents = self.parents.iter();
        let parents = parents.flat_map(|parent| [&parent.digest, &parent.selector]);
        for digest in parents.filter(|digest| !digest.is_empty()) {
            if !all.contains(digest) {
                all.push(digest.clone());
            }
        }
        all
    }

    /// With these plaintexts.
    pub(super) fn explained(self, debug: Vec<Record>) -> Self {
        Self { debug, ..self }
    }
}

impl Shown for KeyRecord {
    fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("id".to_owned(), self.id.into());
        let parents = self.parents.iter().map(|parent| {
            let mut link = Map::new();
            link.insert("input".to_owned(), parent.input.into());
            link.insert("output".to_owned(), parent.output.into());
            for (name, text) in [("digest", &parent.digest), ("selector", &parent.selector)] {
                if !text.is_empty() {
                    link.insert(name.to_owned(), text.clone().into());
                }
            }
            link.insert("target".to_owned(), parent.id.into());
            Value::from(link)
        });
        let parents: Vec<Value> = parents.collect();
        if !parents.is_empty() {
            all.insert("parents".to_owned(), parents.into());
        }
        if let Some(digest) = &self.digest {
            all.insert("digest".to_owned(), digest.clone().into());
        }
        if self.random {
            all.insert("random".to_owned(), true.into());
        }
        if !self.children.is_empty() {
            let children = self.children.iter().map(|(output, ids)| {
                let ids = ids.iter().map(|id| (id.to_string(), json!({})));
                (output.to_string(), Value::Object(ids.collect()))
            });
            all.insert("children".to_owned(), Value::Object(children.collect()));
        }
        if !self.debug.is_empty() {
            let debug: Vec<Value> = self.debug.iter().map(Shown::json).collect();
            all.insert("debug".to_owned(), debug.into());
        }
        all.into()
    }

    fn text(&self, out: &mut Vec<u8>) {
        let random = if self.random { " (random)" } else { "" };
        let mut text = format!("ID: {}{random}\n", self.id);
        if let Some(digest) = &self.digest {
            text.push_str(&format!("Digest: {digest}\n"));
        }
        if !self.parents.is_empty() {
            text.push_str("Parents:\n");
        }
        for parent in &self.parents {
            let (input, id, digest) = (parent.input, parent.id, &parent.digest);
            text.push_str(&format!("  Input {input}:\t{id}\t{digest}\n"));
            if !parent.selector.is_empty() {
                text.push_str(&format!("    Selector: {}\n", parent.selector));
            }
        }
        if !self.children.is_empty() {
            text.push_str("Children:\n");
        }
        for (output, ids) in &self.children {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            // BuildKit's word, although it is the output that they are sorted by.
            text.push_str(&format!("  Input {output}:\t {}\n", ids.join(", ")));
        }
        if !self.debug.is_empty() {
            text.push_str("Plaintexts:\n");
        }
        out.extend(text.into_bytes());
        for record in &self.debug {
            record.text(out);
            out.push(b'\n');
        }
    }
}
