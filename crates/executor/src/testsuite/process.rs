//! Processes: how they start, what they see, how they end.

use std::io::{Read, Write};
use std::sync::Arc;

use super::{Fixture, Written, shell};
use crate::{
    ContainerSpec, ExecError, Exit, Input, Output, Process, Resources, SecurityMode, TtySize,
    Ulimit,
};

pub(super) async fn exit_codes_and_signals_are_told(fixture: &Fixture) {
    for (script, code) in [
        ("true", 0),
        ("exit 3", 3),
        ("sh -c 'kill -9 $$'; exit $?", 137),
        ("/nothing", 127),
    ] {
        let (exit, text) = fixture.run(fixture.container(), shell(script)).await;
        assert_eq!(exit, Exit { code, oom: false }, "{script}: {text}");
    }
    // What the runtime complains about is output, and a failure.
    let (exit, text) = fixture
        .run(fixture.container(), Process::new(["/no/such/program"]))
        .await;
    assert!(!exit.success());
    assert!(text.contains("/no/such/program"), "{text}");

    let trap = shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done");
    let (running, mut output) = piped(fixture, trap).await;
    output.read_exact(&mut [0; 3]).unwrap();
    running.signal(15).await.unwrap();
    assert_eq!(running.wait().await.unwrap().code, 7);
    running.signal(15).await.unwrap();

    let endless = shell("sleep 1000");
    let running = fixture.executor.start(fixture.container(), endless);
    let running = running.await.unwrap();
    running.signal(9).await.unwrap();
    let (one, other) = tokio::join!(running.wait(), running.wait());
    let killed = Exit {
        code: 137,
        oom: false,
    };
    assert_eq!((one.unwrap(), other.unwrap()), (killed, killed));
}

/// Starts a process whose standard output is a pipe that is read here.
pub(super) async fn piped(
    fixture: &Fixture,
    process: Process,
) -> (Arc<dyn crate::Running>, std::fs::File) {
    piped_in(fixture, fixture.container(), process).await
}

/// As [`piped`], in a container of the case's own.
pub(super) async fn piped_in(
    fixture: &Fixture,
    container: ContainerSpec,
    mut process: Process,
) -> (Arc<dyn crate::Running>, std::fs::File) {
    let (read, write) = super::pipe();
    process.stdout = Output::Fd(Arc::new(write));
    let running = fixture.executor.start(container, process).await;
    (running.unwrap(), read.into())
}

pub(super) async fn output_and_input_are_connected(fixture: &Fixture) {
    let (out, err) = (Written::default(), Written::default());
    let mut process = shell("cat; echo out; echo err >&2; readlink /proc/self/fd/0 || true");
    process.stdin = Input::Reader(Box::pin(&b"from a reader\n"[..]));
    process.stdout = out.output();
    process.stderr = err.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert!(out.text().starts_with("from a reader\nout\n"));
    assert!(err.text().starts_with("err\n"));

    let (read, write) = super::pipe();
    std::fs::File::from(write)
        .write_all(b"from a pipe")
        .unwrap();
    let process = Process {
        stdin: Input::Fd(read),
        ..Process::new(["/bin/cat"])
    };
    let (_, text) = fixture.run(fixture.container(), process).await;
    assert_eq!(text, "from a pipe");
    let (exit, text) = fixture
        .run(fixture.container(), Process::new(["/bin/cat"]))
        .await;
    assert_eq!((exit.code, text.as_str()), (0, ""));

    // Input that nobody takes does not keep the process.
    let (_kept, never) = tokio::io::duplex(1);
    let process = Process {
        stdin: Input::Reader(Box::pin(never)),
        ..Process::new(["/bin/true"])
    };
    let (exit, _) = fixture.run(fixture.container(), process).await;
    assert!(exit.success());
    // Another user can still open what it writes to.
    let mut process = shell("echo again > /proc/self/fd/1");
    process.user = "app".into();
    let (exit, text) = fixture.run(fixture.container(), process).await;
    assert_eq!((exit.code, text.as_str()), (0, "again\n"));
}

pub(super) async fn much_output_loses_nothing(fixture: &Fixture) {
    let script = "head -c 20000000 /dev/zero & head -c 5000000 /dev/zero >&2; wait";
    let (out, err) = (Written::default(), Written::default());
    let mut process = shell(script);
    process.stdout = out.output();
    process.stderr = err.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert_eq!(out.bytes().len(), 20_000_000);
    assert_eq!(err.bytes().len(), 5_000_000);
    // The order of what is written is kept.
    let text = fixture.script(fixture.container(), "seq 1 100000").await;
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.is_sorted() && numbers.len() == 100_000);
}

pub(super) async fn environment_and_directory_are_as_asked(fixture: &Fixture) {
    let process = Process {
        env: vec!["A=b c".into(), "EMPTY=".into()],
        ..Process::new(["/bin/env"])
    };
    let (_, text) = fixture.run(fixture.container(), process).await;
    let mut lines: Vec<_> = text.lines().filter(|line| *line != "HOME=/root").collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b c", "EMPTY="]);

    let process = Process {
        cwd: "/new/place".into(),
        user: "app".into(),
        ..shell("pwd; stat -c %u:%g . ..")
    };
    let (exit, text) = fixture.run(fixture.container(), process).await;
    assert_eq!(exit.code, 0, "{text}");
    assert_eq!(text, "/new/place\n1000:1001\n1000:1001\n");
    let text = fixture.script(fixture.container(), "pwd").await;
    assert_eq!(text, "/\n");
}

