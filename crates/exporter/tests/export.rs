//! Results of a real cache through every exporter, to a client over a session and to a real
//! registry.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cooper_cache::{CacheConfig, CacheManager, ImmutableRef, Layer, RecordOptions};
use cooper_content::{Fetch, FsContentStore};
use cooper_exporter::{Attrs, ExportContext, ExportInput, Response, resolve};
use cooper_layer::FetchFor;
use cooper_progress::{Collect, Event, VertexProgress};
use cooper_registry::Registry;
use cooper_session::serve::{self, Output, Services};
use cooper_session::{Group, Manager, SessionMeta};
use cooper_snapshot::NativeSnapshotter;
use cooper_store::Store;
use cooper_testkit::{Pulled, run};
use tokio_util::sync::CancellationToken;

/// Everything is here.
struct Nowhere;

impl FetchFor for Nowhere {
    fn fetch_for(&self, _: &Layer) -> Vec<Arc<dyn Fetch>> {
        Vec::new()
    }
}

struct Bench {
    dir: tempfile::TempDir,
    cache: CacheManager,
    events: Arc<Collect>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_memory().unwrap();
        let snapshots = dir.path().join("snapshots");
        std::fs::create_dir(&snapshots).unwrap();
        let cache = CacheManager::open(CacheConfig {
            snapshotter: Arc::new(NativeSnapshotter::open(&snapshots, store.clone()).unwrap()),
            store,
            dropped: Vec::new(),
            content: Arc::new(FsContentStore::open(&dir.path().join("content")).unwrap()),
            mounts: dir.path().join("mounts"),
        })
        .await
        .unwrap();
        Self {
            dir,
            cache,
            events: Arc::default(),
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A state with one more file.
    async fn state(&self, parent: Option<&ImmutableRef>, file: &str, text: &str) -> ImmutableRef {
        let parent = parent.and_then(ImmutableRef::local);
        let options = RecordOptions {
            description: format!("RUN make {file}"),
            ..RecordOptions::default()
        };
        let work = self.cache.new_mutable(parent.as_ref(), options).await;
        let work = work.unwrap();
        let mounted = work.mount().await.unwrap();
        std::fs::write(mounted.path().join(file), text).unwrap();
        mounted.close().unwrap();
        work.commit().await.unwrap()
    }

    fn context(&self, sessions: Group) -> ExportContext {
        ExportContext {
            cache: self.cache.clone(),
            images: None,
            registry: Registry::new(BTreeMap::new()),
            fetch: Arc::new(Nowhere),
            sessions,
            progress: VertexProgress::new(
                cooper_content::digest_of(b"export"),
                self.events.clone(),
            ),
        }
    }

    /// Exports to a client that takes `output` from the exporter number 0.
    async fn send(&self, kind: &str, attrs: Attrs, input: ExportInput, output: Output) -> Response {
        let mut services = Services::default();
        services.outputs.insert(0, output);
        let manager = Manager::new();
        let (near, far) = tokio::io::duplex(64 << 10);
        let meta = SessionMeta {
            id: "client".into(),
            methods: services.methods(),
            ..SessionMeta::default()
        };
        let shutdown = CancellationToken::new();
        let client = serve::run(far, &services, shutdown.clone());
        let export = async {
            let cx = self.context(Group::new(manager.clone(), ["client"]));
            let exporter = resolve(kind, attrs, 0).unwrap();
            let response = exporter.export(input, &cx).await;
            shutdown.cancel();
            response
        };
        let (served, offered, response) = tokio::join!(manager.serve(near, meta), client, export);
        served.unwrap();
        offered.unwrap();
        response.unwrap()
    }

    /// The names of the statuses that ended.
    fn statuses(&self) -> Vec<String> {
        let events = self.events.take().into_iter();
        events
            .filter_map(|event| match event {
                Event::Status(status) if status.completed.is_some() => Some(status.id),
                _ => None,
            })
            .collect()
    }
}

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/hello"]},
    "history":[{"created_by":"first"}]}"#;

