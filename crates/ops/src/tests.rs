//! Whole graphs through the solver, with a cache in a folder and an executor that only pretends.

mod images;
mod layered;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use cooper_cache::{CacheConfig, CacheLimits, CacheManager, ImmutableRef, RecordOptions};
use cooper_content::MemoryContentStore;
use cooper_executor::{
    ContainerSpec, ExecError, Executor, Exit, Output as Stream, Process, Running,
};
use cooper_llb::{LoadOptions, digest_of, load};
use cooper_mount::MountManager;
use cooper_progress::{Collect, Event, Limits};
use cooper_proto::pb::{self, file_action::Action};
use cooper_registry::Registry;
use cooper_session::Group;
use cooper_snapshot::{Kind, MountedDir};
use cooper_solver::{SolveError, Solver, SolverConfig, error_chain};
use cooper_source::{
    CacheKey, Identifier, Instance, Source, SourceContext, SourceError, SourceRegistry,
};
use cooper_store::Store;
use prost::Message as _;
use tokio::sync::Semaphore;

use crate::{Build, Env, ExecFailure, JobContext, vertices};

/// `test://a=1,b/c=2`: files with their content.
struct Files {
    cache: CacheManager,
}

struct Folder {
    cache: CacheManager,
    text: String,
}

impl Source for Files {
    fn schemes(&self) -> &'static [&'static str] {
        &["test"]
    }

    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError> {
        Ok(Arc::new(Folder {
            cache: self.cache.clone(),
            text: id.reference,
        }))
    }
}

#[async_trait]
impl Instance for Folder {
    async fn cache_key(&self, _: &SourceContext, _: usize) -> Result<CacheKey, SourceError> {
        Ok(CacheKey {
            // As a local source: only the content will tell.
            key: format!("session:{}", self.text),
            pin: String::new(),
            last: true,
        })
    }

    async fn snapshot(&self, _: &SourceContext) -> Result<Option<ImmutableRef>, SourceError> {
        let made = self
            .cache
            .new_mutable(None, RecordOptions::default())
            .await?;
        let dir = made.mount().await?;
        for file in self.text.split(',').filter(|file| !file.is_empty()) {
            let (path, content) = file.split_once('=').unwrap_or((file, ""));
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        drop(dir);
        Ok(Some(made.commit().await?))
    }
}

/// Does what the arguments say: `write PATH TEXT`, `exit CODE`, `env`; `sh SCRIPT` in the root.
#[derive(Default)]
struct Pretender {
    /// The arguments of all processes so far.
    ran: Mutex<Vec<Vec<String>>>,
    specs: Mutex<Vec<ContainerSpec>>,
}

struct Pretended(Exit);

#[async_trait]
impl Executor for Pretender {
    async fn start(
        &self,
        container: ContainerSpec,
        init: Process,
    ) -> Result<Arc<dyn Running>, ExecError> {
        self.ran.lock().unwrap().push(init.args.clone());
        let scratch = tempfile::tempdir().unwrap();
        let root = MountedDir::mount(&container.root, scratch.path()).unwrap();
        self.specs.lock().unwrap().push(container);
        let say = |text: String| {
            if let Stream::Call(write) = &init.stdout {
                write(Bytes::from(text));
            }
        };
        let args: Vec<_> = init.args.iter().map(String::as_str).collect();
        let mut exit = Exit::default();
        match args.as_slice() {
            ["write", path, text] => {
                std::fs::write(root.path().join(path.trim_start_matches('/')), text).unwrap();
            }
            ["sh", script] => {
                let mut shell = std::process::Command::new("sh");
                shell.args(["-ec", script]).current_dir(root.path());
                assert!(shell.status().unwrap().success(), "{script}");
            }
            ["exit", code] => exit.code = code.parse().unwrap(),
            ["env"] => say(init.env.join("\n")),
            other => panic!("unknown process {other:?}"),
        }
        Ok(Arc::new(Pretended(exit)))
    }

