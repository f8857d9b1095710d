//! The `git` program: run with nothing of the daemon's own configuration, its output shown to
//! the user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use cooper_progress::{STDERR, STDOUT, VertexProgress};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::access::Access;
use crate::SourceError;

/// The most that is kept of what git says; more is read and dropped.
const MAX_OUTPUT: usize = 8 << 20;

/// git did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitFailure {
    /// It could not be started.
    #[error("cannot run git")]
    Start(#[source] std::io::Error),
    /// It ended with an error.
    #[error("git stderr:\n{stderr}: {}", ended(*.status))]
    Failed {
        /// What it said.
        stderr: String,
        /// How it ended.
        status: ExitStatus,
    },
}

impl GitFailure {
    /// Whether it said all of `words`.
    pub(super) fn says(&self, words: &[&str]) -> bool {
        match self {
            Self::Failed { stderr, .. } => words.iter().all(|word| stderr.contains(word)),
            Self::Start(_) => false,
        }
    }

    /// What was tried.
    pub(super) fn at(self, attempt: impl Into<String>) -> SourceError {
        SourceError::Git {
            attempt: attempt.into(),
            source: Arc::new(self),
        }
    }
}

impl From<GitFailure> for SourceError {
    fn from(failure: GitFailure) -> Self {
        failure.at("failed to run git")
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

/// How git is run.
#[derive(Clone)]
pub(super) struct Program<'a> {
    access: &'a Access,
    progress: &'a VertexProgress,
    git_dir: Option<PathBuf>,
    work_tree: Option<PathBuf>,
}

impl<'a> Program<'a> {
    pub(super) fn new(access: &'a Access, progress: &'a VertexProgress) -> Self {
        Self {
            access,
            progress,
            git_dir: None,
            work_tree: None,
        }
    }

    /// On this repository.
    pub(super) fn on(&self, git_dir: &Path, work_tree: Option<&Path>) -> Self {
        Self {
            git_dir: Some(git_dir.to_owned()),
            work_tree: work_tree.map(Path::to_owned),
            ..self.clone()
        }
    }

    /// Runs it to its end; gives what it wrote to standard output, which the user sees as well.
    ///
    /// # Cancel safety
    /// It is killed, with all that it started.
    pub(super) async fn run(&self, args: &[&str]) -> Result<String, GitFailure> {
        let text = |output: Vec<u8>| String::from_utf8_lossy(&output).into_owned();
        match self.run_once(args, true).await.map(text) {
            // A server that knows nothing of shallow clones is asked for all.
            Err(failure)
                if args.contains(&"--depth=1")
                    && (failure.says(&["--depth"]) || failure.says(&["shallow"])) =>
            {
                let whole = |arg: &&str| *arg != "--depth=1";
                let args: Vec<_> = args.iter().copied().filter(whole).collect();
                self.run_once(&args, true).await.map(text)
            }
            result => result,
        }
    }

    /// The same; the output is bytes of any kind and meant for nobody to read.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub(super) async fn bytes(&self, args: &[&str]) -> Result<Vec<u8>, GitFailure> {
        self.run_once(args, false).await
    }

    async fn run_once(&self, args: &[&str], show: bool) -> Result<Vec<u8>, GitFailure> {
        let mut command = Command::new("git");
        // A repository cannot have files of this machine as submodules.
        command.args(["-c", "protocol.file.allow=user"]);
        let option = |name: &str, path: &Path| {
            let mut option = OsString::from(name);
            option.push(path);
            option
        };
        if let Some(dir) = &self.git_dir {
            command.arg(option("--git-dir=", dir));
        }
        if let Some(dir) = &self.work_tree {
            command.arg(option("--work-tree=", dir)).current_dir(dir);
        }
        command
            .args(self.access.config())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/dev/null")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .envs(self.access.env())
            .process_group(0)
            .kill_on_drop(true);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"] {
            for name in [name.to_owned(), name.to_lowercase()] {
                if let Some(value) = std::env::var_os(&name) {
                    command.env(name, value);
                }
            }
        }
        let mut child = command.spawn().map_err(GitFailure::Start)?;
        let mut family = Family::of(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (status, stdout, stderr) = tokio::join!(
            child.wait(),
            self.collect(stdout, show.then_some(STDOUT)),
            self.collect(stderr, Some(STDERR)),
        );
        family.0 = None;
        let status = status.map_err(GitFailure::Start)?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            return Err(GitFailure::Failed { stderr, status });
        }
        Ok(stdout)
    }

    /// Shows what comes, if that is wanted, and gives it.
    async fn collect(&self, pipe: Option<impl AsyncRead + Unpin>, show: Option<i64>) -> Vec<u8> {
        let mut all = Vec::new();
        let Some(mut pipe) = pipe else {
            return all;
        };
        let mut buffer = vec![0; 16 << 10];
        // A pipe that breaks has ended.
        while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
            let piece = &buffer[..length];
            if let Some(stream) = show {
                self.progress.log(stream, Bytes::copy_from_slice(piece));
            }
            let room = MAX_OUTPUT.saturating_sub(all.len());
            all.extend_from_slice(&piece[..length.min(room)]);
        }
        all
    }
}

/// The process and its children: helpers do not end with their parent.
struct Family(Option<Pid>);

impl Family {
    fn of(id: Option<u32>) -> Self {
        let id = id.and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Before the leader was waited for: the number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
