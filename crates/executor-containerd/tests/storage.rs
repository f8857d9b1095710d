//! The conformance suites of snapshotters and of content stores, with the containerd of this
//! machine.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cooper_executor_containerd::testing::Server;
use cooper_executor_containerd::{ContainerdContentStore, ContainerdSnapshotter};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_conform() {
    let server = Server::start().await;
    for name in ["overlayfs", "native"] {
        let containerd = server.connect("cooper-suite");
        cooper_snapshot::testsuite::run(|root, _| {
            // Each folder has an owner of its own, the same when it is opened again.
            let digest = cooper_content::digest_of(root.as_os_str().as_encoded_bytes());
            let owner = &digest.digest()[..16];
            let opened = ContainerdSnapshotter::open(containerd.clone(), name, owner);
            let runtime = tokio::runtime::Handle::current();
            Arc::new(tokio::task::block_in_place(|| runtime.block_on(opened)).unwrap())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_conforms() {
    let server = Server::start().await;
    let containerd = server.connect("cooper-suite");
    let store = ContainerdContentStore::open(containerd, "suite");
    cooper_content::testsuite::run(&store.await.unwrap()).await;
}
