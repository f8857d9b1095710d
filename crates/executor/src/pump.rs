//! Moving bytes between the descriptors of a process and whoever wants them.
//!
//! # Cancel safety
//! Dropping a future of this module stops the moving; what was read and not yet passed on is
//! lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};

/// Bytes moved at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// Our end of a pipe or terminal, for waiting. The other end's blocking is its own.
pub fn watched(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
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

/// Writes all of `bytes`.
pub async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
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

/// Calls `call` for each piece, until the end.
pub async fn fd_to_call(
    from: Arc<OwnedFd>,
    call: &(dyn Fn(Bytes) + Send + Sync),
) -> io::Result<()> {
    let from = watched(from, Interest::READABLE)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match read(&from, &mut buffer).await? {
            0 => return Ok(()),
            count => call(Bytes::copy_from_slice(&buffer[..count])),
        }
    }
}

/// Moves everything, until the end.
pub async fn fd_to_fd(from: Arc<OwnedFd>, to: Arc<OwnedFd>) -> io::Result<()> {
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

/// Moves everything, until the end, and closes `to` then if nobody else has it.
pub async fn reader_to_fd(
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
