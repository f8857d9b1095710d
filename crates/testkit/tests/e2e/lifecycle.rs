//! How a daemon begins and ends.

use std::process::Command;
use std::time::Duration;

use cooper_testkit::{Client, Context, Daemon, Registry, Started, bin, leak, push_busybox, run};

#[test]
fn dmn08_a_second_daemon_on_one_root_is_refused() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let other = daemon.scratch().join("other.sock");
    let mut command = daemon.command(&format!("unix://{}", other.display()));
    Started::new(&mut command)
        .finish_within(Duration::from_secs(10))
        .fails_with(&["buildkitd.lock", "another instance running"]);
    assert!(daemon.is_running());
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    for client in Client::of(&daemon) {
        client
            .build(&context, &["--output=type=cacheonly"])
            .success();
    }
    drop((daemon, context));
    watch.check();
}

#[test]
fn dmn07_a_stop_ends_builds_and_leaves_nothing() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::start();
    let dockerfile = format!("FROM {base}\nRUN echo started-$((40+2)) && sleep 86462\n");
    let context = Context::new().file("Dockerfile", dockerfile);
    let client = Client::buildx(&daemon);
    let mut running = client.start(&context, &["--output=type=cacheonly"]);
    running.wait_for("started-42");
    daemon.stop();
    assert_eq!(leak::running("sleep 86462"), 0);
    let ran = running.finish_within(Duration::from_secs(20));
    assert_ne!(ran.code, 0, "{}", ran.output);
    drop((client, daemon, registry, context));
    watch.check();
}

#[test]
fn the_version_has_four_words_and_buildx_finds_a_worker() {
    let watch = leak::Watch::begin();
    let version = run(Command::new(bin("cooperd")).arg("--version")).success();
    assert_eq!(
        version.output.split_whitespace().count(),
        4,
        "{}",
        version.output
    );
    let daemon = Daemon::start();
    let Client::Buildx(buildx) = Client::buildx(&daemon) else {
        unreachable!()
    };
    let inspected = run(buildx.command().args(["inspect", "cooper"])).success();
    assert!(inspected.output.contains("running"), "{}", inspected.output);
    assert!(inspected.output.contains("linux/"), "{}", inspected.output);
    drop((buildx, daemon));
    watch.check();
}

#[test]
fn ex01_where_no_runtime_is_installed_the_built_in_one_runs_steps() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let context = Context::new().file(
        "Dockerfile",
        format!("FROM {base}\nRUN cat /proc/self/comm && ls /dev/null\n"),
    );
    let client = Client::alone();
    let mut command = client.command(context.path(), &[]);
    let ran = run(command.env("PATH", "/nowhere")).success();
    for line in ["cat", "/dev/null"] {
        assert!(
            ran.output.lines().any(|found| found.ends_with(line)),
            "{}",
            ran.output
        );
    }
    drop((client, registry, context));
    watch.check();
}
