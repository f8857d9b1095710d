//! From the wire to a graph. The checks and their wording are BuildKit's
//! (`solver/llbsolver/vertex.go`, `ops/opsutils/validate.go`).

use std::collections::HashMap;

use bytes::Bytes;
use cooper_proto::pb;
use oci_spec::image::Digest;
use prost::Message;

use crate::{CapSet, Graph, LlbError, Op, Output, Vertex, digest_of, name, platform};

/// The largest number of operations in a definition. Real ones have hundreds.
const MAX_OPS: usize = 100_000;

type Policy<'a> = dyn FnMut(&mut pb::SourceOp) -> Result<bool, Box<dyn std::error::Error + Send + Sync>>
    + Send
    + 'a;

/// How to load a definition.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// What graphs may use. `None` checks nothing.
    pub caps: Option<&'a CapSet>,
    /// The platform of operations that say none; the host's when there is none.
    pub platform: Option<pb::Platform>,
    /// What operations may do. `None` allows all.
    pub entitlements: Option<Entitlements>,
    /// May change a source, and then says `true`: digests are computed anew for it and for all
    /// that depends on it.
    pub policy: Option<&'a mut Policy<'a>>,
}

/// Rights that a client has to be given for a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// `network.host`
    pub network_host: bool,
    /// `security.insecure`
    pub security_insecure: bool,
    /// `device`
    pub device: bool,
}

struct RawOp {
    op: pb::Op,
    raw: Bytes,
}

/// Decodes, checks and names the operations that the output of `def` needs.
///
/// ```
/// use cooper_llb::{LoadOptions, load};
/// use cooper_proto::pb;
///
/// let error = load(&pb::Definition::default(), LoadOptions::default()).unwrap_err();
/// assert_eq!(error.to_string(), "invalid empty definition");
/// ```
pub fn load(def: &pb::Definition, options: LoadOptions<'_>) -> Result<Graph, LlbError> {
    let LoadOptions {
        caps,
        platform,
        entitlements,
        policy,
    } = options;
    if def.def.is_empty() {
        return Err(LlbError::Empty);
    }
    if def.def.len() > MAX_OPS {
        return Err(LlbError::TooLarge {
            what: "number of operations",
            limit: MAX_OPS,
        });
    }
    let (mut ops, last) = decode(def)?;
    if ops.len() < 2 {
        return Err(LlbError::TooFew { count: ops.len() });
    }
    let pointer = ops.remove(&last).expect("the last operation was inserted");
    let target = pointer.op.inputs.first().ok_or(LlbError::NoOutput)?;

    let order = order(&ops, &target.digest)?;
    let mut loader = Loader {
        default_platform: platform.unwrap_or_else(platform::host),
        caps,
        entitlements,
        policy,
        metadata: &def.metadata,
        renamed: HashMap::new(),
        graph: Graph {
            vertices: Vec::with_capacity(order.len()),
            by_digest: HashMap::with_capacity(order.len()),
            output: Output {
                vertex: order.len() - 1,
                index: index(target.index)?,
            },
            source: def.source.clone(),
        },
    };
    for digest in order {
        let raw = ops
            .remove(&digest)
            .expect("the order holds known operations once");
        loader.add(digest, raw)?;
    }
    loader.finish()
}

/// All operations by the digest of their bytes, and the digest of the last one.
fn decode(def: &pb::Definition) -> Result<(HashMap<String, RawOp>, String), LlbError> {
    let mut ops = HashMap::with_capacity(def.def.len());
    let mut last = String::new();
    for raw in &def.def {
        let op = pb::Op::decode(raw.as_ref()).map_err(LlbError::Parse)?;
        last = digest_of(raw).to_string();
        ops.insert(
            last.clone(),
            RawOp {
                op,
                raw: raw.clone(),
            },
        );
    }
    Ok((ops, last))
}

