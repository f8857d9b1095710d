//! `cooperd` as a user starts it, or the builder that it is compared with.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd::Containerd;
use crate::run::{bin, wait_until};
use crate::{Engine, SmallDisk, Store, boots, leak, memory};

/// The variable with the tree of an engine that cases run on instead of `cooperd`.
const ENGINE: &str = "COOPER_TEST_ENGINE";

/// What tests start it with.
const OPTIONS: &[&str] = &[
    "--oci-worker=true",
    "--containerd-worker=false",
    "--oci-worker-gc=false",
    "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
    "--debug",
];

/// The same for the worker that goes through containerd.
const CONTAINERD_OPTIONS: &[&str] = &[
    "--oci-worker=false",
    "--containerd-worker=true",
    "--containerd-worker-gc=false",
    "--containerd-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
    "--debug",
];

/// Whether the daemons of the tests work through containerd: `cargo xtask test-e2e --worker`
/// says so.
pub fn by_containerd() -> bool {
    match std::env::var("COOPER_WORKER").as_deref() {
        Err(_) | Ok("" | "runc") => false,
        Ok("containerd") => true,
        Ok(other) => panic!("COOPER_WORKER={other}: runc and containerd are known"),
    }
}

/// A daemon with a root folder of its own, stopped and removed when dropped.
///
/// `cargo xtask test-e2e --builder docker` makes it Docker's engine, for the cases that ask no
/// more of it than to build: what a case may ask of `cooperd` alone panics then.
#[derive(Debug)]
pub struct Daemon {
    dir: tempfile::TempDir,
    root: PathBuf,
    child: Option<Child>,
    engine: Option<Engine>,
    config: String,
    options: Vec<String>,
    containerd: Option<Containerd>,
    /// From the start of the process to the first accepted connection.
    pub ready_after: Duration,
}

impl Daemon {
    /// Starts one with an empty configuration file and waits until it serves.
    #[track_caller]
    pub fn start() -> Self {
        Self::with_config("")
    }

    /// Starts one with this configuration file (`buildkitd.toml`).
    #[track_caller]
    pub fn with_config(config: &str) -> Self {
        match by_containerd() {
            true => Self::with_containerd(config),
            false => Self::with(config, OPTIONS, None),
        }
    }

    /// Starts one with runc's worker, for who looks into that one's own folders.
    #[track_caller]
    pub fn of_runc() -> Self {
        Self::with("", OPTIONS, None)
    }

    /// Starts one whose root is on `disk`.
    #[track_caller]
    pub fn on(disk: &SmallDisk) -> Self {
        Self::with("", OPTIONS, Some(disk.path().join("root")))
    }

    /// Starts one whose root is the folder `root`, which stays, with this configuration file.
    #[track_caller]
    pub fn at(root: &Path, config: &str) -> Self {
        Self::with(config, OPTIONS, Some(root.to_owned()))
    }

    /// Starts one with no options but its folders and its address: it logs little and collects
    /// garbage.
    #[track_caller]
    pub fn ordinary() -> Self {
        Self::with("", &[], None)
    }

    /// Starts one with further options behind the usual ones and those of its address.
    #[track_caller]
    pub fn with_options(config: &str, more: &[&str]) -> Self {
        let options: Vec<_> = OPTIONS.iter().chain(more).copied().collect();
        Self::with(config, &options, None)
    }

    /// Starts one that works through a containerd of its own.
    #[track_caller]
    pub fn with_containerd(config: &str) -> Self {
        let config = config.replace("[worker.oci]", "[worker.containerd]");
        Self::beside_containerd(Self::made(&config, CONTAINERD_OPTIONS))
    }

    /// Starts one that has both workers.
    #[track_caller]
    pub fn with_both_workers() -> Self {
        let mut daemon = Self::made("", OPTIONS);
        daemon
            .options
            .retain(|option| !option.starts_with("--containerd-worker"));
        daemon.options.push("--containerd-worker=true".to_owned());
        Self::beside_containerd(daemon)
    }

    #[track_caller]
    fn beside_containerd(mut daemon: Self) -> Self {
        let containerd = Containerd::start(&daemon.dir.path().join("containerd"));
        let socket = containerd.socket();
        let address = format!("--containerd-worker-addr={}", socket.display());
        daemon.options.push(address);
        daemon.containerd = Some(containerd);
        daemon.spawn();
        daemon
    }

    /// The containerd that it works through.
    #[track_caller]
    pub fn containerd(&mut self) -> &mut Containerd {
        self.containerd.as_mut().expect("it works through one")
    }

    #[track_caller]
    fn with(config: &str, options: &[&str], root: Option<PathBuf>) -> Self {
        let mut daemon = Self::made(config, options);
        if let Some(root) = root {
            daemon.root = root;
        }
        match std::env::var_os(ENGINE) {
            Some(tree) => {
                assert!(
                    config.is_empty(),
                    "an engine takes no configuration of cooperd"
                );
                daemon.engine = Some(Engine::start(Path::new(&tree), Store::Containerd));
            }
            None => daemon.spawn(),
        }
        daemon
    }

