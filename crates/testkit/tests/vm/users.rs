//! An ordinary user with a part of the control groups: limits hold for the user's steps, and what
//! they lack is said.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cooper_client::{Client, ClientError, Solve};
use cooper_llb::build::{Exec, Local, State};
use cooper_proto::pb;
use cooper_testkit::{bin, run, wait_until};

use crate::client::{request, with_dir};
use crate::limits::{GROUPS, limit, only};
use crate::systemd::{systemctl, waits};

const UNIT: &str = "users-cooperd.service";
const NAME: &str = "builder";
const USER: u32 = 4321;
/// How long a daemon may take to serve, in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A daemon of the user's, as a service of systemd that has its groups for itself, or not.
struct Daemon {
    dir: PathBuf,
    rt: tokio::runtime::Runtime,
    client: Client,
}

impl Daemon {
    fn start(runtime: &str, delegate: bool) -> Self {
        if !Path::new("/home").join(NAME).exists() {
            let mut add = Command::new("useradd");
            let uid = USER.to_string();
            run(add.args(["--create-home", "--uid", &uid, NAME])).success();
        }
        let dir = tempfile::tempdir_in("/home").unwrap().keep();
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&dir, all).unwrap();
        for name in ["run", "data", "base", "base/bin"] {
            std::fs::create_dir(dir.join(name)).unwrap();
            chown(dir.join(name), Some(USER), Some(USER)).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.join("base/bin/busybox")).unwrap();
        std::fs::copy(bin("cooperd"), dir.join("cooperd")).unwrap();
        // One that failed before stays with what it said, until here.
        systemctl(&["reset-failed", UNIT]);
        let mut start = Command::new("systemd-run");
        start.args(["--unit", UNIT, "--uid", NAME]);
        start.args(["--property", &format!("Delegate={delegate}")]);
        for (name, value) in [
            ("USER", NAME.into()),
            ("XDG_RUNTIME_DIR", dir.join("run").display().to_string()),
            ("XDG_DATA_HOME", dir.join("data").display().to_string()),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ] {
            start.arg(format!("--setenv={name}={value}"));
        }
        start.arg(dir.join("cooperd"));
        start.arg(format!("--oci-worker-binary={runtime}"));
        run(start.arg("--debug")).success();
        let socket = dir.join("run/cooper/cooperd.sock");
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = || systemctl(&["status", "--lines=50", "--full", UNIT]);
            let active = systemctl(&["is-active", UNIT]);
            assert_eq!(active, "active", "{}", log());
            assert!(begin.elapsed() < PATIENCE, "no daemon: {}", log());
            std::thread::sleep(Duration::from_millis(500));
        }
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", socket.display());
        let client = rt.block_on(Client::connect(&address)).unwrap();
        Self { dir, rt, client }
    }

    fn base(&self) -> PathBuf {
        self.dir.join("base")
    }

    fn solve(&self, solve: Solve) -> Result<(), ClientError> {
        let solved = async { self.client.solve(solve, &mut |_| ()).await };
        self.rt.block_on(solved).map(drop)
    }

    fn group() -> PathBuf {
        Path::new(GROUPS).join("system.slice").join(UNIT)
    }

    fn stop(self) {
        drop(self.client);
        systemctl(&["stop", UNIT]);
        assert!(!Self::group().exists(), "groups are left");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "{mounts}");
        std::fs::remove_dir_all(self.dir).unwrap();
    }
}

/// A step that takes more memory than it may have.
fn takes_memory(base: &Path) -> Solve {
    let local = State::local("base", Local::default(), Default::default());
    let script = "x=$(/bin/busybox head -c 200000000 /dev/zero | /bin/busybox tr '\\0' a); \
                  echo ${#x}";
    let mut exec = Exec {
        args: ["/bin/busybox", "sh", "-c", script]
            .map(str::to_owned)
            .to_vec(),
        ..Exec::default()
    };
    exec.constraints = exec.constraints.resources(pb::LinuxResources {
        memory: 32 << 20,
        ..pb::LinuxResources::default()
    });
    with_dir(request(&local.run(exec)), "base", base)
}

#[test]
fn limits_hold_for_the_steps_of_a_user_who_was_given_a_group() {
    for runtime in ["runc", "builtin"] {
        let daemon = Daemon::start(runtime, true);
        let (client, solve) = (daemon.client.clone(), waits(&daemon.base()));
        let cancelled = solve.cancelled.clone();
        let solving = async move { client.solve(solve, &mut |_| ()).await.map(drop) };
        let solving = daemon.rt.spawn(solving);
        let mut group = None;
        wait_until("the step has a group", Duration::from_secs(90), || {
            let log = || systemctl(&["status", "--lines=50", UNIT]);
            assert!(!solving.is_finished(), "{runtime}: {}", log());
            group = only(&Daemon::group().join("buildkit"));
            group.is_some()
        });
        let group = group.unwrap();
        limit(&group, "memory.max", "67108864");
        // The daemon itself is in none of those that it limits.
        let init = std::fs::read_to_string(Daemon::group().join("init/cgroup.procs"));
        assert!(!init.unwrap().is_empty());
        cancelled.cancel();
        daemon.rt.block_on(solving).unwrap().unwrap_err();
        wait_until("the group goes", Duration::from_secs(20), || {
            !group.exists()
        });
        let solve = takes_memory(&daemon.base());
        let error = daemon.solve(solve).unwrap_err().to_string();
        assert!(
            error.contains("cannot allocate memory"),
            "{runtime}: {error}"
        );
        daemon.stop();
    }
}

#[test]
fn a_user_who_was_given_none_builds_without_limits() {
    for runtime in ["runc", "builtin"] {
        let daemon = Daemon::start(runtime, false);
        let solve = takes_memory(&daemon.base());
        daemon.solve(solve).unwrap();
        assert!(!Daemon::group().join("buildkit").exists());
        daemon.stop();
    }
}
