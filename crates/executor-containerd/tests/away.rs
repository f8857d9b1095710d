//! A containerd that goes away in the middle and comes back, and an executor that is killed.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cooper_executor::{ContainerSpec, ExecError, Executor, Output, Process, Running};
use cooper_executor_containerd::testing::Server;
use cooper_executor_containerd::{Containerd, ContainerdConfig, ContainerdExecutor};
use cooper_snapshot::Mount;
use cooper_sys::MountPoint;
use cooper_sys::cgroup::Hierarchies;

const NAMESPACE: &str = "cooper-away";
const DIR: &str = "COOPER_TEST_AWAY_DIR";
const SOCKET: &str = "COOPER_TEST_AWAY_SOCKET";
const LIMIT: Duration = Duration::from_secs(20);

/// A root file system below `dir`, shown through an overlay, so that there is a mount.
fn container(dir: &Path) -> ContainerSpec {
    let [lower, upper, work] = ["rootfs", "upper", "work"].map(|name| dir.join(name));
    let overlay = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
    };
    ContainerSpec {
        root: vec![overlay],
        ..ContainerSpec::default()
    }
}

fn root_files(dir: &Path) {
    for name in ["rootfs/bin", "upper", "work"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    let busybox = std::fs::read(found.find(|file| file.is_file()).unwrap());
    let bin = dir.join("rootfs/bin");
    std::fs::write(bin.join("busybox"), busybox.unwrap()).unwrap();
    let all = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("busybox"), all).unwrap();
    for name in ["sh", "sleep", "true"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

fn parent(dir: &Path) -> String {
    format!("cooper-away-{}", dir.file_name().unwrap().display())
}

async fn open(dir: &Path, containerd: Containerd) -> Result<ContainerdExecutor, ExecError> {
    let mut config = ContainerdConfig::new(dir.join("executor"));
    config.cgroup_parent = parent(dir);
    ContainerdExecutor::open(containerd, config).await
}

fn shell(script: &str) -> Process {
    Process {
        env: vec!["PATH=/bin".into()],
        ..Process::new(["/bin/sh", "-c", script])
    }
}

/// What containerd lists.
fn listed(socket: &Path, what: &str) -> String {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(socket)
        .args(["--namespace", NAMESPACE, what, "ls", "-q"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn nothing_remains(dir: &Path) {
    let hierarchies = Hierarchies::detect().unwrap();
    let parent = format!("/{}", parent(dir));
    assert_eq!(hierarchies.processes(&parent), [0; 0]);
    assert_eq!(MountPoint::below(dir).unwrap(), []);
    let left = std::fs::read_dir(dir.join("executor/containers"));
    assert_eq!(left.unwrap().count(), 0);
    hierarchies.remove(&parent).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_when_containerd_goes_away_fails_and_the_next_works() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    root_files(dir);
    let mut server = Server::start().await;
    let executor = open(dir, server.connect(NAMESPACE)).await.unwrap();
    let start = |script: &str| executor.start(container(dir), shell(script));
    let running = start("sleep 1000 & sleep 1000").await.unwrap();
    let other = running.exec(shell("sleep 1000")).await.unwrap();
    server.stop();
    for process in [&running, &other] {
        let ended = tokio::time::timeout(LIMIT, process.wait()).await;
        let error = ended.expect("it goes on").unwrap_err().to_string();
        assert!(error.contains("containerd.sock is unavailable"), "{error}");
    }
    let error = start("true").await.err().unwrap().to_string();
    assert!(error.contains("containerd.sock is unavailable"), "{error}");
    assert_eq!(MountPoint::below(dir).unwrap(), []);
    server.restart().await;
    let running = start("exit 3").await.unwrap();
    assert_eq!(running.wait().await.unwrap().code, 3);
    drop((running, other));
    executor.close().await;
    assert_eq!(listed(&server.address(), "tasks"), "");
    assert_eq!(listed(&server.address(), "containers"), "");
    nothing_remains(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_containerd_there_is_no_executor() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd.sock");
    let nobody = Containerd::new(&socket, NAMESPACE).unwrap();
    let error = open(dir.path(), nobody).await.unwrap_err().to_string();
    assert!(error.contains("containerd.sock is unavailable"), "{error}");
}

/// The process that is killed: this test, run again by the one below.
#[tokio::test]
async fn runs_a_container_forever() {
    let (Some(dir), Some(socket)) = (std::env::var_os(DIR), std::env::var_os(SOCKET)) else {
        return;
    };
    let dir = Path::new(&dir);
    let containerd = Containerd::new(PathBuf::from(socket), NAMESPACE).unwrap();
    let executor = open(dir, containerd).await.unwrap();
    let process = Process {
        stdout: Output::call(|text| println!("container: {}", String::from_utf8_lossy(&text))),
        ..shell("echo up; sleep 1000 & sleep 1000")
    };
    let running: Arc<dyn Running> = executor.start(container(dir), process).await.unwrap();
    running.wait().await.unwrap();
}

/// Has a process run a container in `dir` and kills it.
fn leave(dir: &Path, server: &Server) {
    root_files(dir);
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["runs_a_container_forever", "--exact", "--nocapture"])
        .env(DIR, dir)
        .env(SOCKET, server.address())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(killed.stdout.take().unwrap());
    let mut lines = output.lines();
    assert!(lines.any(|line| line.unwrap().contains("container: up")));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(MountPoint::below(dir).unwrap().len(), 1);
    assert_eq!(listed(&server.address(), "tasks").lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start().await;
    leave(dir, &server);
    // Another root's containers are another's.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(elsewhere.path(), server.connect(NAMESPACE)).await;
    other.unwrap().close().await;
    assert_eq!(listed(&server.address(), "tasks").lines().count(), 1);

    let executor = open(dir, server.connect(NAMESPACE)).await.unwrap();
    assert_eq!(listed(&server.address(), "containers"), "");
    executor.close().await;
    nothing_remains(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containerd_made_after_it_was_swept_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start().await;
    leave(dir, &server);
    // As when it was asked to make one, then to forget it, and then came to the end of the first.
    let tasks = listed(&server.address(), "tasks");
    server.forget(NAMESPACE, tasks.trim_end()).await;
    assert_eq!(listed(&server.address(), "containers"), "");
    assert_eq!(listed(&server.address(), "tasks"), tasks);

    // And as when containerd has lost a shim that it had just started.
    std::fs::create_dir(dir.join("executor/containers/lost")).unwrap();
    let mut shim = Command::new("sh")
        .args(["-c", "sleep 1000; exit", "shim"])
        .args(["-namespace", NAMESPACE, "-id", "lost"])
        .process_group(0)
        .spawn()
        .unwrap();

    let executor = open(dir, server.connect(NAMESPACE)).await.unwrap();
    let begun = Instant::now();
    assert_eq!(shim.wait().unwrap().signal(), Some(9));
    let group = rustix::process::Pid::from_child(&shim);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    while !listed(&server.address(), "tasks").is_empty() {
        assert!(begun.elapsed() < LIMIT, "it stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    executor.close().await;
    assert_eq!(listed(&server.address(), "containers"), "");
    nothing_remains(dir);
}
