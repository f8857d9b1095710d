//! The conformance suite of executors, with the containerd of this machine. It counts the
//! descriptors of its process, which is why nothing else is tried in that.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cooper_executor_containerd::testing::Server;
use cooper_executor_containerd::{ContainerdConfig, ContainerdExecutor};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_conforms() {
    let server = Server::start().await;
    // One connection for all: the suite counts descriptors.
    let containerd = server.connect("cooper-suite");
    containerd.version().await.unwrap();
    cooper_executor::testsuite::run(|root, parent| {
        let mut config = ContainerdConfig::new(root);
        config.cgroup_parent = parent.to_owned();
        let opened = ContainerdExecutor::open(containerd.clone(), config);
        let runtime = tokio::runtime::Handle::current();
        Arc::new(tokio::task::block_in_place(|| runtime.block_on(opened)).unwrap())
    })
    .await;
}
