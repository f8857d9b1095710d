//! What is there after the power was cut, and more work for the next cut.
//!
//! What a step, a local source or a cache mount has to hold follows from its name, so that a file
//! that was half written is known, whoever gives it out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use cooper_client::{Client, Solve};
use cooper_llb::build::{Constraints, Exec, Local, MountKind, State};
use cooper_proto::control::{DiskUsageRequest, PruneRequest};
use cooper_proto::pb;
use cooper_session::serve::Output;
use cooper_testkit::{Daemon, boots, leak, run};
use futures::StreamExt;
use sha2::{Digest, Sha256};

use crate::client::{Archive, Files, bind, copy, mount, request, sh, solve_to, with_dir};

/// Chains of steps, and the steps of each.
const CHAINS: u64 = 2;
const STEPS: u64 = 2;
/// Bytes that a step writes into its large file.
const LARGE: usize = 200_000;
/// Files of the local source, their versions, and the bytes of each: all have the same size.
const FILES: u64 = 20;
const VERSIONS: u64 = 3;
const SMALL: usize = 20_000;
/// Bytes of a file in the cache mount.
const KEPT: usize = 100_000;
/// Files that each step adds to the cache mount, at least.
const ADDED: u64 = 3;
const APPLETS: &str = "basename cat cmp echo head ls mkdir rm seq sh true wc yes";
/// The groups of all steps, so that they can be ended by others than the daemon.
pub(crate) const GROUPS: &str = "/cooper-power";
const CONFIG: &str = "[worker.oci]\ndefaultCgroupParent = \"/cooper-power\"\n";
/// A build takes no longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// `yes TEXT | head -c SIZE`.
fn repeated(text: &str, size: usize) -> Vec<u8> {
    let line = format!("{text}\n").into_bytes();
    line.into_iter().cycle().take(size).collect()
}

/// What has to be there after the next cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// How many steps.
    pub(crate) steps: usize,
    /// How many files in the cache mount.
    pub(crate) files: usize,
}

/// The promise as it is now. Somebody who forgets nothing is told each time before it may be
/// less, and once there is certainly more.
struct Promise {
    now: Promised,
    /// Counts what takes something away, begun and ended each.
    taken: u64,
    say: Box<dyn Fn(Promised) + Send + Sync>,
}

/// One boot of the machine.
pub(crate) struct Boot<'a> {
    /// The daemon's root, which stays from one boot to the next.
    pub(crate) root: &'a Path,
    /// Decides what is done.
    pub(crate) seed: u64,
    /// What was promised before.
    pub(crate) promised: Promised,
    /// Keeps what is promised now, and returns when it is kept.
    pub(crate) say: Box<dyn Fn(Promised) + Send + Sync>,
}

/// A daemon after a cut: all is right that it found.
pub(crate) struct Booted {
    root: PathBuf,
    work: Work,
    rt: tokio::runtime::Runtime,
    daemon: Daemon,
    // What the client has is on no disk: it does not forget with the machine.
    _dir: tempfile::TempDir,
    /// How many steps were asked for: not all are where the files that they give are kept.
    steps: usize,
    /// What was there, for people.
    pub(crate) report: String,
}

struct Work {
    client: Client,
    base: PathBuf,
    local: PathBuf,
    out: PathBuf,
    random: Mutex<u64>,
    promise: Mutex<Promise>,
}

/// How many steps were there already, how many were asked for, and how many bytes of local sources
/// were transferred.
#[derive(Debug, Default)]
struct Hits {
    cached: usize,
    all: usize,
    sent: i64,
}

