//! Sockets that a service manager opened for this process (sd_listen_fds(3)).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first descriptor that is passed on.
const FIRST: RawFd = 3;
/// More descriptors than a manager passes.
const MOST: usize = 4096;

/// A descriptor with its name. It is closed in programs that this one starts.
#[derive(Debug)]
pub struct Passed {
    /// The descriptor.
    pub fd: OwnedFd,
    /// Its name (`FileDescriptorName=` of a systemd socket unit); empty when it has none.
    pub name: String,
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that the environment says were passed to this process: `LISTEN_PID`,
/// `LISTEN_FDS` and `LISTEN_FDNAMES`. There are none when the variables are missing or meant for
/// another process, and at any call but the first.
///
/// To be called before this process opens descriptors of its own: what it opens could get a
/// number that the environment claims and the manager did not fill.
///
/// # Errors
/// A variable cannot be read, or a descriptor is not there.
pub fn passed() -> io::Result<Vec<Passed>> {
    let variable = |name: &str| std::env::var(name).ok();
    let pid = std::process::id();
    let Some(names) = announced(variable, pid)? else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let mut passed = Vec::new();
    for (number, name) in (FIRST..).zip(names) {
        // SAFETY: fcntl with F_GETFD only looks at the number.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            let text = format!("descriptor {number} of LISTEN_FDS is not there");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: it is open, the manager gave it to this very process, and `TAKEN` sees to it
        // that it is given away once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl_setfd(fd.as_fd(), FdFlags::CLOEXEC)?;
        passed.push(Passed { fd, name });
    }
    Ok(passed)
}

/// The names of what was passed, in order; `None` when nothing was.
fn announced(
    variable: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> io::Result<Option<Vec<String>>> {
    let (Some(meant), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(None);
    };
    if meant.trim() != pid.to_string() {
        return Ok(None);
    }
    let count: Option<usize> = count.trim().parse().ok();
    let Some(count) = count.filter(|count| *count <= MOST) else {
        let text = "LISTEN_FDS is not a number of descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let names = names.chain(std::iter::repeat(String::new())).take(count);
    Ok(Some(names.collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(variables: &[(&str, &str)]) -> io::Result<Option<Vec<String>>> {
        let find = |name: &str| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        };
        announced(find, 7)
    }

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        let own = ("LISTEN_PID", "7");
        assert_eq!(
            names(&[own, ("LISTEN_FDS", "2")]).unwrap().unwrap(),
            ["", ""]
        );
        let named = [own, ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "api:tls")];
        assert_eq!(names(&named).unwrap().unwrap(), ["api", "tls", ""]);
        assert_eq!(names(&[("LISTEN_FDS", "2")]).unwrap(), None);
        let other = [("LISTEN_PID", "8"), ("LISTEN_FDS", "2")];
        assert_eq!(names(&other).unwrap(), None);
        assert!(names(&[own, ("LISTEN_FDS", "many")]).is_err());
        assert!(names(&[own, ("LISTEN_FDS", "5000")]).is_err());
    }
}
