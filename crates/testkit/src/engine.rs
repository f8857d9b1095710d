//! Docker's engine, which has BuildKit inside: the peer that Cooper is compared with.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::wait_until;
use crate::{memory, peer};

/// The packages that hold it.
const PACKAGES: &[&str] = &["docker.io", "containerd"];
/// It gets this long to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where an engine keeps images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// In its own store, as the engine does unless told otherwise. It has no exporter for `oci`.
    Own,
    /// In containerd's, which has every exporter that BuildKit has.
    Containerd,
}

/// An engine with its own folders, which nobody else on the machine sees; stopped and removed
/// when dropped, and stopped by the kernel when the thread that started it ends otherwise.
#[derive(Debug)]
pub struct Engine {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Engine {
    /// The newest engine that Debian has, unpacked.
    ///
    /// # Errors
    ///
    /// Why it could not be had.
    pub fn newest() -> Result<PathBuf, String> {
        peer::unpacked("docker", Some(peer::NEWEST), PACKAGES)
    }

    /// Starts the engine of `tree` and waits until it serves. Steps have no network but the
    /// host's.
    #[track_caller]
    pub fn start(tree: &Path, store: Store) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-engine-")
            .tempdir()
            .unwrap();
        let at = |name: &str| dir.path().join(name);
        let containerd = store == Store::Containerd;
        let config = serde_json::json!({ "features": { "containerd-snapshotter": containerd } });
        std::fs::write(at("daemon.json"), config.to_string()).unwrap();
        let mut path = std::env::join_paths([tree.join("usr/bin"), tree.join("usr/sbin")]).unwrap();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let log = std::fs::File::create(at("log")).unwrap();
        // Whatever happens to the one who started it, it is asked to stop.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "dockerd", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false", "--config-file"])
            .arg(at("daemon.json"))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at("docker.sock").display()))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start setpriv");
        let mut engine = Self {
            dir,
            child: Some(child),
        };
        wait_until("dockerd serves", PATIENCE, || {
            let child = engine.child.as_mut().expect("it was started");
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended: {}", engine.log());
            std::os::unix::net::UnixStream::connect(engine.socket()).is_ok()
        });
        engine
    }

    /// The address for clients, `unix://…`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The engine's process and that of its containerd.
    pub fn pids(&self) -> Vec<u32> {
        let pid = self.child.as_ref().expect("the engine runs").id();
        memory::with_children(pid, "containerd")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pids = self.pids();
        let number = |pid: u32| Pid::from_raw(i32::try_from(pid).expect("a process number"));
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = kill(number(child.id()), Signal::SIGTERM);
        // It ends its containerd, and that its steps.
        let begin = std::time::Instant::now();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        for pid in pids.into_iter().skip(1) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            if name.is_ok_and(|name| name.trim_end() == "containerd") {
                let _ = kill(number(pid), Signal::SIGKILL);
            }
        }
        // What it did not unmount would keep the folder from being removed, or be emptied.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut below: Vec<_> = below
            .map(Path::new)
            .filter(|path| path.starts_with(self.dir.path()))
            .collect();
        below.sort();
        for path in below.iter().rev() {
            let _ = umount2(*path, MntFlags::MNT_DETACH);
        }
    }
}
