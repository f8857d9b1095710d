//! A lock that dies with its process.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// An exclusive flock(2) on a file; dropping it, or the death of the process, releases it.
#[derive(Debug)]
#[must_use = "the lock is held as long as this value lives"]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock on `path`, which is created when missing (mode 0600) and never removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::try_exclusive(&path).unwrap();
        let error = FileLock::try_exclusive(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        drop(FileLock::try_exclusive(&path).unwrap());
    }
}
