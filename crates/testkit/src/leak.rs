//! What a test left on the machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Remembers the machine's mounts, control groups, processes, named network namespaces and
/// temporary files, to be compared with what is there at the end of a test.
///
/// It sees the whole machine, so tests that use it run one at a time: the next one, in whatever
/// process, begins when this one was checked.
#[must_use = "a watch that nobody checks sees nothing"]
#[derive(Debug)]
pub struct Watch {
    before: Seen,
    _alone: Flock<File>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
    namespaces: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Watch {
    /// Looks at the machine as it is now, once nobody else watches it.
    pub fn begin() -> Self {
        let alone = alone();
        Self {
            before: Seen::now(),
            _alone: alone,
        }
    }

    /// Fails the test when something is there that was not there at the beginning. What is
    /// being torn down gets two seconds for it.
    #[track_caller]
    pub fn check(self) {
        self.wait("the test left on the machine", |_| true);
    }

    /// The same while a daemon is running: mounts, control groups and network namespaces of
    /// steps have to be gone.
    #[track_caller]
    pub fn check_steps(&self) {
        let of_steps = |left: &String| {
            let kinds = ["mount ", "cgroup ", "namespace "];
            kinds.iter().any(|kind| left.starts_with(kind))
        };
        self.wait("steps left on the machine", of_steps);
    }

    #[track_caller]
    fn wait(&self, what: &str, counts: impl Fn(&String) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let mut left = Seen::now().beyond(&self.before);
            left.retain(&counts);
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}:\n  {}",
                left.join("\n  ")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Waits until nobody watches the machine; until the end of what is returned nobody begins to.
pub fn alone() -> Flock<File> {
    // One for all, whatever folder for temporary files each has.
    let file = File::options()
        .create(true)
        .append(true)
        .open("/run/cooper-watch.lock");
    let alone = Flock::lock(file.unwrap(), FlockArg::LockExclusive);
    alone.map_err(|(_, error)| error).unwrap()
}

impl Seen {
    fn now() -> Self {
        Self {
            mounts: mounts(),
            cgroups: cgroups(),
            processes: processes(),
            namespaces: entries(Path::new("/run/netns")),
            files: entries(&std::env::temp_dir()),
        }
    }

    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(
            self.mounts
                .difference(&before.mounts)
                .map(|m| format!("mount {m}")),
        );
        left.extend(
            self.cgroups
                .difference(&before.cgroups)
                .map(|c| format!("cgroup {}", c.display())),
        );
        left.extend(
            self.processes
                .difference(&before.processes)
                .map(|p| format!("process {p}")),
        );
        left.extend(
            self.namespaces
                .difference(&before.namespaces)
                .map(|n| format!("namespace {}", n.display())),
        );
        let ours = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ["cooper", "buildkit", "runc"]
                .iter()
                .any(|part| name.contains(part))
        };
        let files = self.files.difference(&before.files).filter(ours);
        left.extend(files.map(|f| format!("file {}", f.display())));
        left
    }
}

/// Mount points with their types (proc_pid_mountinfo(5)).
fn mounts() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            Some(format!(
                "{} on {}",
                right.split(' ').next()?,
                left.split(' ').nth(4)?
            ))
        })
        .collect()
}

/// Control groups of containers: whatever lies below a group named `buildkit` or `cooper`,
/// and groups that runc puts at the top. The groups named so themselves stay.
fn cgroups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = open.pop() {
        for path in entries(&dir) {
            let real = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            if !real {
                continue;
            }
            let parent = dir.file_name().unwrap_or_default();
            if parent == "buildkit" || parent == "cooper" {
                found.insert(path);
            } else if depth < 6 {
                open.push((path, depth + 1));
            }
        }
    }
    found
}

/// How many processes have exactly this command line, its words joined by spaces.
pub fn running(command: &str) -> usize {
    let lines = entries(Path::new("/proc"));
    lines
        .iter()
        .filter_map(|path| std::fs::read(path.join("cmdline")).ok())
        .filter(|line| {
            let line = String::from_utf8_lossy(line).replace('\0', " ");
            line.trim_end() == command
        })
        .count()
}

/// Processes by number and command line: those of the programs that tests start, and whatever
/// runs in a container. Programs that only have such a name among their arguments are others'.
fn processes() -> BTreeSet<String> {
    const PROGRAMS: &[&str] = &[
        "cooper",
        "cooperd",
        "runc",
        "crun",
        "docker-buildx",
        "docker-registry",
        "skopeo",
    ];
    let namespace = |path: &Path| std::fs::read_link(path.join("ns/pid")).ok();
    let own = namespace(Path::new("/proc/self"));
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|path| {
            let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let line = std::fs::read(path.join("cmdline")).ok()?;
            let program = line.split(|byte| *byte == 0).next()?;
            let program = String::from_utf8_lossy(program);
            let name = program.rsplit('/').next().unwrap_or_default();
            let contained = namespace(path).is_some_and(|found| Some(&found) != own.as_ref());
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (!line.is_empty() && (contained || PROGRAMS.contains(&name)))
                .then(|| format!("{pid} {}", line.trim_end()))
        })
        .collect()
}

fn entries(dir: &Path) -> BTreeSet<PathBuf> {
    let Ok(list) = std::fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    list.filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_stays_is_found() {
        let before = Seen::now();
        let file = tempfile::Builder::new()
            .prefix("cooper-leak-")
            .tempfile()
            .unwrap();
        let left = Seen::now().beyond(&before);
        assert!(
            left.iter()
                .any(|line| line.contains(file.path().to_str().unwrap())),
            "{left:?}"
        );
    }
}