fn metadata(list: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    list.iter()
        .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn attrs(list: &[(&str, &str)]) -> Attrs {
    list.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn two_layers(bench: &Bench) -> ExportInput {
    let first = bench.state(None, "one", "1").await;
    let second = bench.state(Some(&first), "two", "2").await;
    ExportInput {
        reference: Some(second),
        metadata: metadata(&[("containerimage.config", CONFIG)]),
        ..ExportInput::default()
    }
}

/// Two platforms with one state of their own each.
async fn two_platforms(bench: &Bench) -> ExportInput {
    let platforms = r#"{"Platforms":[
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
        {"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#;
    let mut input = ExportInput {
        metadata: metadata(&[("refs.platforms", platforms)]),
        ..ExportInput::default()
    };
    for arch in ["amd64", "arm64"] {
        let state = bench.state(None, "arch", arch).await;
        let platform = format!("linux/{arch}");
        input.metadata.insert(
            format!("containerimage.config/{platform}"),
            CONFIG.replace("amd64", arch).into_bytes(),
        );
        input.references.insert(platform, Some(state));
    }
    input
}

#[track_caller]
fn content(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_push_is_in_the_store() {
    let bench = Bench::new().await;
    let input = two_layers(&bench).await;
    let cx = bench.context(Group::none());
    let exporter = resolve("image", attrs(&[("name", "a:1,b:2")]), 0).unwrap();
    let response = exporter.export(input.clone(), &cx).await.unwrap();
    assert_eq!(response["image.name"], "a:1,b:2");
    let blob = async |digest: &str| {
        let digest = digest.parse().unwrap();
        let content = bench.cache.content();
        let bytes = content.read_all(&digest, 1 << 20).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    let manifest = blob(&response["containerimage.digest"]).await;
    let config = blob(&response["containerimage.config.digest"]).await;
    assert_eq!(
        manifest["config"]["digest"],
        *response["containerimage.config.digest"]
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    let history: Vec<_> = config["history"].as_array().unwrap().iter().collect();
    assert_eq!(history[0]["created_by"], "first");
    assert_eq!(history[1]["created_by"], "RUN make two");
    assert_eq!(config["created"], history[1]["created"]);
    assert!(response.contains_key("containerimage.descriptor"));
    let statuses = bench.statuses();
    assert_eq!(statuses[0], "exporting layers");
    assert!(statuses[1].starts_with("exporting manifest sha256:"));
    assert!(statuses[2].starts_with("exporting config sha256:"));

    // The same again is the same image.
    let again = exporter.export(input, &cx).await.unwrap();
    assert_eq!(again, response);
    bench.cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_is_pulled_by_others() {
    let bench = Bench::new().await;
    let registry = cooper_testkit::Registry::start();
    let cx = bench.context(Group::none());
    let name = format!("{}/app:1", registry.host());
    let push = attrs(&[("name", &name), ("push", "true"), ("annotation.a", "b")]);
    let exporter = resolve("image", push, 0).unwrap();
    let response = exporter
        .export(two_layers(&bench).await, &cx)
        .await
        .unwrap();
    let pulled = Pulled::registry(&name);
    assert_eq!(pulled.manifest["annotations"]["a"], "b");
    assert_eq!(pulled.config["config"]["Cmd"][0], "/hello");
    let root = pulled.unpack();
    assert_eq!(
        (content(&root, "one"), content(&root, "two")),
        ("1".into(), "2".into())
    );
    let statuses = bench.statuses();
    assert!(
        statuses.contains(&"pushing layers".to_owned()),
        "{statuses:?}"
    );
    let digest = &response["containerimage.digest"];
    let manifest = format!("pushing manifest for {name}@{digest}");
    assert!(statuses.contains(&manifest), "{statuses:?}");

    // An index, and by digest alone.
    let name = format!("{}/many", registry.host());
    let push = attrs(&[
        ("name", &name),
        ("push", "true"),
        ("push-by-digest", "true"),
    ]);
    let exporter = resolve("image", push, 0).unwrap();
    let response = exporter
        .export(two_platforms(&bench).await, &cx)
        .await
        .unwrap();
    assert!(!response.contains_key("containerimage.config.digest"));
    let source = format!("docker://{name}@{}", response["containerimage.digest"]);
    for arch in ["amd64", "arm64"] {
        let into = tempfile::tempdir().unwrap();
        run(Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--override-arch",
            ])
            .args([arch, &source])
            .arg(format!("oci:{}", into.path().display())))
        .success();
    }
    bench.cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_an_image_for_others() {
    let bench = Bench::new().await;
    for kind in ["oci", "docker"] {
        let file = bench.path(&format!("{kind}.tar"));
        let input = two_layers(&bench).await;
        let response = bench
            .send(
                kind,
                attrs(&[("name", "example.com/x")]),
                input,
                Output::File(file.clone()),
            )
            .await;
        assert_eq!(response["image.name"], "example.com/x:latest");
        let pulled = Pulled::from(&format!("{kind}-archive:{}", file.display()));
        assert_eq!(pulled.config["config"]["Cmd"][0], "/hello");
        assert_eq!(content(&pulled.unpack(), "two"), "2");
    }
    let file = bench.path("index.tar");
    let input = two_platforms(&bench).await;
    bench
        .send("oci", Attrs::new(), input, Output::File(file.clone()))
        .await;
    let listed = run(Command::new("tar").arg("-tf").arg(&file)).success();
    // Index, two manifests, configurations and layers.
    assert_eq!(listed.count("blobs/sha256/"), 1 + 7, "{}", listed.output);
    let cx = bench.context(Group::none());
    let docker = resolve("docker", Attrs::new(), 0).unwrap();
    let error = docker.export(two_platforms(&bench).await, &cx).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "docker exporter does not currently support exporting manifest lists"
    );
    bench.cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_into_a_folder_or_a_tar() {
    let bench = Bench::new().await;
    let one = bench.path("one");
    let input = two_layers(&bench).await;
    bench
        .send("local", Attrs::new(), input, Output::Dir(one.clone()))
        .await;
    assert_eq!(content(&one, "two"), "2");
    let statuses = bench.statuses();
    assert_eq!(statuses, ["copying files"]);

    let many = bench.path("many");
    let input = two_platforms(&bench).await;
    bench
        .send(
            "local",
            attrs(&[("source-date-epoch", "7")]),
            input.clone(),
            Output::Dir(many.clone()),
        )
        .await;
    assert_eq!(content(&many, "linux_arm64/arch"), "arm64");
    let meta = many.join("linux_amd64/arch").metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&meta), 7);

    let tar = bench.path("files.tar");
    bench
        .send(
            "tar",
            Attrs::new(),
            input.clone(),
            Output::File(tar.clone()),
        )
        .await;
    let listed = run(Command::new("tar").arg("-tf").arg(&tar)).success();
    assert_eq!(
        listed.output,
        "linux_amd64/\nlinux_amd64/arch\nlinux_arm64/\nlinux_arm64/arch\n"
    );

    // Nothing at all is an empty folder.
    let empty = bench.path("empty");
    bench
        .send(
            "local",
            Attrs::new(),
            ExportInput::default(),
            Output::Dir(empty.clone()),
        )
        .await;
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    bench.cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_platforms_do_not_overwrite_each_other() {
    let bench = Bench::new().await;
    let input = two_platforms(&bench).await;
    let manager = Manager::new();
    let (near, far) = tokio::io::duplex(64 << 10);
    let mut services = Services::default();
    services.outputs.insert(0, Output::Dir(bench.path("x")));
    let meta = SessionMeta {
        id: "client".into(),
        methods: services.methods(),
        ..SessionMeta::default()
    };
    let shutdown = CancellationToken::new();
    let client = serve::run(far, &services, shutdown.clone());
    let export = async {
        let cx = bench.context(Group::new(manager.clone(), ["client"]));
        let exporter = resolve("local", attrs(&[("platform-split", "false")]), 0).unwrap();
        let result = exporter.export(input, &cx).await;
        shutdown.cancel();
        result.unwrap_err().to_string()
    };
    let (served, offered, message) = tokio::join!(manager.serve(near, meta), client, export);
    served.unwrap();
    offered.unwrap();
    assert_eq!(
        message,
        "cannot overwrite arch from linux/amd64 with linux/arm64 when split option is disabled"
    );
    bench.cache.close().await;
}