impl Booted {
    /// Starts the daemon, and fails the test when something is wrong or missing.
    pub(crate) fn begin(boot: Boot<'_>) -> Self {
        let root = boot.root;
        let folders = root.join("runc/snapshots/overlayfs/s");
        let before = std::fs::read_dir(folders).map_or(0, Iterator::count);
        let begin = Instant::now();
        let daemon = Daemon::at(root, CONFIG);
        let took = begin.elapsed();
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let client = rt.block_on(Client::connect(&daemon.address())).unwrap();
        let promise = Promise {
            now: Promised::default(),
            taken: 0,
            say: boot.say,
        };
        let work = Work::new(client, dir.path(), boot.seed, promise);
        // The daemon has begun and nobody has asked it for anything.
        let left = leak::in_root(root);
        assert!(left.is_empty(), "unfinished after a cut: {left:?}");
        check_folders(root);
        let (steps, report) = rt.block_on(async {
            let usage = work.client.disk_usage(DiskUsageRequest::default()).await;
            let records = usage.unwrap().len();
            let mut hits = Hits::default();
            for chain in 0..CHAINS {
                work.check_chain(chain, STEPS, &mut hits).await;
            }
            let kept = work.check_kept().await;
            let sent = work.check_local(false).await;
            work.check_image().await;
            let report = format!(
                "serves after {} ms; folders before {before}, records {records}; steps that were \
                 there: {} of {}; files in the cache mount: {kept}; bytes sent of the local \
                 source: {sent} of {}",
                took.as_millis(),
                hits.cached,
                hits.all,
                FILES * SMALL as u64,
            );
            let Promised { steps, files } = boot.promised;
            assert!(
                hits.cached >= steps && kept >= files,
                "{steps} steps and {files} files in the cache mount were durable: {report}"
            );
            (hits.all, report)
        });
        Self {
            root: root.to_owned(),
            work,
            rt,
            daemon,
            _dir: dir,
            steps,
            report,
        }
    }

    /// Lets all of it become durable, says so, and works until `cut` has come.
    pub(crate) fn work(&self, cut: impl Future<Output = ()>) {
        // Nothing is going on now.
        boots::wait_durable(&self.root);
        self.work.promise(|promise| {
            promise.now = Promised {
                steps: self.steps,
                files: usize::try_from(ADDED).unwrap(),
            };
        });
        self.rt.block_on(async {
            tokio::select! {
                biased;
                () = cut => {}
                () = self.work.until_the_cut(&self.root) => {}
            }
        });
    }

    /// The machine is gone: the daemon ends as it is.
    pub(crate) fn kill(mut self) {
        self.daemon.kill();
    }

    /// Ends the daemon well, and looks at what it leaves.
    pub(crate) fn end(self) {
        drop((self.work, self.rt, self.daemon));
        check_folders(&self.root);
    }
}

/// Each record of a snapshot has its folder, and blobs are what they are called.
fn check_folders(root: &Path) {
    let missing = leak::missing_in_root(root);
    assert!(missing.is_empty(), "records without content: {missing:?}");
    let blobs = root.join("runc/content/blobs/sha256");
    for entry in std::fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let digest = hex::encode(Sha256::digest(&bytes));
        assert!(path.ends_with(&digest), "{path:?} holds {digest}");
    }
}

