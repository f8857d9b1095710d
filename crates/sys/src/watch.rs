//! Waiting for descriptors in an async runtime.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with tokio. It should not block (`O_NONBLOCK`), or be one that is
/// only waited for, as a pidfd.
///
/// # Panics
/// Outside of a runtime that waits for descriptors.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always has the same number, and is closed only when it is
    // dropped, which the `AsyncFd` that owns it does after deregistering it; the caller gets
    // no access by which it could be exchanged that does not itself promise this.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_pipe_becomes_readable() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let watched = watch(read, Interest::READABLE).unwrap();
        let write = tokio::task::spawn_blocking(move || {
            std::fs::File::from(write).write_all(b"x").unwrap();
        });
        watched.readable().await.unwrap().retain_ready();
        write.await.unwrap();
    }
}
