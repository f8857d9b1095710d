//! What a test left on the machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Remembers the machine's mounts, control groups, processes, namespaces and temporary files, to
/// be compared with what is there at the end of a test. What a daemon leaves in its own folders
/// is for [`in_root`].
///
/// It sees the whole machine, so tests that use it run one at a time: the next one, in whatever
/// process, begins when this one was checked.
#[must_use = "a watch that nobody checks sees nothing"]
#[derive(Debug)]
pub struct Watch {
    before: Seen,
    /// What steps are compared with.
    begun: Seen,
    _alone: Flock<File>,
}

/// Folders in which programs put what lives as long as they do, beside that for temporary files.
const FILES: &[&str] = &["/run", "/dev/shm"];

/// Programs that tests start, and those start.
const PROGRAMS: &[&str] = &[
    "cooper",
    "cooperd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "crun",
    "docker-buildx",
    "docker-registry",
    "skopeo",
    "git",
    "bzip2",
    "xz",
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Watch {
    /// Looks at the machine as it is now, once nobody else watches it.
    pub fn begin() -> Self {
        let alone = alone();
        let before = Seen::now();
        Self {
            begun: before.clone(),
            before,
            _alone: alone,
        }
    }

    /// What the test itself has mounted by now is no leak of a step.
    pub fn begin_steps(&mut self) {
        self.begun = Seen::now();
    }

    /// Fails the test when something is there that was not there at the beginning. What is
    /// being torn down gets two seconds for it.
    #[track_caller]
    pub fn check(self) {
        self.wait("the test left on the machine", &self.before, |_| true);
    }

    /// The same while a daemon is running: mounts, control groups, namespaces and processes of
    /// steps have to be gone. What it keeps ready for the next steps may be there, as long as it is.
    #[track_caller]
    pub fn check_steps(&self) {
        let of_steps = |left: &String| {
            let kinds = ["mount ", "cgroup ", "namespace "];
            let process = left.strip_prefix("process ").is_some_and(of_step);
            process || kinds.iter().any(|kind| left.starts_with(kind)) && !kept_ready(left)
        };
        self.wait("steps left on the machine", &self.begun, of_steps);
    }

    #[track_caller]
    fn wait(&self, what: &str, before: &Seen, counts: impl Fn(&String) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let mut left = Seen::now().beyond(before);
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
            namespaces: namespaces(),
            files: FILES
                .iter()
                .map(PathBuf::from)
                .chain([std::env::temp_dir()])
                .flat_map(|dir| entries(&dir))
                .collect(),
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
                .map(|n| format!("namespace {n}")),
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

/// Whether a process, as it is shown, is that of a step: in a container, or what makes one.
fn of_step(process: &str) -> bool {
    let program = process.split(' ').nth(1).unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    ["runc", "crun"].contains(&name) || !PROGRAMS.contains(&name)
}

/// Whether this is a control group that a daemon which lives keeps ready: it is in the bundle of
/// a container that nobody has asked for yet, and these are few.
fn kept_ready(left: &str) -> bool {
    // The most that the built-in runtime keeps.
    const MOST: usize = 4;
    let Some(group) = left.strip_prefix("cgroup ") else {
        return false;
    };
    let id = Path::new(group).file_name().unwrap_or_default();
    roots().iter().any(|root| {
        let bundles = entries(root).into_iter();
        let bundles = bundles.flat_map(|worker| entries(&worker.join("executor/containers")));
        let ready: Vec<_> = bundles.filter(|bundle| is_ready(bundle)).collect();
        ready.len() <= MOST && ready.iter().any(|bundle| bundle.file_name() == Some(id))
    })
}

/// Whether nothing is in a bundle but the name of its control group. One that a container was
/// made in has its root file system and its files, as long as there is anything of it.
fn is_ready(bundle: &Path) -> bool {
    let files = entries(bundle);
    files.len() == 1 && files.contains(&bundle.join("cgroup"))
}

/// The roots of the daemons that live, and of builds with none.
fn roots() -> BTreeSet<PathBuf> {
    let lines = ours().into_iter();
    let words = lines.filter_map(|(process, _)| std::fs::read(process.join("cmdline")).ok());
    words
        .filter_map(|line| {
            let line = String::from_utf8(line).ok()?;
            let mut words = line.split('\0');
            words.find(|word| *word == "--root")?;
            words.next().map(PathBuf::from)
        })
        .collect()
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
/// runs in a container.
fn processes() -> BTreeSet<String> {
    ours().into_iter().map(|(_, line)| line).collect()
}

/// The folders of these processes, and how they are shown. Programs that only have such a name
/// among their arguments are others'.
fn ours() -> Vec<(PathBuf, String)> {
    let namespace = |path: &Path| std::fs::read_link(path.join("ns/pid")).ok();
    let own = namespace(Path::new("/proc/self"));
    entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|path| {
            let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let line = std::fs::read(path.join("cmdline")).ok()?;
            let program = line.split(|byte| *byte == 0).next()?;
            let program = String::from_utf8_lossy(program);
            let name = program.rsplit('/').next().unwrap_or_default();
            let contained = namespace(&path).is_some_and(|found| Some(&found) != own.as_ref());
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (!line.is_empty() && (contained || PROGRAMS.contains(&name)))
                .then(|| (path, format!("{pid} {}", line.trim_end())))
        })
        .collect()
}

/// What keeps namespaces alive: names of networks, and descriptors and memberships of our
/// processes (namespaces(7)). What is mounted is among the mounts.
fn namespaces() -> BTreeSet<String> {
    let mut found: BTreeSet<String> = entries(Path::new("/run/netns"))
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let links = |dir: PathBuf| {
        let links = entries(&dir).into_iter();
        let links = links.filter_map(|link| std::fs::read_link(link).ok());
        links
            .map(|link| link.to_string_lossy().into_owned())
            .collect::<BTreeSet<_>>()
    };
    let own = links(PathBuf::from("/proc/self/ns"));
    for (path, line) in ours() {
        let held = links(path.join("ns"));
        let held = held.into_iter().chain(links(path.join("fd")));
        let is_namespace = |link: &String| {
            link.split_once(":[")
                .is_some_and(|(kind, _)| !kind.contains('/') && kind != "pipe" && kind != "socket")
                && !link.starts_with("anon_inode")
        };
        let held = held.filter(|link| is_namespace(link) && !own.contains(link));
        found.extend(held.map(|link| format!("{link} of {line}")));
    }
    found
}

/// Snapshots of the metadata below a daemon's root whose folder is not there.
pub fn missing_in_root(root: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    for worker in entries(root) {
        let database = worker.join("metadata.db");
        if !database.exists() {
            continue;
        }
        let kinds = entries(&worker.join("snapshots"));
        for record in rows(&database, "snapshots", "value") {
            let number = serde_json::from_str::<serde_json::Value>(&record);
            let number =
                number.map_or_else(|_| record.clone(), |record| record["number"].to_string());
            let place = Path::new("s").join(number).join("fs");
            if !kinds.iter().any(|kind| kind.join(&place).is_dir()) {
                missing.push(record);
            }
        }
    }
    missing
}

/// What a daemon that has stopped left unfinished below its root: leases, folders of snapshots
/// that nothing knows, and mount points.
pub fn in_root(root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for worker in entries(root) {
        let database = worker.join("metadata.db");
        if !database.exists() {
            continue;
        }
        left.extend(rows(&database, "cache-leases", "key").map(|key| format!("lease {key}")));
        let known: BTreeSet<String> = rows(&database, "snapshots", "value")
            .filter_map(|record| {
                let record: serde_json::Value = serde_json::from_str(&record).ok()?;
                Some(record["number"].to_string())
            })
            .collect();
        // Each kind of snapshotter has a folder of its own.
        let unknown = entries(&worker.join("snapshots"));
        let unknown = unknown.iter().flat_map(|kind| entries(&kind.join("s")));
        let unknown = unknown.filter(|folder| {
            let number = folder.file_name().unwrap_or_default();
            !known.contains(number.to_string_lossy().as_ref())
        });
        left.extend(unknown.map(|folder| format!("snapshot {}", folder.display())));
        let mounts = entries(&worker.join("mounts"));
        left.extend(
            mounts
                .iter()
                .map(|path| format!("mount {}", path.display())),
        );
    }
    left
}

/// What is in a folder for temporary files that only the program under test uses.
pub fn temporary(folder: &Path) -> Vec<String> {
    let left = entries(folder).into_iter();
    left.map(|path| format!("file {}", path.display()))
        .collect()
}

/// A column of the metadata's rows in one table.
fn rows(database: &Path, table: &str, column: &str) -> impl Iterator<Item = String> + use<> {
    let connection = rusqlite::Connection::open(database).unwrap();
    let sql = format!("SELECT {column} FROM kv WHERE tbl = ?1");
    let mut statement = connection.prepare(&sql).unwrap();
    let rows = statement.query_map([table], |row| row.get::<_, String>(0));
    let rows: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
    rows.into_iter()
}

pub(crate) fn entries(dir: &Path) -> BTreeSet<PathBuf> {
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
    fn what_is_unfinished_in_a_root_is_found() {
        let root = tempfile::tempdir().unwrap();
        let worker = root.path().join("runc");
        for folder in ["snapshots/o/s/1", "snapshots/o/s/2", "mounts/m"] {
            std::fs::create_dir_all(worker.join(folder)).unwrap();
        }
        let connection = rusqlite::Connection::open(worker.join("metadata.db")).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE kv (tbl TEXT, key TEXT, value TEXT, seq INTEGER);
                 INSERT INTO kv VALUES ('cache-leases', 'x', '1', 1);
                 INSERT INTO kv VALUES ('snapshots', 'c/y', '{\"number\":1}', 2);",
            )
            .unwrap();
        let left = in_root(root.path());
        let s = worker.join("snapshots/o/s/2");
        let expected = [
            "lease x".to_owned(),
            format!("snapshot {}", s.display()),
            format!("mount {}", worker.join("mounts/m").display()),
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_group_is_kept_ready_by_a_daemon_that_lives_and_before_it_is_used() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("runc/executor/containers/some-id");
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("cgroup"), "/buildkit/some-id").unwrap();
        let group = "cgroup /sys/fs/cgroup/memory/buildkit/some-id";
        assert!(!kept_ready(group), "nobody lives");
        // As a daemon is started, of which no more is looked at than that.
        let daemon = root.path().join("cooperd");
        std::fs::copy("/bin/sh", &daemon).unwrap();
        let mut child = std::process::Command::new(&daemon)
            .args(["-c", "echo up; read line", "--root"])
            .arg(root.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A process that has only just been started has no command line yet.
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        assert!(kept_ready(group));
        assert!(!kept_ready("cgroup /sys/fs/cgroup/memory/buildkit/other"));
        std::fs::create_dir(bundle.join("rootfs")).unwrap();
        assert!(!kept_ready(group), "it is used");
        std::fs::remove_dir(bundle.join("rootfs")).unwrap();
        for number in 0..4 {
            let more = bundle.with_file_name(number.to_string());
            std::fs::create_dir(&more).unwrap();
            std::fs::write(more.join("cgroup"), "").unwrap();
        }
        assert!(!kept_ready(group), "too many");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_namespace_that_a_process_of_ours_is_in_is_found() {
        let before = namespaces();
        let mut child = std::process::Command::new("unshare")
            .args(["--uts", "git", "hash-object", "--stdin"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let found = |expected: bool| {
            crate::wait_until("a namespace", Duration::from_secs(5), || {
                let now = namespaces();
                let mut new = now.difference(&before);
                new.any(|line| line.starts_with("uts:[") && line.contains("hash-object"))
                    == expected
            });
        };
        found(true);
        drop(child.stdin.take());
        child.wait().unwrap();
        found(false);
    }

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
