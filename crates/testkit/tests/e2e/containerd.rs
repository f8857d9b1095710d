//! The worker that goes through a containerd.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cooper_testkit::{
    Buildx, Client, Context, Daemon, Ran, Registry, Started, leak, push_busybox, run,
};

use crate::Out;

const LIMIT: Duration = Duration::from_secs(60);

/// What containerd itself says, in the namespace of the daemon.
fn ctr(socket: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket);
    run(command.args(["--namespace", "buildkit"]).args(args)).success()
}

/// Empties the daemon's cache.
fn prune_all(buildx: &Buildx) {
    let all = ["prune", "--builder=cooper", "--all", "--force"];
    run(buildx.command().args(all)).success();
}

#[test]
fn wrk03_steps_files_and_blobs_are_containerds() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::with_containerd("");
    let socket = daemon.containerd().socket();
    let dockerfile = format!(
        "FROM {base} AS made\nRUN --mount=type=cache,target=/c echo kept > /c/f && echo made > /f\n\
         RUN --network=none cat /f > /g && echo $(hostname) >> /g\n\
         FROM scratch\nCOPY --from=made /f /g /\n"
    );
    let context = Context::new().file("Dockerfile", &dockerfile);
    let out = Out::new();
    for (number, client) in Client::of(&daemon).into_iter().enumerate() {
        let ran = client.build(&context, &[&out.local(&number.to_string())]);
        let ran = ran.success();
        assert_eq!(ran.output.contains("CACHED"), number > 0, "{}", ran.output);
        assert_eq!(out.read(&format!("{number}/g")), "made\nbuildkitsandbox\n");
    }
    // Nothing runs, and what is kept is containerd's.
    assert_eq!(ctr(&socket, &["containers", "ls", "-q"]).output.trim(), "");
    assert_eq!(ctr(&socket, &["tasks", "ls", "-q"]).output.trim(), "");
    let kept = ctr(&socket, &["snapshots", "ls"]).output;
    assert!(
        kept.contains("cooper/") && kept.contains("Committed"),
        "{kept}"
    );
    let kept = ctr(&socket, &["content", "ls"]).output;
    assert!(kept.contains("cooper.cache="), "{kept}");
    assert!(!daemon.root().join("containerd/snapshots").exists());
    // After a restart it is all found again, and containerd's collector has left it.
    daemon.stop();
    daemon.spawn();
    let [buildx, _] = Client::of(&daemon);
    let ran = buildx.build(&context, &[&out.local("again")]).success();
    assert!(ran.output.contains("CACHED"), "{}", ran.output);
    let Client::Buildx(buildx) = buildx else {
        unreachable!()
    };
    // What is pruned is gone from containerd as well.
    prune_all(&buildx);
    let kept = ctr(&socket, &["snapshots", "ls"]).output;
    assert!(!kept.contains("cooper/"), "{kept}");
    drop((buildx, daemon, registry, context, out));
    watch.check();
}

#[test]
fn wrk01_labels_say_which_containerd_it_is() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::with_containerd("");
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let inspected = run(buildx.command().args(["inspect", "cooper"])).success();
    let label = |name: &str, value: &str| {
        let name = format!("org.mobyproject.buildkit.worker.{name}:");
        let found = inspected.output.lines().find(|line| line.contains(&name));
        let found = found.unwrap_or_else(|| panic!("no {name} in {}", inspected.output));
        assert!(found.contains(value), "{found}");
    };
    label("executor", "containerd");
    label("snapshotter", "overlayfs");
    label("containerd.namespace", "buildkit");
    label("containerd.uuid", "-");
    drop((buildx, daemon));
    watch.check();
}

