//! Several who want the same.

use cooper_testkit::{Client, Context, Daemon, Registry, leak, push_busybox};

use crate::Out;

#[test]
fn sol07_two_clients_at_once_have_each_step_run_once() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let count = "RUN --mount=type=cache,target=/count";
    let dockerfile = format!(
        "FROM {base} AS work\n\
         {count} echo run >> /count/runs && sleep 2 && cat /proc/sys/kernel/random/uuid > /id\n\
         COPY x /x\n\
         RUN cat /proc/sys/kernel/random/uuid > /second\n\
         FROM scratch AS result\n\
         COPY --from=work /id /second /\n\
         FROM {base} AS counting\n\
         {count} cp /count/runs /runs\n\
         FROM scratch AS counted\n\
         COPY --from=counting /runs /\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile).file("x", "x");
    let out = Out::new();
    let [buildx, cooper] = Client::of(&daemon);
    let targets = [out.local("a"), out.local("b")];
    let running = [
        buildx.start(&context, &["--target=result", &targets[0]]),
        cooper.start(&context, &["--target=result", &targets[1]]),
    ];
    for started in running {
        started.finish().success();
    }
    for file in ["id", "second"] {
        let (a, b) = (
            out.read(&format!("a/{file}")),
            out.read(&format!("b/{file}")),
        );
        assert_eq!((a.len(), &a), (37, &b), "{file}");
    }
    buildx
        .build(&context, &["--target=counted", &out.local("c")])
        .success();
    assert_eq!(out.read("c/runs"), "run\n");
    drop((buildx, cooper, daemon, registry, out, context));
    watch.check();
}

#[test]
fn sol07_one_client_that_leaves_does_not_take_the_step_of_the_other() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "FROM {base} AS work\n\
         RUN echo started-$((40+2)) && sleep 3 && cat /proc/sys/kernel/random/uuid > /id\n\
         FROM scratch\nCOPY --from=work /id /\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let out = Out::new();
    let [buildx, cooper] = Client::of(&daemon);
    let (to_a, to_b) = (out.local("a"), out.local("b"));
    let mut leaves = buildx.start(&context, &[&to_a]);
    leaves.wait_for("started-42");
    let mut stays = cooper.start(&context, &[&to_b]);
    stays.wait_for("RUN echo started");
    leaves.signal(nix::sys::signal::Signal::SIGINT);
    let left = leaves.finish();
    assert_ne!(left.code, 0, "{}", left.output);
    stays.finish().success();
    assert_eq!(out.read("b/id").len(), 37);
    drop((buildx, cooper, daemon, registry, out, context));
    watch.check();
}
