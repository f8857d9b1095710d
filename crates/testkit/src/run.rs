//! Running programs to their end, and waiting for things that come soon.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        let number = self
            .output
            .lines()
            .find(|line| line.starts_with('#') && line.contains(name))
            .and_then(|line| line.split(' ').next())
            .unwrap_or_else(|| panic!("no step {name:?} in:\n{}", self.output));
        self.output
            .lines()
            .any(|line| line == format!("{number} CACHED"))
    }
}

/// Runs `command` to its end with empty standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let shown = words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let begin = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start `{shown}`: {error}"));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let code = output.status.code().unwrap_or(-1);
    Ran {
        command: shown,
        code,
        output: text,
        took: begin.elapsed(),
    }
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

/// The `cooper` command line, with a configuration folder of its own so that no credential
/// of the person who runs the tests is used.
pub fn cooper(config: &std::path::Path) -> Command {
    let mut command = Command::new(bin("cooper"));
    command.env("DOCKER_CONFIG", config);
    command
}
