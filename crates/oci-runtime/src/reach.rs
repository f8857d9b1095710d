//! Finding a path inside a container's root, and making what is missing of it.
//!
//! Each name is looked up by itself in a directory that is held open, and a link is taken apart
//! here. So no link leads out, whoever puts it there and when: the files can be shared with
//! another container that runs already.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Links that are followed before a path is taken for an endless one, as in the kernel.
const MAX_LINKS: usize = 40;
/// The longest that a path may become (`PATH_MAX`, in names).
const MAX_NAMES: usize = 4096;

/// What a path is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens `path` below `root` as a place (`O_PATH`). Missing directories are made with mode 755,
/// and a missing last name as `kind` says; a dangling link makes what it points to.
pub(crate) fn reach(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let mut names: VecDeque<OsString> = names(path.as_os_str()).collect();
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        if name == ".." {
            above.pop();
            continue;
        }
        let here = above.last().map_or(root, AsFd::as_fd);
        let last = names.is_empty();
        let made = if last { kind } else { Kind::Directory };
        let found = open_or_make(here, &name, made)?;
        let stat = rustix::fs::fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                if target.as_bytes().first() == Some(&b'/') {
                    above.clear();
                }
                for name in self::names(&target).collect::<Vec<_>>().into_iter().rev() {
                    names.push_front(name);
                }
                if names.len() > MAX_NAMES {
                    return Err(Errno::NAMETOOLONG.into());
                }
            }
            FileType::Directory => above.push(found),
            _ if last => return Ok(found),
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    match above.pop() {
        Some(found) => Ok(found),
        None => Ok(rustix::fs::openat(root, ".", PLACE, Mode::empty())?),
    }
}

const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_or_make(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> io::Result<OwnedFd> {
    match rustix::fs::openat(dir, name, PLACE, Mode::empty()) {
        Err(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let made = match kind {
        Kind::Directory => rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o755)).map(drop)
        }
    };
    match made {
        // Somebody was faster.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::openat(dir, name, PLACE, Mode::empty())?)
}

fn names(path: &OsStr) -> impl Iterator<Item = OsString> {
    let components = Path::new(path).components();
    components.filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    fn at(fd: &OwnedFd) -> std::path::PathBuf {
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn everything_stays_inside_and_what_is_missing_is_made() {
        let outer = tempfile::tempdir().unwrap();
        let base = outer.path().canonicalize().unwrap().join("root");
        std::fs::create_dir_all(base.join("etc")).unwrap();
        std::fs::write(base.join("etc/file"), "").unwrap();
        symlink("../../../../out", base.join("up")).unwrap();
        symlink("/run/dns/resolv.conf", base.join("etc/resolv.conf")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let root = std::fs::File::open(&base).unwrap();
        let cases = [
            ("/a/b", Kind::Directory, "a/b"),
            ("up/x", Kind::Directory, "out/x"),
            ("../../y", Kind::Directory, "y"),
            ("/etc/resolv.conf", Kind::File, "run/dns/resolv.conf"),
            ("/etc/../etc/file", Kind::File, "etc/file"),
            ("a/b/../c/f", Kind::File, "a/c/f"),
            ("/", Kind::Directory, ""),
        ];
        for (path, kind, expected) in cases {
            let found = reach(&root, Path::new(path), kind).unwrap();
            assert_eq!(at(&found), base.join(expected), "{path}");
            let dir = base.join(expected).is_dir();
            assert_eq!(dir, kind == Kind::Directory, "{path}");
        }
        assert!(!outer.path().join("out").exists());
        for bad in ["loop", "/etc/file/x"] {
            assert!(reach(&root, Path::new(bad), Kind::File).is_err(), "{bad}");
        }
    }
}
