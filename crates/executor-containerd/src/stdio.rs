//! The input and output of a process: FIFOs that the runtime's shim opens, and what moves the
//! bytes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use cooper_executor::pump::{fd_to_call, fd_to_fd, reader_to_fd, watched, write_all};
use cooper_executor::{ExecError, Input, Output, Process};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::{AsyncRead, Interest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::task::Task;

/// What containerd is told of the FIFOs of a process; empty for none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// FIFOs for a process, and this side's ends of them.
pub(crate) struct Stdio {
    pub(crate) paths: Paths,
    input: Option<(PathBuf, Source)>,
    outputs: Vec<(Arc<OwnedFd>, Output)>,
    complaints: Output,
    /// Other ends, so that nobody sees an end before the shim has come.
    held: Vec<OwnedFd>,
    /// Removed with the process.
    files: Vec<PathBuf>,
}

enum Source {
    Fd(OwnedFd),
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

/// What moves the bytes, one task for each direction. Dropping it stops them.
pub(crate) struct Pumps {
    input: JoinSet<()>,
    outputs: JoinSet<()>,
    files: Vec<PathBuf>,
}

impl Stdio {
    /// Makes what `process` asks for in `dir`, with names that begin with `name`.
    pub(crate) fn make(dir: &Path, name: &str, process: &mut Process) -> Result<Self, ExecError> {
        let mut stdio = Self {
            paths: Paths::default(),
            input: None,
            outputs: Vec::new(),
            complaints: Output::Null,
            held: Vec::new(),
            files: Vec::new(),
        };
        let mut make = |stdio: &mut Self| -> io::Result<()> {
            let source = match std::mem::take(&mut process.stdin) {
                Input::Null => None,
                Input::Fd(fd) => Some(Source::Fd(fd)),
                Input::Reader(reader) => Some(Source::Reader(reader)),
            };
            if let Some(source) = source {
                let path = dir.join(format!("{name}.stdin"));
                stdio.paths.stdin = stdio.fifo(&path)?;
                // Both ends: with the one for writing alone one had to wait for the shim.
                stdio.held.push(open(&path, OFlags::RDWR)?);
                stdio.input = Some((path, source));
            }
            let tty = process.tty.is_some();
            stdio.paths.terminal = tty;
            let (out, err) = (process.stdout.clone(), process.stderr.clone());
            if tty {
                // A shim that has a terminal to copy from wants to copy it somewhere.
                let path = dir.join(format!("{name}.stdout"));
                stdio.paths.stdout = stdio.output(&path, out.clone())?;
                stdio.complaints = out;
                return Ok(());
            }
            let nothing = matches!((&out, &err), (Output::Null, Output::Null));
            if nothing && stdio.input.is_none() {
                return Ok(());
            }
            // A shim that has something to copy wants a file for each.
            let path = dir.join(format!("{name}.stdout"));
            stdio.paths.stdout = stdio.output_or_null(&path, out)?;
            let path = dir.join(format!("{name}.stderr"));
            stdio.paths.stderr = stdio.output_or_null(&path, err.clone())?;
            stdio.complaints = err;
            Ok(())
        };
        match make(&mut stdio) {
            Ok(()) => Ok(stdio),
            Err(error) => Err(ExecError::process("connect the output of a process")(error)),
        }
    }

    fn fifo(&mut self, path: &Path) -> io::Result<String> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0)?;
        self.files.push(path.to_owned());
        let text = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok(text.to_owned())
    }

    fn output_or_null(&mut self, path: &Path, output: Output) -> io::Result<String> {
        match output {
            Output::Null => Ok("/dev/null".to_owned()),
            output => self.output(path, output),
        }
    }

    fn output(&mut self, path: &Path, output: Output) -> io::Result<String> {
        let text = self.fifo(path)?;
        self.outputs
            .push((Arc::new(open(path, OFlags::RDONLY)?), output));
        self.held.push(open(path, OFlags::WRONLY)?);
        Ok(text)
    }

    /// Where it is told that the process cannot be started ([`complain`]).
    pub(crate) fn complaints(&self) -> Output {
        self.complaints.clone()
    }

    /// Starts to move bytes, once the shim has opened its ends. `unwanted` is told when nobody
    /// takes the output any more.
    pub(crate) fn pump(mut self, task: &Task, unwanted: &CancellationToken) -> Pumps {
        let mut pumps = Pumps {
            input: JoinSet::new(),
            outputs: JoinSet::new(),
            files: std::mem::take(&mut self.files),
        };
        if let Some((path, source)) = self.input.take() {
            let (task, terminal) = (task.clone(), self.paths.terminal);
            // While the other end is held: there is somebody to write to.
            let to = open(&path, OFlags::WRONLY);
            pumps.input.spawn(async move {
                let moved = match (source, to) {
                    (_, Err(error)) => Err(error),
                    (Source::Fd(from), Ok(to)) => fd_to_fd(Arc::new(from), Arc::new(to)).await,
                    (Source::Reader(from), Ok(to)) => reader_to_fd(from, Arc::new(to)).await,
                };
                note("input", &moved);
                // The shim has an end for writing as well, which it closes when it is told to.
                // With a terminal it would hang up: there the end of the input is a character.
                if !terminal {
                    task.close_input().await;
                }
            });
        }
        for (from, output) in std::mem::take(&mut self.outputs) {
            let unwanted = unwanted.clone();
            pumps.outputs.spawn(async move {
                let moved = match &output {
                    Output::Call(call) => fd_to_call(from.clone(), &**call).await,
                    Output::Fd(to) => fd_to_fd(from.clone(), to.clone()).await,
                    Output::Null => fd_to_call(from.clone(), &|_| {}).await,
                };
                note("output", &moved);
                if moved.is_err() {
                    // The shim reads on although nobody takes it, and the process never learns.
                    unwanted.cancel();
                    let _ = fd_to_call(from, &|_| {}).await;
                }
            });
        }
        pumps
    }
}

/// Tells that a process could not be started, where it would have written errors.
pub(crate) async fn complain(to: Output, message: &str) {
    let text = format!("{message}\n");
    let written = match to {
        Output::Null => Ok(()),
        Output::Call(call) => {
            call(text.into());
            Ok(())
        }
        Output::Fd(to) => match watched(to, Interest::WRITABLE) {
            Ok(to) => write_all(&to, text.as_bytes()).await,
            Err(error) => Err(error),
        },
    };
    note("output", &written);
}

impl Drop for Stdio {
    fn drop(&mut self) {
        remove(&self.files);
    }
}

impl Pumps {
    /// Waits until all output has come, which is when nobody can write any more. Input that
    /// was not taken is dropped.
    pub(crate) async fn drain(&mut self) {
        self.input.abort_all();
        while self.outputs.join_next().await.is_some() {}
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        remove(&self.files);
    }
}

fn remove(files: &[PathBuf]) {
    for file in files {
        // Their folder goes, too, and says what cannot be removed.
        let _ = std::fs::remove_file(file);
    }
}

/// Opens one of our FIFOs. It never waits for the other end.
fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn note(direction: &str, moved: &io::Result<()>) {
    match moved {
        // The other end does not want more.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tracing::warn!(direction, %error, "cannot move the bytes of a process");
        }
        _ => {}
    }
}
