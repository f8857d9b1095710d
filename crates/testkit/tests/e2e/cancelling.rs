//! Builds that end before their end.

use std::time::Duration;

use cooper_testkit::{Client, Context, Daemon, Registry, Started, leak, push_busybox, wait_until};
use nix::sys::signal::Signal;

use crate::Out;

const STARTED: &str = "started-42";

/// A context whose build comes to the command `sleep`, one that no other test has.
fn sleeper(base: &str, sleep: &str) -> Context {
    let dockerfile = format!(
        "FROM {base}\nRUN echo kept > /kept\nRUN echo started-$((40+2)) && {sleep} && echo over\n"
    );
    Context::new().file("Dockerfile", dockerfile)
}

#[track_caller]
fn started(client: &Client, context: &Context, sleep: &str) -> Started {
    let mut running = client.start(context, &["--output=type=cacheonly"]);
    running.wait_for(STARTED);
    sleeps(sleep, 1, Duration::from_secs(5));
    running
}

/// Waits until so many processes run the command `sleep`.
#[track_caller]
fn sleeps(sleep: &str, count: usize, limit: Duration) {
    let what = format!("{count} processes `{sleep}`");
    wait_until(&what, limit, || leak::running(sleep) == count);
}

#[test]
fn sol09_an_interrupted_or_killed_client_takes_its_step_along() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let sleep = "sleep 86461";
    let context = sleeper(&push_busybox(&registry), sleep);
    let daemon = Daemon::start();
    for client in Client::of(&daemon) {
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            let running = started(&client, &context, sleep);
            running.signal(signal);
            sleeps(sleep, 0, Duration::from_secs(1));
            let ran = running.finish_within(Duration::from_secs(10));
            assert_ne!(ran.code, 0, "{}: {}", client.name(), ran.output);
            watch.check_steps();
        }
        // What was done before is not lost, and the daemon goes on.
        let one = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
        client.build(&one, &["--output=type=cacheonly"]).success();
    }
    drop((daemon, registry, context));
    watch.check();
}

#[test]
fn sol09_a_build_with_no_daemon_ends_with_its_process() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let sleep = "sleep 86463";
    let context = sleeper(&push_busybox(&registry), sleep);
    let client = Client::alone();
    let running = started(&client, &context, sleep);
    running.signal(Signal::SIGINT);
    sleeps(sleep, 0, Duration::from_secs(1));
    let ran = running.finish_within(Duration::from_secs(10));
    assert_ne!(ran.code, 0, "{}", ran.output);
    watch.check_steps();
    // Killed, it cannot clean up. The next build does.
    let running = started(&client, &context, sleep);
    running.signal(Signal::SIGKILL);
    running.finish_within(Duration::from_secs(10));
    let one = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    client.build(&one, &["--output=type=cacheonly"]).success();
    sleeps(sleep, 0, Duration::from_secs(1));
    drop((client, registry, context, one));
    watch.check();
}

#[test]
fn cm05_a_daemon_that_was_killed_in_a_build_loses_nothing_and_uses_nothing_half_made() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let sleep = "sleep 86464";
    let dockerfile = format!(
        "FROM {base} AS one\n\
         RUN cat /proc/sys/kernel/random/uuid > /id\n\
         FROM one AS two\n\
         RUN --mount=type=cache,target=/go echo half > /half && echo started-$((40+2)) && \
         {{ [ -e /go/on ] || {{ touch /go/on; {sleep}; }}; }} && echo whole > /whole\n\
         FROM scratch AS first\nCOPY --from=one /id /\n\
         FROM scratch AS both\nCOPY --from=two /id /half /whole /\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let mut daemon = Daemon::start();
    let client = Client::buildx(&daemon);
    let out = Out::new();
    let mut running = client.start(&context, &["--target=both", &out.local("lost")]);
    running.wait_for(STARTED);
    daemon.kill();
    let ran = running.finish_within(Duration::from_secs(30));
    assert_ne!(ran.code, 0, "{}", ran.output);

    daemon.spawn();
    sleeps(sleep, 0, Duration::from_secs(1));
    watch.check_steps();
    let first = client
        .build(&context, &["--target=first", &out.local("first")])
        .success();
    assert!(first.cached("RUN cat /proc/sys"), "{}", first.output);
    let both = client
        .build(&context, &["--target=both", &out.local("both")])
        .success();
    assert!(!both.cached("RUN --mount=type=cache"), "{}", both.output);
    assert_eq!(out.read("both/whole"), "whole\n");
    assert_eq!(out.read("both/id"), out.read("first/id"));
    drop((client, daemon, registry, out, context));
    watch.check();
}
