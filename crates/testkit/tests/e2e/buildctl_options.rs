//! `cooper build` with the options of `buildctl build`.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cooper_llb::build::{Constraints, Local, MarshalOptions, State};
use cooper_testkit::{Context, Daemon, Started, cooper, leak, run};
use nix::sys::signal::Signal;
use prost::Message;

use crate::Out;
use crate::client::{Files, copy};

fn command(daemon: &Daemon, home: &Out) -> Command {
    let mut command = cooper(&home.path("home"));
    command.args(["build", "--progress=plain", "--addr", &daemon.address()]);
    command
}

/// Runs with `input` on standard input.
fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that has failed before it read is of interest, too.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ctl07_a_frontend_with_directories_and_options() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new()
        .file(
            "docker/My.dockerfile",
            "FROM scratch AS one\nARG NAME\nCOPY file /$NAME\nFROM one\nCOPY file /no\n",
        )
        .file("src/file", "content");
    let out = Out::new();
    let dir = |name: &str| context.path().join(name).display().to_string();
    let (metadata, reference) = (out.path("metadata.json"), out.path("ref"));
    run(command(&daemon, &out)
        .arg("--frontend=dockerfile.v0")
        .args(["--local", &format!("context={}", dir("src"))])
        .args(["--local", &format!("dockerfile={}", dir("docker"))])
        .args(["--opt", "filename=My.dockerfile", "--opt", "target=one"])
        .args(["--opt", "build-arg:NAME=given", &out.local("result")])
        .args(["--metadata-file", metadata.to_str().unwrap()])
        .args(["--ref-file", reference.to_str().unwrap()]))
    .success();
    assert_eq!(out.read("result/given"), "content");
    assert!(!out.path("result/no").exists());
    let metadata: serde_json::Value = serde_json::from_str(&out.read("metadata.json")).unwrap();
    assert!(metadata.is_object(), "{metadata}");
    assert!(!out.read("ref").is_empty() && !out.read("ref").contains('\n'));

    // buildctl's form of an image, into an archive.
    let archive = format!(
        "--output=type=oci,name=example.org/x:1,dest={}",
        out.path("x.tar").display()
    );
    let ran = run(command(&daemon, &out)
        .args(["--frontend=dockerfile.v0", &archive, "--no-cache"])
        .args(["--local", &format!("context={}", dir("src"))])
        .args(["--local", &format!("dockerfile={}", dir("docker"))])
        .args(["--opt=filename=My.dockerfile", "--opt=build-arg:NAME=given"]))
    .success();
    assert!(!ran.cached("COPY file /given"), "{}", ran.output);
    assert!(out.path("x.tar").exists());
    drop((daemon, context, out));
    watch.check();
}

fn graph(marker: &str) -> Vec<u8> {
    let local = State::local("src", Local::default(), Constraints::default());
    let state = State::scratch().copy(copy(&local, "file", &format!("/{marker}")));
    state.marshal(&MarshalOptions::default()).encode_to_vec()
}

#[test]
fn ctl07_a_graph_on_standard_input() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new().file("file", "content");
    let out = Out::new();
    let local = format!("--local=src={}", context.path().display());
    let graph = graph("from-graph");
    let build = |more: &[&str], input: &[u8]| with_input(command(&daemon, &out).args(more), input);
    let to = out.local("result");
    let built = build(&[&local, &to], &graph);
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(
        std::fs::read_to_string(out.path("result/from-graph")).unwrap(),
        "content"
    );
    let again = build(&[&local], &graph);
    assert!(text(&again).contains(" CACHED"), "{}", text(&again));
    let anew = build(&[&local, "--no-cache"], &graph);
    assert!(
        anew.status.success() && !text(&anew).contains(" CACHED"),
        "{}",
        text(&anew)
    );

    for (more, input, expected) in [
        (vec![], &graph[..], "local directory src not enabled"),
        (vec![&*local], b"", "empty definition"),
        (vec![&*local], b"FROM scratch\n", "failed to parse input"),
        (vec!["--local=src=/no/such/dir"], &graph[..], "/no/such/dir"),
        (vec!["--frontend=none.v0"], b"", "none.v0"),
        (
            vec!["--frontend=dockerfile.v0", "--opt=x"],
            b"",
            "invalid opt",
        ),
        (
            vec!["--frontend=dockerfile.v0", "--progress=loud"],
            b"",
            "rawjson",
        ),
        (
            vec!["--frontend=dockerfile.v0", "--progress=tty"],
            b"",
            "failed to get console",
        ),
    ] {
        let failed = build(&more, input);
        assert!(!failed.status.success());
        assert!(
            text(&failed).contains(expected),
            "{expected}: {}",
            text(&failed)
        );
    }
    drop((daemon, context, out));
    watch.check();
}

