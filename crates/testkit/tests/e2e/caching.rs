//! What is built again, and what is not.

use std::time::Duration;

use cooper_testkit::{Client, Context, Daemon, Ran, Registry, leak, push_busybox};

use crate::Out;

const PREPARE: &str = "[build 2/4] RUN echo tools";
const COPY: &str = "[build 3/4] COPY hello.txt .";
const MAKE: &str = "[build 4/4] RUN grep -v";
const RESULT: &str = "[stage-1 1/1] COPY --from=build /hello /";

/// The steps of a compilation, with a filter of comments for a compiler.
fn context(base: &str) -> Context {
    let dockerfile = format!(
        "FROM {base} AS build\n\
         RUN echo tools > /tools && cat /proc/sys/kernel/random/uuid > /id\n\
         COPY hello.txt .\n\
         RUN grep -v '^#' hello.txt > /hello\n\
         FROM scratch\n\
         COPY --from=build /hello /\n"
    );
    Context::new()
        .file("Dockerfile", dockerfile)
        .file("hello.txt", "hello\n")
}

#[track_caller]
fn all_cached(ran: &Ran) {
    for step in [PREPARE, COPY, MAKE, RESULT] {
        assert!(ran.cached(step), "{step} was not cached:\n{}", ran.output);
    }
}

#[test]
fn sol03_sol10_the_same_again_is_cached_also_after_the_daemon_was_stopped_and_killed() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let mut daemon = Daemon::start();
    let [buildx, cooper] = Client::of(&daemon);
    let out = Out::new();
    let build = |client: &Client| client.build(&context, &[&out.local("x")]).success();
    let first = build(&buildx);
    assert!(
        !first.cached(PREPARE) && !first.cached(RESULT),
        "{}",
        first.output
    );
    all_cached(&build(&buildx));
    all_cached(&build(&cooper));

    // A new time is no new content.
    let file = context.path().join("hello.txt");
    let touched = std::fs::File::options().write(true).open(&file).unwrap();
    touched
        .set_modified(std::time::SystemTime::now() - Duration::from_secs(1000))
        .unwrap();
    all_cached(&build(&buildx));

    daemon.stop();
    daemon.spawn();
    all_cached(&build(&buildx));
    daemon.kill();
    daemon.spawn();
    all_cached(&build(&buildx));
    assert_eq!(out.read("x/hello"), "hello\n");

    // Only what depends on a change is made again, and its result may turn out to be the same.
    context.write("hello.txt", "# a comment\nhello\n");
    let changed = build(&buildx);
    assert!(
        changed.cached(PREPARE) && changed.cached(RESULT),
        "{}",
        changed.output
    );
    assert!(
        !changed.cached(COPY) && !changed.cached(MAKE),
        "{}",
        changed.output
    );
    context.write("hello.txt", "goodbye\n");
    let changed = build(&cooper);
    assert!(
        changed.cached(PREPARE) && !changed.cached(RESULT),
        "{}",
        changed.output
    );
    assert_eq!(out.read("x/hello"), "goodbye\n");

    // And all of it when that is asked for.
    let forced = buildx
        .build(&context, &["--no-cache", &out.local("x")])
        .success();
    assert!(
        !forced.cached(PREPARE) && !forced.cached(MAKE),
        "{}",
        forced.output
    );

    drop((buildx, cooper, daemon, registry, out, context));
    watch.check();
}

#[test]
fn sol10_mnt05_what_was_durable_is_there_after_the_machine_died() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let context = context(&push_busybox(&registry));
    let kept = |step: &str| {
        let dockerfile = format!(
            "FROM {}\nRUN --mount=type=cache,target=/kept {step}\n",
            push_busybox(&registry)
        );
        Context::new().file("Dockerfile", dockerfile)
    };
    let mut daemon = Daemon::start();
    let [buildx, cooper] = Client::of(&daemon);
    let out = Out::new();
    let build = |client: &Client| client.build(&context, &[&out.local("x")]).success();
    build(&buildx);
    buildx.build(&kept("echo 1 > /kept/file"), &[]).success();
    daemon.wait_durable();

    // What uses it, packs it and names it anew is not durable, and takes nothing along.
    all_cached(&build(&cooper));
    let image = format!("--output=type=oci,dest={}", out.path("image.tar").display());
    all_cached(&buildx.build(&context, &[&image]).success());
    daemon.kill_with_machine();
    daemon.spawn();
    all_cached(&build(&buildx));
    all_cached(&build(&cooper));
    buildx.build(&kept("grep -x 1 /kept/file"), &[]).success();
    assert_eq!(out.read("x/hello"), "hello\n");

    drop((buildx, cooper, daemon, registry, out, context));
    watch.check();
}

#[test]
fn df14_independent_stages_run_at_the_same_time() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    // Each waits for the other, for at most 20 s.
    let wait = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/meet touch /meet/{own} && \
             for i in $(seq 200); do [ -e /meet/{other} ] && echo met > /met && exit 0; \
             sleep 0.1; done; exit 1\n"
        )
    };
    let dockerfile = format!(
        "FROM {base} AS a\n{}FROM {base} AS b\n{}\
         FROM scratch\nCOPY --from=a /met /a\nCOPY --from=b /met /b\n",
        wait("a", "b"),
        wait("b", "a")
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let out = Out::new();
    let client = Client::buildx(&daemon);
    client.build(&context, &[&out.local("x")]).success();
    assert_eq!(out.read("x/a") + &out.read("x/b"), "met\nmet\n");
    drop((client, daemon, registry, out, context));
    watch.check();
}

#[test]
fn df14_a_stage_that_is_not_needed_is_not_built() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "FROM {base} AS unused\nRUN echo never && exit 1\n\
         FROM {base} AS used\nRUN echo yes > /yes\n\
         FROM scratch AS out\nCOPY --from=used /yes /\n\
         FROM unused AS last\nRUN exit 1\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    for client in Client::of(&daemon) {
        let out = Out::new();
        let ran = client
            .build(&context, &["--target=out", &out.local("x")])
            .success();
        assert_eq!(ran.count("echo never"), 0, "{}", ran.output);
        assert_eq!(out.read("x/yes"), "yes\n");
    }
    drop((daemon, registry, context));
    watch.check();
}
