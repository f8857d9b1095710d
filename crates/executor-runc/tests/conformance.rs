//! The conformance suite of executors, with the runc of this machine.

use std::sync::Arc;

use cooper_executor_runc::{RuncConfig, RuncExecutor};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_conforms() {
    cooper_executor::testsuite::run(|root, parent| {
        let mut config = RuncConfig::new(root);
        config.cgroup_parent = parent.to_owned();
        Arc::new(RuncExecutor::new(config).unwrap())
    })
    .await;
}