#[test]
fn exp06_an_image_is_in_containerds_store() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::with_containerd("");
    let socket = daemon.containerd().socket();
    let dockerfile = format!("FROM {base}\nRUN echo kept > /kept\nCMD [\"cat\", \"/kept\"]\n");
    let context = Context::new().file("Dockerfile", &dockerfile);
    let client = Client::buildx(&daemon);
    let name = "example.test/kept:latest";
    let image = format!("--output=type=image,name={name}");
    client.build(&context, &[&image]).success();
    client
        .build(
            &context,
            &["--output=type=image,name=example.test/not:latest,store=false"],
        )
        .success();
    assert_eq!(ctr(&socket, &["images", "ls", "-q"]).output.trim(), name);
    // It stays whole when the cache that it was made from goes.
    let Client::Buildx(buildx) = client else {
        unreachable!()
    };
    prune_all(&buildx);
    let place = daemon.scratch().join("image");
    std::fs::create_dir(&place).unwrap();
    let place = place.display().to_string();
    ctr(&socket, &["images", "mount", name, &place]);
    let kept = std::fs::read_to_string(Path::new(&place).join("kept"));
    ctr(&socket, &["images", "unmount", "--rm", &place]);
    assert_eq!(kept.unwrap(), "kept\n");
    drop((buildx, daemon, registry, context));
    watch.check();
}

#[test]
fn exp06_an_image_is_unpacked_where_it_is_kept() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::with_containerd("");
    let socket = daemon.containerd().socket();
    let dockerfile = format!("FROM {base}\nRUN echo one > /one\nRUN echo two > /two\n");
    let context = Context::new().file("Dockerfile", &dockerfile);
    let client = Client::buildx(&daemon);
    let packed = "--output=type=image,name=example.test/packed:latest";
    client.build(&context, &[packed]).success();
    let checked = |name: &str| {
        let all = ctr(&socket, &["images", "check"]).output;
        let line = all.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {all}"));
        line.split_whitespace().last().map(str::to_owned).unwrap()
    };
    assert_eq!(checked("example.test/packed:latest"), "false");
    let name = "example.test/unpacked:latest";
    let unpacked = format!(
        "--output=type=image,name={name},unpack=true,compression=zstd,force-compression=true"
    );
    client.build(&context, &[&unpacked]).success();
    assert_eq!(checked(name), "true");
    // Twice: what is there is taken.
    client.build(&context, &[&unpacked]).success();
    // It is what the image needs and no more, and stays while the cache goes.
    let Client::Buildx(buildx) = client else {
        unreachable!()
    };
    prune_all(&buildx);
    assert_eq!(checked(name), "true");
    let snapshots = ctr(&socket, &["snapshots", "ls"]).output;
    let chains = snapshots.lines().filter(|line| line.starts_with("sha256:"));
    assert_eq!(chains.count(), 3, "{snapshots}");
    assert!(!snapshots.contains("extract-"), "{snapshots}");
    let leases = ctr(&socket, &["leases", "ls", "-q"]).output;
    assert!(!leases.contains("cooper-unpack"), "{leases}");
    drop((buildx, daemon, registry, context));
    watch.check();
}

#[test]
fn ex08_a_containerd_that_goes_away_fails_the_step_and_the_next_build_works() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::with_containerd("");
    let dockerfile = format!("FROM {base}\nRUN echo started-$((40+2)) && sleep 86463\n");
    let context = Context::new().file("Dockerfile", dockerfile);
    let client = Client::buildx(&daemon);
    let mut running: Started = client.start(&context, &["--output=type=cacheonly"]);
    running.wait_for("started-42");
    daemon.containerd().kill();
    running.finish_within(LIMIT).fails_with(&[
        "echo started-$((40+2)) && sleep 86463",
        "did not complete successfully",
        "containerd.sock is unavailable",
    ]);
    assert_eq!(leak::running("sleep 86463"), 0);
    drop(context);
    let dockerfile = format!("FROM {base}\nRUN echo again-$((40+2))\n");
    let context = Context::new().file("Dockerfile", dockerfile);
    client
        .build(&context, &["--output=type=cacheonly"])
        .fails_with(&["containerd.sock is unavailable"]);
    assert!(daemon.is_running());
    daemon.containerd().spawn();
    let ran = client.build(&context, &["--output=type=cacheonly"]);
    assert!(ran.success().output.contains("again-42"));
    // What could not be removed while it was away goes when the cache is opened again.
    daemon.kill();
    daemon.spawn();
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn dmn01_runcs_worker_is_the_default_beside_containerds() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::with_both_workers();
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    buildx
        .build(&context, &["--output=type=cacheonly"])
        .success();
    let socket = daemon.containerd().socket();
    let kept = ctr(&socket, &["snapshots", "ls"]).output;
    assert!(!kept.contains("cooper/"), "{kept}");
    drop((buildx, daemon, context));
    watch.check();
}
