//! Further processes in a container that runs.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::{Fixture, Written, shell};
use crate::{ContainerSpec, ExecError, Exit, Input, Output, Process, Running, TtySize};

/// The longest that a process of a case may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A container that stays until its handle is dropped.
async fn container(fixture: &Fixture) -> Arc<dyn Running> {
    started(fixture, fixture.container()).await
}

async fn started(fixture: &Fixture, container: ContainerSpec) -> Arc<dyn Running> {
    let mut process = shell("sleep 1000");
    process.env.push("OF=first".into());
    let running = fixture.executor.start(container, process).await;
    running.unwrap()
}

async fn run(running: &Arc<dyn Running>, mut process: Process) -> (Exit, String) {
    let written = Written::default();
    process.stdout = written.output();
    process.stderr = written.output();
    let other = running.exec(process).await.unwrap();
    let exit = tokio::time::timeout(LIMIT, other.wait()).await;
    (exit.expect("it does not end").unwrap(), written.text())
}

pub(super) async fn another_process_has_its_own_environment(fixture: &Fixture) {
    let running = container(fixture).await;
    let same = Process::new(["/bin/sh", "-c", "echo $OF"]);
    assert_eq!(run(&running, same).await.1, "first\n");
    let mut own = shell("echo $OF$OWN");
    own.env.push("OWN=own".into());
    assert_eq!(run(&running, own).await.1, "own\n");
}

pub(super) async fn another_process_has_its_own_directory(fixture: &Fixture) {
    let running = container(fixture).await;
    assert_eq!(run(&running, shell("pwd")).await.1, "/\n");
    let own = Process {
        cwd: "/tmp".into(),
        ..shell("pwd")
    };
    assert_eq!(run(&running, own).await.1, "/tmp\n");
}

pub(super) async fn another_process_has_its_own_user(fixture: &Fixture) {
    let running = container(fixture).await;
    let script = "echo $(id -u) $(id -g) $(id -G | tr ' ' ,)";
    for (user, expected) in [
        ("app", "1000 1001 1001,10"),
        ("7:8", "7 8 8"),
        ("app:adm", "1000 4 4"),
        ("", "0 0 0"),
    ] {
        let process = Process {
            user: user.into(),
            ..shell(script)
        };
        assert_eq!(run(&running, process).await.1.trim(), expected, "{user}");
    }
    let process = Process {
        user: "nobody".into(),
        ..shell("true")
    };
    let error = running.exec(process).await.err().unwrap();
    assert!(error.to_string().contains("unable to find user nobody"));
}

pub(super) async fn another_process_tells_its_end(fixture: &Fixture) {
    let running = container(fixture).await;
    let told = |code| Exit { code, oom: false };
    for (script, code) in [
        ("exit 0", 0),
        ("exit 77", 77),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
        ("kill -6 $$", 134),
    ] {
        assert_eq!(run(&running, shell(script)).await.0, told(code), "{script}");
    }
}

pub(super) async fn another_process_that_cannot_be_run_fails_alone(fixture: &Fixture) {
    let running = container(fixture).await;
    let mut process = Process::new(["/no/such/program"]);
    let written = Written::default();
    process.stderr = written.output();
    match running.exec(process).await {
        Ok(other) => {
            assert!(!other.wait().await.unwrap().success());
            assert!(
                written.text().contains("/no/such/program"),
                "{}",
                written.text()
            );
        }
        Err(error) => assert!(error.to_string().contains("/no/such/program"), "{error}"),
    }
    let error = running.exec(Process::default()).await.err().unwrap();
    assert!(matches!(error, ExecError::NoArgs), "{error}");
    assert!(run(&running, shell("true")).await.0.success());
}

