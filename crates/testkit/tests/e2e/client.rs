//! A program that builds graphs of its own, and the parts that it needs. The cases beside it
//! follow those that BuildKit's own clients rely on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cooper_client::{Client, ClientError, Solve};
use cooper_llb::build::{
    Constraints, CopySpec, Exec, FileAction, Image, Local, MarshalOptions, MountKind, MountSpec,
    State,
};
use cooper_proto::content;
use cooper_proto::control::{self, DiskUsageRequest, PruneRequest};
use cooper_session::Tree;
use cooper_session::serve::{Output, SecretProvider};
use cooper_testkit::{Daemon, Registry, leak, push_busybox};
use futures::StreamExt;
use tokio::runtime::Runtime;

/// No build of these cases takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A daemon, a registry with busybox, and a client.
pub(crate) struct Bench {
    pub(crate) rt: Runtime,
    pub(crate) client: Client,
    /// The reference of busybox.
    pub(crate) busybox: String,
    pub(crate) daemon: Daemon,
    pub(crate) registry: Registry,
    watch: leak::Watch,
}

impl Bench {
    pub(crate) fn start() -> Self {
        Self::with_config("")
    }

    pub(crate) fn with_config(config: &str) -> Self {
        let watch = leak::Watch::begin();
        let registry = Registry::start();
        let busybox = push_busybox(&registry);
        let daemon = Daemon::with_config(config);
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = rt.block_on(Client::connect(&daemon.address())).unwrap();
        Self {
            rt,
            client,
            busybox,
            daemon,
            registry,
            watch,
        }
    }

    pub(crate) fn image(&self) -> State {
        State::image(&self.busybox, Image::default(), Constraints::default())
    }

    /// Solves; an error as its text and that of what led to it.
    pub(crate) fn try_solve(&self, solve: Solve) -> Result<control::SolveResponse, ClientError> {
        self.rt.block_on(async {
            let mut discard = |_| ();
            let solving = Box::pin(self.client.solve(solve, &mut discard));
            let solved = tokio::time::timeout(PATIENCE, solving).await;
            solved.expect("the build ends in time")
        })
    }

    #[track_caller]
    pub(crate) fn solve(&self, state: &State) {
        self.try_solve(request(state)).unwrap();
    }

    #[track_caller]
    pub(crate) fn fails(&self, state: &State) -> String {
        let error = self.try_solve(request(state)).unwrap_err();
        error.to_string()
    }

    /// A new folder, removed with the daemon.
    pub(crate) fn folder(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(self.daemon.scratch()).unwrap()
    }

    /// The files of the state.
    #[track_caller]
    pub(crate) fn files(&self, state: &State) -> tempfile::TempDir {
        self.export(request(state))
    }

    /// Solves with the local exporter.
    #[track_caller]
    pub(crate) fn export(&self, solve: Solve) -> tempfile::TempDir {
        let out = self.folder();
        let solve = solve_to(solve, "local", &[], Output::Dir(out.path().to_owned()));
        self.try_solve(solve).unwrap();
        out
    }

    /// Solves with an exporter that gives a stream, and reads it.
    #[track_caller]
    pub(crate) fn stream(&self, solve: Solve, kind: &str, attrs: &[(&str, &str)]) -> Archive {
        let out = self.folder();
        let path = out.path().join("out.tar");
        let solve = solve_to(solve, kind, attrs, Output::File(path.clone()));
        self.try_solve(solve).unwrap();
        Archive::read(&std::fs::read(path).unwrap())
    }