/// What `target` needs, inputs first. An explicit stack: the depth is the client's to choose.
fn order(ops: &HashMap<String, RawOp>, target: &str) -> Result<Vec<String>, LlbError> {
    enum State {
        Open,
        Done,
    }
    let mut states: HashMap<&str, State> = HashMap::new();
    let mut order = Vec::new();
    let mut stack = vec![(target, 0_usize)];
    while let Some((digest, next)) = stack.pop() {
        let (digest, raw) = ops
            .get_key_value(digest)
            .ok_or_else(|| LlbError::MissingInput {
                digest: digest.to_owned(),
            })?;
        if next == 0 {
            match states.get(digest.as_str()) {
                Some(State::Done) => continue,
                Some(State::Open) => {
                    return Err(LlbError::Cycle {
                        digest: digest.clone(),
                    });
                }
                None => {
                    validate(&raw.op)?;
                    states.insert(digest, State::Open);
                }
            }
        }
        match raw.op.inputs.get(next) {
            Some(input) => {
                stack.push((digest, next + 1));
                stack.push((&input.digest, 0));
            }
            None => {
                states.insert(digest, State::Done);
                order.push(digest.clone());
            }
        }
    }
    Ok(order)
}

struct Loader<'a, 'p> {
    default_platform: pb::Platform,
    caps: Option<&'p CapSet>,
    entitlements: Option<Entitlements>,
    policy: Option<&'p mut Policy<'p>>,
    metadata: &'a std::collections::BTreeMap<String, pb::OpMetadata>,
    /// Digests that a policy changed, directly or through an input.
    renamed: HashMap<String, Digest>,
    graph: Graph,
}

impl Loader<'_, '_> {
    /// Adds an operation whose inputs were added before.
    fn add(&mut self, claimed: String, raw: RawOp) -> Result<(), LlbError> {
        let RawOp { mut op, mut raw } = raw;
        let mut changed = self.apply_policy(&mut op)?;
        for input in &mut op.inputs {
            if let Some(digest) = self.renamed.get(&input.digest) {
                input.digest = digest.to_string();
                changed = true;
            }
        }
        if changed {
            raw = op.encode_to_vec().into();
        }
        let digest = digest_of(&raw);
        if changed {
            self.renamed.insert(claimed.clone(), digest.clone());
        }
        // What the client said of the operation holds for what a policy made of it.
        let metadata = self
            .metadata
            .get(&claimed)
            .or_else(|| self.metadata.get(digest.as_ref()))
            .cloned()
            .unwrap_or_default();
        self.check(&op, &metadata)?;

        let inputs = op
            .inputs
            .iter()
            .map(|input| {
                let vertex = self.graph.by_digest.get(&input.digest).copied();
                Ok(Output {
                    vertex: vertex.ok_or_else(|| LlbError::MissingInput {
                        digest: input.digest.clone(),
                    })?,
                    index: index(input.index)?,
                })
            })
            .collect::<Result<Vec<_>, LlbError>>()?;
        let platform = platform::normalize(op.platform.as_ref().unwrap_or(&self.default_platform));
        let constraints = op.constraints;
        let op = op
            .op
            .ok_or_else(|| LlbError::invalid("invalid op of unknown kind"))?;
        let name = match metadata.description.get(name::CUSTOM_NAME) {
            Some(name) => name.clone(),
            None => {
                let names: Vec<_> = inputs
                    .iter()
                    .map(|input| self.graph.vertices[input.vertex].name.as_str())
                    .collect();
                name::of(&op, &names)
            }
        };
        let place = self.graph.vertices.len();
        self.graph.by_digest.insert(digest.to_string(), place);
        self.graph.vertices.push(Vertex {
            digest,
            op,
            raw,
            inputs,
            platform,
            constraints,
            metadata,
            name,
        });
        Ok(())
    }

    fn apply_policy(&mut self, op: &mut pb::Op) -> Result<bool, LlbError> {
        match (&mut self.policy, &mut op.op) {
            (Some(policy), Some(Op::Source(source))) => policy(source).map_err(LlbError::Policy),
            _ => Ok(false),
        }
    }

