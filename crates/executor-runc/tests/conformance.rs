//! The conformance suite of executors, with the OCI runtimes of this machine.

use std::sync::Arc;

use cooper_executor::testsuite::Quirks;
use cooper_executor_runc::{RuncConfig, RuncExecutor};

async fn conforms(binary: &str, quirks: Quirks) {
    cooper_executor::testsuite::run_with(quirks, |root, parent| {
        let mut config = RuncConfig::new(root);
        config.binary = Some(binary.into());
        config.cgroup_parent = parent.to_owned();
        Arc::new(RuncExecutor::new(config).expect("the state folder can be made"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_conforms() {
    conforms("runc", Quirks::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun_conforms() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join("crun").is_file());
    // It refuses machines with control groups of version 1 beside a version 2 with controllers.
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    let hybrid = controllers.is_ok_and(|text| !text.trim().is_empty());
    if there && !hybrid {
        let quirks = Quirks {
            keeps_terminal_size: crun_version() < [1, 8, 7],
            hides_program: crun_version() < [1, 21, 0],
            follows_no_dangling_link: true,
        };
        conforms("crun", quirks).await;
    }
}

/// The three numbers of `crun version 1.8.1`; later ones have two.
fn crun_version() -> [u32; 3] {
    let output = std::process::Command::new("crun").arg("--version").output();
    let text = String::from_utf8(output.expect("crun runs").stdout).expect("it says text");
    let version = text.split_whitespace().nth(2).expect("it says its version");
    let mut numbers = version.split('.').map(|number| {
        let number = number.parse::<u32>();
        number.expect("a version is numbers")
    });
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}