pub(super) async fn users_are_looked_up(fixture: &Fixture) {
    let cases = [
        ("", "0 0 0"),
        ("app", "1000 1001 1001,10"),
        ("1000", "1000 1001 1001,10"),
        ("app:adm", "1000 4 4"),
        ("7:8", "7 8 8"),
        ("7", "7 0 0"),
    ];
    for (user, expected) in cases {
        let script = "echo $(id -u) $(id -g) $(id -G | tr ' ' ,)";
        let process = Process {
            user: user.into(),
            ..shell(script)
        };
        let (_, text) = fixture.run(fixture.container(), process).await;
        assert_eq!(text.trim(), expected, "{user}");
    }
}

pub(super) async fn a_terminal_has_a_size(fixture: &Fixture) {
    let written = Written::default();
    let (read, write) = super::pipe();
    let script = "test -t 0 && test -t 1 && stty size; trap 'stty size; exit 5' WINCH; \
                  echo up; while :; do sleep 0.01; done";
    let mut process = shell(script);
    process.tty = Some(TtySize {
        rows: 33,
        columns: 101,
    });
    process.stdin = Input::Fd(read);
    process.stdout = written.output();
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    let _open = write;
    written.wait_for("up").await;
    running.resize(44, 111).await.unwrap();
    assert_eq!(running.wait().await.unwrap().code, 5);
    let now = fixture.resized("33 101", "44 111");
    assert_eq!(written.text(), format!("33 101\r\nup\r\n{now}\r\n"));

    // What is typed is read, and seen.
    let (read, write) = super::pipe();
    std::fs::File::from(write).write_all(b"typed\n").unwrap();
    let written = Written::default();
    let mut process = shell("read line; echo got $line");
    process.tty = Some(TtySize::default());
    process.stdin = Input::Fd(read);
    process.stdout = written.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert_eq!(written.text(), "typed\r\ngot typed\r\n");
}

impl Written {
    /// Waits until `text` was written.
    pub(super) async fn wait_for(&self, text: &str) {
        let seen = async {
            while !String::from_utf8_lossy(&self.bytes()).contains(text) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), seen)
            .await
            .unwrap_or_else(|_| panic!("{text:?} is not in {:?}", self.text()));
    }
}

pub(super) async fn limits_are_set(fixture: &Fixture) {
    let container = ContainerSpec {
        ulimits: vec![Ulimit {
            name: "nofile".into(),
            soft: 123,
            hard: 456,
        }],
        ..fixture.container()
    };
    let text = fixture
        .script(container, "ulimit -S -n; ulimit -H -n")
        .await;
    assert_eq!(text, "123\n456\n");
}

pub(super) async fn confinement_is_as_asked(fixture: &Fixture) {
    let script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t ' ' '; \
                  chroot / true && echo chroot; \
                  mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
                  touch /sys/x 2>&1 | grep -q 'Read-only' && echo read-only sys; \
                  test -s /proc/kcore || echo masked; \
                  head -c 1 /dev/urandom | wc -c; \
                  test -e /dev/kmsg && echo kmsg; true";
    let text = fixture.script(fixture.container(), script).await;
    let filtered = if std::path::Path::new("/proc/sys/kernel/seccomp").exists() {
        "2"
    } else {
        "0"
    };
    let expected = format!(
        "CapEff: 00000000a80425fb\nNoNewPrivs: 0\nSeccomp: {filtered}\n\
         chroot\nread-only sys\nmasked\n1\n"
    );
    assert_eq!(text, expected);
    let container = ContainerSpec {
        security: SecurityMode::Insecure,
        ..fixture.container()
    };
    let text = fixture.script(container, script).await;
    assert!(text.contains("\nSeccomp: 0\nchroot\nmounted\n"), "{text}");
    assert!(
        text.ends_with("\nkmsg\n") && !text.contains("read-only sys"),
        "{text}"
    );
}

pub(super) async fn want_of_memory_is_told_apart(fixture: &Fixture) {
    let container = ContainerSpec {
        resources: Resources {
            memory: 32 << 20,
            memory_swap: 32 << 20,
            ..Resources::default()
        },
        ..fixture.container()
    };
    let greedy = shell("x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $x | wc -c");
    let (exit, text) = fixture.run(container, greedy).await;
    assert!(exit.oom && !exit.success(), "{exit}: {text}");
    assert!(exit.to_string().ends_with(": cannot allocate memory"));
}

pub(super) async fn mistakes_leave_nothing(fixture: &Fixture) {
    let start = |process| fixture.executor.start(fixture.container(), process);
    let mut process = shell("true");
    process.user = "nobody".into();
    let error = start(process).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "unable to find user nobody: no matching entries in passwd file"
    );
    let error = start(Process::default()).await.err().unwrap();
    assert!(matches!(error, ExecError::NoArgs));
    let container = ContainerSpec {
        id: Some("../x".into()),
        ..fixture.container()
    };
    let error = fixture.executor.start(container, shell("true")).await;
    assert!(matches!(error.err(), Some(ExecError::InvalidId { .. })));
}