    /// Nothing is in use once builds have ended, and nothing stays after a prune of all.
    #[track_caller]
    pub(crate) fn check_releasable(&self) {
        self.rt.block_on(async {
            let usage = || self.client.disk_usage(DiskUsageRequest::default());
            let mut left = usage().await.unwrap();
            for _ in 0..40 {
                left.retain(|record| record.in_use);
                if left.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                left = usage().await.unwrap();
            }
            assert!(left.is_empty(), "in use: {left:#?}");
            let all = PruneRequest {
                all: true,
                ..PruneRequest::default()
            };
            let pruned = self.client.prune(all).await.unwrap();
            pruned
                .for_each(|record| async { drop(record.unwrap()) })
                .await;
            assert_eq!(usage().await.unwrap(), []);
            // What is left are blobs of the history.
            forget_builds(&self.client).await;
            assert_eq!(blobs(&self.client).await, []);
        });
    }

    /// Nothing of steps is on the machine.
    #[track_caller]
    pub(crate) fn check_steps(&self) {
        self.watch.check_steps();
    }

    /// The same daemon was killed and starts again; there is a new connection.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.daemon.spawn();
        let address = self.daemon.address();
        let client = self.rt.block_on(Client::connect(&address));
        self.client = client.unwrap();
    }

    /// Ends all of it and checks what is left on the machine.
    #[track_caller]
    pub(crate) fn end(self) {
        self.check_releasable();
        drop(self.client);
        drop(self.rt);
        drop(self.daemon);
        drop(self.registry);
        self.watch.check();
    }
}

/// Removes all records of builds, as BuildKit's own cases do.
async fn forget_builds(client: &Client) {
    let all = control::BuildHistoryRequest {
        early_exit: true,
        ..control::BuildHistoryRequest::default()
    };
    let listed = client.history(all).await.unwrap();
    let events: Vec<_> = listed.collect().await;
    for event in events {
        let record = event.unwrap().record.unwrap();
        let remove = control::UpdateBuildHistoryRequest {
            r#ref: record.r#ref,
            delete: true,
            ..control::UpdateBuildHistoryRequest::default()
        };
        client.update_history(remove).await.unwrap();
    }
}

/// The blobs that the daemon has.
pub(crate) async fn blobs(client: &Client) -> Vec<content::Info> {
    let mut store = client.content();
    let listed = store.list(content::ListContentRequest::default()).await;
    let answers: Vec<_> = listed.unwrap().into_inner().collect().await;
    let answers = answers.into_iter();
    answers.flat_map(|answer| answer.unwrap().info).collect()
}

static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// A request for the state and nothing else.
pub(crate) fn request(state: &State) -> Solve {
    let mut solve = Solve::default();
    // Every client names its builds' local sources apart.
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let options = MarshalOptions {
        local_unique_id: format!("{}-{number}", std::process::id()),
        ..MarshalOptions::default()
    };
    let definition = state.marshal(&options);
    solve.request.definition = Some(definition);
    solve
}

/// With one more exporter.
pub(crate) fn solve_to(
    mut solve: Solve,
    kind: &str,
    attrs: &[(&str, &str)],
    output: Output,
) -> Solve {
    let exporters = &mut solve.request.exporters;
    solve.services.outputs.insert(exporters.len(), output);
    exporters.push(exporter(kind, attrs));
    solve
}

pub(crate) fn exporter(kind: &str, attrs: &[(&str, &str)]) -> control::Exporter {
    let attrs = attrs.iter();
    control::Exporter {
        r#type: kind.into(),
        attrs: attrs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

pub(crate) fn with_dir(mut solve: Solve, name: &str, path: &Path) -> Solve {
    solve.services.dirs.insert(name.into(), Tree::new(path));
    solve
}

pub(crate) fn with_secrets(mut solve: Solve, secrets: &[(&str, &str)]) -> Solve {
    let secrets = secrets.iter();
    let secrets = secrets.map(|(id, value)| ((*id).to_owned(), value.as_bytes().to_vec()));
    solve.services.secrets = Some(Arc::new(Secrets(secrets.collect())));
    solve
}

struct Secrets(BTreeMap<String, Vec<u8>>);

#[async_trait::async_trait]
impl SecretProvider for Secrets {
    async fn secret(&self, id: &str) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(id).cloned())
    }
}