impl Work {
    fn new(client: Client, dir: &Path, seed: u64, promise: Promise) -> Self {
        let base = dir.join("base");
        std::fs::create_dir_all(base.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
        for applet in APPLETS.split(' ') {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        // As old as ever: what is the same as before the cut is not sent again.
        for name in APPLETS.split(' ').chain(["busybox"]) {
            date(&base.join("bin").join(name), 0);
        }
        date(&base.join("bin"), 0);
        let local = dir.join("local");
        std::fs::create_dir(&local).unwrap();
        let out = dir.join("out");
        std::fs::create_dir(&out).unwrap();
        let work = Self {
            client,
            base,
            local,
            out,
            random: Mutex::new(seed | 1),
            promise: Mutex::new(promise),
        };
        for file in 0..FILES {
            work.write(file, work.random(VERSIONS));
        }
        work
    }

    /// Changes the promise and says it.
    fn promise(&self, change: impl FnOnce(&mut Promise)) {
        let mut promise = self.promise.lock().unwrap();
        change(&mut promise);
        (promise.say)(promise.now);
    }

    /// A number below `most` (xorshift64).
    fn random(&self, most: u64) -> u64 {
        let mut state = self.random.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % most
    }

    fn write(&self, file: u64, version: u64) {
        let path = self.local.join(file.to_string());
        std::fs::write(&path, repeated(&format!("{file} {version}"), SMALL)).unwrap();
        date(&path, version);
    }

    fn base(&self) -> State {
        let local = Local {
            shared_key_hint: "base".into(),
            ..Local::default()
        };
        let sent = State::local("base", local, Constraints::default());
        // Copied, and so known by its content: a root that was sent is another one for each client.
        State::scratch().copy(copy(&sent, "/bin", "/"))
    }

    fn chain(&self, chain: u64, steps: u64) -> State {
        (0..steps).fold(self.base(), |state, step| {
            state.run(sh(&format!(
                "mkdir -p /o; yes '{chain} {step}' | head -c {LARGE} > /o/{step}; \
                 for i in $(seq 10); do echo {chain} {step} $i > /o/{step}-$i; done"
            )))
        })
    }

    fn solve(&self, state: &State) -> Solve {
        let mut solve = with_dir(request(state), "base", &self.base);
        solve = with_dir(solve, "local", &self.local);
        solve.shared_key = "client".into();
        solve
    }

    /// The files of `state`; each vertex is told with whether it was cached.
    async fn files(&self, state: &State, hits: &mut Hits) -> tempfile::TempDir {
        let out = tempfile::tempdir_in(&self.out).unwrap();
        let output = Output::Dir(out.path().to_owned());
        let solve = solve_to(self.solve(state), "local", &[], output);
        self.run(solve, hits).await;
        out
    }

    async fn run(&self, solve: Solve, hits: &mut Hits) {
        let (mut steps, mut sent) = (BTreeMap::new(), BTreeMap::new());
        let mut progress = |status: cooper_proto::control::StatusResponse| {
            for vertex in status.vertexes {
                if vertex.name.starts_with("sh -e -c") && vertex.completed.is_some() {
                    steps.insert(vertex.digest, vertex.cached);
                }
            }
            for status in status.statuses {
                if status.id.starts_with("transferring") {
                    sent.insert(status.vertex, status.current);
                }
            }
        };
        let solved = tokio::time::timeout(PATIENCE, self.client.solve(solve, &mut progress));
        solved.await.expect("the build ends in time").unwrap();
        hits.all += steps.len();
        hits.sent += sent.values().sum::<i64>();
        hits.cached += steps.values().filter(|cached| **cached).count();
    }

    /// Builds a chain as far as it is not there, and compares each of its files.
    async fn check_chain(&self, chain: u64, steps: u64, hits: &mut Hits) {
        let made = self.chain(chain, steps);
        let out = self
            .files(&State::scratch().copy(copy(&made, "/o", "/")), hits)
            .await;
        for step in 0..steps {
            let same = |name: String, expected: Vec<u8>| {
                let read = std::fs::read(out.path().join("o").join(&name)).unwrap();
                assert!(read == expected, "chain {chain}: {name}: {}", shown(&read));
            };
            same(
                step.to_string(),
                repeated(&format!("{chain} {step}"), LARGE),
            );
            for i in 1..=10 {
                same(
                    format!("{step}-{i}"),
                    format!("{chain} {step} {i}\n").into(),
                );
            }
        }
    }

    /// A step that writes into the cache mount, and looks at what is there first.
    fn keep(&self) -> Exec {
        let number = self.random(u64::MAX);
        let script = format!(
            "for f in $(ls /c); do yes $f | head -c {KEPT} | cmp - /c/$f >> /o/bad 2>&1 || true; \
             done; ls /c > /o/names; [ $(ls /c | wc -l) -lt 20 ] || rm -r /c/*; \
             for i in $(seq {ADDED}); do yes {number}-$i | head -c {KEPT} > /c/{number}-$i; done"
        );
        let kind = MountKind::Cache {
            id: "kept".into(),
            sharing: pb::CacheSharingOpt::Locked,
        };
        let mut exec = sh(&script);
        exec.mounts = vec![mount("/c", &State::scratch(), kind)];
        exec
    }

    async fn check_kept(&self) -> usize {
        let mut exec = self.keep();
        exec.mounts.push(bind("/o", &State::scratch()));
        let made = self.base().run_mounted(exec, "/o").unwrap();
        let out = self.files(&made, &mut Hits::default()).await;
        let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap_or_default();
        let bad = read("bad");
        assert!(bad.is_empty(), "in the cache mount: {bad}");
        read("names").lines().count()
    }

    /// Compares the local source as the daemon has it with the client's; how many bytes were
    /// sent. With `change` some of the files change first.
    async fn check_local(&self, change: bool) -> i64 {
        if change {
            for _ in 0..8 {
                self.write(self.random(FILES), self.random(VERSIONS));
            }
        }
        let local = Local {
            shared_key_hint: "local".into(),
            ..Local::default()
        };
        let state = State::local("local", local, Constraints::default());
        let mut hits = Hits::default();
        let out = self.files(&state, &mut hits).await;
        for file in 0..FILES {
            let name = file.to_string();
            let (got, expected) = (
                std::fs::read(out.path().join(&name)).unwrap(),
                std::fs::read(self.local.join(&name)).unwrap(),
            );
            assert!(got == expected, "local file {name}: {}", shown(&got));
        }
        hits.sent
    }

    /// An image of a chain: its blobs are what they are called.
    async fn check_image(&self) {
        let chain = self.random(CHAINS);
        let path = self.out.join("image.tar");
        let made = self.chain(chain, STEPS);
        // What takes the time of an emulated machine is compression.
        let attrs = [("compression", "uncompressed")];
        let output = Output::File(path.clone());
        let solve = solve_to(self.solve(&made), "oci", &attrs, output);
        self.run(solve, &mut Hits::default()).await;
        let archive = Archive::read(&std::fs::read(&path).unwrap());
        let mut blobs = 0;
        for (name, entry) in &archive.0 {
            if let Some(digest) = name
                .strip_prefix("blobs/sha256/")
                .filter(|name| !name.is_empty())
            {
                assert_eq!(hex::encode(Sha256::digest(&entry.data)), digest);
                blobs += 1;
            }
        }
        assert!(blobs > STEPS, "{blobs} blobs");
    }

    /// Builds and prunes until there is no more power.
    async fn until_the_cut(&self, root: &Path) {
        let chains = async {
            loop {
                let steps = 1 + self.random(STEPS);
                let chain = self.random(CHAINS);
                self.check_chain(chain, steps, &mut Hits::default()).await;
                if self.random(4) == 0 {
                    self.check_image().await;
                }
            }
        };
        let others = async {
            loop {
                // What nobody writes to is made durable.
                tokio::time::sleep(Duration::from_millis(self.random(6_000))).await;
                self.check_local(true).await;
                self.promise(|promise| promise.now.files = 0);
                let taken = self.promise.lock().unwrap().taken;
                self.check_kept().await;
                if self.random(2) == 0 {
                    let written = boots::Written::now(root);
                    while !written.is_durable() {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    self.promise(|promise| {
                        if promise.taken == taken && taken.is_multiple_of(2) {
                            promise.now.files = usize::try_from(ADDED).unwrap();
                        }
                    });
                }
            }
        };
        let prune = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500 + self.random(10_000))).await;
                let all = PruneRequest {
                    all: true,
                    ..PruneRequest::default()
                };
                let (mounts_only, request) = match self.random(3) {
                    0 => (false, all),
                    1 => {
                        let max_used_space = 2 << 20;
                        let some = PruneRequest {
                            max_used_space,
                            ..all
                        };
                        (false, some)
                    }
                    _ => {
                        let filter = vec!["type==exec.cachemount".into()];
                        let mounts = PruneRequest { filter, ..all };
                        (true, mounts)
                    }
                };
                self.promise(|promise| {
                    promise.taken += 1;
                    promise.now.files = 0;
                    if !mounts_only {
                        promise.now.steps = 0;
                    }
                });
                let pruned = self.client.prune(request).await.unwrap();
                pruned
                    .for_each(|record| async { drop(record.unwrap()) })
                    .await;
                self.promise(|promise| promise.taken += 1);
            }
        };
        tokio::join!(chains, others, prune);
    }
}

/// Gives a file the date of its version.
fn date(path: &Path, version: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000 + version);
    let time = format!(
        "@{}",
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    );
    let mut touch = std::process::Command::new("touch");
    run(touch.args(["--no-dereference", "--date", &time]).arg(path)).success();
}

/// The beginning of what is wrong, and its size.
fn shown(bytes: &[u8]) -> String {
    let begin = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    format!("{} bytes, {zeros} of them zero: {begin:?}", bytes.len())
}