    fn made(config: &str, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-daemon-")
            .tempdir()
            .unwrap();
        Self {
            root: dir.path().join("root"),
            dir,
            child: None,
            engine: None,
            config: config.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            containerd: None,
            ready_after: Duration::ZERO,
        }
    }

    /// Starts the process again on the same root, after [`Daemon::stop`] or [`Daemon::kill`].
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.engine.is_none(), "an engine is not cooperd");
        assert!(self.child.is_none(), "the daemon is still running");
        let config = self.dir.path().join("buildkitd.toml");
        std::fs::write(&config, &self.config).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path());
        let _ = std::fs::remove_file(self.socket());
        std::fs::create_dir_all(self.temporary()).unwrap();
        let child = self
            .command(&self.address())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .expect("start cooperd");
        self.child = Some(child);
        let socket = self.socket();
        self.ready_after = wait_until("cooperd serves", Duration::from_secs(60), || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("cooperd ended with {status}:\n{}", self.log());
            }
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// A command that starts a daemon on this root and configuration with another address.
    pub fn command(&self, address: &str) -> Command {
        let mut command = Command::new(bin("cooperd"));
        command
            .args(&self.options)
            .arg("--config")
            .arg(self.dir.path().join("buildkitd.toml"))
            .arg("--root")
            .arg(self.root())
            .args(["--addr", address])
            .env("TMPDIR", self.temporary());
        // Chosen for a whole run of the tests (`cargo xtask test-e2e --runtime`), but for cases
        // that are about a certain one.
        let chosen = std::env::var_os("COOPER_TEST_RUNTIME");
        if let Some(runtime) = chosen.filter(|_| !self.config.contains("binary =")) {
            command.arg("--oci-worker-binary").arg(runtime);
        }
        command
    }

    /// The daemon's root folder.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The folder of its only worker.
    pub fn worker_root(&self) -> PathBuf {
        let name = match self.containerd {
            Some(_) => "containerd",
            None => "runc",
        };
        self.root.join(name)
    }

    /// A folder beside the root, removed with the daemon.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The address for clients, `unix://…`.
    pub fn address(&self) -> String {
        match &self.engine {
            Some(engine) => engine.address(),
            None => format!("unix://{}", self.socket().display()),
        }
    }

    /// The engine that it is, if it is one.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// The addresses of the TCP ports that it listens on, as it logged them.
    #[track_caller]
    pub fn tcp_addresses(&self) -> Vec<String> {
        // It listens before it says so, and says it of the kit's own socket last.
        let last = format!("running server on {}", self.socket().display());
        let limit = Duration::from_secs(20);
        wait_until("cooperd says where it listens", limit, || {
            self.log().contains(&last)
        });
        let log = self.log();
        let named = log
            .lines()
            .filter_map(|line| line.split("running server on ").nth(1));
        let ports = named.filter(|name| !name.starts_with('/'));
        ports.map(|port| format!("tcp://{port}")).collect()
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// What the daemon logged so far.
    pub fn log(&self) -> String {
        if let Some(engine) = &self.engine {
            return engine.log();
        }
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Resident memory in KiB, by `field` of /proc/PID/status (`VmRSS`, `VmHWM`).
    pub fn memory_kib(&self, field: &str) -> u64 {
        memory::kib(self.pid(), field).expect("the daemon runs")
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        if let Some(engine) = &mut self.engine {
            return engine.is_running();
        }
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Stops it as a service manager does; fails the test when it does not end cleanly, and
    /// when something unfinished is left in its root.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        kill(pid(&child), Signal::SIGTERM).unwrap();
        let mut status = None;
        let limit = Duration::from_secs(60);
        wait_until("cooperd stops on SIGTERM", limit, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(
            status.unwrap().success(),
            "cooperd ended with {status:?}:\n{}",
            self.log()
        );
        let mut left = leak::in_root(&self.root);
        left.extend(leak::temporary(&self.temporary()));
        assert!(
            left.is_empty(),
            "cooperd left in its folders:\n  {}",
            left.join("\n  ")
        );
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until all that was written survives the death of the machine.
    #[track_caller]
    pub fn wait_durable(&self) {
        boots::wait_durable(&self.root);
    }

    /// Kills it, and lets the next one find that the machine died with it.
    pub fn kill_with_machine(&mut self) {
        self.kill();
        boots::another_boot(&self.root);
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("cooperd.sock")
    }

    fn temporary(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("cooperd.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            eprintln!("--- cooperd's log, its end ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            if let Some(mut child) = self.child.take() {
                let _ = kill(pid(&child), Signal::SIGTERM);
                std::thread::sleep(Duration::from_secs(1));
                let _ = child.kill();
                let _ = child.wait();
            }
        } else if self.child.is_some() {
            self.stop();
        }
        // Before its folder goes.
        self.containerd.take();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process numbers fit in i32"))
}
