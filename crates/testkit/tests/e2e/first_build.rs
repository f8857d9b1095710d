//! The build that the README of every project begins with: install a compiler, compile, keep
//! the program alone.

use std::path::Path;
use std::process::Command;

use cooper_testkit::{Client, Context, Daemon, Pulled, Ran, Registry, leak, push_debian, run};

use crate::Out;

const SOURCE: &str = "#include <stdio.h>\nint main(void) { puts(\"Hello from the cask\"); }\n";

fn context(base: &str) -> Context {
    let dockerfile = format!(
        "FROM {base} AS build\n\
         RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev\n\
         WORKDIR /src\n\
         COPY hello.c .\n\
         RUN gcc -static -o /hello hello.c\n\
         FROM scratch\n\
         COPY --from=build /hello /hello\n\
         CMD [\"/hello\"]\n"
    );
    Context::new()
        .file("Dockerfile", dockerfile)
        .file("hello.c", SOURCE)
}

const INSTALL: &str = "[build 2/5] RUN apt-get update";
const COPY: &str = "[build 4/5] COPY hello.c .";
const COMPILE: &str = "[build 5/5] RUN gcc -static";
const RESULT: &str = "[stage-1 1/1] COPY --from=build /hello /hello";

#[track_caller]
fn greets(program: &Path) {
    let ran = run(&mut Command::new(program)).success();
    assert_eq!(ran.output, "Hello from the cask\n");
}

#[track_caller]
fn all_cached(ran: &Ran) {
    for step in [INSTALL, COPY, COMPILE, RESULT] {
        assert!(ran.cached(step), "{step} was not cached:\n{}", ran.output);
    }
}

#[test]
fn a_compiler_is_installed_and_its_program_leaves_by_every_way() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_debian(&registry);
    let daemon = Daemon::start();
    let context = context(&base);
    let out = Out::new();
    let [buildx, cooper] = Client::of(&daemon);

    // Pushed: the registry has it, and whoever pulls it gets the program.
    let name = format!("{}/hello:1", registry.host());
    let metadata = out.path("metadata.json");
    let metadata_file = format!("--metadata-file={}", metadata.display());
    let first = buildx
        .build(&context, &["--push", "--tag", &name, &metadata_file])
        .success();
    assert!(!first.cached(INSTALL), "{}", first.output);
    let pulled = Pulled::registry(&name);
    assert_eq!(pulled.config["config"]["Cmd"][0], "/hello");
    assert_eq!(pulled.layers(), 1);
    greets(&pulled.unpack().join("hello"));
    let told: serde_json::Value = serde_json::from_str(&out.read("metadata.json")).unwrap();
    let inspected = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
        .arg(format!("docker://{name}")))
    .success();
    assert_eq!(
        told["containerimage.digest"].as_str().unwrap(),
        inspected.output.trim(),
        "{told}"
    );

    // As a tar for both clients; nothing is built again.
    for (client, kind) in [(&buildx, "oci"), (&cooper, "oci"), (&cooper, "docker")] {
        let tar = out.path(&format!("{}-{kind}.tar", client.name()));
        let output = format!("--output=type={kind},dest={},name={name}", tar.display());
        let again = client.build(&context, &[&output]).success();
        all_cached(&again);
        let pulled = Pulled::from(&format!("{kind}-archive:{}", tar.display()));
        greets(&pulled.unpack().join("hello"));
    }

    // As files.
    for client in [&buildx, &cooper] {
        all_cached(
            &client
                .build(&context, &[&out.local(client.name())])
                .success(),
        );
        greets(&out.path(client.name()).join("hello"));
    }

    // A comment in the source: compiled again, and the program is the same, so the result is.
    context.write("hello.c", format!("{SOURCE}// And that is all.\n"));
    let changed = buildx.build(&context, &[&out.local("changed")]).success();
    assert!(
        changed.cached(INSTALL) && changed.cached(RESULT),
        "{}",
        changed.output
    );
    assert!(
        !changed.cached(COPY) && !changed.cached(COMPILE),
        "{}",
        changed.output
    );
    greets(&out.path("changed/hello"));

    drop((buildx, cooper, daemon, registry, out, context, pulled));
    watch.check();
}

#[test]
fn the_same_is_built_with_no_daemon() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_debian(&registry);
    let context = context(&base);
    let out = Out::new();
    let client = Client::alone();
    let first = client.build(&context, &[&out.local("first")]).success();
    assert!(!first.cached(COMPILE), "{}", first.output);
    greets(&out.path("first/hello"));
    // The process of the first build has ended; what it built is still there.
    let name = format!("{}/hello:alone", registry.host());
    all_cached(
        &client
            .build(&context, &["--push", "--tag", &name])
            .success(),
    );
    let pulled = Pulled::registry(&name);
    greets(&pulled.unpack().join("hello"));
    drop((client, registry, out, context, pulled));
    watch.check();
}
