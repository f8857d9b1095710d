//! The kit itself: its registries and its base images are sound, or broken as they say, and
//! leave nothing.

use cooper_testkit::{BrokenRegistry, Fault, Pulled, Registry, leak, push_busybox, run};
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

#[test]
fn a_broken_registry_is_broken_in_the_way_that_it_says() {
    let watch = leak::Watch::begin();
    let sound = BrokenRegistry::start(Fault::Nothing);
    let pulled = Pulled::registry(&sound.image());
    assert_eq!(
        std::fs::metadata(pulled.unpack().join("file"))
            .unwrap()
            .len(),
        200_000
    );
    for (fault, part) in [
        (Fault::NotFound, "404"),
        (Fault::Unauthorized, "401 Unauthorized"),
        (Fault::TruncatedLayer, "EOF"),
        (Fault::WrongLayer, "match"),
    ] {
        let registry = BrokenRegistry::start(fault);
        let into = tempfile::Builder::new()
            .prefix("cooper-broken-")
            .tempdir()
            .unwrap();
        run(Command::new("skopeo")
            .args(["copy", "--retry-times=0", "--src-tls-verify=false"])
            .arg(format!("docker://{}", registry.image()))
            .arg(format!("dir:{}", into.path().display())))
        .fails_with(&[part]);
    }
    drop((sound, pulled));
    watch.check();
}
