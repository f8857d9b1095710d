//! Paths that stay inside a root, whatever links lie on the way (openat2(2), `RESOLVE_IN_ROOT`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Resolutions are tried again when a rename made the kernel give up (openat2(2), EAGAIN).
const ATTEMPTS: usize = 64;

/// A directory that no path resolved through it leaves. Links are followed as if the root were
/// the root of the file system; `..` at the top stays at the top.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// A name in a directory: what the last component of a path stands for, itself not followed.
#[derive(Debug)]
pub struct Entry {
    /// The directory, inside the root.
    pub dir: OwnedFd,
    /// The name in it; `.` for the root itself.
    pub name: OsString,
}

impl Root {
    /// The directory at `path`, which is followed as it stands: it is the caller's.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path.as_ref(), flags, Mode::empty())?,
        })
    }

    /// Opens `path` with flags and, for a new file, a mode. Links are followed inside the root
    /// unless `NOFOLLOW` is among the flags.
    pub fn open_with(
        &self,
        path: impl AsRef<Path>,
        flags: OFlags,
        mode: Mode,
    ) -> io::Result<OwnedFd> {
        let path = relative(path.as_ref())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..ATTEMPTS {
            match rustix::fs::openat2(&self.fd, &path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Opens a file for reading. A FIFO without a writer does not block it.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        Ok(self
            .open_with(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?
            .into())
    }

    /// The directory at `path` as a root of its own.
    pub fn sub(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let fd = self.open_with(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { fd })
    }

    /// The directory that holds `path` and the last name, with links followed only before it.
    pub fn entry(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        let path = relative(path.as_ref())?;
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name.to_owned()),
            // `a/..` names a directory through its parent: resolve it and stay there.
            _ => (path.as_path(), OsString::from(".")),
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok(Entry {
            dir: self.open_with(parent, flags, Mode::empty())?,
            name,
        })
    }

    /// The metadata of `path`, a last link followed inside the root.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.open_with(
            path,
            OFlags::PATH,
            Mode::empty(),
        )?)?)
    }

    /// The metadata of `path`, a last link not followed.
    pub fn lstat(&self, path: impl AsRef<Path>) -> io::Result<Stat> {
        self.entry(path)?.stat()
    }

    /// Where `path` leads when every link is followed: absolute, as seen from the root.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let fd = self.open_with(path, OFlags::PATH, Mode::empty())?;
        let (top, found) = (self.real_path()?, real_path(fd.as_fd())?);
        let inside = found
            .strip_prefix(&top)
            .map_err(|_| io::ErrorKind::NotFound)?;
        Ok(Path::new("/").join(inside))
    }

    /// Where the root is on the host now.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        real_path(self.fd.as_fd())
    }

    /// Makes the directory `path` and those above it that are missing, with `mode`; returns
    /// those that were made, the outermost first. Links to directories are followed.
    pub fn mkdir_all(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<Vec<PathBuf>> {
        let path = relative(path.as_ref())?;
        let mut made = Vec::new();
        let mut so_far = PathBuf::new();
        for component in path.components() {
            so_far.push(component);
            match self.open_with(&so_far, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let entry = self.entry(&so_far)?;
            match rustix::fs::mkdirat(&entry.dir, &entry.name, Mode::from_raw_mode(mode)) {
                Ok(()) => {
                    // The mode as asked for, whatever the umask is.
                    rustix::fs::chmodat(
                        &entry.dir,
                        &entry.name,
                        Mode::from_raw_mode(mode),
                        AtFlags::empty(),
                    )?;
                    made.push(so_far.clone());
                }
                // A dangling link, or somebody was faster.
                Err(Errno::EXIST) => {
                    self.open_with(&so_far, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(made)
    }

    /// The names in the directory `path`, ordered by their bytes.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let fd = self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        names(fd.as_fd())
    }

    /// Removes `path` and all below it; links are removed, not followed. A path that is not
    /// there is no error.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> io::Result<()> {
        match self.entry(path) {
            Ok(entry) => entry.remove_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A directory that is open.
impl From<OwnedFd> for Root {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Entry {
    /// The metadata of what the name stands for, a link not followed.
    pub fn stat(&self) -> io::Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        Ok(rustix::fs::statat(&self.dir, &self.name, flags)?)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.dir, &self.name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// A path for calls that take no directory descriptor, such as those on extended
    /// attributes: through `/proc`, so that it stays in the directory.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(&self.name)
    }

    /// Removes what the name stands for, with all below it. Nothing there is no error.
    pub fn remove_all(&self) -> io::Result<()> {
        remove_all(self.dir.as_fd(), &self.name)
    }
}

fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for name in names(open.as_fd())? {
        remove_all(open.as_fd(), &name)?;
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The names in an open directory, ordered by their bytes.
pub(crate) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(OsString::from_vec(name));
        }
    }
    found.sort();
    Ok(found)
}

fn real_path(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// `path` without a leading slash; empty becomes `.`. A NUL byte is refused.
fn relative(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let inside: PathBuf = path
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect();
    Ok(if inside.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        inside
    })
}

/// The type of what a stat describes.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_path_and_no_link_leaves_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("etc")).unwrap();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        std::fs::write(inner.join("etc/secret"), "inside").unwrap();
        symlink("../secret", inner.join("up")).unwrap();
        symlink("/etc/secret", inner.join("absolute")).unwrap();
        symlink("../../../..", inner.join("far")).unwrap();
        let root = Root::open(&inner).unwrap();
        assert!(root.open_file("../secret").is_err());
        assert!(root.open_file("up").is_err());
        let read = |path: &str| std::io::read_to_string(root.open_file(path).unwrap()).unwrap();
        assert_eq!(read("absolute"), "inside");
        assert_eq!(read("far/etc/secret"), "inside");
        assert_eq!(root.resolve("absolute").unwrap(), Path::new("/etc/secret"));
        assert_eq!(root.resolve("far").unwrap(), Path::new("/"));
    }

    #[test]
    fn folders_are_made_through_links_and_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root = Root::open(outer.path()).unwrap();
        std::fs::create_dir(outer.path().join("real")).unwrap();
        symlink("/real", outer.path().join("link")).unwrap();
        let made = root.mkdir_all("/link/a/b", 0o751).unwrap();
        assert_eq!(made, [Path::new("link/a"), Path::new("link/a/b")]);
        assert_eq!(root.stat("real/a/b").unwrap().st_mode & 0o777, 0o751);
        symlink("nowhere", outer.path().join("dangling")).unwrap();
        assert!(root.mkdir_all("dangling/x", 0o755).is_err());
    }

    #[test]
    fn removing_takes_links_and_not_what_they_point_to() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(outer.path().join("keep")).unwrap();
        std::fs::create_dir_all(outer.path().join("gone/deep")).unwrap();
        symlink("../keep", outer.path().join("gone/link")).unwrap();
        let root = Root::open(outer.path()).unwrap();
        root.remove_all("gone").unwrap();
        root.remove_all("gone").unwrap();
        assert_eq!(root.read_dir("").unwrap(), ["keep"]);
        let error = root.entry("keep/../..").and_then(|entry| entry.stat());
        assert!(error.is_ok(), "`..` at the top stays at the top");
    }
}
