//! How many files this process may have open.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the number of files that this process may have open to the most that it may ask for
/// (getrlimit(2), `RLIMIT_NOFILE`): a daemon holds one for each connection and each file on its
/// way. What it was before is for the processes that it starts for others, see
/// [`open_files_before`].
///
/// # Errors
/// The kernel's; the limit is what it was.
pub fn raise_open_files() -> io::Result<()> {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit {
            current: before.maximum,
            ..before
        };
        setrlimit(Resource::Nofile, raised)?;
        // Only the first is the one from outside.
        BEFORE.get_or_init(|| before);
    }
    Ok(())
}

/// The soft and the hard limit before [`raise_open_files`] raised the first, if it did. Programs
/// that close every number up to the limit take minutes where it is high.
pub fn open_files_before() -> Option<(u64, u64)> {
    let limit = BEFORE.get()?;
    Some((
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    ))
}