pub(crate) fn local(name: &str) -> State {
    State::local(name, Local::default(), Constraints::default())
}

/// A command of the shell.
pub(crate) fn sh(script: &str) -> Exec {
    args(&["sh", "-e", "-c", script])
}

pub(crate) fn args(args: &[&str]) -> Exec {
    Exec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Exec::default()
    }
}

pub(crate) fn mount(target: &str, source: &State, kind: MountKind) -> MountSpec {
    MountSpec {
        target: target.into(),
        source: source.clone(),
        selector: String::new(),
        read_only: false,
        no_output: false,
        kind,
    }
}

pub(crate) fn bind(target: &str, source: &State) -> MountSpec {
    mount(target, source, MountKind::Bind)
}

pub(crate) fn read_only(target: &str, source: &State) -> MountSpec {
    MountSpec {
        read_only: true,
        ..bind(target, source)
    }
}

pub(crate) fn tmpfs(target: &str) -> MountSpec {
    mount(target, &State::scratch(), MountKind::Tmpfs { size: 0 })
}

pub(crate) fn mkfile(path: &str, data: &str) -> FileAction {
    FileAction::Mkfile {
        path: path.into(),
        mode: 0o600,
        data: data.into(),
        owner: None,
        created: None,
    }
}

pub(crate) fn mkdir(path: &str) -> FileAction {
    FileAction::Mkdir {
        path: path.into(),
        mode: 0o700,
        make_parents: false,
        owner: None,
        created: None,
    }
}

pub(crate) fn rm(path: &str) -> FileAction {
    FileAction::Rm {
        path: path.into(),
        allow_not_found: false,
        allow_wildcard: false,
    }
}

pub(crate) fn copy(source: &State, src: &str, dest: &str) -> CopySpec {
    CopySpec {
        source: source.clone(),
        src: src.into(),
        dest: dest.into(),
        ..CopySpec::default()
    }
}

pub(crate) trait Files {
    fn files(&self, actions: Vec<FileAction>) -> State;
    fn copy(&self, copy: CopySpec) -> State {
        self.files(vec![FileAction::Copy(Box::new(copy))])
    }
}

impl Files for State {
    fn files(&self, actions: Vec<FileAction>) -> State {
        self.file(actions, Constraints::default())
    }
}

/// What is in a tar archive, by name.
#[derive(Debug)]
pub(crate) struct Archive(pub(crate) BTreeMap<String, Entry>);

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) header: tar::Header,
    pub(crate) data: Vec<u8>,
}

impl Archive {
    /// Reads an archive, compressed or not.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        use std::io::Read;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            let mut gzip = flate2::read::MultiGzDecoder::new(bytes);
            gzip.read_to_end(&mut plain).unwrap();
            return Self::read(&plain);
        }
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let header = entry.header().clone();
            entries.insert(name, Entry { header, data });
        }
        Self(entries)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    #[track_caller]
    pub(crate) fn entry(&self, name: &str) -> &Entry {
        let found = self.0.get(name);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.names()))
    }

    #[track_caller]
    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.entry(name).data).unwrap()
    }

    #[track_caller]
    pub(crate) fn blob(&self, digest: &serde_json::Value) -> &[u8] {
        let digest = digest.as_str().unwrap().replace(':', "/");
        &self.entry(&format!("blobs/{digest}")).data
    }

    /// The manifest of an OCI layout with one image.
    #[track_caller]
    pub(crate) fn manifest(&self) -> serde_json::Value {
        let index = self.json("index.json");
        serde_json::from_slice(self.blob(&index["manifests"][0]["digest"])).unwrap()
    }

    /// The last layer of an OCI layout with one image.
    #[track_caller]
    pub(crate) fn last_layer(&self) -> Self {
        let manifest = self.manifest();
        let layers = manifest["layers"].as_array().unwrap();
        Self::read(self.blob(&layers.last().unwrap()["digest"]))
    }
}
