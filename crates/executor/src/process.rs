//! What a process is made of, and how it ends.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncRead;

/// A process to be run in a container.
#[derive(Debug, Default)]
pub struct Process {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment, each `NAME=value`, as the process gets it: nothing is added.
    pub env: Vec<String>,
    /// The working directory, made when it is missing; empty for `/`.
    pub cwd: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty for root.
    pub user: String,
    /// The size of its terminal, if it is to have one. With a terminal all output is
    /// standard output.
    pub tty: Option<TtySize>,
    /// What it reads.
    pub stdin: Input,
    /// Where standard output goes.
    pub stdout: Output,
    /// Where standard error goes.
    pub stderr: Output,
}

impl Process {
    /// A process of these arguments, with no environment, no input and its output thrown away.
    pub fn new<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Lets it read and write what this program does.
    ///
    /// # Errors
    /// When a descriptor of this program cannot be copied.
    pub fn with_own_streams(mut self) -> io::Result<Self> {
        let output = |fd: io::Result<OwnedFd>| fd.map(Arc::new).map(Output::Fd);
        self.stdin = Input::Fd(io::stdin().as_fd().try_clone_to_owned()?);
        self.stdout = output(io::stdout().as_fd().try_clone_to_owned())?;
        self.stderr = output(io::stderr().as_fd().try_clone_to_owned())?;
        Ok(self)
    }
}

/// The size of a terminal, in characters. Zero leaves it to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in each.
    pub columns: u16,
}

/// What a process reads.
#[derive(Default)]
pub enum Input {
    /// Nothing.
    #[default]
    Null,
    /// This descriptor, as it is. With a terminal it must be a pipe or a socket.
    Fd(OwnedFd),
    /// What this reader gives, until its end or that of the process.
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

/// Where output of a process goes.
#[derive(Clone, Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// This descriptor, as it is. With a terminal it must be a pipe or a socket.
    Fd(Arc<OwnedFd>),
    /// This function, called for each piece in order, from the runtime's threads: it must not
    /// block.
    Call(Arc<dyn Fn(Bytes) + Send + Sync>),
}

impl Output {
    /// Output that goes to a function.
    pub fn call(function: impl Fn(Bytes) + Send + Sync + 'static) -> Self {
        Self::Call(Arc::new(function))
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Fd(_) => "Fd",
            Self::Reader(_) => "Reader",
        })
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Fd(_) => "Fd",
            Self::Call(_) => "Call",
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// What it returned, or 128 and the number of the signal that ended it.
    pub code: u32,
    /// Whether it did not end well and the kernel killed something in the container for want
    /// of memory.
    pub oom: bool,
}

impl Exit {
    /// Whether the code is zero.
    pub fn success(self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Exit {
    /// In BuildKit's words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code: {}", self.code)?;
        if self.oom {
            f.write_str(": cannot allocate memory")?;
        }
        Ok(())
    }
}