pub(super) async fn another_process_is_signalled_alone(fixture: &Fixture) {
    let running = container(fixture).await;
    for signal in [1, 2, 3, 10, 12, 15] {
        let (read, write) = super::pipe();
        let mut process = shell("trap - HUP INT QUIT; echo up; exec sleep 1000");
        process.stdout = Output::Fd(Arc::new(write));
        let other = running.exec(process).await.unwrap();
        std::fs::File::from(read).read_exact(&mut [0; 3]).unwrap();
        // More than once: a shell that is about to become the other program can swallow one.
        let ended = async {
            loop {
                other.signal(signal).await.unwrap();
                tokio::select! {
                    exit = other.wait() => return exit,
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
            }
        };
        let exit = tokio::time::timeout(LIMIT, ended).await;
        let exit = exit.unwrap_or_else(|_| panic!("it goes on after signal {signal}"));
        assert_eq!(exit.unwrap().code, 128 + signal as u32);
        // One that has ended is no error.
        other.signal(signal).await.unwrap();
    }
    assert!(run(&running, shell("true")).await.0.success());
}

pub(super) async fn another_process_has_a_terminal(fixture: &Fixture) {
    let running = container(fixture).await;
    let written = Written::default();
    let (read, write) = super::pipe();
    let script =
        "trap 'stty size; exit 5' WINCH; test -t 1 && stty size; while :; do sleep 0.01; done";
    let process = Process {
        tty: Some(TtySize {
            rows: 22,
            columns: 66,
        }),
        stdin: Input::Fd(read),
        stdout: written.output(),
        ..shell(script)
    };
    let other = running.exec(process).await.unwrap();
    written.wait_for("22 66").await;
    other.resize(33, 77).await.unwrap();
    let exit = tokio::time::timeout(LIMIT, other.wait()).await;
    assert_eq!(exit.expect("it goes on").unwrap().code, 5);
    drop(write);
    let text = written.text().replace('\r', "");
    let now = fixture.resized("22 66", "33 77");
    assert_eq!(text, format!("22 66\n{now}\n"));
}

pub(super) async fn another_process_reads_and_writes(fixture: &Fixture) {
    let running = container(fixture).await;
    let input = vec![b'x'; 3_000_000];
    let process = Process {
        stdin: Input::Reader(Box::pin(std::io::Cursor::new(input))),
        ..shell("cat; echo; echo end >&2")
    };
    let (exit, text) = run(&running, process).await;
    assert!(exit.success());
    assert!(
        text.len() == 3_000_005 && text.contains("\n"),
        "{}",
        text.len()
    );
}

pub(super) async fn another_process_is_as_confined(fixture: &Fixture) {
    let running = container(fixture).await;
    let script = "grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status";
    let (_, text) = run(&running, shell(script)).await;
    let first = fixture.script(fixture.container(), script).await;
    assert_eq!(text, first);
    let process = Process {
        env: vec!["PATH=/bin".into()],
        ..Process::new(["/bin/ls", "/proc/self/fd"])
    };
    // The three, and that of the list.
    let (_, text) = run(&running, process).await;
    assert_eq!(text, "0\n1\n2\n3\n");
    let script = "for name in pid ipc uts mnt cgroup; do \
                  a=$(readlink /proc/self/ns/$name); b=$(readlink /proc/1/ns/$name); \
                  [ \"$a\" = \"$b\" ] || echo $name; done; \
                  cmp /proc/self/cgroup /proc/1/cgroup";
    assert_eq!(run(&running, shell(script)).await.1, "");
}

pub(super) async fn many_others_run_at_once(fixture: &Fixture) {
    let running = container(fixture).await;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..8 {
        let running = running.clone();
        all.spawn(async move {
            let script = format!("sleep 0.05; echo {number}; exit {number}");
            (number, run(&running, shell(&script)).await)
        });
    }
    while let Some(ended) = all.join_next().await {
        let (number, (exit, text)) = ended.unwrap();
        assert_eq!((exit.code, text), (number, format!("{number}\n")));
    }
}

pub(super) async fn output_of_an_orphan_of_another_is_not_lost(fixture: &Fixture) {
    let running = container(fixture).await;
    let (exit, text) = run(&running, shell("(sleep 0.2; echo late) & echo early")).await;
    assert!(exit.success());
    assert_eq!(text, "early\nlate\n");
}

pub(super) async fn another_process_needs_a_container(fixture: &Fixture) {
    let running = fixture
        .executor
        .start(fixture.container(), shell("exit 3"))
        .await
        .unwrap();
    assert_eq!(running.wait().await.unwrap().code, 3);
    let error = running.exec(shell("true")).await.err().unwrap();
    assert!(matches!(error, ExecError::Stopped { .. }), "{error}");
    // Of one that could not be started, too.
    let running = fixture
        .executor
        .start(fixture.container(), Process::new(["/no/such/program"]))
        .await;
    if let Ok(running) = running {
        let asked = tokio::time::timeout(LIMIT, running.exec(shell("true"))).await;
        assert!(asked.expect("it waits for ever").is_err());
    }
}
