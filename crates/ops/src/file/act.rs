//! The actions: making, removing and linking. Nothing leaves the root. The wording of failures
//! is that of BuildKit's `solver/llbsolver/file/backend.go`.

use std::io;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use cooper_proto::pb::{self, file_action::Action};
use cooper_session::pattern;
use cooper_sys::{Entry, Root};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::copy::copy;
use super::paths::{Failure, failed, follow, wildcards};

/// No time is set.
const NO_TIME: i64 = -1;

/// What an action works with.
pub(super) struct Scene<'a> {
    /// What is changed.
    pub(super) target: &'a Root,
    /// What is copied from.
    pub(super) source: Option<&'a Root>,
    /// Whom the new files belong to; `None` keeps the source's, or is root.
    pub(super) owner: Option<(u32, u32)>,
    /// Set when nobody waits for the end any more.
    pub(super) stop: &'a AtomicBool,
}

/// The owner that an action names.
pub(super) fn owner(action: &Action) -> Option<&pb::ChownOpt> {
    match action {
        Action::Copy(copy) => copy.owner.as_ref(),
        Action::Mkfile(mkfile) => mkfile.owner.as_ref(),
        Action::Mkdir(mkdir) => mkdir.owner.as_ref(),
        Action::Symlink(symlink) => symlink.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

/// Does one action.
pub(super) fn act(scene: &Scene<'_>, action: &Action) -> Result<(), Failure> {
    match action {
        Action::Copy(action) => copy(scene, action),
        Action::Mkfile(action) => mkfile(scene, action),
        Action::Mkdir(action) => mkdir(scene, action),
        Action::Rm(action) => rm(scene.target, action),
        Action::Symlink(action) => symlink(scene, action),
    }
}

fn mkdir(scene: &Scene<'_>, action: &pb::FileActionMkDir) -> Result<(), Failure> {
    let named = Path::new(&action.path);
    let path = follow(scene.target, named, true).map_err(failed("mkdir", named))?;
    let mode = bits(action.mode) & 0o777;
    if action.make_parents {
        return make_dirs(scene, &path, mode, action.timestamp);
    }
    let fail = failed("mkdir", &path);
    let entry = scene.target.entry(&path).map_err(&fail)?;
    match rustix::fs::mkdirat(&entry.dir, &entry.name, Mode::from_raw_mode(mode)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(fail(error.into())),
    }
    rustix::fs::chmodat(
        &entry.dir,
        &entry.name,
        Mode::from_raw_mode(mode),
        AtFlags::empty(),
    )
    .map_err(|error| fail(error.into()))?;
    finish(&entry, scene.owner, action.timestamp).map_err(fail)
}

/// Makes the directory `path`, whose links were followed, and those above it that are missing.
pub(super) fn make_dirs(
    scene: &Scene<'_>,
    path: &Path,
    mode: u32,
    timestamp: i64,
) -> Result<(), Failure> {
    let fail = failed("mkdir", path);
    for made in scene.target.mkdir_all(path, mode).map_err(&fail)? {
        let entry = scene.target.entry(&made).map_err(&fail)?;
        finish(&entry, scene.owner, timestamp).map_err(&fail)?;
    }
    Ok(())
}

fn mkfile(scene: &Scene<'_>, action: &pb::FileActionMkFile) -> Result<(), Failure> {
    let named = Path::new(&action.path);
    let path = follow(scene.target, named, true).map_err(failed("open", named))?;
    let fail = failed("open", &path);
    let write = |entry: &Entry| -> io::Result<()> {
        let mode = Mode::from_raw_mode(bits(action.mode) & 0o777);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fresh = flags | OFlags::CREATE | OFlags::EXCL;
        let file = match rustix::fs::openat(&entry.dir, &entry.name, fresh, mode) {
            Ok(file) => {
                // The mode as asked for, whatever the umask is; an old file keeps its own.
                rustix::fs::fchmod(&file, mode)?;
                file
            }
            Err(Errno::EXIST) => {
                let old = flags | OFlags::TRUNC;
                rustix::fs::openat(&entry.dir, &entry.name, old, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
        std::fs::File::from(file).write_all(&action.data)?;
        finish(entry, scene.owner, action.timestamp)
    };
    let entry = scene.target.entry(&path).map_err(&fail)?;
    write(&entry).map_err(fail)
}

fn symlink(scene: &Scene<'_>, action: &pb::FileActionSymlink) -> Result<(), Failure> {
    let named = Path::new(&action.newpath);
    let path = follow(scene.target, named, true).map_err(failed("symlink", named))?;
    let attempt = format!("symlink {}", action.oldpath);
    let fail = failed(&attempt, &path);
    let entry = scene.target.entry(&path).map_err(&fail)?;
    rustix::fs::symlinkat(&action.oldpath, &entry.dir, &entry.name)
        .map_err(|error| fail(error.into()))?;
    finish(&entry, scene.owner, action.timestamp).map_err(fail)
}

fn rm(target: &Root, action: &pb::FileActionRm) -> Result<(), Failure> {
    if !action.allow_wildcard {
        return rm_path(target, &action.path, action.allow_not_found);
    }
    for path in wildcards(target, &action.path, false)? {
        rm_path(target, &path, action.allow_not_found)?;
    }
    Ok(())
}

fn rm_path(target: &Root, path: &str, allow_not_found: bool) -> Result<(), Failure> {
    let path = pattern::clean(path);
    if path.ends_with('/') {
        return Err("rmPath: invalid empty path".into());
    }
    let named = Path::new(&path);
    let path = follow(target, named, false).map_err(failed("stat", named))?;
    if path.as_os_str().is_empty() {
        return Err("rmPath: invalid empty path".into());
    }
    if !allow_not_found {
        target.lstat(&path).map_err(failed("stat", &path))?;
    }
    match target.remove_all(&path) {
        // A file where a directory was thought to be: there is nothing below it.
        Err(error) if allow_not_found && error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        result => result.map_err(failed("unlinkat", &path)),
    }
}

/// Owner and time of what was made.
pub(super) fn finish(entry: &Entry, owner: Option<(u32, u32)>, timestamp: i64) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let here = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&entry.dir, &entry.name, owner.0, owner.1, here)
            .map_err(|error| cooper_sys::userns::explain_owner(error.into(), uid, gid))?;
    }
    if timestamp != NO_TIME {
        set_time(entry, timestamp)?;
    }
    Ok(())
}

/// Sets both times, in nanoseconds since 1970.
pub(super) fn set_time(entry: &Entry, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: nanoseconds.div_euclid(1_000_000_000),
        tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let here = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(
        &entry.dir,
        &entry.name,
        &times,
        here,
    )?)
}

/// A mode from the wire, where it is a signed number.
pub(super) fn bits(mode: i32) -> u32 {
    u32::from_ne_bytes(mode.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink as link};

    struct Place {
        dir: tempfile::TempDir,
        root: Root,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        Place { dir, root }
    }

    impl Place {
        fn act(&self, action: Action) -> Result<(), Failure> {
            self.act_as(action, None)
        }

        fn act_as(&self, action: Action, owner: Option<(u32, u32)>) -> Result<(), Failure> {
            let scene = Scene {
                target: &self.root,
                source: None,
                owner,
                stop: &AtomicBool::new(false),
            };
            act(&scene, &action)
        }

        fn stat(&self, path: &str) -> std::fs::Metadata {
            self.dir.path().join(path).symlink_metadata().unwrap()
        }
    }

    fn mkdir(path: &str, make_parents: bool) -> Action {
        Action::Mkdir(pb::FileActionMkDir {
            path: path.into(),
            mode: 0o750,
            make_parents,
            timestamp: 5_000_000_001,
            ..pb::FileActionMkDir::default()
        })
    }

    fn mkfile(path: &str, data: &[u8]) -> Action {
        Action::Mkfile(pb::FileActionMkFile {
            path: path.into(),
            mode: 0o640,
            data: data.to_vec(),
            timestamp: 7,
            ..pb::FileActionMkFile::default()
        })
    }

    fn rm(path: &str, allow_not_found: bool, allow_wildcard: bool) -> Action {
        Action::Rm(pb::FileActionRm {
            path: path.into(),
            allow_not_found,
            allow_wildcard,
        })
    }

    #[test]
    fn directories_are_made_with_mode_owner_and_time() {
        let place = place();
        place.act_as(mkdir("/a/b", true), Some((3, 4))).unwrap();
        place.act(mkdir("/a/b", true)).unwrap();
        let made = place.stat("a/b");
        assert_eq!(
            (made.mode() & 0o7777, made.uid(), made.gid()),
            (0o750, 3, 4)
        );
        assert_eq!((made.mtime(), made.mtime_nsec()), (5, 1));
        assert_eq!(place.stat("a").uid(), 3);
        place.act(mkdir("/a/c", false)).unwrap();
        place.act(mkdir("/a/c", false)).unwrap();
        let error = place.act(mkdir("/x/y", false)).unwrap_err();
        assert_eq!(error, "mkdir /x/y: no such file or directory");
        place.act(mkfile("/file", b"")).unwrap();
        let error = place.act(mkdir("/file", true)).unwrap_err();
        assert_eq!(error, "mkdir /file: not a directory");
    }

    #[test]
    fn files_are_written_through_links_inside() {
        let place = place();
        link("/real", place.dir.path().join("link")).unwrap();
        place.act(mkfile("link", b"1")).unwrap();
        let made = place.stat("real");
        assert_eq!((made.mode() & 0o7777, made.mtime_nsec()), (0o640, 7));
        place.act(mkfile("/real", b"longer")).unwrap();
        place.act(mkfile("/real", b"new")).unwrap();
        let content = std::fs::read(place.dir.path().join("real")).unwrap();
        assert_eq!(content, b"new");
        let error = place.act(mkfile("/no/file", b"")).unwrap_err();
        assert_eq!(error, "open /no/file: no such file or directory");
    }

    #[test]
    fn removing_minds_what_is_not_there() {
        let place = place();
        for path in ["a/1.txt", "a/2.txt", "a/keep"] {
            place.act(mkdir("/a", true)).unwrap();
            place.act(mkfile(path, b"")).unwrap();
        }
        place.act(rm("/a/*.txt", false, true)).unwrap();
        assert_eq!(place.root.read_dir("a").unwrap(), ["keep"]);
        place.act(rm("/none", true, false)).unwrap();
        place.act(rm("/a/keep/x", true, false)).unwrap();
        let error = place.act(rm("/none", false, false)).unwrap_err();
        assert_eq!(error, "stat /none: no such file or directory");
        place.act(rm("/a", false, false)).unwrap();
        assert!(place.act(rm("/", true, false)).is_err());
        assert!(place.act(rm("..", true, false)).is_err());
    }

    #[test]
    fn links_are_made_and_not_followed() {
        let place = place();
        let link = |new: &str| {
            Action::Symlink(pb::FileActionSymlink {
                oldpath: "/target".into(),
                newpath: new.into(),
                timestamp: 9,
                ..pb::FileActionSymlink::default()
            })
        };
        place.act_as(link("/link"), Some((1, 2))).unwrap();
        let made = place.stat("link");
        assert_eq!((made.uid(), made.gid(), made.mtime_nsec()), (1, 2, 9));
        place.act(mkfile("/file", b"")).unwrap();
        let error = place.act(link("/file")).unwrap_err();
        assert_eq!(error, "symlink /target /file: file exists");
    }
}
