//! The mounts of processes over a real cache, real mounts and a real session.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cooper_cache::{CacheConfig, CacheManager, ImmutableRef, LocalRef, RecordOptions, RecordType};
use cooper_content::MemoryContentStore;
use cooper_mount::{MountError, MountManager, Prepare, Prepared};
use cooper_proto::pb;
use cooper_session::serve::{self, SecretProvider, Services, SshAgent};
use cooper_session::{Group, Manager, SessionMeta, WAIT};
use cooper_snapshot::{Mount, MountedDir, OverlaySnapshotter};
use cooper_store::Store;
use cooper_sys::MountPoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

struct Fixture {
    cache: CacheManager,
    manager: MountManager,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, dropped) = Store::open(&dir.path().join("store.db"), "boot").unwrap();
        let options = OverlaySnapshotter::probe(dir.path()).unwrap();
        let snapshots = dir.path().join("snapshots");
        let snapshotter = OverlaySnapshotter::open(&snapshots, store.clone(), options).unwrap();
        let cache = CacheManager::open(CacheConfig {
            store,
            dropped,
            snapshotter: Arc::new(snapshotter),
            content: Arc::new(MemoryContentStore::default()),
            mounts: dir.path().join("cache"),
        })
        .await
        .unwrap();
        let manager = MountManager::new(cache.clone(), dir.path().join("mounts"));
        Self {
            cache,
            manager,
            dir,
        }
    }

    /// A ref with one file.
    async fn input(&self, name: &str, text: &str) -> LocalRef {
        let made = self.cache.new_mutable(None, RecordOptions::default());
        let made = made.await.unwrap();
        let mounts = made.mounts().await.unwrap();
        self.write(&mounts, name, text);
        local(&made.commit().await.unwrap()).await
    }

    fn mount(&self, mounts: &[Mount]) -> MountedDir {
        MountedDir::mount(mounts, &self.dir.path().join("look")).unwrap()
    }

    fn write(&self, mounts: &[Mount], name: &str, text: &str) {
        let mounted = self.mount(mounts);
        std::fs::write(mounted.path().join(name), text).unwrap();
        mounted.close().unwrap();
    }

    fn read(&self, mounts: &[Mount], name: &str) -> io::Result<String> {
        let mounted = self.mount(mounts);
        std::fs::read_to_string(mounted.path().join(name))
    }

    async fn prepare(
        &self,
        mounts: &[pb::Mount],
        inputs: &[Option<LocalRef>],
    ) -> Result<Prepared, MountError> {
        self.prepare_for(mounts, inputs, &Group::none()).await
    }

    async fn prepare_for(
        &self,
        mounts: &[pb::Mount],
        inputs: &[Option<LocalRef>],
        sessions: &Group,
    ) -> Result<Prepared, MountError> {
        let prepare = Prepare {
            mounts,
            inputs,
            cwd: "/work",
            description: "exec true",
            sessions,
            progress: None,
        };
        self.manager.prepare(prepare).await
    }

    async fn nothing_remains(self) {
        drop(self.manager);
        self.cache.close().await;
        assert_eq!(MountPoint::below(self.dir.path()).unwrap(), []);
        let places = self.dir.path().join("mounts");
        let left = std::fs::read_dir(places).map_or(0, Iterator::count);
        assert_eq!(left, 0);
    }
}

/// What every ref of these tests is already.
struct Never;

#[async_trait]
impl cooper_cache::Fill for Never {
    async fn fill(
        &self,
        _: &cooper_cache::Layer,
        _: &[Mount],
    ) -> Result<(), cooper_cache::FillError> {
        Err("nothing is lazy here".into())
    }

    async fn repeat(
        &self,
        _: &cooper_cache::Changes,
        _: &[Mount],
    ) -> Result<u64, cooper_cache::FillError> {
        Err("nothing is lazy here".into())
    }
}

async fn local(immutable: &ImmutableRef) -> LocalRef {
    immutable.localize(&Never).await.unwrap()
}

fn bind(dest: &str, input: i64, output: i64) -> pb::Mount {
    pb::Mount {
        dest: dest.into(),
        input,
        output,
        ..pb::Mount::default()
    }
}

fn root() -> pb::Mount {
    bind("/", -1, 0)
}

