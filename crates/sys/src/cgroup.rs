//! Control groups of both versions, as far as finding, killing and removing them goes.
//!
//! A container's group is made by its runtime, below the same relative path in each hierarchy.

use std::io;
use std::path::{Path, PathBuf};

/// Where the machine mounts its control groups (cgroups(7)).
const MOUNT: &str = "/sys/fs/cgroup";

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    unified: bool,
    roots: Vec<PathBuf>,
}

impl Hierarchies {
    /// Looks at `/sys/fs/cgroup`: pure version 2, or version 1 (with or without an empty
    /// version 2 beside it).
    pub fn detect() -> io::Result<Self> {
        Self::detect_at(Path::new(MOUNT))
    }

    fn detect_at(mount: &Path) -> io::Result<Self> {
        if mount.join("cgroup.controllers").exists() {
            return Ok(Self {
                unified: true,
                roots: vec![mount.to_owned()],
            });
        }
        let mut roots = Vec::new();
        for entry in std::fs::read_dir(mount)? {
            let entry = entry?;
            // Controllers that share a hierarchy are links to it.
            if entry.file_type()?.is_dir() {
                roots.push(entry.path());
            }
        }
        roots.sort();
        Ok(Self {
            unified: false,
            roots,
        })
    }

    /// Whether the controllers are in version 2.
    pub fn unified(&self) -> bool {
        self.unified
    }

    /// The directories of the group `path` (`/buildkit/id`) that exist.
    pub fn directories(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        self.roots
            .iter()
            .map(|root| root.join(path))
            .filter(|dir| dir.is_dir())
            .collect()
    }

    /// The value of `file` in the first hierarchy that has it for the group `path`.
    pub fn read(&self, path: &str, file: &str) -> Option<String> {
        let files = self.directories(path).into_iter().map(|dir| dir.join(file));
        files
            .into_iter()
            .find_map(|file| std::fs::read_to_string(file).ok())
    }

    /// The processes in the group and below it.
    pub fn processes(&self, path: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for dir in self.directories(path) {
            processes(&dir, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Sends SIGKILL to everything in the group. Processes that are just being forked can
    /// escape one round: call again while [`Hierarchies::processes`] is not empty.
    pub fn kill(&self, path: &str) {
        for dir in self.directories(path) {
            // Version 2 from Linux 5.14: all at once.
            if std::fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                return;
            }
        }
        for pid in self.processes(path) {
            if let Ok(pidfd) = crate::PidFd::open(pid) {
                let _ = pidfd.signal(9);
            }
        }
    }

    /// How many times the kernel killed a process of the group for want of memory.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let events = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = self.read(path, events).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Removes the group with what lies below it; groups that are gone are no error.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] while a process is in it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        for dir in self.directories(path) {
            remove(&dir)?;
        }
        Ok(())
    }
}

fn processes(dir: &Path, found: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(dir) {
        processes(&child, found);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let entries = entries.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_group_is_killed_and_removed() {
        let hierarchies = Hierarchies::detect().unwrap();
        let path = format!("/cooper-sys-test-{}", std::process::id());
        let root = hierarchies
            .roots
            .iter()
            .find(|root| root.ends_with("pids") || hierarchies.unified);
        let dir = root.unwrap().join(path.trim_start_matches('/'));
        std::fs::create_dir(&dir).unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(hierarchies.processes(&path), [child.id()]);
        assert!(hierarchies.remove(&path).is_err());
        hierarchies.kill(&path);
        child.wait().unwrap();
        hierarchies.remove(&path).unwrap();
        hierarchies.remove(&path).unwrap();
        assert_eq!(hierarchies.oom_kills(&path), 0);
        assert!(!dir.exists());
    }

    #[test]
    fn both_versions_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("memory")).unwrap();
        assert!(!Hierarchies::detect_at(dir.path()).unwrap().unified());
        std::fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
        assert!(Hierarchies::detect_at(dir.path()).unwrap().unified());
    }
}
