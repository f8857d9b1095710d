//! The input and output of a process: pipes, a terminal, and what moves the bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::process::{Command, Stdio as Handle};
use std::sync::Arc;

use bytes::Bytes;
use cooper_executor::{ExecError, Input, Output, Process, TtySize};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};
use tokio::task::JoinSet;

/// Bytes moved at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// What is left in this process of a child's input and output.
#[derive(Default)]
pub(crate) struct Stdio {
    input: Option<(Source, Arc<OwnedFd>)>,
    outputs: Vec<(Arc<OwnedFd>, Output)>,
    terminal: Option<Terminal>,
}

/// The outer end of a terminal.
#[derive(Clone, Debug)]
pub(crate) struct Terminal(Arc<OwnedFd>);

enum Source {
    Fd(OwnedFd),
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

/// What moves the bytes, one task for each direction. Dropping it stops them.
#[derive(Debug, Default)]
pub(crate) struct Pumps {
    input: JoinSet<()>,
    outputs: JoinSet<()>,
}

impl Stdio {
    /// Gives `command` the input and output that `process` asks for.
    pub(crate) fn connect(process: &mut Process, command: &mut Command) -> Result<Self, ExecError> {
        let input = std::mem::take(&mut process.stdin);
        let (stdout, stderr) = (process.stdout.clone(), process.stderr.clone());
        let connected = match process.tty {
            Some(size) => terminal(command, size, input, stdout),
            None => pipes(command, input, stdout, stderr),
        };
        connected.map_err(ExecError::process("connect the output of a process"))
    }

    pub(crate) fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Starts to move bytes.
    pub(crate) fn pump(self) -> Pumps {
        let mut pumps = Pumps::default();
        if let Some((source, to)) = self.input {
            pumps.input.spawn(async move {
                let moved = match source {
                    Source::Fd(from) => fd_to_fd(Arc::new(from), to).await,
                    Source::Reader(from) => reader_to_fd(from, to).await,
                };
                note("input", moved);
            });
        }
        for (from, output) in self.outputs {
            pumps.outputs.spawn(async move {
                let moved = match output {
                    Output::Call(call) => fd_to_call(from, &*call).await,
                    Output::Fd(to) => fd_to_fd(from, to).await,
                    Output::Null => fd_to_call(from, &|_| {}).await,
                };
                note("output", moved);
            });
        }
        pumps
    }
}

impl Pumps {
    /// Waits until all output has come, which is when nobody can write any more. Input that
    /// was not taken is dropped.
    pub(crate) async fn drain(mut self) {
        self.input.abort_all();
        while self.outputs.join_next().await.is_some() {}
    }
}

impl Terminal {
    pub(crate) fn resize(&self, size: TtySize) -> io::Result<()> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }
}

fn pipes(command: &mut Command, input: Input, stdout: Output, stderr: Output) -> io::Result<Stdio> {
    let mut stdio = Stdio::default();
    command.stdin(match input {
        Input::Null => Handle::null(),
        Input::Fd(fd) => fd.into(),
        Input::Reader(reader) => {
            let (read, write) = pipe()?;
            stdio.input = Some((Source::Reader(reader), Arc::new(write)));
            read.into()
        }
    });
    let mut output = |output: Output| {
        Ok::<Handle, io::Error>(match output {
            Output::Null => Handle::null(),
            Output::Fd(fd) => fd.try_clone()?.into(),
            Output::Call(_) => {
                let (read, write) = pipe()?;
                stdio.outputs.push((Arc::new(read), output));
                write.into()
            }
        })
    };
    command.stdout(output(stdout)?);
    command.stderr(output(stderr)?);
    Ok(stdio)
}

/// The runtime makes the container's own terminal and moves bytes between it and this one.
fn terminal(
    command: &mut Command,
    size: TtySize,
    input: Input,
    stdout: Output,
) -> io::Result<Stdio> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&outer)?;
    rustix::pty::unlockpt(&outer)?;
    let name = rustix::pty::ptsname(&outer, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inner = File::from(rustix::fs::open(name, flags, Mode::empty())?);
    // The runtime does this, too, but only when it gets there: what is typed before must not be
    // echoed by both terminals.
    let mut modes = rustix::termios::tcgetattr(&inner)?;
    modes.make_raw();
    rustix::termios::tcsetattr(&inner, OptionalActions::Now, &modes)?;
    command.stdin(inner.try_clone()?);
    command.stdout(inner.try_clone()?);
    command.stderr(inner);
    let outer = Arc::new(outer);
    let terminal = Terminal(outer.clone());
    if size != TtySize::default() {
        terminal.resize(size)?;
    }
    let source = match input {
        Input::Null => None,
        Input::Fd(fd) => Some(Source::Fd(fd)),
        Input::Reader(reader) => Some(Source::Reader(reader)),
    };
    Ok(Stdio {
        input: source.map(|source| (source, outer.clone())),
        outputs: vec![(outer, stdout)],
        terminal: Some(terminal),
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// Our end of a pipe or terminal, for waiting. The other end's blocking is its own.
fn watched(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    // A descriptor of its own: one number can be waited for only once.
    cooper_sys::watch(fd.try_clone()?, interest)
}

async fn read(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        let result = ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut *buffer)?));
        match result {
            // A terminal whose inner end is closed everywhere.
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                return Ok(0);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_) => {}
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(written) => bytes = &bytes[written?..],
            Err(_) => {}
        }
    }
    Ok(())
}

async fn fd_to_call(from: Arc<OwnedFd>, call: &(dyn Fn(Bytes) + Send + Sync)) -> io::Result<()> {
    let from = watched(from, Interest::READABLE)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match read(&from, &mut buffer).await? {
            0 => return Ok(()),
            count => call(Bytes::copy_from_slice(&buffer[..count])),
        }
    }
}

async fn fd_to_fd(from: Arc<OwnedFd>, to: Arc<OwnedFd>) -> io::Result<()> {
    let from = watched(from, Interest::READABLE)?;
    let to = watched(to, Interest::WRITABLE)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match read(&from, &mut buffer).await? {
            0 => return Ok(()),
            count => write_all(&to, &buffer[..count]).await?,
        }
    }
}

async fn reader_to_fd(
    mut from: Pin<Box<dyn AsyncRead + Send>>,
    to: Arc<OwnedFd>,
) -> io::Result<()> {
    // The one descriptor of this end, so that the end of the input is seen.
    let to = match Arc::try_unwrap(to) {
        Ok(own) => {
            let flags = rustix::fs::fcntl_getfl(&own)?;
            rustix::fs::fcntl_setfl(&own, flags | OFlags::NONBLOCK)?;
            cooper_sys::watch(own, Interest::WRITABLE)?
        }
        Err(shared) => watched(shared, Interest::WRITABLE)?,
    };
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            count => write_all(&to, &buffer[..count]).await?,
        }
    }
}

fn note(direction: &str, moved: io::Result<()>) {
    match moved {
        // The other end does not want more.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tracing::warn!(direction, %error, "cannot move the bytes of a process");
        }
        _ => {}
    }
}
