//! What a process that is being started tells the program: a socket whose end at the process
//! is closed by its running the program that was asked for.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::wire;

const FAILED: u8 = b'E';
const TERMINAL: u8 = b'T';
/// The most of a message that is told.
const MAX: usize = 16 << 10;

/// What happens while a process starts.
#[derive(Debug)]
pub enum Event {
    /// It has a terminal: this is the outer end of it.
    Terminal(OwnedFd),
    /// The program that was asked for runs, or the process has ended without a word.
    Started,
    /// It could not be started, and why, in runc's words. The process ends.
    Failed(String),
}

/// The end of the socket at the process.
#[derive(Debug)]
pub(crate) struct Reporter(OwnedFd);

impl Reporter {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(crate) fn failed(&self, message: &str) {
        let mut end = message.len().min(MAX - 1);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let parts = [
            IoSlice::new(&[FAILED]),
            IoSlice::new(&message.as_bytes()[..end]),
        ];
        // Nobody listens any more: then nobody wants to know.
        let _ = wire::send_once(&self.0, &parts, &[]);
    }

    pub(crate) fn terminal(&self, outer: OwnedFd) -> io::Result<()> {
        wire::send_once(&self.0, &[IoSlice::new(&[TERMINAL])], &[outer.as_fd()])?;
        Ok(())
    }
}

/// The end at the program.
#[derive(Debug)]
pub struct Status(AsyncFd<OwnedFd>);

/// Both ends.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Status {
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(cooper_sys::watch(socket, Interest::READABLE)?))
    }

    /// The next event. After [`Event::Started`] comes nothing else.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> io::Result<Event> {
        let mut buffer = vec![0; MAX];
        let mut fds = Vec::new();
        let received = loop {
            let mut ready = self.0.readable().await?;
            let result = ready
                .try_io(|socket| Ok(wire::receive_once(socket.as_fd(), &mut buffer, &mut fds)?));
            match result {
                // A process that is killed in the middle.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => {
                    break 0;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => break result?,
                Err(_) => {}
            }
        };
        match (buffer[..received].split_first(), fds.pop()) {
            (None, _) => Ok(Event::Started),
            (Some((&TERMINAL, _)), Some(outer)) => Ok(Event::Terminal(outer)),
            (Some((&FAILED, text)), _) => {
                Ok(Event::Failed(String::from_utf8_lossy(text).into_owned()))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
