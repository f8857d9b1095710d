//! Control groups of both versions, as far as finding, killing and removing them goes.
//!
//! A container's group is made by its runtime, below the same relative path in each hierarchy. For
//! an ordinary user the one hierarchy is the group that was handed over (cgroup-v2.rst,
//! "Delegation"): paths are relative to that.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the machine mounts its control groups (cgroups(7)).
const MOUNT: &str = "/sys/fs/cgroup";
/// systemd's mark on groups that it leaves to who runs in them (`CGROUP_DELEGATION`, "Delegation").
const DELEGATED: &str = "user.delegate";

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    unified: bool,
    roots: Vec<PathBuf>,
    /// The path of the group that was handed over.
    delegated: Option<String>,
}

/// What the processes of a group used since it was made. What the kernel does not count is
/// `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Time of processors.
    pub cpu: Duration,
    /// The part of it in programs.
    pub cpu_user: Option<Duration>,
    /// The part of it in the kernel.
    pub cpu_system: Option<Duration>,
    /// The most bytes of memory that were in use at once, with cached files.
    pub memory_peak: Option<u64>,
    /// Bytes that were read from devices.
    pub io_read: Option<u64>,
    /// Bytes that were written to devices.
    pub io_written: Option<u64>,
    /// The most processes and threads that were there at once.
    pub processes_peak: Option<u64>,
}

impl Hierarchies {
    /// Looks at `/sys/fs/cgroup`: pure version 2, or version 1 (with or without an empty
    /// version 2 beside it).
    pub fn detect() -> io::Result<Self> {
        Self::detect_at(Path::new(MOUNT))
    }

    /// None at all: for those who may not make groups.
    pub fn none() -> Self {
        Self {
            unified: false,
            roots: Vec::new(),
            delegated: None,
        }
    }

    /// What there is for an ordinary user, in a user namespace: the group of this process, when
    /// it has been handed over and everything in it may be changed; or none at all.
    ///
    /// It has been handed over when systemd says so (`Delegate=yes`), or nobody else is in it:
    /// what others have started in it must not be moved about.
    pub fn of_user() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of_user_at(Path::new(MOUNT), &own, std::process::id())
    }

    /// The same below `mount`, for the process `pid` whose groups are `own` (`/proc/pid/cgroup`).
    fn of_user_at(mount: &Path, own: &str, pid: u32) -> Self {
        let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
            return Self::none();
        };
        let root = mount.join(path.trim_start_matches('/'));
        let ours = ["", "cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|name| may_write(&root.join(name)));
        if !ours || !(is_marked(&root) || is_alone(&root, pid)) {
            return Self::none();
        }
        Self {
            unified: true,
            roots: vec![root],
            delegated: Some(path.trim_end_matches('/').to_owned()),
        }
    }

    fn detect_at(mount: &Path) -> io::Result<Self> {
        if mount.join("cgroup.controllers").exists() {
            return Ok(Self {
                unified: true,
                roots: vec![mount.to_owned()],
                delegated: None,
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
            delegated: None,
        })
    }

    /// The path on the machine of the group that an ordinary user has.
    pub fn delegated(&self) -> Option<&str> {
        self.delegated.as_deref()
    }

    /// The path on the machine of the group `path`.
    pub fn absolute(&self, path: &str) -> String {
        let below = self.delegated.as_deref().unwrap_or_default();
        format!("{below}/{}", path.trim_start_matches('/'))
    }

    /// The same as seen from the machine: paths are not relative to what was handed over.
    pub fn of_machine(&self) -> Self {
        match self.delegated {
            Some(_) => Self {
                unified: true,
                roots: vec![PathBuf::from(MOUNT)],
                delegated: None,
            },
            None => self.clone(),
        }
    }

    /// Whether it can be said which devices a group may use: an ordinary user cannot, and makes
    /// no devices either.
    pub fn rule_devices(&self) -> bool {
        !self.roots.is_empty() && self.delegated.is_none()
    }

    /// Whether the controllers are in version 2.
    pub fn unified(&self) -> bool {
        self.unified
    }

    /// The directory of each hierarchy.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
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

    /// What the group used; `None` when it is not there or time is not counted.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let number = |file: &str| self.read(path, file)?.trim().parse::<u64>().ok();
        let processes_peak = number("pids.peak");
        if self.unified {
            let stat = self.read(path, "cpu.stat")?;
            let io = self.read(path, "io.stat");
            let time = |name| field(&stat, name).map(Duration::from_micros);
            let bytes = |name| io.as_deref().map(|text| summed(text, name));
            return Some(Usage {
                cpu: time("usage_usec")?,
                cpu_user: time("user_usec"),
                cpu_system: time("system_usec"),
                memory_peak: number("memory.peak"),
                io_read: bytes("rbytes"),
                io_written: bytes("wbytes"),
                processes_peak,
            });
        }
        let io = self.read(path, "blkio.throttle.io_service_bytes_recursive");
        let bytes = |name: &str| {
            let lines = io.as_deref()?.lines();
            // `8:0 Read 4096`.
            let values = lines.filter_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                (words.next()? == name).then(|| words.next()?.parse::<u64>().ok())?
            });
            Some(values.sum())
        };
        Some(Usage {
            cpu: Duration::from_nanos(number("cpuacct.usage")?),
            cpu_user: number("cpuacct.usage_user").map(Duration::from_nanos),
            cpu_system: number("cpuacct.usage_sys").map(Duration::from_nanos),
            memory_peak: number("memory.max_usage_in_bytes"),
            io_read: bytes("Read"),
            io_written: bytes("Write"),
            processes_peak,
        })
    }

    /// Makes room for limits in groups below `parent`, where that is the group of this process or
    /// below it: version 2 gives controllers to groups only when those above them have no process
    /// of their own (cgroup-v2.rst, "No Internal Process Constraint"). So the processes of this
    /// one's group go to `init` below it. A service that manages its own groups is in that place
    /// (`Delegate=` of systemd), and whoever is the first in a container.
    ///
    /// Does nothing in version 1 and for the first group of all, which is free to have both.
    pub fn make_room(&self, parent: &str) -> io::Result<()> {
        if !self.unified {
            return Ok(());
        }
        let Some(root) = self.roots.first() else {
            return Ok(());
        };
        let above = if self.delegated.is_some() {
            root.clone()
        } else {
            let text = std::fs::read_to_string("/proc/self/cgroup")?;
            let own = text.lines().find_map(|line| line.strip_prefix("0::"));
            let own = Path::new(own.unwrap_or("/").trim_start_matches('/'));
            if !Path::new(parent.trim_start_matches('/')).starts_with(own) {
                return Ok(());
            }
            root.join(own)
        };
        // The first group of all is of no type.
        if !above.join("cgroup.type").exists() {
            return Ok(());
        }
        let below = above.join("init");
        match std::fs::create_dir(&below) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A process that is just being made can be missed once.
        for _ in 0..8 {
            let text = std::fs::read_to_string(above.join("cgroup.procs"))?;
            let pids: Vec<_> = text.lines().collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match std::fs::write(below.join("cgroup.procs"), pid) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                    _ => {}
                }
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
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

/// Whether this process may write to what is at `path`.
fn may_write(path: &Path) -> bool {
    let (access, flags) = (rustix::fs::Access::WRITE_OK, rustix::fs::AtFlags::EACCESS);
    rustix::fs::accessat(rustix::fs::CWD, path, access, flags).is_ok()
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    let read = rustix::fs::getxattr(group, DELEGATED, &mut value);
    read.is_ok_and(|length| value[..length] == *b"1")
}

/// Whether `pid` is the only process in the group.
fn is_alone(group: &Path, pid: u32) -> bool {
    let text = std::fs::read_to_string(group.join("cgroup.procs"));
    text.is_ok_and(|text| text.trim() == pid.to_string())
}

/// The number of the line `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    value.trim().parse().ok()
}

