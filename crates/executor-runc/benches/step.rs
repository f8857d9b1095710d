//! What a container costs, with a root file system that is there: by the built-in runtime and by
//! runc, at once and after a pause. Needs root, and a `busybox` that is linked statically.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cooper_executor::{ContainerSpec, Executor, Process};
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_snapshot::Mount;
use criterion::{BenchmarkId, Criterion};

fn main() {
    // Before criterion: this may be the helper.
    cooper_executor_runc::enter_if_asked();
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let dir = tempfile::tempdir().unwrap();
    rootfs(dir.path());
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut group = criterion.benchmark_group("true");
    for binary in ["builtin", "runc"] {
        let mut config = RuncConfig::new(dir.path().join(binary));
        config.binary = Some(binary.into());
        config.cgroup_parent = format!("cooper-bench-{}", std::process::id());
        let executor = tokio.block_on(async { Arc::new(RuncExecutor::new(config).unwrap()) });
        for pause in [0, 50, 500] {
            group.bench_function(BenchmarkId::new(binary, pause), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut total = Duration::ZERO;
                    for _ in 0..rounds {
                        std::thread::sleep(Duration::from_millis(pause));
                        let begun = Instant::now();
                        tokio.block_on(run(&*executor, dir.path()));
                        total += begun.elapsed();
                    }
                    total
                });
            });
        }
        tokio.block_on(executor.close());
    }
    group.finish();
    criterion.final_summary();
}

async fn run(executor: &dyn Executor, dir: &Path) {
    let container = ContainerSpec {
        root: vec![Mount::bind(&dir.join("rootfs"), false)],
        ..ContainerSpec::default()
    };
    let process = Process::new(["/bin/busybox", "true"]);
    let running = executor.start(container, process).await.unwrap();
    assert!(running.wait().await.unwrap().success());
}

fn rootfs(dir: &Path) {
    let rootfs = dir.join("rootfs");
    for name in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
        std::fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    let busybox = found
        .find(|file| file.is_file())
        .expect("a busybox in PATH");
    std::fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
}
