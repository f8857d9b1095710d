//! The kit itself: its registry and its base images work and leave nothing.

use cooper_testkit::{Registry, leak, push_busybox, run};
use std::process::Command;

#[test]
fn the_base_image_is_in_the_registry_and_nothing_is_left() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let image = push_busybox(&registry);
    let inspected = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{image}")))
    .success();
    assert!(inspected.output.contains("sha256:"), "{}", inspected.output);
    drop(registry);
    watch.check();
}
