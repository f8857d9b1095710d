use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use cooper_proto::pb;
use prost::Message;

use super::exec::{ExecNode, default_path};
use super::file::FileStep;
use super::node::{Kind, Node, Output};
use super::{Constraints, State};
use crate::{CapSet, digest_of, platform};

/// What goes for the whole graph.
#[derive(Clone, Debug, Default)]
pub struct MarshalOptions {
    /// The platform of operations that say none; the host's when there is none.
    pub platform: Option<pb::Platform>,
    /// What the builder can do, where that changes an operation.
    pub caps: Option<CapSet>,
    /// Told to sources of files without a session: makes their keys the build's own.
    pub local_unique_id: String,
}

impl State {
    /// The graph as a builder takes it; empty for the empty state. The same state gives the same
    /// bytes.
    pub fn marshal(&self, options: &MarshalOptions) -> pb::Definition {
        let Some(output) = &self.output else {
            return pb::Definition::default();
        };
        let mut writer = Writer {
            options,
            platform: options.platform.clone().unwrap_or_else(platform::host),
            written: HashMap::new(),
            definition: pb::Definition::default(),
            infos: Vec::new(),
            locations: BTreeMap::new(),
        };
        match writer.all(output) {
            Some(input) => writer.finish(input),
            // A deferred output that is the empty state.
            None => pb::Definition::default(),
        }
    }
}

struct Writer<'a> {
    options: &'a MarshalOptions,
    platform: pb::Platform,
    /// The digests of the nodes that were written, by their addresses.
    written: HashMap<*const Node, String>,
    definition: pb::Definition,
    infos: Vec<Arc<pb::SourceInfo>>,
    locations: BTreeMap<String, pb::Locations>,
}

/// The output behind deferred ones.
fn resolve(mut output: &Output) -> Option<&Output> {
    while let Kind::Deferred(deferred) = &output.node.kind {
        output = deferred.get()?;
    }
    Some(output)
}

