//! A process that is killed leaves its containers; the next one on the same root removes them.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cooper_executor::{ContainerSpec, Executor, Output, Process};
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_snapshot::Mount;
use cooper_sys::MountPoint;
use cooper_sys::cgroup::Hierarchies;

const DIR: &str = "COOPER_TEST_KILLED_DIR";

fn config(dir: &Path) -> RuncConfig {
    let mut config = RuncConfig::new(dir.join("executor"));
    config.cgroup_parent = parent(dir);
    let binary = std::env::var_os("COOPER_TEST_RUNTIME");
    config.binary = binary.filter(|name| !name.is_empty()).map(Into::into);
    config
}

fn parent(dir: &Path) -> String {
    format!("cooper-killed-{}", dir.file_name().unwrap().display())
}

/// The process that is killed: this test, run again by the one below.
#[tokio::test]
async fn runs_a_container_forever() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let executor = RuncExecutor::new(config(dir)).unwrap();
    // An overlay, so that there is a mount to be left.
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
        ..Process::new(["/bin/sh", "-c", "echo up; sleep 1000 & sleep 1000"])
    };
    let running = executor.start(container, process).await.unwrap();
    running.wait().await.unwrap();
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["rootfs/bin", "upper", "work"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let busybox = std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox"));
    let bin = dir.path().join("rootfs/bin");
    std::fs::write(bin.join("busybox"), busybox.unwrap()).unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("busybox"), all).unwrap();
    symlink("busybox", bin.join("sh")).unwrap();
    symlink("busybox", bin.join("sleep")).unwrap();

    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["runs_a_container_forever", "--exact", "--nocapture"])
        .env(DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(killed.stdout.take().unwrap());
    let up = output
        .lines()
        .any(|line| line.unwrap().contains("container: up"));
    assert!(up);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(MountPoint::below(dir.path()).unwrap().len(), 1);

    let hierarchies = Hierarchies::detect().unwrap();
    let parent = format!("/{}", parent(dir.path()));
    assert!(!hierarchies.processes(&parent).is_empty());
    let begun = Instant::now();
    let executor = RuncExecutor::new(config(dir.path())).unwrap();
    // An emulated machine takes its time.
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(hierarchies.processes(&parent), [0; 0]);
    assert_eq!(MountPoint::below(dir.path()).unwrap(), []);
    for left in ["containers", "state"] {
        let left = std::fs::read_dir(dir.path().join("executor").join(left));
        assert_eq!(left.unwrap().count(), 0);
    }
    // Neither is the runtime itself there any more.
    let dir = dir.path().display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let line = std::fs::read_to_string(entry.unwrap().path().join("cmdline"));
        assert!(!line.is_ok_and(|line| line.contains(&dir)));
    }
    executor.close().await;
    hierarchies.remove(&parent).unwrap();
}
