//! Dockerfiles with mistakes in them: the message names the mistake and its place, and the
//! daemon goes on.

use cooper_testkit::{Client, Context, Daemon, Registry, leak, push_busybox};

/// A Dockerfile, further arguments, and what the client has to print.
type Case = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const CASES: &[Case] = &[
    (
        "FROM scratch\nFOO bar\n",
        &[],
        &["Dockerfile:2", ">>> FOO bar", "unknown instruction: FOO"],
    ),
    (
        "FROM scratch\nCOPY a\n",
        &[],
        &["Dockerfile:2", "COPY requires at least two arguments"],
    ),
    ("", &[], &["the Dockerfile cannot be empty"]),
    ("# nothing\n", &[], &["file with no instructions"]),
    ("RUN true\n", &[], &["no build stage in current context"]),
    (
        "FROM scratch AS one\nCOPY Dockerfile /\n",
        &["--target=two"],
        &["target stage \"two\" could not be found"],
    ),
    (
        "FROM scratch\nCOPY missing.txt /\n",
        &[],
        &[
            "Dockerfile:2",
            ">>> COPY missing.txt /",
            "\"/missing.txt\": not found",
        ],
    ),
    (
        "FROM scratch\nCOPY ../outside /\n",
        &[],
        &["Dockerfile:2", "\"/outside\": not found"],
    ),
    (
        "FROM BASE\nRUN echo before && exit 7\n",
        &[],
        &[
            "Dockerfile:2",
            ">>> RUN echo before && exit 7",
            "process \"/bin/sh -c echo before && exit 7\" did not complete successfully: exit code: 7",
        ],
    ),
    (
        "FROM BASE\nRUN [\"/not/there\"]\n",
        &[],
        &["Dockerfile:2", "/not/there"],
    ),
    (
        "FROM BASE\nUSER nobody-knows\nRUN true\n",
        &[],
        &["unable to find user nobody-knows"],
    ),
    (
        "FROM BASE AS a\nFROM BASE AS a\n",
        &["--target=c"],
        &["target stage"],
    ),
    ("FROM scratch\nCOPY --from=0 /x /\n", &[], &[]),
    (
        "FROM scratch\nADD --checksum=nonsense http://127.0.0.1:1/x /\n",
        &[],
        &[],
    ),
    (
        "FROM scratch\nENV\n",
        &[],
        &["Dockerfile:2", "ENV requires at least one argument"],
    ),
    ("FROM scratch\nLABEL \"a\n", &[], &["Dockerfile:2"]),
];

#[test]
fn err03_a_mistake_is_named_with_its_place_and_the_daemon_goes_on() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let mut daemon = Daemon::start();
    let clients = Client::of(&daemon);
    for (dockerfile, args, parts) in CASES {
        let context = Context::new().file("Dockerfile", dockerfile.replace("BASE", &base));
        for client in &clients {
            let mut all = vec!["--output=type=cacheonly"];
            all.extend(*args);
            let ran = client.build(&context, &all);
            eprintln!("{}: {dockerfile:?} gives code {}", client.name(), ran.code);
            ran.fails_with(parts);
        }
        assert!(
            daemon.is_running(),
            "after {dockerfile:?}:\n{}",
            daemon.log()
        );
    }
    let context = Context::new();
    for client in &clients {
        client
            .build(&context, &["--output=type=cacheonly"])
            .fails_with(&[
                "failed to read dockerfile",
                "Dockerfile: no such file or directory",
            ]);
    }
    let fine = context.file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    for client in &clients {
        client.build(&fine, &["--output=type=cacheonly"]).success();
    }
    drop((clients, daemon, registry, fine));
    watch.check();
}

#[test]
fn sol03_what_failed_is_not_cached_and_what_came_before_is() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let daemon = Daemon::start();
    let dockerfile = format!(
        "FROM {base}\nRUN echo before > /before\n\
         RUN --mount=type=cache,target=/once [ -e /once/x ] || {{ touch /once/x; exit 3; }}\n"
    );
    let context = Context::new().file("Dockerfile", dockerfile);
    let client = Client::buildx(&daemon);
    client
        .build(&context, &["--output=type=cacheonly"])
        .fails_with(&["exit code: 3"]);
    let again = client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    assert!(again.cached("RUN echo before"), "{}", again.output);
    assert!(!again.cached("RUN --mount"), "{}", again.output);
    drop((client, daemon, registry, context));
    watch.check();
}