/// The sum of `name=number` over all devices.
fn summed(text: &str, name: &str) -> u64 {
    let words = text.split_whitespace();
    let values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
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
    fn use_is_read_from_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("cpuacct/a/cpuacct.usage", "5000\n");
        write("cpuacct/a/cpuacct.usage_sys", "2000\n");
        write("memory/a/memory.max_usage_in_bytes", "7\n");
        write(
            "blkio/a/blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 10\n8:0 Write 1\n8:16 Read 5\n8:16 Total 6\nTotal 16\n",
        );
        let usage = Hierarchies::detect_at(dir.path()).unwrap().usage("/a");
        let expected = Usage {
            cpu: Duration::from_micros(5),
            cpu_system: Some(Duration::from_micros(2)),
            memory_peak: Some(7),
            io_read: Some(15),
            io_written: Some(1),
            ..Usage::default()
        };
        assert_eq!(usage, Some(expected));
        write("cgroup.controllers", "");
        write(
            "a/cpu.stat",
            "usage_usec 9\nuser_usec 6\nsystem_usec 3\nnr_periods 0\n",
        );
        write("a/memory.peak", "8\n");
        write("a/pids.peak", "3\n");
        write(
            "a/io.stat",
            "8:0 rbytes=1 wbytes=2 rios=3\n8:16 rbytes=4 wbytes=5\n",
        );
        let hierarchies = Hierarchies::detect_at(dir.path()).unwrap();
        let expected = Usage {
            cpu: Duration::from_micros(9),
            cpu_user: Some(Duration::from_micros(6)),
            cpu_system: Some(Duration::from_micros(3)),
            memory_peak: Some(8),
            io_read: Some(5),
            io_written: Some(7),
            processes_peak: Some(3),
        };
        assert_eq!(hierarchies.usage("/a"), Some(expected));
        assert_eq!(hierarchies.usage("/b"), None);
    }

    #[test]
    fn a_user_has_the_group_that_nobody_else_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("user.slice/mine.scope");
        std::fs::create_dir_all(&group).unwrap();
        let own = "1:name=systemd:/\n0::/user.slice/mine.scope\n";
        let of_user = || Hierarchies::of_user_at(dir.path(), own, 12);
        std::fs::write(group.join("cgroup.procs"), "12\n").unwrap();
        assert_eq!(of_user(), Hierarchies::none());
        std::fs::write(group.join("cgroup.subtree_control"), "").unwrap();
        let found = of_user();
        assert!(found.unified() && !found.rule_devices());
        assert_eq!(found.roots(), std::slice::from_ref(&group));
        assert_eq!(
            found.absolute("/buildkit/id"),
            "/user.slice/mine.scope/buildkit/id"
        );
        assert_eq!(found.of_machine().absolute("/x"), "/x");
        std::fs::write(group.join("cgroup.procs"), "12\n13\n").unwrap();
        assert_eq!(of_user(), Hierarchies::none());
        // Version 1 has nothing to hand over.
        let none = Hierarchies::of_user_at(dir.path(), "1:name=systemd:/\n", 12);
        assert_eq!(none, Hierarchies::none());
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