fn read_only(mount: pb::Mount) -> pb::Mount {
    pb::Mount {
        readonly: true,
        ..mount
    }
}

fn cache(dest: &str, id: &str, sharing: pb::CacheSharingOpt) -> pb::Mount {
    pb::Mount {
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(pb::CacheOpt {
            id: id.into(),
            sharing: sharing.into(),
        }),
        ..bind(dest, -1, -1)
    }
}

#[tokio::test]
async fn outputs_are_kept_and_the_rest_is_thrown_away() {
    let fixture = Fixture::new().await;
    let base = fixture.input("base", "base").await;
    let other = fixture.input("other", "other").await;
    let mounts = [
        bind("/", 0, 0),
        read_only(bind("/ro", 1, -1)),
        bind("/scratch", 1, -1),
        bind("/new", -1, 2),
        read_only(bind("/same", 1, 1)),
        pb::Mount {
            selector: "/sub".into(),
            ..bind("relative/../path", 1, -1)
        },
    ];
    let inputs = [Some(base.clone()), Some(other.clone())];
    let prepared = fixture.prepare(&mounts, &inputs).await.unwrap();
    assert!(!prepared.root_read_only);
    let destinations: Vec<_> = prepared
        .mounts
        .iter()
        .map(|mount| {
            (
                mount.dest.as_str(),
                mount.read_only,
                mount.selector.as_str(),
            )
        })
        .collect();
    assert_eq!(
        destinations,
        [
            ("/new", false, ""),
            ("/ro", true, ""),
            ("/same", true, ""),
            ("/scratch", false, ""),
            ("/work/path", false, "/sub"),
        ]
    );
    fixture.write(&prepared.root, "written", "root");
    for index in [2, 3] {
        let source = prepared.source(index).unwrap().to_vec();
        fixture.write(&source, "written", "there");
    }
    assert_eq!(
        fixture.read(&prepared.mounts[1].mounts, "other").unwrap(),
        "other"
    );
    let outputs = prepared.commit().await.unwrap();
    let indexes: Vec<_> = outputs.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!(outputs[0].1.description(), "mount / from exec true");
    assert_eq!(outputs[1].1.id(), other.id());
    let see = async |number: usize, name: &str| {
        let mounts = local(&outputs[number].1).await.mounts().await.unwrap();
        fixture.read(&mounts, name).ok()
    };
    assert_eq!(see(0, "written").await.unwrap(), "root");
    assert_eq!(see(0, "base").await.unwrap(), "base");
    assert_eq!(see(2, "written").await.unwrap(), "there");
    // What was written to the throw-away copy is nowhere.
    assert_eq!(see(1, "written").await, None);
    drop((outputs, base, other, inputs));
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn a_read_only_root_is_still_written_by_who_mounts() {
    let fixture = Fixture::new().await;
    let base = [Some(fixture.input("base", "base").await)];
    let mounts = [read_only(bind("/", 0, -1))];
    let prepared = fixture.prepare(&mounts, &base).await.unwrap();
    assert!(prepared.root_read_only);
    fixture.write(&prepared.root, "stub", "");
    assert_eq!(prepared.commit().await.unwrap().len(), 0);
    let mounts = base[0].as_ref().unwrap().mounts().await.unwrap();
    assert!(fixture.read(&mounts, "stub").is_err());
    drop(base);
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn caches_outlive_their_users() {
    let fixture = Fixture::new().await;
    for sharing in [
        pb::CacheSharingOpt::Shared,
        pb::CacheSharingOpt::Private,
        pb::CacheSharingOpt::Locked,
    ] {
        let id = format!("{sharing:?}");
        let mounts = [
            root(),
            cache("/cache", &id, sharing),
            cache("/again", &id, sharing),
        ];
        let prepared = fixture.prepare(&mounts, &[]).await.unwrap();
        let source = prepared.source(1).unwrap();
        assert_eq!(source, prepared.source(2).unwrap());
        assert!(!source[0].options.contains(&"volatile".to_owned()));
        fixture.write(source, "kept", "kept");
        // Whether the step succeeds or not.
        drop(prepared);
        let prepared = fixture.prepare(&mounts, &[]).await.unwrap();
        assert_eq!(
            fixture.read(prepared.source(1).unwrap(), "kept").unwrap(),
            "kept"
        );
        prepared.commit().await.unwrap();
        let found = fixture.cache.search(&format!("cache-dir:{id}")).unwrap();
        assert_eq!(found.len(), 1);
    }
    let usage = fixture.cache.disk_usage().await.unwrap();
    let caches: Vec<_> = usage
        .iter()
        .filter(|record| record.record_type == RecordType::CacheMount)
        .map(|record| record.description.as_str())
        .collect();
    assert_eq!(caches.len(), 3);
    assert!(caches.contains(&"cached mount /cache from exec true with id \"Shared\""));
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn a_cache_starts_from_its_base() {
    let fixture = Fixture::new().await;
    let base = fixture.input("base", "base").await;
    let mounts = [
        root(),
        pb::Mount {
            input: 0,
            output: 1,
            ..cache("/cache", "id", pb::CacheSharingOpt::Shared)
        },
    ];
    let inputs = [Some(base.clone())];
    let prepared = fixture.prepare(&mounts, &inputs).await.unwrap();
    let source = prepared.source(1).unwrap();
    assert_eq!(fixture.read(source, "base").unwrap(), "base");
    fixture.write(source, "more", "more");
    let outputs = prepared.commit().await.unwrap();
    assert_eq!(outputs[1].1.id(), base.id());
    let index = format!("cache-dir:id:{}", base.id());
    assert_eq!(fixture.cache.search(&index).unwrap().len(), 1);
    drop((outputs, base, inputs));
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn sharing_is_as_asked() {
    let fixture = Fixture::new().await;
    let take = async |id: &str, sharing| {
        let mounts = [root(), cache("/cache", id, sharing)];
        fixture.prepare(&mounts, &[]).await.unwrap()
    };
    use pb::CacheSharingOpt::{Locked, Private, Shared};
    let place = |prepared: &Prepared| prepared.source(1).unwrap().to_vec();
    let (one, other) = (take("s", Shared).await, take("s", Shared).await);
    assert_eq!(place(&one), place(&other));
    drop(one);
    assert_eq!(place(&other), place(&take("s", Shared).await));

    let (one, other) = (take("p", Private).await, take("p", Private).await);
    assert_ne!(place(&one), place(&other));
    let (first, second) = (place(&one), place(&other));
    drop((one, other));
    let again = take("p", Private).await;
    assert!([first, second].contains(&place(&again)));

    // Who wants it locked waits, and gets it in the order of asking.
    let order = std::sync::Mutex::new(Vec::new());
    let held = take("l", Locked).await;
    let wait = async |number: u64| {
        // They ask one after the other.
        tokio::time::sleep(Duration::from_millis(50 * number)).await;
        let taken = take("l", Locked).await;
        order.lock().unwrap().push(number);
        tokio::task::yield_now().await;
        drop(taken);
    };
    let abandoned = tokio::time::timeout(Duration::from_millis(20), take("l", Locked)).await;
    assert!(abandoned.is_err());
    let release = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(*order.lock().unwrap(), [0; 0]);
        drop(held);
    };
    tokio::join!(wait(1), wait(2), wait(3), release);
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    assert_eq!(fixture.cache.search("cache-dir:l").unwrap().len(), 1);
    // One that is shared keeps those out who want it locked.
    let shared = take("l", Shared).await;
    let locked = tokio::time::timeout(Duration::from_millis(20), take("l", Locked)).await;
    assert!(locked.is_err());
    drop(shared);
    take("l", Locked).await;
    drop(again);
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn who_waits_for_a_cache_says_for_whom() {
    let fixture = Fixture::new().await;
    let mounts = [root(), cache("/cache", "l", pb::CacheSharingOpt::Locked)];
    let sink = Arc::new(cooper_progress::Collect::default());
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let progress = cooper_progress::VertexProgress::new(digest.parse().unwrap(), sink.clone());
    let none = Group::none();
    let take = |description, progress| {
        fixture.manager.prepare(Prepare {
            mounts: &mounts,
            inputs: &[],
            cwd: "/",
            description,
            sessions: &none,
            progress,
        })
    };
    let said = || {
        let events = sink.take().into_iter();
        let statuses = events.filter_map(|event| match event {
            cooper_progress::Event::Status(status) => Some(status),
            _ => None,
        });
        statuses.collect::<Vec<_>>()
    };
    let held = take("exec make", Some(&progress)).await.unwrap();
    assert_eq!(said(), []);
    let wait = async {
        let taken = take("exec other", Some(&progress)).await.unwrap();
        drop(taken);
    };
    let release = async {
        let mut begun = said();
        while begun.is_empty() {
            tokio::task::yield_now().await;
            begun = said();
        }
        drop(held);
        begun
    };
    let both = async { tokio::join!(wait, release) };
    let limited = tokio::time::timeout(Duration::from_secs(10), both);
    let ((), begun) = limited.await.unwrap();
    let ended = said();
    for status in begun.iter().chain(&ended) {
        let expected = "waiting for exec make to release the cache of /cache";
        assert_eq!(status.name, expected);
    }
    assert!(begun.len() == 1 && begun[0].completed.is_none());
    assert!(ended.len() == 1 && ended[0].completed.is_some());
    fixture.nothing_remains().await;
}

#[tokio::test]
async fn tmpfs_has_a_size() {
    let fixture = Fixture::new().await;
    let tmpfs = |size| pb::Mount {
        mount_type: pb::MountType::Tmpfs.into(),
        tmpfs_opt: Some(pb::TmpfsOpt { size }),
        ..bind("/tmp", -1, -1)
    };
    for (size, options) in [(0, vec!["nosuid"]), (7, vec!["nosuid", "size=7"])] {
        let prepared = fixture.prepare(&[root(), tmpfs(size)], &[]).await.unwrap();
        let mount = &prepared.mounts[0].mounts[0];
        assert_eq!(
            (mount.kind.as_str(), &mount.options),
            ("tmpfs", &strings(&options))
        );
    }
    fixture.nothing_remains().await;
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn mistakes_are_told_in_buildkits_words() {
    let fixture = Fixture::new().await;
    let secret_root = pb::Mount {
        mount_type: pb::MountType::Tmpfs.into(),
        ..root()
    };
    let no_cache = pb::Mount {
        cache_opt: None,
        ..cache("/c", "c", pb::CacheSharingOpt::Shared)
    };
    let unknown = pb::Mount {
        mount_type: 77,
        ..bind("/x", -1, -1)
    };
    let cases = [
        (vec![secret_root], "invalid mount type TMPFS for /"),
        (vec![bind("/", 3, 0)], "missing input 3"),
        (vec![bind("/", -1, -1)], "mount / has no input"),
        (vec![bind("/x", -1, 0)], "no root mount"),
        (vec![root(), no_cache], "missing cache mount options"),
        (vec![root(), unknown], "mount type 77 not implemented"),
        (
            vec![root(), secret("", false)],
            "secret ID missing from mount options",
        ),
        (vec![root(), secret("x", false)], "no active sessions"),
    ];
    for (mounts, expected) in cases {
        let error = fixture.prepare(&mounts, &[]).await.err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
    fixture.nothing_remains().await;
}

fn secret(id: &str, optional: bool) -> pb::Mount {
    pb::Mount {
        mount_type: pb::MountType::Secret.into(),
        secret_opt: Some(pb::SecretOpt {
            id: id.into(),
            uid: 12,
            gid: 34,
            mode: 0o440,
            optional,
        }),
        ..bind("/run/secrets/x", -1, -1)
    }
}

fn ssh(id: &str, optional: bool) -> pb::Mount {
    pb::Mount {
        mount_type: pb::MountType::Ssh.into(),
        ssh_opt: Some(pb::SshOpt {
            id: id.into(),
            uid: 12,
            gid: 34,
            mode: 0o600,
            optional,
        }),
        ..bind("/run/agent", -1, -1)
    }
}

struct Secrets(BTreeMap<&'static str, &'static str>);

#[async_trait]
impl SecretProvider for Secrets {
    async fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(id).map(|text| text.as_bytes().to_vec()))
    }
}

/// Runs `test` with sessions of clients that offer `services`.
async fn with_clients(services: Vec<Services>, test: impl AsyncFnOnce(Group)) {
    let manager = Manager::new();
    let shutdown = CancellationToken::new();
    let mut clients = tokio::task::JoinSet::new();
    let mut ids = Vec::new();
    for (number, services) in services.into_iter().enumerate() {
        let id = format!("session-{number}");
        let (near, far) = tokio::io::duplex(64 << 10);
        let meta = SessionMeta {
            id: id.clone(),
            methods: services.methods(),
            ..SessionMeta::default()
        };
        let (manager, shutdown) = (manager.clone(), shutdown.clone());
        clients.spawn(async move {
            let served = manager.serve(near, meta);
            let _ = tokio::join!(serve::run(far, &services, shutdown), served);
        });
        ids.push(id);
    }
    let group = Group::new(manager, ids);
    group.first(WAIT).await.unwrap();
    test(group).await;
    shutdown.cancel();
    while clients.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_files_in_memory() {
    let fixture = Fixture::new().await;
    let having = |secrets: &[(&'static str, &'static str)]| Services {
        secrets: Some(Arc::new(Secrets(secrets.iter().copied().collect()))),
        ..Services::default()
    };
    let clients = vec![Services::default(), having(&[]), having(&[("x", "hidden")])];
    with_clients(clients, async |group| {
        let mounts = [root(), secret("x", false), secret("missing", true)];
        let prepared = fixture.prepare_for(&mounts, &[], &group).await.unwrap();
        assert_eq!(prepared.mounts.len(), 1);
        assert_eq!(prepared.source(2), None);
        let mount = &prepared.mounts[0].mounts[0];
        assert_eq!(
            mount.options,
            strings(&["ro", "rbind", "nodev", "nosuid", "noexec"])
        );
        assert_eq!(std::fs::read_to_string(&mount.source).unwrap(), "hidden");
        let meta = mount.source.metadata().unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (12, 34, 0o440)
        );
        let below = MountPoint::below(&fixture.dir.path().join("mounts")).unwrap();
        assert_eq!(below[0].kind, "tmpfs");
        let place = mount.source.clone();
        drop(prepared);
        assert!(!place.exists());
        let mounts = [root(), secret("missing", false)];
        let error = fixture.prepare_for(&mounts, &[], &group).await.err();
        assert_eq!(error.unwrap().to_string(), "secret missing: not found");
    })
    .await;
    fixture.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_reached_through_a_socket() {
    let fixture = Fixture::new().await;
    let socket = fixture.dir.path().join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = agent.accept().await.unwrap();
            let mut question = [0; 4];
            stream.read_exact(&mut question).await.unwrap();
            question.reverse();
            stream.write_all(&question).await.unwrap();
        }
    });
    let mut having = Services::default();
    having
        .ssh
        .insert("default".into(), SshAgent { socket, raw: true });
    with_clients(vec![having], async |group| {
        let mounts = [root(), ssh("default", false)];
        let prepared = fixture.prepare_for(&mounts, &[], &group).await.unwrap();
        let path: PathBuf = prepared.mounts[0].mounts[0].source.clone();
        let meta = path.metadata().unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o777),
            (12, 34, 0o600)
        );
        for _ in 0..2 {
            assert_eq!(ask(&path).await, "gnip");
        }
        drop(prepared);
        assert!(UnixStream::connect(&path).await.is_err());
        let mounts = [root(), ssh("other", true)];
        let prepared = fixture.prepare_for(&mounts, &[], &group).await.unwrap();
        assert_eq!(prepared.mounts.len(), 0);
        let mounts = [root(), ssh("other", false)];
        assert!(fixture.prepare_for(&mounts, &[], &group).await.is_err());
    })
    .await;
    with_clients(vec![Services::default()], async |group| {
        let mounts = [root(), ssh("other", false)];
        let error = fixture.prepare_for(&mounts, &[], &group).await.err();
        assert_eq!(
            error.unwrap().to_string(),
            "no SSH key \"other\" forwarded from the client"
        );
    })
    .await;
    answering.abort();
    fixture.nothing_remains().await;
}

async fn ask(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

#[tokio::test]
async fn what_an_earlier_process_left_is_removed() {
    let fixture = Fixture::new().await;
    let place = fixture.dir.path().join("mounts/1-0");
    std::fs::create_dir_all(&place).unwrap();
    cooper_sys::mount::mount("tmpfs", Path::new("tmpfs"), &[], &place).unwrap();
    std::fs::write(place.join("secret"), "old").unwrap();
    let manager = MountManager::new(fixture.cache.clone(), fixture.dir.path().join("mounts"));
    assert!(!place.exists());
    drop(manager);
    fixture.nothing_remains().await;
}