    async fn close(&self) {}
}

#[async_trait]
impl Running for Pretended {
    fn id(&self) -> &str {
        "pretended"
    }

    async fn started(&self) -> Result<(), ExecError> {
        Ok(())
    }

    async fn wait(&self) -> Result<Exit, ExecError> {
        Ok(self.0)
    }

    async fn exec(&self, _: Process) -> Result<Arc<dyn Running>, ExecError> {
        Err(ExecError::Closed)
    }

    async fn signal(&self, _: i32) -> Result<(), ExecError> {
        Ok(())
    }

    async fn resize(&self, _: u16, _: u16) -> Result<(), ExecError> {
        Ok(())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    env: Arc<Env>,
    executor: Arc<Pretender>,
    solver: Solver<Build>,
    sink: Arc<Collect>,
}

async fn bench() -> Bench {
    bench_on(Kind::Native).await
}

async fn bench_on(kind: Kind) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let snapshots = cooper_snapshot::open(kind, dir.path(), store.clone()).unwrap();
    let content = Arc::new(MemoryContentStore::default());
    let cache = CacheManager::open(CacheConfig {
        store,
        dropped: Vec::new(),
        snapshotter: snapshots,
        content: content.clone(),
        mounts: dir.path().join("mounts"),
    })
    .await
    .unwrap();
    let executor = Arc::new(Pretender::default());
    let files: Arc<dyn Source> = Arc::new(Files {
        cache: cache.clone(),
    });
    let env = Env {
        mounts: MountManager::new(cache.clone(), dir.path().join("processes")),
        cache,
        content,
        registry: Registry::new(BTreeMap::new()),
        executor: executor.clone(),
        images: None,
        sources: SourceRegistry::new([files]),
        parallelism: Some(Arc::new(Semaphore::new(1))),
        platform: cooper_llb::platform::host(),
        log_limits: Limits::DEFAULT,
        print_output: false,
    };
    Bench {
        _dir: dir,
        env: Arc::new(env),
        executor,
        solver: Solver::new(SolverConfig::in_memory()),
        sink: Arc::new(Collect::default()),
    }
}

/// A graph that is being written down.
#[derive(Default)]
struct Graph(Vec<Bytes>);

impl Graph {
    fn add(&mut self, op: pb::op::Op, inputs: &[(usize, i64)]) -> usize {
        let input = |(op, index): &(usize, i64)| pb::Input {
            digest: digest_of(&self.0[*op]).to_string(),
            index: *index,
        };
        let op = pb::Op {
            op: Some(op),
            inputs: inputs.iter().map(input).collect(),
            ..pb::Op::default()
        };
        self.0.push(op.encode_to_vec().into());
        self.0.len() - 1
    }

    fn files(&mut self, text: &str) -> usize {
        let source = pb::SourceOp {
            identifier: format!("test://{text}"),
            ..pb::SourceOp::default()
        };
        self.add(pb::op::Op::Source(source), &[])
    }

    fn exec(&mut self, root: usize, args: &[&str], change: impl FnOnce(&mut pb::ExecOp)) -> usize {
        let mut exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                cwd: "/".into(),
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                ..pb::Mount::default()
            }],
            ..pb::ExecOp::default()
        };
        change(&mut exec);
        self.add(pb::op::Op::Exec(exec), &[(root, 0)])
    }

    fn file(&mut self, actions: Vec<pb::FileAction>, inputs: &[usize]) -> usize {
        let inputs: Vec<_> = inputs.iter().map(|input| (*input, 0)).collect();
        self.add(pb::op::Op::File(pb::FileOp { actions }), &inputs)
    }
}

fn action(input: i64, secondary_input: i64, output: i64, action: Action) -> pb::FileAction {
    pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(action),
    }
}

fn mkfile(path: &str, data: &str) -> Action {
    Action::Mkfile(pb::FileActionMkFile {
        path: path.into(),
        mode: 0o644,
        data: data.into(),
        timestamp: -1,
        ..pb::FileActionMkFile::default()
    })
}

