//! Running programs to their end, and waiting for things that come soon.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output and standard error, in this order.
    pub output: String,
    /// From start to end.
    pub took: Duration,
}

impl Ran {
    /// Fails the test unless the program exited with 0.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(
            self.code == 0,
            "`{}` exited with {}:\n{}",
            self.command,
            self.code,
            self.output
        );
        self
    }

    /// Fails the test unless the program failed and printed every one of `parts`.
    #[track_caller]
    pub fn fails_with(self, parts: &[&str]) -> Self {
        assert!(
            self.code != 0,
            "`{}` succeeded:\n{}",
            self.command,
            self.output
        );
        for part in parts {
            assert!(
                self.output.contains(part),
                "no {part:?} in:\n{}",
                self.output
            );
        }
        self
    }

    /// In plain progress: the lines of the step whose name holds `name`, without their number.
    #[track_caller]
    pub fn step(&self, name: &str) -> Vec<&str> {
        let number = self.number(name);
        let mark = format!("{number} ");
        let lines = self.output.lines();
        lines.filter_map(|line| line.strip_prefix(&mark)).collect()
    }

    #[track_caller]
    fn number(&self, name: &str) -> &str {
        self.output
            .lines()
            .find(|line| line.starts_with('#') && line.contains(name))
            .and_then(|line| line.split(' ').next())
            .unwrap_or_else(|| panic!("no step {name:?} in:\n{}", self.output))
    }

    /// How many lines hold `part`.
    pub fn count(&self, part: &str) -> usize {
        self.output
            .lines()
            .filter(|line| line.contains(part))
            .count()
    }

    /// In plain progress: whether the step whose name holds `name` was CACHED.
    #[track_caller]
    pub fn cached(&self, name: &str) -> bool {
        self.step(name).contains(&"CACHED")
    }
}

/// A program gets this long before the test fails; the longest real build takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `command` to its end with empty standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    Started::new(command).finish()
}

/// A program that is running; killed when dropped before its end.
#[derive(Debug)]
pub struct Started {
    command: String,
    child: Child,
    begin: Instant,
    readers: [Option<(JoinHandle<()>, Text)>; 2],
}

type Text = Arc<Mutex<Vec<u8>>>;

impl Started {
    /// Starts `command` with empty standard input.
    #[track_caller]
    pub fn new(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let shown = words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start `{shown}`: {error}"));
        let readers = [child.stdout.take().map(read), child.stderr.take().map(read)];
        Self {
            command: shown,
            child,
            begin: Instant::now(),
            readers,
        }
    }

    /// Standard output and standard error up to now, in this order.
    pub fn output(&self) -> String {
        let texts = self.readers.iter().flatten();
        let bytes: Vec<u8> = texts
            .flat_map(|(_, text)| text.lock().unwrap().clone())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has printed `text`; fails the test when it ends before or takes too long.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let begin = Instant::now();
        while !self.output().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begin.elapsed() < PATIENCE,
                "`{}` has not printed {text:?} ({ended:?}):\n{}",
                self.command,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process numbers fit in i32");
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end; fails the test when that takes too long.
    #[track_caller]
    pub fn finish(self) -> Ran {
        self.finish_within(PATIENCE)
    }

    /// The same with another limit, counted from now.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Ran {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                begin.elapsed() < limit,
                "`{}` has not ended after {limit:?}:\n{}",
                self.command,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = self.begin.elapsed();
        // A grandchild may hold the pipes open: what it writes later is not waited for.
        let deadline = Instant::now() + Duration::from_secs(2);
        let all_read = |readers: &[Option<(JoinHandle<()>, Text)>]| {
            let mut threads = readers.iter().flatten();
            threads.all(|(thread, _)| thread.is_finished())
        };
        while !all_read(&self.readers) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ran {
            command: self.command.clone(),
            code: status.code().unwrap_or(-1),
            output: self.output(),
            took,
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // The chance to clean up after itself, which a failed test would rob the next one of.
        self.signal(Signal::SIGINT);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(mut from: impl Read + Send + 'static) -> (JoinHandle<()>, Text) {
    let text = Text::default();
    let into = text.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    (thread, text)
}

/// Waits until `ready` says yes, looking every 10 ms; fails the test after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    begin.elapsed()
}

/// A program of this workspace, as `cargo xtask test-e2e` built it.
#[track_caller]
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("COOPER_BIN_DIR")
        .expect("COOPER_BIN_DIR is not set: run the end-to-end tests with `cargo xtask test-e2e`");
    PathBuf::from(dir).join(name)
}

/// The folder for temporary files in the configuration folder that [`cooper`] is given.
pub(crate) const TEMPORARY: &str = "tmp";

/// The `cooper` command line, with a configuration folder of its own so that no credential
/// of the person who runs the tests is used, and a folder for temporary files in it.
pub fn cooper(config: &std::path::Path) -> Command {
    let mut command = Command::new(bin("cooper"));
    let temporary = config.join(TEMPORARY);
    std::fs::create_dir_all(&temporary).unwrap();
    command
        .env("DOCKER_CONFIG", config)
        .env("TMPDIR", temporary);
    command
}
