//! What makes containers: the built-in runtime, or the command line of another.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cooper_executor::{ExecError, processes_with};
use cooper_oci_runtime::RuntimeError;
use cooper_sys::{MountPoint, PidFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

use crate::builtin::BuiltIn;

/// What is looked for when nothing is configured, in BuildKit's order.
const CANDIDATES: [&str; 2] = ["buildkit-runc", "runc"];

/// How long a runtime has to say what it can do.
const HELP_TIME: Duration = Duration::from_secs(5);

/// And how many bytes of that are read. runc says 2,000.
const HELP_SIZE: usize = 64 << 10;

/// What makes containers.
#[derive(Debug)]
pub(crate) enum Runtime {
    Binary(Binary),
    BuiltIn(Arc<BuiltIn>),
}

/// An error of the built-in runtime with all its causes: it is told to a user.
pub(crate) fn failed(error: RuntimeError) -> ExecError {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    ExecError::Runtime { message }
}

/// A runtime of its own, and where it keeps its state.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    binary: PathBuf,
    state: PathBuf,
    /// Whether it can be told to leave the container's remains when it has ended: then the
    /// control group can still be asked why, and there is no second process to remove it. Others
    /// are given a group in one of ours. Asked of it when the first container is made, so that a
    /// daemon is there sooner.
    keep: OnceLock<bool>,
}

impl Binary {
    /// Finds the runtime.
    pub(crate) fn find(binary: Option<&Path>, state: PathBuf) -> Result<Self, ExecError> {
        let candidates = match binary {
            Some(binary) => vec![binary],
            None => CANDIDATES.map(Path::new).to_vec(),
        };
        let found = candidates.iter().find_map(|name| look_up(name));
        let Some(binary) = found else {
            let binary = candidates.last().map(|name| name.display().to_string());
            return Err(ExecError::NoRuntime {
                binary: binary.unwrap_or_default(),
            });
        };
        Ok(Self {
            binary,
            state,
            keep: OnceLock::new(),
        })
    }

    /// Whether it leaves the container's remains when it is told to. One that cannot be asked is
    /// not told either: what is wrong with it shows when it runs.
    pub(crate) fn keeps(&self) -> bool {
        *self.keep.get_or_init(|| {
            let help = help(&self.binary).unwrap_or_default();
            String::from_utf8_lossy(&help).contains("--keep")
        })
    }

    /// The program.
    pub(crate) fn path(&self) -> &Path {
        &self.binary
    }

    /// The folder in which the runtime keeps what it knows of a container.
    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.state.join(id)
    }

    /// Makes and runs the container of the bundle `dir`, until its first process ends. Its
    /// control group is a scope of `systemd`, or not.
    pub(crate) fn run(&self, id: &str, dir: &Path, pid_file: &Path, systemd: bool) -> Command {
        let mut command = self.command(dir);
        if systemd {
            command.arg("--systemd-cgroup");
        }
        command.arg("run").arg("--bundle").arg(dir);
        if self.keeps() {
            command.arg("--keep");
        }
        command.arg("--pid-file").arg(pid_file).arg(id);
        command
    }

    /// Runs another process in the container.
    pub(crate) fn exec(&self, id: &str, dir: &Path, process: &Path, pid_file: &Path) -> Command {
        let mut command = self.command(dir);
        command.arg("exec").arg("--process").arg(process);
        command.arg("--pid-file").arg(pid_file).arg(id);
        command
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--root")
            .arg(&self.state)
            .arg("--log")
            .arg(dir.join("log.json"))
            .args(["--log-format", "json"]);
        // What systemd tells us is not for containers; the runtime would pass it on.
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
        ] {
            command.env_remove(name);
        }
        command
    }
}

/// What a runtime says of `run`: as much as it says in a moment, and of that the beginning. It is
/// ended then. Blocks.
fn help(binary: &Path) -> std::io::Result<Vec<u8>> {
    let mut child = Command::new(binary)
        .args(["run", "--help"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // With what it has started itself.
        .process_group(0)
        .spawn()?;
    let mut text = Vec::new();
    let read = child
        .stdout
        .take()
        .map_or(Ok(()), |stdout| read_soon(stdout, &mut text));
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It is not reaped yet, so that the number is its own.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    read.map(|()| text)
}

/// Reads up to the end, the limit or the deadline.
fn read_soon(mut output: ChildStdout, text: &mut Vec<u8>) -> std::io::Result<()> {
    let begin = Instant::now();
    let mut piece = [0; 4096];
    while text.len() < HELP_SIZE {
        let left = HELP_TIME.saturating_sub(begin.elapsed());
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let mut ready = [PollFd::new(&output, PollFlags::IN)];
        if rustix::event::poll(&mut ready, Some(&left))? == 0 {
            return Ok(());
        }
        match output.read(&mut piece)? {
            0 => return Ok(()),
            count => text.extend_from_slice(&piece[..count]),
        }
    }
    Ok(())
}

/// The processes of runtimes that an earlier process started, with their state in `state`.
pub(crate) fn strays(state: &Path) -> Vec<PidFd> {
    processes_with(&[[b"--root", state.as_os_str().as_bytes()]])
}

/// Removes what a runtime kept in `dir` of a container that has ended. Blocks.
///
/// runc mounts its own program there for the moment in which it opens it (`cloned_binary.c`). When
/// it is killed just then, the mount stays.
pub(crate) fn remove_state(dir: &Path) -> std::io::Result<()> {
    let remove = || match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    let Err(error) = remove() else {
        return Ok(());
    };
    let mounts = MountPoint::below(dir)?;
    if mounts.is_empty() {
        return Err(error);
    }
    for mount in mounts {
        cooper_sys::mount::unmount(&mount.target)?;
    }
    remove()
}

fn look_up(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.as_os_str() != OsStr::new(""))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_runtime_that_was_killed_in_a_bad_moment_goes() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("id");
        remove_state(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
        let (program, place) = (state.join("state.json"), state.join("runc.x"));
        std::fs::write(&program, "").unwrap();
        std::fs::write(&place, "").unwrap();
        rustix::mount::mount_bind(&program, &place).unwrap();
        remove_state(&state).unwrap();
        assert!(!state.exists());
        assert_eq!(MountPoint::below(&state).unwrap(), []);
    }

    #[test]
    fn a_missing_runtime_is_named_as_buildkit_names_it() {
        let missing = Some(Path::new("no-such-runtime"));
        let error = Binary::find(missing, "/nowhere".into()).unwrap_err();
        assert_eq!(error.to_string(), "failed to find no-such-runtime binary");
    }
}