fn copy(src: &str, dest: &str) -> Action {
    Action::Copy(pb::FileActionCopy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        create_dest_path: true,
        allow_wildcard: true,
        dir_copy_contents: true,
        follow_symlink: true,
        ..pb::FileActionCopy::default()
    })
}

impl Bench {
    async fn solve(
        &self,
        graph: &Graph,
        top: usize,
    ) -> Result<BTreeMap<String, String>, SolveError> {
        let Some(output) = self.output(graph, top).await? else {
            return Ok(BTreeMap::new());
        };
        Ok(self.read(&output).await)
    }

    async fn output(&self, graph: &Graph, top: usize) -> Result<Option<ImmutableRef>, SolveError> {
        let pointer = pb::Op {
            inputs: vec![pb::Input {
                digest: digest_of(&graph.0[top]).to_string(),
                index: 0,
            }],
            ..pb::Op::default()
        };
        let mut def = graph.0.clone();
        def.push(pointer.encode_to_vec().into());
        let def = pb::Definition {
            def,
            ..pb::Definition::default()
        };
        let graph = load(&def, LoadOptions::default()).unwrap();
        let (vertices, edge) = vertices(&graph, &self.env).unwrap();
        let job = self
            .solver
            .job(JobContext::new(Group::none()), self.sink.clone());
        job.build(vertices, edge).await
    }

    async fn read(&self, state: &cooper_cache::ImmutableRef) -> BTreeMap<String, String> {
        let progress = cooper_progress::VertexProgress::discard();
        let local = self.env.localize(state, &Group::none(), &progress).await;
        let dir = local.unwrap().mount().await.unwrap();
        let mut found = BTreeMap::new();
        read(dir.path(), dir.path(), &mut found);
        found
    }

    fn logs(&self) -> String {
        let events = self.sink.take();
        let logs = events.iter().filter_map(|event| match event {
            Event::Log(log) => Some(String::from_utf8_lossy(&log.data).into_owned()),
            _ => None,
        });
        logs.collect()
    }
}

