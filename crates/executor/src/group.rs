//! The control group of a container.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use cooper_sys::PidFd;
use cooper_sys::cgroup::{Hierarchies, Usage};
use rustix::event::{PollFd, PollFlags};
use tokio::io::Interest;

/// Rounds of killing before it is given up: each waits for those that were there to end.
const ROUNDS: usize = 100;

/// A control group, in every hierarchy. It is only a name: dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Group {
    hierarchies: Arc<Hierarchies>,
    path: Arc<str>,
}

impl Group {
    /// The group that a configuration names (`linux.cgroupsPath`), which need not be there.
    pub fn new(hierarchies: Arc<Hierarchies>, path: &str) -> Self {
        Self {
            hierarchies,
            path: directory(path).into(),
        }
    }

    /// Sends SIGKILL to all in it. Does not wait.
    pub fn kill(&self) {
        self.hierarchies.kill(&self.path);
    }

    /// Whether `pid` is in it or below it.
    pub fn contains(&self, pid: u32) -> bool {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        is_below(&text, &self.path)
    }

    /// Whether the kernel killed something in it for want of memory.
    pub fn out_of_memory(&self) -> bool {
        self.hierarchies.oom_kills(&self.path) > 0
    }

    /// What was used in it.
    pub fn usage(&self) -> Option<Usage> {
        self.hierarchies.usage(&self.path)
    }

    /// Kills all in it and waits until it is empty. Nothing may enter it from outside.
    ///
    /// # Cancel safety
    /// What was killed stays so.
    pub async fn empty(&self) {
        for _ in 0..ROUNDS {
            let group = self.clone();
            let left = tokio::task::spawn_blocking(move || {
                group.kill();
                group.hierarchies.processes(&group.path)
            });
            let left = left.await.unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Ok(pidfd) = PidFd::open(pid) {
                    let _ = process_ended(&pidfd).await;
                }
            }
        }
        tracing::warn!(path = &*self.path, "cannot empty a control group");
    }

    /// As [`Group::empty`], on a thread that may block.
    pub fn empty_blocking(&self) {
        for _ in 0..ROUNDS {
            self.kill();
            let left = self.hierarchies.processes(&self.path);
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Ok(pidfd) = PidFd::open(pid) {
                    let _ = process_ended_blocking(&pidfd);
                }
            }
        }
    }

    /// Removes it. Blocks.
    pub fn remove(&self) -> io::Result<()> {
        self.hierarchies.remove(&self.path)
    }
}

/// Whether a process with these groups (`/proc/pid/cgroup`) is in the group `path` or below it.
/// Those of an ordinary user are named from further up.
fn is_below(groups: &str, path: &str) -> bool {
    groups.lines().any(|line| {
        let mut found = line.match_indices(path);
        found.any(|(begin, _)| matches!(line.as_bytes().get(begin + path.len()), None | Some(b'/')))
    })
}

/// Whether a configuration names a scope of systemd (`slice:prefix:name`) and not a path.
pub fn is_of_systemd(path: &str) -> bool {
    !path.starts_with('/') && path.split(':').count() == 3
}

/// The path of a group below each hierarchy. A scope of systemd is in the folder of its slice,
/// which is in those of the slices that its name begins with (systemd.slice(5); runc,
/// `ExpandSlice` and `getUnitName`).
fn directory(path: &str) -> String {
    let mut parts = path.split(':');
    let (Some(slice), Some(prefix), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return path.to_owned();
    };
    if !is_of_systemd(path) {
        return path.to_owned();
    }
    let mut directory = String::new();
    // The first slice of all has no folder.
    let stem = slice.trim_end_matches(".slice").trim_start_matches('-');
    let ends = stem.match_indices('-').map(|(end, _)| end);
    for end in ends.chain([stem.len()]).filter(|end| *end > 0) {
        directory.push_str(&format!("/{}.slice", &stem[..end]));
    }
    match prefix {
        "" => format!("{directory}/{name}.scope"),
        prefix => format!("{directory}/{prefix}-{name}.scope"),
    }
}

/// Waits until the process has ended, whoever its parent is.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn process_ended(pidfd: &PidFd) -> io::Result<()> {
    let own = pidfd.as_fd().try_clone_to_owned()?;
    let ready = cooper_sys::watch(own, Interest::READABLE)?;
    ready.readable().await?.retain_ready();
    Ok(())
}

/// As [`process_ended`], on a thread that may block.
pub fn process_ended_blocking(pidfd: &PidFd) -> io::Result<()> {
    let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut poll, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_a_group_or_below_it() {
        for (groups, expected) in [
            ("0::/buildkit/id\n", true),
            ("0::/buildkit/id/id\n", true),
            ("1:name=systemd:/\n0::/user.slice/own/buildkit/id\n", true),
            ("0::/buildkit/id2\n", false),
            ("0::/buildkit\n", false),
            ("", false),
        ] {
            assert_eq!(is_below(groups, "/buildkit/id"), expected, "{groups}");
        }
    }

    #[test]
    fn scopes_are_in_the_folders_of_their_slices() {
        for (path, expected) in [
            ("/parent/buildkit/id", "/parent/buildkit/id"),
            ("/odd:names:here/id", "/odd:names:here/id"),
            ("system.slice:cooper:id", "/system.slice/cooper-id.scope"),
            ("a-b.slice::id", "/a.slice/a-b.slice/id.scope"),
            ("-.slice:x:id", "/x-id.scope"),
        ] {
            assert_eq!(directory(path), expected);
            assert_eq!(is_of_systemd(path), expected.ends_with(".scope"));
        }
    }
}
