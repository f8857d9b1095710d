//! What goes in and out of processes.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::{Fixture, Written, shell};
use crate::{Input, Output, Process};

/// The longest that a process of a case may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes in which every value occurs, and no pattern of a page.
fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|number| (number % 251 + number / 65_536) as u8)
        .collect()
}

pub(super) async fn both_outputs_are_told_apart(fixture: &Fixture) {
    let (out, err) = (Written::default(), Written::default());
    let mut process = shell("echo one; echo two >&2; echo three; echo four >&2");
    process.stdout = out.output();
    process.stderr = err.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert_eq!(out.text(), "one\nthree\n");
    assert_eq!(err.text(), "two\nfour\n");
}

pub(super) async fn both_outputs_can_be_one_descriptor(fixture: &Fixture) {
    let (read, write) = super::pipe();
    let write = Arc::new(write);
    let mut process = shell("echo one; echo two >&2; echo three");
    process.stdout = Output::Fd(write.clone());
    process.stderr = Output::Fd(write);
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    // Runtimes have a pipe of their own for each: only within one the order is kept.
    let mut lines: Vec<_> = text.lines().collect();
    lines.retain(|line| *line != "two");
    assert_eq!((lines, text.len()), (vec!["one", "three"], 14));
}

pub(super) async fn much_input_arrives(fixture: &Fixture) {
    let sent = bytes(10_000_000);
    std::fs::write(fixture.path("rootfs/tmp/sent"), &sent).unwrap();
    let process = Process {
        stdin: Input::Reader(Box::pin(std::io::Cursor::new(sent))),
        ..shell("cmp - /tmp/sent && echo same")
    };
    let (exit, text) = fixture.run(fixture.container(), process).await;
    assert_eq!((exit.code, text.as_str()), (0, "same\n"));
}

pub(super) async fn no_input_is_an_end(fixture: &Fixture) {
    let ran = fixture.run(fixture.container(), shell("cat; read x || echo end"));
    let (exit, text) = tokio::time::timeout(LIMIT, ran).await.unwrap();
    assert_eq!((exit.code, text.as_str()), (0, "end\n"));
    let empty = Process {
        stdin: Input::Reader(Box::pin(tokio::io::empty())),
        ..shell("cat; echo end")
    };
    let ran = fixture.run(fixture.container(), empty);
    let (exit, text) = tokio::time::timeout(LIMIT, ran).await.unwrap();
    assert_eq!((exit.code, text.as_str()), (0, "end\n"));
}

pub(super) async fn input_that_nobody_reads_does_not_keep_a_process(fixture: &Fixture) {
    for script in ["exit 3", "exec <&-; exit 3"] {
        let process = Process {
            stdin: Input::Reader(Box::pin(tokio::io::repeat(b'x'))),
            ..shell(script)
        };
        let ran = fixture.run(fixture.container(), process);
        let (exit, _) = tokio::time::timeout(LIMIT, ran).await.unwrap();
        assert_eq!(exit.code, 3, "{script}");
    }
}

pub(super) async fn bytes_are_not_changed(fixture: &Fixture) {
    let sent = bytes(300_000);
    std::fs::write(fixture.path("rootfs/tmp/sent"), &sent).unwrap();
    let written = Written::default();
    let mut process = shell("cat /tmp/sent");
    process.stdout = written.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert!(written.bytes() == sent, "the output is not what was sent");
}

pub(super) async fn a_line_can_have_ten_megabytes(fixture: &Fixture) {
    let script = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo end";
    let text = fixture.script(fixture.container(), script).await;
    let mut lines = text.lines();
    assert_eq!(lines.next().map(str::len), Some(10_000_000));
    assert_eq!(lines.next(), Some("end"));
}

pub(super) async fn a_thousand_lines_keep_their_order(fixture: &Fixture) {
    // Each is a write of its own.
    let script = "i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i + 1)); done";
    let text = fixture.script(fixture.container(), script).await;
    let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
}

pub(super) async fn closed_outputs_do_not_keep_a_process(fixture: &Fixture) {
    let text = fixture
        .script(fixture.container(), "echo last; exec >&- 2>&-; sleep 0.05")
        .await;
    assert_eq!(text, "last\n");
}

pub(super) async fn output_that_nobody_wants_ends_the_process(fixture: &Fixture) {
    let (read, write) = super::pipe();
    let mut process = Process::new(["/bin/yes"]);
    process.stdout = Output::Fd(Arc::new(write));
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    let mut read = std::fs::File::from(read);
    read.read_exact(&mut [0; 4]).unwrap();
    drop(read);
    let exit = tokio::time::timeout(LIMIT, running.wait()).await;
    assert!(!exit.expect("it goes on").unwrap().success());
}

pub(super) async fn the_last_output_is_not_lost(fixture: &Fixture) {
    // What is still in the pipe when the process has ended.
    for _ in 0..5 {
        let text = fixture
            .script(fixture.container(), "head -c 60000 /dev/zero; echo end")
            .await;
        assert_eq!(text.len(), 60_004);
    }
}

pub(super) async fn output_of_an_orphan_is_not_waited_for(fixture: &Fixture) {
    // With the first process its children end, whatever they still hold.
    let script = "(sleep 1000; echo late) & echo early";
    let ran = fixture.run(fixture.container(), shell(script));
    let (exit, text) = tokio::time::timeout(LIMIT, ran).await.unwrap();
    assert_eq!((exit.code, text.as_str()), (0, "early\n"));
}

pub(super) async fn a_terminal_takes_input_and_its_end(fixture: &Fixture) {
    let (read, write) = super::pipe();
    // The end of the input of a terminal is a character.
    std::fs::File::from(write)
        .write_all(b"one\ntwo\n\x04")
        .unwrap();
    let written = Written::default();
    let mut process = shell("stty -echo; while read line; do echo got $line; done; echo end");
    process.tty = Some(crate::TtySize::default());
    process.stdin = Input::Fd(read);
    process.stdout = written.output();
    let running = fixture.executor.start(fixture.container(), process);
    let running = running.await.unwrap();
    let exit = tokio::time::timeout(LIMIT, running.wait()).await.unwrap();
    assert!(exit.unwrap().success());
    let text = written.text();
    assert!(text.ends_with("got one\r\ngot two\r\nend\r\n"), "{text:?}");
}

pub(super) async fn a_terminal_gets_both_outputs(fixture: &Fixture) {
    let (out, err) = (Written::default(), Written::default());
    let mut process = shell("echo out; echo err >&2; tty; test -c /dev/console && echo console");
    process.tty = Some(crate::TtySize::default());
    process.stdout = out.output();
    process.stderr = err.output();
    let running = fixture.executor.start(fixture.container(), process);
    assert!(running.await.unwrap().wait().await.unwrap().success());
    assert_eq!(err.text(), "");
    let text = out.text();
    assert!(text.starts_with("out\r\nerr\r\n/dev/"), "{text:?}");
    assert!(text.ends_with("console\r\n"), "{text:?}");
}
