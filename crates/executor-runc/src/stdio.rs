//! The input and output of a process: pipes, a terminal, and what moves the bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;

use cooper_executor::pump::{fd_to_call, fd_to_fd, reader_to_fd, watched, write_all};
use cooper_executor::{ExecError, Input, Output, Process, TtySize};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};
use tokio::io::{AsyncRead, Interest};
use tokio::task::JoinSet;

/// What is left in this process of a child's input and output.
#[derive(Default)]
pub(crate) struct Stdio {
    input: Option<(Source, Arc<OwnedFd>)>,
    outputs: Vec<(Arc<OwnedFd>, Output)>,
    terminal: Option<Terminal>,
    /// What is to be connected to a terminal that is not there yet.
    waiting: Option<Waiting>,
    /// Where it is told that the process cannot be started.
    complaints: Output,
}

struct Waiting {
    source: Option<Source>,
    output: Output,
}

/// The child's ends: standard input, output and error.
#[derive(Debug)]
pub(crate) struct Ends([OwnedFd; 3]);

impl Ends {
    /// Makes them those of a command.
    pub(crate) fn give(self, command: &mut Command) {
        let [input, output, error] = self.0;
        command.stdin(input).stdout(output).stderr(error);
    }

    pub(crate) fn lend(&self) -> [BorrowedFd<'_>; 3] {
        self.0.each_ref().map(AsFd::as_fd)
    }
}

/// The outer end of a terminal.
#[derive(Clone, Debug)]
pub(crate) struct Terminal(Arc<OwnedFd>);

enum Source {
    Fd(OwnedFd),
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

/// What moves the bytes, one task for each direction. Dropping it stops them.
#[derive(Default)]
pub(crate) struct Pumps {
    input: JoinSet<()>,
    outputs: JoinSet<()>,
    waiting: Option<Waiting>,
    complaints: Output,
}

impl Stdio {
    /// Makes the input and output that `process` asks for. A terminal is made here; the runtime
    /// makes the container's own and moves bytes between the two.
    pub(crate) fn connect(process: &mut Process) -> Result<(Self, Ends), ExecError> {
        let input = std::mem::take(&mut process.stdin);
        let (stdout, stderr) = (process.stdout.clone(), process.stderr.clone());
        let connected = match process.tty {
            Some(size) => terminal(size, input, stdout),
            None => pipes(input, stdout, stderr),
        };
        connected.map_err(ExecError::process("connect the output of a process"))
    }

    /// The same for a runtime that hands over the container's own terminal
    /// ([`Pumps::attach`]): with one there is nothing to give it.
    pub(crate) fn connect_later(process: &mut Process) -> Result<(Self, Option<Ends>), ExecError> {
        if process.tty.is_none() {
            let complaints = process.stderr.clone();
            let (mut stdio, ends) = Self::connect(process)?;
            stdio.complaints = complaints;
            return Ok((stdio, Some(ends)));
        }
        let waiting = Waiting {
            source: source(std::mem::take(&mut process.stdin)),
            output: process.stdout.clone(),
        };
        let stdio = Self {
            waiting: Some(waiting),
            complaints: process.stdout.clone(),
            ..Self::default()
        };
        Ok((stdio, None))
    }

    pub(crate) fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Starts to move bytes.
    pub(crate) fn pump(self) -> Pumps {
        let mut pumps = Pumps {
            waiting: self.waiting,
            complaints: self.complaints,
            ..Pumps::default()
        };
        if let Some((source, to)) = self.input {
            pumps.take_from(source, to);
        }
        for (from, output) in self.outputs {
            pumps.give_to(from, output);
        }
        pumps
    }
}

impl Pumps {
    fn take_from(&mut self, source: Source, to: Arc<OwnedFd>) {
        self.input.spawn(async move {
            let moved = match source {
                Source::Fd(from) => fd_to_fd(Arc::new(from), to).await,
                Source::Reader(from) => reader_to_fd(from, to).await,
            };
            note("input", moved);
        });
    }