impl Writer<'_> {
    /// Writes what `output` needs, inputs first. An explicit stack: the depth is the author's.
    fn all(&mut self, output: &Output) -> Option<pb::Input> {
        let root = resolve(output)?;
        let mut stack = vec![(root.node.clone(), 0_usize)];
        while let Some((node, next)) = stack.pop() {
            let key = Arc::as_ptr(&node);
            if self.written.contains_key(&key) {
                continue;
            }
            if let Some(input) = node.inputs.get(next) {
                let input = resolve(input).map(|input| input.node.clone());
                stack.push((node, next + 1));
                stack.extend(input.map(|input| (input, 0)));
            } else {
                let digest = self.node(&node);
                self.written.insert(key, digest);
            }
        }
        self.input(output)
    }

    /// An output whose node was written.
    fn input(&self, output: &Output) -> Option<pb::Input> {
        let output = resolve(output)?;
        Some(pb::Input {
            digest: self.written.get(&Arc::as_ptr(&output.node))?.clone(),
            index: output.index,
        })
    }

    /// The inputs without repetitions, and for each place of the node's its new place.
    fn inputs(&self, node: &Node) -> (Vec<pb::Input>, Vec<i64>) {
        let mut inputs: Vec<pb::Input> = Vec::new();
        let places = node
            .inputs
            .iter()
            .map(|output| {
                let Some(input) = self.input(output) else {
                    return -1;
                };
                let place = inputs.iter().position(|other| *other == input);
                let place = place.unwrap_or_else(|| {
                    inputs.push(input);
                    inputs.len() - 1
                });
                i64::try_from(place).expect("a graph has fewer inputs than 2^63")
            })
            .collect();
        (inputs, places)
    }

    fn node(&mut self, node: &Node) -> String {
        let constraints = &node.constraints;
        let mut caps = constraints.caps.clone();
        let (mut inputs, places) = self.inputs(node);
        let place = |i: Option<usize>| i.map_or(-1, |i| places[i]);
        let mut on_platform = true;
        let op = match &node.kind {
            Kind::Deferred(_) => unreachable!("deferred outputs are resolved"),
            Kind::Written(definition, digest) => {
                self.written_elsewhere(definition);
                return digest.clone();
            }
            Kind::Source(source) => {
                let mut source = source.clone();
                on_platform = ["docker-image://", "oci-layout://"]
                    .iter()
                    .any(|scheme| source.identifier.starts_with(scheme));
                if source.identifier.starts_with("local://")
                    && !source.attrs.contains_key("local.session")
                {
                    let id = self.options.local_unique_id.clone();
                    source.attrs.insert("local.unique".into(), id);
                    caps.insert("source.local.unique");
                }
                pb::op::Op::Source(source)
            }
            Kind::Exec(exec) => {
                if let Some(known) = &self.options.caps
                    && known.contains("exec.meta.setsdefaultpath")
                {
                    caps.insert("exec.meta.setsdefaultpath");
                }
                inputs.clear();
                pb::op::Op::Exec(self.exec(node, exec, &mut inputs))
            }
            Kind::File(steps) => {
                inputs.clear();
                pb::op::Op::File(self.file(node, steps, &mut inputs))
            }
            Kind::Merge => {
                on_platform = false;
                let inputs = places.iter().map(|&input| pb::MergeInput { input });
                pb::op::Op::Merge(pb::MergeOp {
                    inputs: inputs.collect(),
                })
            }
            Kind::Diff { lower, upper } => {
                on_platform = false;
                pb::op::Op::Diff(pb::DiffOp {
                    lower: Some(pb::LowerDiffInput {
                        input: place(lower.then_some(0)),
                    }),
                    upper: Some(pb::UpperDiffInput {
                        input: place(upper.then_some(usize::from(*lower))),
                    }),
                })
            }
        };
        let platform = constraints.platform.as_ref().unwrap_or(&self.platform);
        let op = pb::Op {
            inputs,
            op: Some(op),
            platform: on_platform.then(|| platform.clone()),
            constraints: Some(pb::WorkerConstraints::default()),
        };
        let mut metadata = constraints.metadata.clone();
        metadata
            .caps
            .extend(caps.into_iter().map(|cap| (cap.to_owned(), true)));
        self.add(op.encode_to_vec().into(), metadata, constraints)
    }

    /// Inputs are numbered in the order in which the mounts use them.
    fn exec(&self, node: &Node, exec: &ExecNode, inputs: &mut Vec<pb::Input>) -> pb::ExecOp {
        let mut op = exec.op.clone();
        for (mount, source) in op.mounts.iter_mut().zip(&exec.sources) {
            let input = source.and_then(|i| self.input(&node.inputs[i]));
            mount.input = number(inputs, input);
        }
        let sets_path = match &self.options.caps {
            Some(caps) => caps.contains("exec.meta.setsdefaultpath"),
            None => true,
        };
        if !exec.has_path
            && !sets_path
            && let Some(meta) = &mut op.meta
        {
            let platform = node.constraints.platform.as_ref().unwrap_or(&self.platform);
            meta.env
                .push(format!("PATH={}", default_path(&platform.os)));
        }
        op
    }

    fn file(&self, node: &Node, steps: &[FileStep], inputs: &mut Vec<pb::Input>) -> pb::FileOp {
        let numbers: Vec<(i64, i64)> = steps
            .iter()
            .map(|step| {
                let mut place = |i: Option<usize>| {
                    let input = i.and_then(|i| self.input(&node.inputs[i]));
                    number(inputs, input)
                };
                (place(step.base), place(step.source))
            })
            .collect();
        // Outputs of earlier actions are numbered behind the inputs.
        let first = i64::try_from(inputs.len()).expect("a graph has fewer inputs than 2^63");
        let actions =
            steps
                .iter()
                .zip(numbers)
                .zip(0_i64..)
                .map(|((step, (base, source)), index)| pb::FileAction {
                    input: if index == 0 { base } else { first + index - 1 },
                    secondary_input: source,
                    output: if usize::try_from(index + 1) == Ok(steps.len()) {
                        0
                    } else {
                        -1
                    },
                    action: Some(step.action(base)),
                });
        pb::FileOp {
            actions: actions.collect(),
        }
    }

    fn add(&mut self, raw: Bytes, metadata: pb::OpMetadata, constraints: &Constraints) -> String {
        let digest = digest_of(&raw).to_string();
        self.locate(&digest, constraints);
        // Two nodes may be one operation.
        if let Some(known) = self.definition.metadata.get_mut(&digest) {
            known.ignore_cache |= metadata.ignore_cache;
            known.description.extend(metadata.description);
            known.caps.extend(metadata.caps);
            // Who asks for none gets none.
            if known.linux_resources != metadata.linux_resources {
                known.linux_resources = None;
            }
            if metadata.progress_group.is_some() {
                known.progress_group = metadata.progress_group;
            }
        } else {
            self.definition.metadata.insert(digest.clone(), metadata);
            self.definition.def.push(raw);
        }
        digest
    }

    fn locate(&mut self, digest: &str, constraints: &Constraints) {
        for (info, ranges) in &constraints.locations {
            let index = self
                .infos
                .iter()
                .position(|other| Arc::ptr_eq(other, info) || other == info)
                .unwrap_or_else(|| {
                    self.infos.push(info.clone());
                    self.infos.len() - 1
                });
            let location = pb::Location {
                source_index: i32::try_from(index).expect("there are few files"),
                ranges: ranges.clone(),
            };
            let known = self.locations.entry(digest.to_owned()).or_default();
            if !known.locations.contains(&location) {
                known.locations.push(location);
            }
        }
    }

    /// Takes over all operations but the last one, which only points.
    fn written_elsewhere(&mut self, definition: &pb::Definition) {
        let ops = definition.def.split_last().map_or(&[][..], |(_, ops)| ops);
        for raw in ops {
            let digest = digest_of(raw).to_string();
            let metadata = definition.metadata.get(&digest).cloned();
            self.add(
                raw.clone(),
                metadata.unwrap_or_default(),
                &Constraints::default(),
            );
        }
        let Some(source) = &definition.source else {
            return;
        };
        for (digest, locations) in &source.locations {
            for location in &locations.locations {
                let info = usize::try_from(location.source_index)
                    .ok()
                    .and_then(|index| source.infos.get(index));
                if let Some(info) = info {
                    let constraints = Constraints {
                        locations: vec![(Arc::new(info.clone()), location.ranges.clone())],
                        ..Constraints::default()
                    };
                    self.locate(digest, &constraints);
                }
            }
        }
    }

    fn finish(mut self, input: pb::Input) -> pb::Definition {
        let pointer = pb::Op {
            inputs: vec![input],
            ..pb::Op::default()
        };
        let raw: Bytes = pointer.encode_to_vec().into();
        let digest = digest_of(&raw).to_string();
        let all = self.definition.metadata.values();
        let mut caps = BTreeMap::from([("constraints".into(), true), ("platform".into(), true)]);
        for metadata in all {
            for (used, cap) in [
                (metadata.ignore_cache, "meta.ignorecache"),
                (!metadata.description.is_empty(), "meta.description"),
                (metadata.export_cache.is_some(), "meta.exportcache"),
            ] {
                if used {
                    caps.insert(cap.into(), true);
                }
            }
        }
        self.definition.def.push(raw);
        let metadata = pb::OpMetadata {
            caps,
            ..pb::OpMetadata::default()
        };
        self.definition.metadata.insert(digest, metadata);
        self.definition.source = Some(pb::Source {
            locations: self.locations,
            infos: self.infos.iter().map(|info| (**info).clone()).collect(),
        });
        self.definition
    }
}

/// The number of an input in the list, where it is added if it is not there; -1 for none.
fn number(inputs: &mut Vec<pb::Input>, input: Option<pb::Input>) -> i64 {
    let Some(input) = input else { return -1 };
    let place = inputs.iter().position(|other| *other == input);
    let place = place.unwrap_or_else(|| {
        inputs.push(input);
        inputs.len() - 1
    });
    i64::try_from(place).expect("a graph has fewer inputs than 2^63")
}
