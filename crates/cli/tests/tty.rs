//! What `cooper build` shows on a terminal: a pseudo terminal, and an emulation of what a person
//! sees on it.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cooper_testkit::{Context, wait_until};
use nix::pty::{Winsize, openpty};

const LIMIT: Duration = Duration::from_secs(60);

/// A program at a terminal.
struct AtTerminal {
    child: Child,
    terminal: OwnedFd,
    seen: Arc<Mutex<Seen>>,
    _root: tempfile::TempDir,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl AtTerminal {
    /// `cooper build OPTIONS CONTEXT`, with these variables.
    fn start(size: (u16, u16), context: &Context, options: &[&str], env: &[(&str, &str)]) -> Self {
        let (columns, rows) = size;
        let root = tempfile::Builder::new()
            .prefix("cooper-tty-")
            .tempdir()
            .unwrap();
        let pty = openpty(Some(&window(columns, rows)), None).unwrap();
        // It becomes the terminal of a session of its own, so that keys become signals.
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(env!("CARGO_BIN_EXE_cooper"))
            .arg("build")
            .args(options)
            .arg(context.path())
            .env_remove("COOPER_ADDR")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color")
            .env("COOPER_ROOT", root.path().join("root"))
            .env("DOCKER_CONFIG", root.path())
            .envs(env.iter().copied())
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(pty.slave);
        let child = command.spawn().unwrap();
        drop(command);
        let seen = Arc::new(Mutex::new(Seen {
            screen: vt100::Parser::new(rows, columns, 200),
            bytes: Vec::new(),
        }));
        let (into, mut from) = (seen.clone(), File::from(pty.master.try_clone().unwrap()));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal that nobody is at any more is an error, not an end.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut seen = into.lock().unwrap();
                seen.screen.process(&buffer[..count]);
                seen.bytes.extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            terminal: pty.master,
            seen,
            _root: root,
        }
    }

    fn screen(&self) -> String {
        self.seen.lock().unwrap().screen.screen().contents()
    }

    fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().bytes).into_owned()
    }

    /// Waits until a line of the screen holds all of `parts`, and gives it.
    #[track_caller]
    fn wait_for(&self, parts: &[&str]) -> String {
        let mut found = None;
        let begin = Instant::now();
        while found.is_none() {
            let screen = self.screen();
            let holds = |line: &&str| parts.iter().all(|part| line.contains(part));
            found = screen.lines().find(holds).map(str::to_owned);
            assert!(begin.elapsed() < LIMIT, "no {parts:?} in:\n{screen}");
            std::thread::sleep(Duration::from_millis(5));
        }
        found.unwrap()
    }

    /// Makes the window another size, as a window manager does.
    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.terminal, size).unwrap();
        self.seen
            .lock()
            .unwrap()
            .screen
            .screen_mut()
            .set_size(rows, columns);
    }

    fn press(&self, keys: &[u8]) {
        File::from(self.terminal.try_clone().unwrap())
            .write_all(keys)
            .unwrap();
    }

    #[track_caller]
    fn code(&mut self) -> i32 {
        let mut status = None;
        wait_until("the build ends", LIMIT, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // What it wrote last is on its way.
        std::thread::sleep(Duration::from_millis(100));
        status.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let mut ended = || self.child.try_wait().is_ok_and(|ended| ended.is_some());
        if ended() {
            return;
        }
        // The chance to clean up after itself, and no more than that.
        if let Ok(terminal) = self.terminal.try_clone() {
            let _ = File::from(terminal).write_all(b"\x03");
        }
        let begin = Instant::now();
        while !ended() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn busybox() -> Vec<u8> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    let found = places.iter().find_map(|path| std::fs::read(path).ok());
    found.expect("busybox-static is installed")
}

/// A context whose last step does this.
fn running(script: &str) -> Context {
    let dockerfile =
        format!("FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sleep\nRUN {script}\n");
    Context::new()
        .program("busybox", busybox())
        .file("Dockerfile", dockerfile)
}

#[test]
fn steps_their_times_and_what_they_say_are_seen() {
    let script =
        "for i in 1 2 3 4 5 6 7 8 9; do echo said $i; done; sleep 2; echo finally; sleep 3";
    let context = running(script);
    let mut build = AtTerminal::start((90, 30), &context, &[], &[]);
    build.wait_for(&[" => => # said 9"]);
    let screen = build.screen();
    let lines: Vec<_> = screen.lines().collect();
    assert!(lines[0].starts_with("[+] Building "), "{screen}");
    assert!(
        !screen.contains("# said 3") && screen.contains("# said 4"),
        "{screen}"
    );
    assert!(
        screen.contains(" => [1/3] COPY busybox /bin/sh"),
        "{screen}"
    );
    assert!(
        lines.iter().all(|line| line.chars().count() < 90),
        "{screen}"
    );
    // The time goes on though nothing is said.
    let step = |screen: &str| {
        let line = screen
            .lines()
            .find(|line| line.contains("RUN for i in"))
            .unwrap();
        line.trim_end()
            .trim_end_matches('s')
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let before = step(&screen);
    wait_until("time goes on", LIMIT, || {
        step(&build.screen()) > before + 0.25
    });
    // The window becomes smaller: lines are cut, and there are not more of them than fit.
    build.resize(40, 12);
    build.wait_for(&[" => => # finally"]);
    let screen = build.screen();
    assert!(screen.lines().count() <= 12, "{screen}");
    assert!(
        screen
            .lines()
            .any(|line| line.starts_with(" => [3/3] RUN for i")),
        "{screen}"
    );
    assert_eq!(build.code(), 0, "{}", build.screen());
    let bytes = build.bytes();
    assert!(bytes.contains(" FINISHED"), "{bytes}");
    assert!(
        bytes.contains("\x1b[34m"),
        "what is done has a colour: {bytes}"
    );
    assert!(
        bytes.trim_end().ends_with("\x1b[?25h"),
        "the cursor is seen again: {bytes:?}"
    );
}

#[test]
fn without_colours_there_are_none() {
    let context = running("echo some");
    let mut build = AtTerminal::start((80, 24), &context, &[], &[("NO_COLOR", "1")]);
    assert_eq!(build.code(), 0, "{}", build.screen());
    let bytes = build.bytes();
    let codes = bytes.split("\x1b[").skip(1);
    let coloured = codes.filter(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
            .starts_with('m')
    });
    assert_eq!(coloured.count(), 0, "{bytes}");
    assert!(bytes.contains(" FINISHED"), "{bytes}");
}

#[test]
fn a_failure_stays_on_the_screen_with_what_was_said() {
    let context = running("echo the reason; exit 7");
    let mut build = AtTerminal::start((100, 40), &context, &[], &[]);
    assert_eq!(build.code(), 1);
    let screen = build.screen();
    for part in [
        " => ERROR [3/3] RUN echo the reason; exit 7",
        " > [3/3] RUN echo the reason; exit 7:",
        "the reason",
        "   4 | >>> RUN echo the reason; exit 7",
        "ERROR: failed to build: failed to solve: process",
    ] {
        assert!(screen.contains(part), "no {part:?} in:\n{screen}");
    }
    assert!(build.bytes().contains("\x1b[31m"), "{screen}");
}

#[test]
fn the_keys_that_interrupt_cancel_the_build() {
    let context = running("echo begun; sleep 65432");
    let mut build = AtTerminal::start((80, 24), &context, &[], &[]);
    build.wait_for(&["# begun"]);
    build.press(b"\x03");
    assert_eq!(build.code(), 130, "{}", build.screen());
    let screen = build.screen();
    assert!(screen.contains("CANCELED [3/3] RUN echo begun"), "{screen}");
    assert!(screen.contains("context canceled"), "{screen}");
}

#[test]
fn plain_lines_and_lines_for_programs_are_to_be_had_at_a_terminal_too() {
    let context = running("echo some");
    let mut build = AtTerminal::start((80, 24), &context, &["--progress=plain"], &[]);
    assert_eq!(build.code(), 0);
    let bytes = build.bytes();
    assert!(
        bytes.contains("#1 [internal] load build definition"),
        "{bytes}"
    );
    assert!(!bytes.contains('\x1b'), "{bytes}");
    let mut build = AtTerminal::start((80, 24), &context, &[], &[("TERM", "dumb")]);
    assert_eq!(build.code(), 0);
    assert!(!build.bytes().contains('\x1b'), "{}", build.bytes());
}