    fn check(&self, op: &pb::Op, metadata: &pb::OpMetadata) -> Result<(), LlbError> {
        if let Some(caps) = self.caps {
            for name in metadata.caps.keys() {
                caps.supports(name)?;
            }
        }
        if let (Some(granted), Some(Op::Exec(exec))) = (self.entitlements, &op.op) {
            let needs = [
                (
                    "network.host",
                    granted.network_host,
                    exec.network() == pb::NetMode::Host,
                ),
                (
                    "security.insecure",
                    granted.security_insecure,
                    exec.security() == pb::SecurityMode::Insecure,
                ),
                ("device", granted.device, !exec.cdi_devices.is_empty()),
            ];
            for (entitlement, granted, needed) in needs {
                if needed && !granted {
                    return Err(LlbError::Entitlement { entitlement });
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Graph, LlbError> {
        if !self.renamed.is_empty()
            && let Some(source) = &mut self.graph.source
        {
            for (old, new) in &self.renamed {
                if let Some(locations) = source.locations.remove(old) {
                    source.locations.insert(new.to_string(), locations);
                }
            }
        }
        Ok(self.graph)
    }
}

fn index(index: i64) -> Result<usize, LlbError> {
    usize::try_from(index).map_err(|_| LlbError::invalid(format!("invalid output index {index}")))
}

/// The checks of a single operation.
fn validate(op: &pb::Op) -> Result<(), LlbError> {
    let inputs = op.inputs.len();
    let outside = |input: i64| input != -1 && usize::try_from(input).is_ok_and(|i| i >= inputs);
    match op.op.as_ref() {
        None => Err(LlbError::invalid("invalid op of unknown kind")),
        Some(Op::Exec(exec)) => {
            let Some(meta) = &exec.meta else {
                return Err(LlbError::invalid("invalid exec op with no meta"));
            };
            if meta.args.is_empty() {
                return Err(LlbError::invalid("invalid exec op with no args"));
            }
            if exec.mounts.is_empty() {
                return Err(LlbError::invalid("invalid exec op with no mounts"));
            }
            if !exec.mounts.iter().any(|mount| mount.dest == "/") {
                return Err(LlbError::invalid("invalid exec op with no rootfs"));
            }
            if pb::SecurityMode::try_from(exec.security).is_err() {
                return Err(LlbError::invalid(format!(
                    "invalid security mode {}",
                    exec.security
                )));
            }
            if pb::NetMode::try_from(exec.network).is_err() {
                return Err(LlbError::invalid(format!(
                    "invalid network mode {}",
                    exec.network
                )));
            }
            match exec
                .mounts
                .iter()
                .find(|mount| mount.input < -1 || outside(mount.input))
            {
                Some(mount) => Err(LlbError::invalid(format!(
                    "mount {} has input index {} outside of the {inputs} inputs",
                    mount.dest, mount.input
                ))),
                None => Ok(()),
            }
        }
        Some(Op::File(file)) if file.actions.is_empty() => {
            Err(LlbError::invalid("invalid file op with no actions"))
        }
        Some(Op::Merge(merge)) if merge.inputs.len() != inputs => Err(LlbError::invalid(format!(
            "invalid merge op with {} inner inputs and {inputs} outer inputs",
            merge.inputs.len()
        ))),
        Some(Op::Merge(merge)) => match merge
            .inputs
            .iter()
            .find(|i| i.input < 0 || outside(i.input))
        {
            Some(input) => Err(LlbError::invalid(format!(
                "invalid merge op with input index {}",
                input.input
            ))),
            None => Ok(()),
        },
        Some(Op::Diff(diff)) => {
            let (Some(lower), Some(upper)) = (&diff.lower, &diff.upper) else {
                return Err(LlbError::invalid(
                    "invalid diff op with nil lower or upper input",
                ));
            };
            match [lower.input, upper.input]
                .into_iter()
                .find(|input| *input < -1 || outside(*input))
            {
                Some(input) => Err(LlbError::invalid(format!(
                    "invalid diff op with input index {input}"
                ))),
                None => Ok(()),
            }
        }
        Some(Op::Passthrough(passthrough)) if passthrough.id.is_empty() => {
            Err(LlbError::invalid("invalid passthrough op with no id"))
        }
        Some(Op::Passthrough(passthrough)) if passthrough.outputs.is_empty() => {
            Err(LlbError::invalid("invalid passthrough op with no outputs"))
        }
        Some(Op::Passthrough(passthrough)) => {
            let mut outputs = passthrough.outputs.iter();
            match outputs.find(|input| **input < 0 || outside(**input)) {
                Some(input) => Err(LlbError::invalid(format!(
                    "invalid passthrough output input index {input}"
                ))),
                None => Ok(()),
            }
        }
        Some(Op::Source(_) | Op::File(_) | Op::Build(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn op(op: Option<Op>, inputs: &[&Bytes]) -> Bytes {
        pb::Op {
            op,
            inputs: inputs
                .iter()
                .map(|raw| pb::Input {
                    digest: digest_of(raw).to_string(),
                    index: 0,
                })
                .collect(),
            ..pb::Op::default()
        }
        .encode_to_vec()
        .into()
    }

    fn source(identifier: &str) -> Op {
        Op::Source(pb::SourceOp {
            identifier: identifier.into(),
            ..pb::SourceOp::default()
        })
    }

    fn exec(args: &[&str], network: pb::NetMode) -> Op {
        Op::Exec(pb::ExecOp {
            meta: Some(pb::Meta {
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                ..pb::Mount::default()
            }],
            network: network.into(),
            ..pb::ExecOp::default()
        })
    }

    fn definition(ops: Vec<Bytes>) -> pb::Definition {
        pb::Definition {
            def: ops,
            ..pb::Definition::default()
        }
    }

    fn sample() -> (pb::Definition, [Bytes; 3]) {
        let image = op(Some(source("docker-image://docker.io/library/a:b")), &[]);
        let run = op(
            Some(exec(&["sh", "-c", "true"], pb::NetMode::Unset)),
            &[&image],
        );
        let last = op(None, &[&run]);
        (
            definition(vec![image.clone(), run.clone(), last.clone()]),
            [image, run, last],
        )
    }

    fn fails(def: &pb::Definition) -> String {
        load(def, LoadOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_graph_is_ordered_named_and_digested() {
        let (def, [image, run, _]) = sample();
        let graph = load(&def, LoadOptions::default()).unwrap();
        let names: Vec<_> = graph.vertices().iter().map(|v| v.name.as_str()).collect();
        assert_eq!(
            names,
            ["docker-image://docker.io/library/a:b", "sh -c true"]
        );
        assert_eq!(graph.vertex(0).digest, digest_of(&image));
        assert_eq!(graph.vertex(1).raw, run);
        assert_eq!(
            graph.vertex(1).inputs,
            [Output {
                vertex: 0,
                index: 0
            }]
        );
        assert_eq!(
            graph.root(),
            Output {
                vertex: 1,
                index: 0
            }
        );
        assert_eq!(graph.vertex(0).platform, platform::host());
        assert_eq!(graph.find(&digest_of(&run)), Some(1));
    }

    #[test]
    fn a_client_gives_names() {
        let (mut def, [image, ..]) = sample();
        let mut metadata = pb::OpMetadata::default();
        metadata
            .description
            .insert("llb.customname".into(), "[internal] load x".into());
        metadata.ignore_cache = true;
        def.metadata.insert(digest_of(&image).to_string(), metadata);
        let graph = load(&def, LoadOptions::default()).unwrap();
        assert_eq!(graph.vertex(0).name, "[internal] load x");
        assert!(graph.vertex(0).ignore_cache());
    }

    #[test]
    fn operations_are_named_as_buildkit_does() {
        let file = |action| {
            Op::File(pb::FileOp {
                actions: vec![pb::FileAction {
                    action: Some(action),
                    ..pb::FileAction::default()
                }],
            })
        };
        use pb::file_action::Action;
        let copy = file(Action::Copy(pb::FileActionCopy {
            src: "/a".into(),
            dest: "/b".into(),
            ..Default::default()
        }));
        let mkdir = file(Action::Mkdir(pb::FileActionMkDir {
            path: "/x".into(),
            ..Default::default()
        }));
        let merge = Op::Merge(pb::MergeOp::default());
        let diff = Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: -1 }),
            upper: Some(pb::UpperDiffInput { input: 0 }),
        });
        for (op, name) in [
            (copy, "copy /a /b"),
            (mkdir, "mkdir /x"),
            (merge, "merge (one, two)"),
            (diff, "diff scratch -> (one)"),
            (Op::Build(pb::BuildOp::default()), "build"),
        ] {
            assert_eq!(name::of(&op, &["one", "two"]), name);
        }
    }

    #[test]
    fn what_is_no_graph_is_refused() {
        let (def, [image, run, last]) = sample();
        assert_eq!(fails(&definition(vec![])), "invalid empty definition");
        assert_eq!(
            fails(&definition(vec![image.clone()])),
            "invalid LLB with 1 vertexes"
        );
        assert_eq!(
            fails(&definition(vec![run.clone(), image.clone()])),
            "invalid LLB with no inputs on last vertex"
        );
        assert_eq!(
            fails(&definition(vec![run, last])),
            format!("invalid missing input digest {}", digest_of(&image))
        );
        assert_eq!(
            fails(&definition(vec![vec![0xff].into()])),
            "failed to parse llb proto op"
        );
        let unknown = op(None, &[]);
        let end = op(None, &[&unknown]);
        assert_eq!(
            fails(&definition(vec![unknown, end])),
            "invalid op of unknown kind"
        );
        let bare = op(Some(exec(&[], pb::NetMode::Unset)), &[]);
        let end = op(None, &[&bare]);
        assert_eq!(
            fails(&definition(vec![bare, end])),
            "invalid exec op with no args"
        );
        assert!(load(&def, LoadOptions::default()).is_ok());
    }

    #[test]
    fn capabilities_and_rights_are_checked() {
        let (mut def, [image, ..]) = sample();
        let mut metadata = pb::OpMetadata::default();
        metadata.caps.insert("source.image".into(), true);
        def.metadata.insert(digest_of(&image).to_string(), metadata);
        let with = |caps: &CapSet| {
            load(
                &def,
                LoadOptions {
                    caps: Some(caps),
                    ..LoadOptions::default()
                },
            )
        };
        assert!(with(&CapSet::all_llb()).is_ok());
        assert!(matches!(
            with(&CapSet::default()),
            Err(LlbError::Capability(_))
        ));

        let host = op(Some(exec(&["x"], pb::NetMode::Host)), &[&image]);
        let end = op(None, &[&host]);
        let error = load(
            &definition(vec![image, host, end]),
            LoadOptions {
                entitlements: Some(Entitlements::default()),
                ..LoadOptions::default()
            },
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "network.host is not allowed"
        );
    }

    #[test]
    fn a_policy_changes_what_depends_on_a_source() {
        let (mut def, [image, run, _]) = sample();
        let metadata = pb::OpMetadata {
            ignore_cache: true,
            ..pb::OpMetadata::default()
        };
        def.metadata.insert(digest_of(&run).to_string(), metadata);
        let mut policy = |source: &mut pb::SourceOp| {
            source.identifier = "docker-image://docker.io/library/c:d".into();
            Ok(true)
        };
        let graph = load(
            &def,
            LoadOptions {
                policy: Some(&mut policy),
                ..LoadOptions::default()
            },
        )
        .unwrap();
        assert_ne!(graph.vertex(0).digest, digest_of(&image));
        assert_ne!(graph.vertex(1).digest, digest_of(&run));
        assert_eq!(graph.vertex(1).digest, digest_of(&graph.vertex(1).raw));
        assert!(graph.vertex(1).ignore_cache(), "still what the client said");
    }

    #[test]
    fn a_deep_graph_does_not_exhaust_the_stack() {
        let mut ops = vec![op(Some(source("local://a")), &[])];
        for i in 0..20_000 {
            let next = op(
                Some(exec(&[&i.to_string()], pb::NetMode::Unset)),
                &[ops.last().unwrap()],
            );
            ops.push(next);
        }
        let last = op(None, &[ops.last().unwrap()]);
        ops.push(last);
        let graph = load(&definition(ops), LoadOptions::default()).unwrap();
        assert_eq!(graph.vertices().len(), 20_001);
    }
}
