//! Who lives how long.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::process::piped;
use super::{Fixture, Written, shell};
use crate::{ContainerSpec, ExecError, Output, Process, Running};

/// The longest that killing may take.
const SOON: Duration = Duration::from_secs(1);

/// Waits until nobody has the other end of a pipe any more.
async fn end_of(mut output: std::fs::File) {
    let end = tokio::task::spawn_blocking(move || output.read_to_end(&mut Vec::new()));
    let end = tokio::time::timeout(SOON, end).await;
    end.expect("the process is still there").unwrap().unwrap();
}

pub(super) async fn dropping_the_handle_kills(fixture: &Fixture) {
    let script = "echo up; sleep 1000 & (trap '' TERM HUP INT; sleep 1000) & sleep 1000";
    let (running, mut output) = piped(fixture, shell(script)).await;
    output.read_exact(&mut [0; 3]).unwrap();
    drop(running);
    end_of(output).await;
    // And before the container is there.
    let (running, output) = piped(fixture, shell("sleep 1000")).await;
    drop(running);
    end_of(output).await;
}

async fn exec(running: &Arc<dyn Running>, mut process: Process) -> (u32, String) {
    let written = Written::default();
    process.stdout = written.output();
    process.stderr = written.output();
    let other = running.exec(process).await.unwrap();
    let exit = other.wait().await.unwrap();
    (exit.code, written.text())
}