/// The regular files below `dir`, with their content.
fn read(dir: &Path, top: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, top, found);
        } else {
            let name = path.strip_prefix(top).unwrap().display().to_string();
            found.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

fn files(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pair = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
    all.iter().map(pair).collect()
}

#[tokio::test]
async fn processes_change_their_root_and_are_cached() {
    let bench = bench().await;
    let mut graph = Graph::default();
    let base = graph.files("a=1");
    let run = graph.exec(base, &["write", "/b", "2"], |_| {});
    let found = bench.solve(&graph, run).await.unwrap();
    assert_eq!(found, files(&[("a", "1"), ("b", "2")]));
    bench.solve(&graph, run).await.unwrap();
    assert_eq!(bench.executor.ran.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_process_says_so_in_buildkits_words() {
    let bench = bench().await;
    let mut graph = Graph::default();
    let base = graph.files("a=1");
    let run = graph.exec(base, &["exit", "3"], |_| {});
    let error = bench.solve(&graph, run).await.unwrap_err();
    let text = error_chain(&error);
    let expected = r#"process "exit 3" did not complete successfully: exit code: 3"#;
    assert!(text.ends_with(expected), "{text}");
    let SolveError::Op { source, .. } = &error else {
        panic!("{error:?}");
    };
    let failure = source
        .downcast_ref::<crate::OpsError>()
        .and_then(|error| match error {
            crate::OpsError::Exec { failure, files } => {
                // What it saw and what it left are two states.
                let (before, after) = (files.inputs[0].as_ref(), files.mounts[0].as_ref());
                assert_ne!(before.unwrap().id(), after.unwrap().id());
                Some(failure.clone())
            }
            _ => None,
        });
    let args = ["exit".to_owned(), "3".to_owned()];
    assert_eq!(failure, Some(ExecFailure::new(&args, 3, false)));
    let wanted = graph.exec(base, &["exit", "3"], |exec| {
        exec.meta.as_mut().unwrap().valid_exit_codes = vec![0, 3];
    });
    assert!(bench.solve(&graph, wanted).await.is_ok());
}

#[tokio::test]
async fn a_process_gets_what_its_step_says() {
    let bench = bench().await;
    let mut graph = Graph::default();
    let base = graph.files("a=1");
    let run = graph.exec(base, &["env"], |exec| {
        let meta = exec.meta.as_mut().unwrap();
        meta.env = vec!["A=1".into()];
        meta.proxy_env = Some(pb::ProxyEnv {
            http_proxy: "p".into(),
            ..pb::ProxyEnv::default()
        });
        meta.hostname = "host".into();
        meta.extra_hosts = vec![pb::HostIp {
            host: "h".into(),
            ip: "1.2.3.4".into(),
        }];
        meta.ulimit = vec![pb::Ulimit {
            name: "nofile".into(),
            soft: 1,
            hard: 2,
        }];
        exec.network = pb::NetMode::None.into();
        exec.security = pb::SecurityMode::Insecure.into();
    });
    bench.solve(&graph, run).await.unwrap();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        bench.logs(),
        format!("A=1\nHTTP_PROXY=p\nhttp_proxy=p\nPATH={path}")
    );
    let spec = bench.executor.specs.lock().unwrap().pop().unwrap();
    assert_eq!(spec.hostname, "host");
    assert_eq!(spec.extra_hosts[0].ip, "1.2.3.4");
    assert_eq!((spec.ulimits[0].soft, spec.ulimits[0].hard), (1, 2));
    assert_eq!(spec.network, cooper_executor::NetworkMode::None);
    assert_eq!(spec.security, cooper_executor::SecurityMode::Insecure);
    let missing = graph.exec(base, &["env"], |exec| {
        exec.secretenv = vec![pb::SecretEnv {
            id: "token".into(),
            name: "TOKEN".into(),
            optional: false,
        }];
    });
    let error = bench.solve(&graph, missing).await.unwrap_err();
    assert!(error_chain(&error).ends_with("secret token: not found"));
}

#[tokio::test]
async fn copies_are_cached_by_what_they_see() {
    let bench = bench().await;
    // What is not copied differs, what is copied does not.
    for other in ["x", "y"] {
        let mut graph = Graph::default();
        let base = graph.files("base=1");
        let context = graph.files(&format!("src/a=2,other={other}"));
        let copied = graph.file(
            vec![action(0, 1, 0, copy("/src", "/app/"))],
            &[base, context],
        );
        let run = graph.exec(copied, &["write", "/done", "3"], |_| {});
        let found = bench.solve(&graph, run).await.unwrap();
        let expected = [("app/a", "2"), ("base", "1"), ("done", "3")];
        assert_eq!(found, files(&expected));
    }
    assert_eq!(bench.executor.ran.lock().unwrap().len(), 1);
    let mut graph = Graph::default();
    let base = graph.files("base=1");
    let context = graph.files("src/a=2");
    let missing = graph.file(vec![action(0, 1, 0, copy("/none", "/"))], &[base, context]);
    let error = bench.solve(&graph, missing).await.unwrap_err();
    let text = error_chain(&error);
    assert!(text.contains("failed to compute cache key: failed to calculate checksum of ref "));
    assert!(text.ends_with(r#""/none": not found"#), "{text}");
}

#[tokio::test]
async fn what_copies_write_is_limited_as_what_a_process_writes() {
    let bench = bench().await;
    let _collector = bench.env.cache.collect(CacheLimits {
        policies: Vec::new(),
        most_of_step: 1 << 20,
    });
    let mut graph = Graph::default();
    let base = graph.files("base=1");
    let large = Action::Mkfile(pb::FileActionMkFile {
        path: "/a".into(),
        mode: 0o644,
        timestamp: -1,
        data: vec![b'x'; 600 << 10],
        owner: None,
    });
    let made = graph.file(vec![action(0, -1, 0, large)], &[base]);
    let once = graph.file(vec![action(0, 1, 0, copy("/a", "/1"))], &[base, made]);
    let twice = vec![
        action(0, 1, -1, copy("/a", "/1")),
        action(2, 1, 0, copy("/a", "/2")),
    ];
    let twice = graph.file(twice, &[base, made]);
    assert_eq!(bench.solve(&graph, once).await.unwrap().len(), 2);
    let error = bench.solve(&graph, twice).await.unwrap_err();
    let text = error_chain(&error);
    assert!(
        text.contains("maxStepBytes") && text.contains("1048576 bytes"),
        "{text}"
    );
}

#[tokio::test]
async fn actions_build_upon_each_other_and_share_states() {
    let bench = bench().await;
    let mut graph = Graph::default();
    // Two files on scratch; a state of its own; one copied into the other.
    let op = graph.file(
        vec![
            action(-1, -1, -1, mkfile("/one", "1")),
            action(0, -1, -1, mkfile("/two", "2")),
            action(-1, -1, -1, mkfile("/three", "3")),
            action(1, 2, 0, copy("/three", "/copied")),
            action(1, -1, 1, mkfile("/one", "other")),
        ],
        &[],
    );
    let found = bench.solve(&graph, op).await.unwrap();
    let expected = [("copied", "3"), ("one", "1"), ("two", "2")];
    assert_eq!(found, files(&expected));
    let failing = graph.file(
        vec![
            action(-1, -1, -1, mkfile("/one", "1")),
            action(0, -1, 0, mkfile("/no/file", "2")),
        ],
        &[],
    );
    let error = bench.solve(&graph, failing).await.unwrap_err();
    let text = error_chain(&error);
    assert!(
        text.ends_with("open /no/file: no such file or directory"),
        "{text}"
    );
    let SolveError::Op { source, .. } = &error else {
        panic!("{error:?}");
    };
    let Some(crate::OpsError::File(failure)) = source.downcast_ref() else {
        panic!("{source:?}");
    };
    assert_eq!(failure.index, 1);
    // Both are there to be looked at: what was there before, and how far it came.
    assert!(failure.files.inputs.is_empty());
    let [None, Some(left)] = &failure.files.mounts[..] else {
        panic!("{:?}", failure.files);
    };
    assert_eq!(bench.read(left).await, files(&[("one", "1")]));
}

#[tokio::test]
async fn merges_lay_over_and_diffs_take_apart() {
    let bench = bench().await;
    let mut graph = Graph::default();
    let base = graph.files("a=1,b=1");
    let other = graph.files("b=2,c=2");
    let merge = pb::MergeOp {
        inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
    };
    let merged = graph.add(pb::op::Op::Merge(merge), &[(base, 0), (other, 0)]);
    let found = bench.solve(&graph, merged).await.unwrap();
    assert_eq!(found, files(&[("a", "1"), ("b", "2"), ("c", "2")]));

    let diff = |lower, upper| {
        pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: lower }),
            upper: Some(pb::UpperDiffInput { input: upper }),
        })
    };
    let run = graph.exec(base, &["write", "/d", "3"], |_| {});
    let child = graph.add(diff(0, 1), &[(base, 0), (run, 0)]);
    let found = bench.solve(&graph, child).await.unwrap();
    assert_eq!(found, files(&[("d", "3")]));
    let strangers = graph.add(diff(0, 1), &[(base, 0), (other, 0)]);
    let found = bench.solve(&graph, strangers).await.unwrap();
    assert_eq!(found, files(&[("b", "2"), ("c", "2")]));
    let same = graph.add(diff(0, 1), &[(base, 0), (base, 0)]);
    assert_eq!(bench.solve(&graph, same).await.unwrap(), files(&[]));
    let all = graph.add(diff(-1, 0), &[(base, 0)]);
    let found = bench.solve(&graph, all).await.unwrap();
    assert_eq!(found, files(&[("a", "1"), ("b", "1")]));
}
