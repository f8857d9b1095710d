//! What makes containers: the built-in runtime, or the command line of another.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cooper_executor::ExecError;
use cooper_oci_runtime::RuntimeError;
use cooper_sys::PidFd;

use crate::builtin::BuiltIn;

/// What is looked for when nothing is configured, in BuildKit's order.
const CANDIDATES: [&str; 2] = ["buildkit-runc", "runc"];

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
    /// control group can still be asked why, and there is no second process to remove it. Asked
    /// of it when the first container is made, so that a daemon is there sooner.
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

    /// One that cannot be asked is not told either: what is wrong with it shows when it runs.
    fn keeps(&self) -> bool {
        *self.keep.get_or_init(|| {
            let help = Command::new(&self.binary).args(["run", "--help"]).output();
            help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--keep"))
        })
    }

    /// The folder in which the runtime keeps what it knows of a container.
    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.state.join(id)
    }

    /// Makes and runs the container of the bundle `dir`, until its first process ends.
    pub(crate) fn run(&self, id: &str, dir: &Path, pid_file: &Path) -> Command {
        let mut command = self.command(dir);
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

/// The processes of runtimes that an earlier process started, with their state in `state`.
pub(crate) fn strays(state: &Path) -> Vec<PidFd> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        // Opened before it is looked at: the number may be another's afterwards.
        let found = PidFd::open(pid).ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args: Vec<_> = line.split(|byte| *byte == 0).collect();
        let state = state.as_os_str().as_bytes();
        args.windows(2)
            .any(|pair| pair == [b"--root".as_slice(), state])
            .then_some(found)
    })
    .collect()
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
    fn a_missing_runtime_is_named_as_buildkit_names_it() {
        let missing = Some(Path::new("no-such-runtime"));
        let error = Binary::find(missing, "/nowhere".into()).unwrap_err();
        assert_eq!(error.to_string(), "failed to find no-such-runtime binary");
    }
}