pub(super) async fn others_run_in_the_container(fixture: &Fixture) {
    let mut process = shell("touch /tmp/shared; trap 'exit 4' TERM; while :; do sleep 0.01; done");
    process.env.push("OF=init".into());
    process.cwd = "/tmp".into();
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    let same = Process::new(["/bin/sh", "-c", "echo $OF; pwd; id -u; exit 3"]);
    assert_eq!(exec(&running, same).await, (3, "init\n/tmp\n0\n".into()));
    let mut other = shell("echo $OF; pwd; id -u; cat /proc/1/comm");
    other.cwd = "/bin".into();
    other.user = "app".into();
    let (code, text) = exec(&running, other).await;
    assert_eq!((code, text.as_str()), (0, "\n/bin\n1000\nsh\n"));
    let mut bad = shell("true");
    bad.user = "nobody".into();
    assert!(running.exec(bad).await.is_err());
    // Signals go to the process that is meant.
    let other = running
        .exec(shell("trap 'exit 6' TERM; while :; do sleep 0.01; done"))
        .await
        .unwrap();
    let trapped = async {
        loop {
            other.signal(15).await.unwrap();
            tokio::select! {
                exit = other.wait() => return exit.unwrap().code,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let code = tokio::time::timeout(10 * SOON, trapped).await.unwrap();
    assert!(code == 6 || code == 143, "{code}");
    running.signal(15).await.unwrap();
    assert_eq!(running.wait().await.unwrap().code, 4);
    let error = running.exec(shell("true")).await.err().unwrap();
    assert!(matches!(error, ExecError::Stopped { .. }), "{error}");
}

pub(super) async fn dropping_another_process_kills_only_that(fixture: &Fixture) {
    let running = fixture
        .executor
        .start(fixture.container(), shell("sleep 1000"));
    let running = running.await.unwrap();
    for early in [true, false] {
        let (read, write) = super::pipe();
        let mut process = shell("echo up; exec sleep 1000");
        process.stdout = Output::Fd(Arc::new(write));
        let other = running.exec(process).await.unwrap();
        let mut output = std::fs::File::from(read);
        if !early {
            output.read_exact(&mut [0; 3]).unwrap();
        }
        drop(other);
        end_of(output).await;
    }
    assert_eq!(exec(&running, shell("true")).await.0, 0);
    // With the container its processes end.
    let (read, write) = super::pipe();
    let mut process = shell("echo up; sleep 1000");
    process.stdout = Output::Fd(Arc::new(write));
    let other = running.exec(process).await.unwrap();
    let mut output = std::fs::File::from(read);
    output.read_exact(&mut [0; 3]).unwrap();
    drop(running);
    end_of(output).await;
    assert_eq!(other.wait().await.unwrap().code, 137);
}

pub(super) async fn what_the_process_left_running_ends_with_it(fixture: &Fixture) {
    let script = "sleep 1000 & (sleep 1000 &) ; echo done";
    let waited = fixture.script(fixture.container(), script);
    let text = tokio::time::timeout(10 * SOON, waited).await.unwrap();
    assert_eq!(text, "done\n");
}

pub(super) async fn containers_run_side_by_side(fixture: &Fixture) {
    let ran = (0..6).map(|number| async move {
        let script = format!("echo {number}; exit {number}");
        fixture.run(fixture.container(), shell(&script)).await
    });
    let mut ran: Vec<_> = ran.map(Box::pin).collect();
    // All are under way before the first is waited for.
    let results = std::future::poll_fn(|cx| {
        let mut results = Vec::new();
        for future in &mut ran {
            if let std::task::Poll::Ready(result) = future.as_mut().poll(cx) {
                results.push(result);
            }
        }
        if results.is_empty() {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(results)
        }
    });
    let first = results.await.len();
    assert!(first >= 1);
    drop(ran);

    let container = || ContainerSpec {
        id: Some("twice".into()),
        ..fixture.container()
    };
    let running = fixture.executor.start(container(), shell("sleep 1000"));
    let running = running.await.unwrap();
    assert_eq!(running.id(), "twice");
    let error = fixture.executor.start(container(), shell("true")).await;
    assert!(matches!(error.err(), Some(ExecError::Exists { .. })));
}

pub(super) async fn sixteen_run_at_once(fixture: &Fixture) {
    let mut all = Vec::new();
    for number in 0..16_u32 {
        let (input, keep) = super::pipe();
        let process = Process {
            stdin: crate::Input::Fd(input),
            ..shell(&format!("echo up; read line; exit {number}"))
        };
        let (running, mut output) = piped(fixture, process).await;
        output.read_exact(&mut [0; 3]).unwrap();
        all.push((number, running, keep));
    }
    // All are there; each goes when it is told to.
    for (number, running, keep) in all {
        drop(keep);
        let exit = tokio::time::timeout(10 * SOON, running.wait()).await;
        assert_eq!(exit.expect("it goes on").unwrap().code, number);
    }
}

pub(super) async fn a_start_is_told(fixture: &Fixture) {
    let running = fixture
        .executor
        .start(fixture.container(), shell("sleep 1000"));
    let running = running.await.unwrap();
    let started = tokio::time::timeout(10 * SOON, running.started()).await;
    started.expect("nobody says that it runs").unwrap();
    // It takes signals now, and other processes.
    running.signal(9).await.unwrap();
    assert_eq!(running.wait().await.unwrap().code, 137);
    let late = tokio::time::timeout(10 * SOON, running.started()).await;
    late.expect("it waits for ever").unwrap();
    // Whoever asks early is told of an end as well.
    for process in [shell("exit 3"), Process::new(["/no/such/program"])] {
        let running = fixture.executor.start(fixture.container(), process).await;
        if let Ok(running) = running {
            let started = tokio::time::timeout(10 * SOON, running.started()).await;
            started.expect("it waits for ever").unwrap();
        }
    }
}

pub(super) async fn an_end_can_be_asked_for_again(fixture: &Fixture) {
    let mut process = shell("exit 9");
    process.tty = Some(crate::TtySize::default());
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    for _ in 0..3 {
        assert_eq!(running.wait().await.unwrap().code, 9);
    }
    // What comes too late is no error.
    running.signal(15).await.unwrap();
    running.resize(3, 4).await.unwrap();
}

pub(super) async fn a_stopped_process_is_killed(fixture: &Fixture) {
    let (running, mut output) = piped(
        fixture,
        shell("(echo up; kill -STOP $$ 0; sleep 1000) & wait"),
    )
    .await;
    output.read_exact(&mut [0; 3]).unwrap();
    running.signal(19).await.unwrap();
    drop(running);
    end_of(output).await;
}

pub(super) async fn a_thousand_signals_are_taken(fixture: &Fixture) {
    let script = "trap 'exit 7' TERM; trap : USR1; echo up; while :; do sleep 0.01; done";
    let (running, mut output) = piped(fixture, shell(script)).await;
    output.read_exact(&mut [0; 3]).unwrap();
    for _ in 0..1000 {
        running.signal(10).await.unwrap();
    }
    running.signal(15).await.unwrap();
    let exit = tokio::time::timeout(10 * SOON, running.wait()).await;
    assert_eq!(exit.expect("it goes on").unwrap().code, 7);
}

pub(super) async fn the_first_process_gets_each_signal(fixture: &Fixture) {
    for (name, number) in [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("USR1", 10),
        ("USR2", 12),
    ] {
        let script = format!("trap 'exit {number}' {name}; echo up; while :; do sleep 0.01; done");
        let (running, mut output) = piped(fixture, shell(&script)).await;
        output.read_exact(&mut [0; 3]).unwrap();
        running.signal(number).await.unwrap();
        let exit = tokio::time::timeout(10 * SOON, running.wait()).await;
        assert_eq!(exit.expect("it goes on").unwrap().code, number as u32);
    }
}

pub(super) async fn a_start_that_nobody_waits_for_leaves_nothing(fixture: &Fixture) {
    for wait in [0, 1, 5, 20] {
        let start = fixture
            .executor
            .start(fixture.container(), shell("sleep 1000"));
        let _ = tokio::time::timeout(Duration::from_millis(wait), start).await;
    }
}

pub(super) async fn closing_kills_and_refuses(fixture: &Fixture) {
    let start = || {
        fixture
            .executor
            .start(fixture.container(), shell("sleep 1000"))
    };
    let (one, other) = (start().await.unwrap(), start().await.unwrap());
    let closed = tokio::time::timeout(10 * SOON, fixture.executor.close()).await;
    closed.expect("closing takes too long");
    assert_eq!(one.wait().await.unwrap().code, 137);
    assert_eq!(other.wait().await.unwrap().code, 137);
    assert!(matches!(start().await.err(), Some(ExecError::Closed)));
}
