//! Mount points that a runtime makes in a root file system, and that are not to stay there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cooper_sys::{Entry, Root};
use rustix::fs::{AtFlags, FileType, Stat, Timespec, Timestamps};

use crate::path::real_path;

/// What is mounted over in every container and may be missing in an image.
const ALWAYS: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// The coarsest step of the clock that stamps files: the times of a file and of the folder in
/// which it was made may be that far apart.
const TICK_NANOSECONDS: i128 = 10_000_000;

/// The mount points that are missing in a root file system.
///
/// Take it before the runtime makes them, and [remove](Self::remove) them when the container
/// has ended: those that are still empty go, and a folder in which nothing else was changed
/// gets back the time of its last change, so that a layer does not depend on when it was made.
#[derive(Debug, Default)]
pub struct MountStubs {
    // Innermost first.
    missing: Vec<PathBuf>,
    // Times of the folders that were there.
    parents: BTreeMap<PathBuf, Timestamps>,
    // When they were looked for, in nanoseconds since 1970.
    began: i128,
}

impl MountStubs {
    /// Looks for what is missing of `dests` and of the files that are always mounted. With
    /// `recursive` missing folders above them count as well.
    pub fn before<'a>(
        root: &Root,
        dests: impl IntoIterator<Item = &'a str>,
        recursive: bool,
    ) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut stubs = Self {
            began: now.map_or(0, |now| now.as_nanos().cast_signed()),
            ..Self::default()
        };
        for dest in ALWAYS.into_iter().chain(dests) {
            let Ok(mut path) = real_path(root, Path::new(dest)) else {
                continue;
            };
            while root.lstat(&path).is_err() {
                if !stubs.missing.contains(&path) {
                    stubs.missing.push(path.clone());
                }
                let Some(parent) = path.parent().map(Path::to_owned) else {
                    break;
                };
                if let Ok(stat) = root.lstat(&parent) {
                    stubs.parents.entry(parent.clone()).or_insert(times(&stat));
                }
                path = parent;
                if !recursive {
                    break;
                }
            }
        }
        // A folder is removed after what was made in it.
        stubs
            .missing
            .sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        stubs
    }

    /// Removes those that are there now and empty. What cannot be removed stays.
    pub fn remove(self, root: &Root) {
        let mut newest: BTreeMap<&Path, i128> = BTreeMap::new();
        let mut found: Vec<(&Path, &Path)> = Vec::new();
        for path in &self.missing {
            let (Some(parent), Ok(stat)) = (path.parent(), root.lstat(path)) else {
                continue;
            };
            let made = nanoseconds(&times(&stat).last_modification);
            let latest = newest.entry(parent).or_insert(made);
            *latest = made.max(*latest);
            found.push((path, parent));
        }
        for (path, parent) in found {
            let times = match root.lstat(parent) {
                Ok(stat) => self.times_after(parent, &stat, newest.get(parent)),
                Err(_) => continue,
            };
            let Ok(entry) = root.entry(path) else {
                continue;
            };
            if remove(&entry) {
                // The folder's own name in itself: the descriptor alone does not suffice.
                let _ = rustix::fs::utimensat(&entry.dir, ".", &times, AtFlags::empty());
            }
        }
    }

    /// The times of a folder after a stub in it is gone: those from before if the last change
    /// was the making of a stub, else those of now, which a process may have set to any time.
    fn times_after(&self, parent: &Path, now: &Stat, newest: Option<&i128>) -> Timestamps {
        let now = times(now);
        let changed = nanoseconds(&now.last_modification);
        match (self.parents.get(parent), newest) {
            (Some(before), Some(newest))
                if changed >= self.began - TICK_NANOSECONDS
                    && changed <= newest + TICK_NANOSECONDS =>
            {
                before.clone()
            }
            _ => now,
        }
    }
}

fn remove(entry: &Entry) -> bool {
    let Ok(stat) = entry.stat() else {
        return false;
    };
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
        _ => return false,
    };
    rustix::fs::unlinkat(&entry.dir, &entry.name, flags).is_ok()
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

fn nanoseconds(time: &Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn stubs_go_and_times_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["etc", "work", "full", "dated"] {
            fs::create_dir(at(path)).unwrap();
        }
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for path in ["etc", "work", "full", ""] {
            fs::File::open(at(path)).unwrap().set_modified(old).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        let dests = ["/work/a/b", "/full/x", "/full", "/dated/x"];
        let stubs = MountStubs::before(&root, dests, true);
        fs::write(at("etc/hosts"), "").unwrap();
        fs::write(at("etc/resolv.conf"), "").unwrap();
        fs::create_dir_all(at("work/a/b")).unwrap();
        fs::create_dir(at("full/x")).unwrap();
        // The process itself changed this one, later.
        let later = SystemTime::now() + Duration::from_secs(1);
        fs::write(at("full/kept"), "").unwrap();
        fs::File::open(at("full"))
            .unwrap()
            .set_modified(later)
            .unwrap();
        fs::create_dir(at("dated/x")).unwrap();
        // And this one to a time of its choice.
        let chosen = old + Duration::from_secs(500);
        fs::File::open(at("dated"))
            .unwrap()
            .set_modified(chosen)
            .unwrap();
        stubs.remove(&root);
        let modified = |path: &str| at(path).metadata().unwrap().modified().unwrap();
        assert!(!at("work/a").exists() && !at("etc/hosts").exists() && !at("full/x").exists());
        assert_eq!(modified("etc"), old);
        assert_eq!(modified("work"), old);
        assert_eq!(modified("full"), later);
        assert_eq!(modified("dated"), chosen);
        assert!(at("full/kept").exists());
    }

    #[test]
    fn only_the_mount_point_goes_unless_asked_and_only_if_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let stubs = MountStubs::before(&root, ["/a/b/c"], false);
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "written").unwrap();
        stubs.remove(&root);
        assert!(dir.path().join("a/b").exists() && !dir.path().join("a/b/c").exists());
        assert!(dir.path().join("etc/hosts").exists());
    }
}
