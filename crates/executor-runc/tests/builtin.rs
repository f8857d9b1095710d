//! The conformance suite of executors with the built-in runtime, and what is left when the
//! program is killed.
//!
//! It has a main of its own, because it is its own helper.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use cooper_executor::{ContainerSpec, Executor, Output, Process};
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_snapshot::Mount;
use cooper_sys::MountPoint;
use cooper_sys::cgroup::Hierarchies;

const DIR: &str = "COOPER_TEST_KILLED_DIR";

fn main() {
    cooper_executor_runc::enter_if_asked();
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    threads.unwrap().block_on(async {
        if let Some(dir) = std::env::var_os(DIR) {
            return run_forever(Path::new(&dir)).await;
        }
        what_a_killed_program_left_is_removed().await;
        cooper_executor::testsuite::run(|root, parent| {
            Arc::new(RuncExecutor::new(config(root, parent)).unwrap())
        })
        .await;
    });
}

fn config(root: &Path, parent: &str) -> RuncConfig {
    let mut config = RuncConfig::new(root);
    config.binary = Some("builtin".into());
    config.cgroup_parent = parent.to_owned();
    config
}

fn parent(dir: &Path) -> String {
    format!("cooper-killed-{}", dir.file_name().unwrap().display())
}

fn executor(dir: &Path) -> RuncExecutor {
    RuncExecutor::new(config(&dir.join("executor"), &parent(dir))).unwrap()
}

/// What the program does that is killed.
async fn run_forever(dir: &Path) {
    let executor = executor(dir);
    let [lower, upper, work] = ["rootfs", "upper", "work"].map(|name| dir.join(name));
    let container = ContainerSpec {
        root: vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", lower.display()),
                format!("upperdir={}", upper.display()),
                format!("workdir={}", work.display()),
            ],
        }],
        ..ContainerSpec::default()
    };
    let process = Process {
        stdout: Output::call(|text| println!("container: {}", String::from_utf8_lossy(&text))),
        ..Process::new(["/bin/busybox", "sh", "-c", "echo up; while :; do :; done"])
    };
    let running = executor.start(container, process).await.unwrap();
    running.wait().await.unwrap();
}

async fn what_a_killed_program_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["rootfs/bin", "upper", "work"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    let busybox = found
        .find(|file| file.is_file())
        .expect("a busybox in PATH");
    std::fs::copy(busybox, dir.path().join("rootfs/bin/busybox")).unwrap();
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("container: up")));
    let hierarchies = Hierarchies::detect().unwrap();
    let group = format!("/{}", parent(dir.path()));
    let inside = hierarchies.processes(&group);
    assert!(!inside.is_empty());
    let inside: Vec<_> = inside.into_iter().map(cooper_sys::PidFd::open).collect();
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Its containers end with it, before anybody starts it again.
    for process in inside {
        let process = process.unwrap();
        let end = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        let most = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let mut end = end;
        assert_eq!(rustix::event::poll(&mut end, Some(&most)), Ok(1));
    }
    let executor = executor(dir.path());
    assert_eq!(MountPoint::below(dir.path()).unwrap(), []);
    let bundles = dir.path().join("executor/containers");
    assert_eq!(std::fs::read_dir(bundles).unwrap().count(), 0);
    executor.close().await;
    hierarchies.remove(&group).unwrap();
}
