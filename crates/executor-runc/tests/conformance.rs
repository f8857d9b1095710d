//! The conformance suite of executors, with the OCI runtimes of this machine.

use std::sync::Arc;

use cooper_executor_runc::{RuncConfig, RuncExecutor};

async fn conforms(binary: &str) {
    cooper_executor::testsuite::run(|root, parent| {
        let mut config = RuncConfig::new(root);
        config.binary = Some(binary.into());
        config.cgroup_parent = parent.to_owned();
        Arc::new(RuncExecutor::new(config).expect("the state folder can be made"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_conforms() {
    conforms("runc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun_conforms() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join("crun").is_file());
    // It refuses machines with control groups of version 1 beside a version 2 with controllers.
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    let hybrid = controllers.is_ok_and(|text| !text.trim().is_empty());
    if there && !hybrid {
        conforms("crun").await;
    }
}