#[test]
fn ctl07_what_the_daemon_has_not_is_said() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let out = Out::new();
    let policy = context.write(
        "policy.json",
        br#"{"rules": [{"action": "DENY", "selector": {"identifier": "*"}}]}"#,
    );
    let policy = format!("--source-policy-file={}", policy.display());
    for (option, expected) in [
        (
            "--export-cache=type=registry,ref=127.0.0.1:1/x",
            "cache export",
        ),
        (&*policy, "source policies"),
        ("--allow=security.insecure", "security.insecure"),
    ] {
        let ran = run(command(&daemon, &out).arg(option).arg(context.path()));
        ran.fails_with(&[expected]);
    }
    drop((daemon, context, out));
    watch.check();
}

#[test]
fn sol16_progress_for_programs() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let out = Out::new();
    let built = with_input(
        cooper(&out.path("home"))
            .args(["build", "--progress=rawjson", "--addr", &daemon.address()])
            .arg(context.path()),
        b"",
    );
    assert!(built.status.success(), "{}", text(&built));
    let mut names = Vec::new();
    let mut completed = 0;
    for line in text(&built).lines() {
        let status: serde_json::Value = serde_json::from_str(line).unwrap();
        let empty = Vec::new();
        for vertex in status["vertexes"].as_array().unwrap_or(&empty) {
            assert!(
                vertex["digest"].as_str().unwrap().starts_with("sha256:"),
                "{vertex}"
            );
            names.push(vertex["name"].as_str().unwrap().to_owned());
            completed += usize::from(vertex["completed"].is_string());
        }
        for part in status["statuses"].as_array().unwrap_or(&empty) {
            assert!(
                part["current"].is_i64() && part["timestamp"].is_string(),
                "{part}"
            );
        }
    }
    assert!(
        names.iter().any(|name| name == "[1/1] COPY Dockerfile /"),
        "{names:?}"
    );
    assert!(completed >= 3, "{names:?}");
    let quiet = run(cooper(&out.path("home"))
        .args(["build", "--progress=quiet", "--addr", &daemon.address()])
        .arg(context.path()))
    .success();
    assert_eq!(quiet.output, "");
    drop((daemon, context, out));
    watch.check();
}

#[test]
fn ctl07_a_second_interrupt_ends_at_once() {
    // A daemon that takes the request and never answers it.
    let out = Out::new();
    let path = out.path("silent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let context = Context::new().file("Dockerfile", "FROM scratch\n");
    let started = Started::new(
        cooper(&out.path("home"))
            .args(["build", "--addr", &format!("unix://{}", path.display())])
            .arg(context.path()),
    );
    let (mut connection, _) = listener.accept().unwrap();
    // It speaks: the request is on its way.
    let mut first = [0; 24];
    std::io::Read::read_exact(&mut connection, &mut first).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    started.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    started.signal(Signal::SIGINT);
    let ran = started.finish_within(Duration::from_secs(20));
    assert_eq!(ran.code, 130, "{}", ran.output);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    drop(connection);
}
