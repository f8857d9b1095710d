//! `cooper build` in its own process, as a user runs it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cooper_testkit::{Context, Ran, Started, run, wait_until};

/// A root for the cache, removed with everything in it.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("cooper-cli-").tempdir();
        Self(dir.unwrap())
    }

    fn command(&self, context: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cooper"));
        command
            .arg("build")
            .args(args)
            .arg(context)
            .env_remove("COOPER_ADDR")
            .env("COOPER_ROOT", self.0.path().join("root"))
            .env("DOCKER_CONFIG", self.0.path());
        command
    }

    fn build(&self, context: &Context, args: &[&str]) -> Ran {
        run(&mut self.command(context.path(), args))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Nothing of the build is mounted any more.
    fn check(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.0.path().to_str().unwrap();
        assert!(!mounts.contains(root), "{mounts}");
    }
}

fn busybox() -> Vec<u8> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    let found = places.iter().find_map(|path| std::fs::read(path).ok());
    found.expect("busybox-static is installed")
}

#[test]
fn files_come_out_and_the_next_build_is_cached() {
    let root = Root::new();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY a /\nCOPY dir /d/\n")
        .file(".dockerignore", "dir/not\n")
        .file("a", "one")
        .file("dir/b", "b")
        .file("dir/not", "not");
    let out = root.path("out");
    let ran = root.build(&context, &["-o", &out]).success();
    let load = ran.step("load build definition from Dockerfile");
    let transferred = |line: &&str| line.starts_with("transferring dockerfile: ");
    let done = load.iter().copied().find(transferred).unwrap();
    assert!(done.ends_with(" done"), "{load:?}");
    let read = |path: &str| std::fs::read_to_string(Path::new(&out).join(path)).unwrap();
    assert_eq!((read("a"), read("d/b")), ("one".into(), "b".into()));
    assert!(!Path::new(&out).join("d/not").exists());

    context.write("a", "two");
    let ran = root.build(&context, &["-o", &out]).success();
    assert_eq!(read("a"), "two");
    assert!(!ran.cached("COPY a /"), "{}", ran.output);
    root.check();
}

#[test]
fn a_failure_says_where() {
    let root = Root::new();
    let context = Context::new().program("busybox", busybox()).file(
        "Dockerfile",
        "FROM scratch\nCOPY busybox /bin/sh\nRUN echo some text; exit 3\n",
    );
    let ran = root.build(&context, &[]);
    assert_eq!(ran.code, 1);
    ran.fails_with(&[
        "ERROR: process \"/bin/sh -c echo some text; exit 3\" did not complete successfully: exit code: 3",
        "------\n > [2/2] RUN echo some text; exit 3:\n",
        "Dockerfile:3\n--------------------\n   1 |     FROM scratch\n",
        "   3 | >>> RUN echo some text; exit 3\n",
        "\nERROR: failed to build: failed to solve: process \"/bin/sh -c",
    ]);
    let missing = root.path("missing");
    let ran = run(&mut root.command(Path::new(&missing), &[]));
    ran.fails_with(&["ERROR: failed to build: unable to prepare context: path"]);
    root.check();
}

#[test]
fn an_image_is_written_with_its_digests() {
    let root = Root::new();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY a /\nLABEL from=file\n")
        .file("a", "a");
    let (tar, id, metadata) = (root.path("i.tar"), root.path("id"), root.path("m.json"));
    let output = format!("type=oci,dest={tar}");
    let args = ["-t", "x:1", "-o", &output, "--label", "l=v", "--quiet"];
    let files = ["--iidfile", &id, "--metadata-file", &metadata];
    let ran = root
        .build(&context, &[&args[..], &files].concat())
        .success();
    let id = std::fs::read_to_string(id).unwrap();
    assert!(id.starts_with("sha256:"));
    assert_eq!(
        ran.output,
        format!("{id}\n"),
        "quiet shows the digest alone"
    );
    let metadata = std::fs::read_to_string(metadata).unwrap();
    assert!(
        metadata.contains("\"image.name\": \"docker.io/library/x:1\""),
        "{metadata}"
    );
    assert!(
        metadata.contains("\"mediaType\""),
        "descriptors are readable"
    );
    let list = run(Command::new("tar").args(["-tf", &tar])).success();
    assert!(list.output.contains("oci-layout"));
    root.check();
}

#[test]
fn secrets_and_arguments_reach_the_build() {
    let root = Root::new();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/cat\nARG A\n\
                      RUN --mount=type=secret,id=s cat /run/secrets/s; echo; echo A=$A\n";
    let context = Context::new()
        .program("busybox", busybox())
        .file("Dockerfile", dockerfile);
    let secret = root.path("secret");
    std::fs::write(&secret, "hidden words").unwrap();
    let secret = format!("id=s,src={secret}");
    let ran = root
        .build(&context, &["--secret", &secret, "--build-arg", "A=1"])
        .success();
    let step = ran.step("RUN --mount=type=secret");
    assert!(
        step.iter().any(|line| line.ends_with(" hidden words")),
        "{step:?}"
    );
    assert!(step.iter().any(|line| line.ends_with(" A=1")), "{step:?}");
    root.check();
}

#[test]
fn an_interrupted_build_leaves_nothing() {
    let root = Root::new();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sleep\n\
                      RUN echo begun; sleep 54321\n";
    let context = Context::new()
        .program("busybox", busybox())
        .file("Dockerfile", dockerfile);
    let started = Started::new(&mut root.command(context.path(), &[]));
    let running = || {
        let found = Command::new("pgrep").args(["-fx", "sleep 54321"]).output();
        found.unwrap().status.success()
    };
    wait_until("the step runs", Duration::from_secs(30), running);
    started.signal(nix::sys::signal::Signal::SIGINT);
    let ran = started.finish();
    assert_eq!(ran.code, 130, "{}", ran.output);
    assert!(ran.output.contains("CANCELED"), "{}", ran.output);
    assert!(!running());
    root.check();
}
