//! Attacks on runtimes that were published, tried on the runc of this machine.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cooper_executor::{ContainerMount, ContainerSpec, Executor, Output, Process, Running};
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_snapshot::Mount;
use cooper_sys::cgroup::Hierarchies;

/// An executor with a copy of the runtime, and a root file system.
struct Bench {
    dir: tempfile::TempDir,
    parent: String,
    runtime: PathBuf,
    executor: RuncExecutor,
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy(found("busybox"), root.join("bin/busybox")).unwrap();
        symlink("busybox", root.join("bin/sh")).unwrap();
        let runtime = dir.path().join("runc");
        std::fs::copy(found("runc"), &runtime).unwrap();
        let parent = format!("cooper-security-{}-{name}", std::process::id());
        let mut config = RuncConfig::new(dir.path().join("executor"));
        config.binary = Some(runtime.clone());
        config.cgroup_parent = parent.clone();
        Self {
            executor: RuncExecutor::new(config).unwrap(),
            dir,
            parent,
            runtime,
        }
    }

    fn container(&self) -> ContainerSpec {
        ContainerSpec {
            root: vec![Mount::bind(&self.dir.path().join("rootfs"), false)],
            ..ContainerSpec::default()
        }
    }

    async fn start(&self, container: ContainerSpec, script: &str) -> (Arc<dyn Running>, Text) {
        let text = Text::default();
        let bytes = text.clone();
        let output = Output::call(move |piece| bytes.0.lock().unwrap().extend_from_slice(&piece));
        let process = Process {
            env: vec!["PATH=/bin".into()],
            stdout: output.clone(),
            stderr: output,
            ..Process::new(["/bin/sh", "-c", script])
        };
        (self.executor.start(container, process).await.unwrap(), text)
    }

    async fn end(self) {
        self.executor.close().await;
        let hierarchies = Hierarchies::detect().unwrap();
        hierarchies.remove(&format!("/{}", self.parent)).unwrap();
    }
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn read(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut files = std::env::split_paths(&path).map(|dir| dir.join(program));
    files.find(|file| file.is_file()).unwrap()
}

/// CVE-2019-5736: a process of the container takes hold of the runtime's program while that is
/// about to become another process of the container, and writes to it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runtime_is_not_overwritten_through_proc() {
    let bench = Bench::new("overwrite");
    let before = std::fs::read(&bench.runtime).unwrap();
    // Whatever is not busybox is written to as soon as it is seen, and once more by a
    // descriptor that outlives it.
    let attack = "busybox echo up; while :; do for p in /proc/[0-9]*; do \
                  exe=$(busybox readlink $p/exe) || continue; \
                  [ \"$exe\" = /bin/busybox ] && continue; \
                  (exec 3< $p/exe; echo bad >> $p/exe; busybox sleep 0.2; \
                  echo bad >> /proc/self/fd/3) 2>/dev/null & done; done";
    let (running, _) = bench.start(bench.container(), attack).await;
    running.started().await.unwrap();
    for _ in 0..20 {
        let process = Process::new(["/proc/self/exe", "true"]);
        let other = running.exec(process).await.unwrap();
        other.wait().await.unwrap();
        let other = running.exec(Process::new(["/bin/busybox", "true"])).await;
        assert!(other.unwrap().wait().await.unwrap().success());
    }
    drop(running);
    assert!(std::fs::read(&bench.runtime).unwrap() == before);
    bench.end().await;
}

/// The races of 2025 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881): a container changes
/// what is mounted into another one between the look at it and the mount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_of_another_container_cannot_be_raced() {
    let bench = Bench::new("race");
    let (shared, data) = (
        bench.dir.path().join("shared"),
        bench.dir.path().join("data"),
    );
    let victim = bench.dir.path().join("victim");
    for dir in [&shared.join("flip/deep"), &data, &victim] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flipping = flip(&shared, &victim, stop.clone());
    let mount = |dest: &str, source: &Path| ContainerMount {
        dest: dest.into(),
        mounts: vec![Mount::bind(source, false)],
        ..ContainerMount::default()
    };
    for _ in 0..25 {
        let container = ContainerSpec {
            mounts: vec![
                ContainerMount {
                    shared: true,
                    ..mount("/s", &shared)
                },
                mount("/s/flip/deep", &data),
            ],
            ..bench.container()
        };
        let script = "for path in sysrq-trigger sys/kernel/core_pattern; do \
                      (echo x > /proc/$path) 2>/dev/null && echo written $path; done; \
                      [ -s /proc/kcore ] && echo kcore; [ -c /dev/null ] || echo null; true";
        let process = Process {
            env: vec!["PATH=/bin".into()],
            ..Process::new(["/bin/sh", "-c", script])
        };
        let text = Text::default();
        let bytes = text.clone();
        let process = Process {
            stdout: Output::call(move |piece| bytes.0.lock().unwrap().extend_from_slice(&piece)),
            ..process
        };
        // It may fail to start; what it must not do is to get out.
        if let Ok(running) = bench.executor.start(container, process).await {
            let exit = running.wait().await.unwrap();
            assert!(!exit.success() || text.read().is_empty(), "{}", text.read());
        }
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    }
    stop.store(true, Ordering::Relaxed);
    flipping.join().unwrap();
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    bench.end().await;
}

/// Exchanges `flip` in `shared` for a link out of it, and back, until it is told to stop.
fn flip(shared: &Path, victim: &Path, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (flip, aside) = (shared.join("flip"), shared.join("aside"));
    let victim = victim.to_owned();
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let _ = std::fs::rename(&flip, &aside);
            let _ = symlink(&victim, &flip);
            std::thread::yield_now();
            let _ = std::fs::remove_file(&flip);
            let _ = std::fs::rename(&aside, &flip);
            std::thread::yield_now();
        }
    })
}

/// CVE-2024-23651: a folder of a cache mount is exchanged for a link out of it while a part of
/// it is mounted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_mount_cannot_be_exchanged_for_a_link_out_of_it() {
    let bench = Bench::new("selector");
    let (shared, victim) = (
        bench.dir.path().join("shared"),
        bench.dir.path().join("victim"),
    );
    std::fs::create_dir_all(shared.join("flip/deep")).unwrap();
    std::fs::create_dir_all(victim.join("deep")).unwrap();
    std::fs::write(victim.join("deep/secret"), "secret").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flipping = flip(&shared, &victim, stop.clone());
    let mut mounted = 0;
    for _ in 0..40 {
        let container = ContainerSpec {
            mounts: vec![ContainerMount {
                dest: "/m".into(),
                mounts: vec![Mount::bind(&shared, false)],
                selector: "flip/deep".into(),
                shared: true,
                ..ContainerMount::default()
            }],
            ..bench.container()
        };
        let script = "[ -e /m/secret ] && echo secret; echo bad > /m/bad";
        let process = Process {
            env: vec!["PATH=/bin".into()],
            ..Process::new(["/bin/sh", "-c", script])
        };
        if let Ok(running) = bench.executor.start(container, process).await {
            running.wait().await.unwrap();
            mounted += 1;
        }
        assert!(!victim.join("deep/bad").exists());
    }
    stop.store(true, Ordering::Relaxed);
    flipping.join().unwrap();
    assert!(mounted > 0, "not one was tried");
    bench.end().await;
}