    fn give_to(&mut self, from: Arc<OwnedFd>, output: Output) {
        self.outputs.spawn(async move {
            let moved = match output {
                Output::Call(call) => fd_to_call(from, &*call).await,
                Output::Fd(to) => fd_to_fd(from, to).await,
                Output::Null => fd_to_call(from, &|_| {}).await,
            };
            note("output", moved);
        });
    }

    /// Moves the bytes of the terminal whose outer end is `outer`.
    pub(crate) fn attach(&mut self, outer: OwnedFd) -> Terminal {
        let outer = Arc::new(outer);
        if let Some(waiting) = self.waiting.take() {
            if let Some(source) = waiting.source {
                self.take_from(source, outer.clone());
            }
            self.give_to(outer.clone(), waiting.output);
        }
        Terminal(outer)
    }

    /// Tells that the process could not be started, where it would have written errors.
    pub(crate) fn complain(&mut self, message: &str) {
        let text = format!("{message}\n");
        match &self.complaints {
            Output::Null => {}
            Output::Call(call) => call(text.into()),
            Output::Fd(to) => {
                let to = to.clone();
                self.outputs.spawn(async move {
                    let to = watched(to, Interest::WRITABLE);
                    let written = match &to {
                        Ok(to) => write_all(to, text.as_bytes()).await,
                        Err(error) => Err(error.kind().into()),
                    };
                    note("output", written);
                });
            }
        }
    }

    /// Waits until all output has come, which is when nobody can write any more. Input that
    /// was not taken is dropped.
    pub(crate) async fn drain(mut self) {
        self.input.abort_all();
        while self.outputs.join_next().await.is_some() {}
    }
}

fn source(input: Input) -> Option<Source> {
    match input {
        Input::Null => None,
        Input::Fd(fd) => Some(Source::Fd(fd)),
        Input::Reader(reader) => Some(Source::Reader(reader)),
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

fn pipes(input: Input, stdout: Output, stderr: Output) -> io::Result<(Stdio, Ends)> {
    let mut stdio = Stdio::default();
    let input = match input {
        Input::Null => null()?,
        Input::Fd(fd) => fd,
        Input::Reader(reader) => {
            let (read, write) = pipe()?;
            stdio.input = Some((Source::Reader(reader), Arc::new(write)));
            read
        }
    };
    let mut output = |output: Output| {
        Ok::<OwnedFd, io::Error>(match output {
            Output::Null => null()?,
            Output::Fd(fd) => fd.try_clone()?,
            Output::Call(_) => {
                let (read, write) = pipe()?;
                stdio.outputs.push((Arc::new(read), output));
                write
            }
        })
    };
    let ends = Ends([input, output(stdout)?, output(stderr)?]);
    Ok((stdio, ends))
}

fn terminal(size: TtySize, input: Input, stdout: Output) -> io::Result<(Stdio, Ends)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&outer)?;
    rustix::pty::unlockpt(&outer)?;
    let name = rustix::pty::ptsname(&outer, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inner = rustix::fs::open(name, flags, Mode::empty())?;
    // The runtime does this, too, but only when it gets there: what is typed before must not be
    // echoed by both terminals.
    let mut modes = rustix::termios::tcgetattr(&inner)?;
    modes.make_raw();
    rustix::termios::tcsetattr(&inner, OptionalActions::Now, &modes)?;
    let ends = Ends([inner.try_clone()?, inner.try_clone()?, inner]);
    let outer = Arc::new(outer);
    let terminal = Terminal(outer.clone());
    if size != TtySize::default() {
        terminal.resize(size)?;
    }
    let stdio = Stdio {
        input: source(input).map(|source| (source, outer.clone())),
        outputs: vec![(outer, stdout)],
        terminal: Some(terminal),
        ..Stdio::default()
    };
    Ok((stdio, ends))
}

fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
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
