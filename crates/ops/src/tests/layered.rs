//! Merges and differences against what BuildKit's own cases expect of them
//! (`client/mergediff_test.go`), on overlays and on copies; and the layers of each result, which
//! have to give the same files to whoever unpacks them.

mod cases;

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cooper_cache::{ImmutableRef, Layer, MountedDir};
use cooper_content::BlobReader;
use cooper_layer::{CompressionOptions, ExportContext, export, unpack};
use cooper_proto::pb;
use cooper_session::Group;
use cooper_snapshot::{Kind, Mount};

use super::{Bench, Graph, bench_on};

/// A state as it is made.
#[derive(Clone)]
enum State {
    Scratch,
    /// A script in the root of another state.
    Run(Box<State>, String),
    Merge(Vec<State>),
    Diff(Box<State>, Box<State>),
}
use State::Scratch;

impl State {
    fn run(&self, script: &str) -> Self {
        Self::Run(Box::new(self.clone()), script.to_owned())
    }

    /// Its place in the graph; none for nothing.
    fn add(&self, graph: &mut Graph) -> Option<usize> {
        let (op, inputs) = match self {
            Scratch => return None,
            Self::Run(root, script) => {
                let root = root.add(graph);
                let exec = pb::ExecOp {
                    meta: Some(pb::Meta {
                        args: vec!["sh".into(), script.clone()],
                        cwd: "/".into(),
                        ..pb::Meta::default()
                    }),
                    mounts: vec![pb::Mount {
                        dest: "/".into(),
                        input: if root.is_some() { 0 } else { -1 },
                        ..pb::Mount::default()
                    }],
                    ..pb::ExecOp::default()
                };
                (pb::op::Op::Exec(exec), Vec::from_iter(root))
            }
            Self::Merge(states) => {
                let inputs: Vec<_> = states.iter().filter_map(|one| one.add(graph)).collect();
                let merge = pb::MergeOp {
                    inputs: (0..inputs.len())
                        .map(|input| pb::MergeInput {
                            input: input as i64,
                        })
                        .collect(),
                };
                (pb::op::Op::Merge(merge), inputs)
            }
            Self::Diff(lower, upper) => {
                let mut inputs = Vec::new();
                let mut input = |state: &State| match state.add(graph) {
                    None => -1,
                    Some(place) => {
                        inputs.push(place);
                        inputs.len() as i64 - 1
                    }
                };
                let (lower, upper) = (input(lower), input(upper));
                let diff = pb::DiffOp {
                    lower: Some(pb::LowerDiffInput { input: lower }),
                    upper: Some(pb::UpperDiffInput { input: upper }),
                };
                (pb::op::Op::Diff(diff), inputs)
            }
        };
        let inputs: Vec<_> = inputs.into_iter().map(|input| (input, 0)).collect();
        let place = graph.add(op, &inputs);
        // One that is there already is that one.
        let same = graph.0.iter().position(|op| *op == graph.0[place]);
        if same != Some(place) {
            graph.0.truncate(place);
        }
        same
    }
}

fn run(script: &str) -> State {
    Scratch.run(script)
}

fn merge<const N: usize>(states: [State; N]) -> State {
    State::Merge(states.into())
}

fn diff(lower: State, upper: State) -> State {
    State::Diff(Box::new(lower), Box::new(upper))
}

fn alpine() -> State {
    run(
        "mkdir -p bin etc root tmp; chmod 700 root; chmod 1777 tmp; echo alpine > etc/release
         echo tools > bin/busybox; ln bin/busybox bin/ls; ln -s /bin/busybox bin/sh",
    )
}

fn busybox() -> State {
    run("mkdir -p bin home proc sys; echo other > bin/busybox; ln -s /bin/busybox bin/sh")
}

/// What is in a folder: kind, mode, content, and which names are one file.
fn listing(top: &Path) -> Vec<String> {
    fn walk(dir: &Path, top: &Path, seen: &mut HashMap<u64, String>, all: &mut Vec<String>) {
        let mut paths: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(top).unwrap().display().to_string();
            let meta = match path.symlink_metadata() {
                Ok(meta) => meta,
                Err(error) => {
                    all.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let mode = meta.mode() & 0o7777;
            let kind = meta.file_type();
            let what = if kind.is_dir() {
                "dir".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", path.read_link().unwrap().display())
            } else if kind.is_char_device() {
                format!("device {}", meta.rdev())
            } else if kind.is_fifo() {
                "fifo".to_owned()
            } else {
                format!("{:?}", std::fs::read_to_string(&path).unwrap())
            };
            let mut line = format!("{name} {mode:o} {what}");
            if !kind.is_dir() && meta.nlink() > 1 {
                match seen.get(&meta.ino()) {
                    Some(first) => line.push_str(&format!(" = {first}")),
                    None => drop(seen.insert(meta.ino(), name)),
                }
            }
            all.push(line);
            if kind.is_dir() {
                walk(&path, top, seen, all);
            }
        }
    }
    let mut all = Vec::new();
    walk(top, top, &mut HashMap::new(), &mut all);
    all
}

impl Bench {
    async fn state(&self, state: &State) -> Option<ImmutableRef> {
        let mut graph = Graph::default();
        let top = state.add(&mut graph)?;
        self.output(&graph, top).await.unwrap()
    }

    async fn files_of(&self, state: &Option<ImmutableRef>) -> Vec<String> {
        let Some(state) = state else {
            return Vec::new();
        };
        listing(self.mounted(state).await.path())
    }

    async fn mounted(&self, state: &ImmutableRef) -> MountedDir {
        let progress = cooper_progress::VertexProgress::discard();
        let local = self.env.localize(state, &Group::none(), &progress).await;
        local.unwrap().mount().await.unwrap()
    }

    /// The layers that an image of it would have.
    pub(super) async fn layers(&self, state: &Option<ImmutableRef>) -> Vec<Layer> {
        let Some(state) = state else {
            return Vec::new();
        };
        let progress = cooper_progress::VertexProgress::discard();
        let context = ExportContext {
            content: self.env.content.clone(),
            compression: CompressionOptions::default(),
            fill: self.env.filler(&Group::none(), &progress),
        };
        export(state, &context).await.unwrap()
    }

    /// The same from the layers that an image of it would have.
    async fn unpacked(&self, state: &Option<ImmutableRef>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for layer in self.layers(state).await {
            let blob = self.env.content.open(layer.descriptor.digest());
            let blob = blob.await.unwrap();
            let mounts = [Mount::bind(dir.path(), false)];
            let limits = unpack::Limits::default();
            unpack::unpack(BlobReader::new(&*blob), &mounts, &limits).unwrap();
        }
        listing(dir.path())
    }
}

/// Solves each state and what it should be, and compares.
async fn check(cases: &[(&str, State, State)]) {
    for kind in [Kind::Overlay, Kind::Native] {
        let bench = bench_on(kind).await;
        for (name, state, expected) in cases {
            let expected = bench.files_of(&bench.state(expected).await).await;
            let made = bench.state(state).await;
            // First the layers, for which nothing has to be on disk.
            let layers = bench.unpacked(&made).await;
            assert_eq!(bench.files_of(&made).await, expected, "{name}, {kind:?}");
            assert_eq!(layers, expected, "{name}, layers, {kind:?}");
            // Whoever begins with the files gets the same.
            let again = bench_on(kind).await;
            let made = again.state(state).await;
            assert_eq!(again.files_of(&made).await, expected, "{name}, {kind:?}");
            assert_eq!(again.unpacked(&made).await, expected, "{name}, {kind:?}");
        }
    }
}
