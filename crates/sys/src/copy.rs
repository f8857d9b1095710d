//! Copying trees between roots: content by reflink, else by copy_file_range(2), else plainly,
//! with holes kept; and everything that a file is besides its content.
//!
//! Nothing here leaves either root. What is copied keeps owner, mode, extended attributes,
//! times and hard links, unless the options say otherwise; sockets are left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::root::{Entry, Root, file_type};

/// What a filter says about one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// It is copied; of a directory, what the filter says to its members.
    Take,
    /// It is left out, with all below it.
    Skip,
    /// Only for directories: made when a member is copied.
    Descend,
}

/// Chooses by the path below the source and whether it is a directory.
pub type Filter<'a> = dyn Fn(&Path, bool) -> Select + 'a;
/// Gives a mode (twelve bits) from the source's mode and whether it is a directory.
pub type ModeFor<'a> = dyn Fn(u32, bool) -> u32 + 'a;

/// What is changed on the way.
#[derive(Default)]
pub struct CopyOptions<'a> {
    /// Owner and group of everything that is made; `None` keeps the source's.
    pub owner: Option<(u32, u32)>,
    /// The mode of everything that is made; `None` keeps the source's.
    pub mode: Option<&'a ModeFor<'a>>,
    /// Modification time of everything that is made, in nanoseconds since 1970; `None` keeps
    /// the source's.
    pub timestamp: Option<i128>,
    /// What is copied; `None` is all.
    pub filter: Option<&'a Filter<'a>>,
    /// A target of another type is removed first; else it is an error.
    pub replace: bool,
    /// Directories that were already there get the source's metadata too.
    pub overwrite_metadata: bool,
    /// The directory that is copied itself keeps its metadata if it was already there, and gets
    /// the times of the source.
    pub keep_top: bool,
}

/// Copies `from` inside `source`, a last link not followed, to exactly `to` inside `target`,
/// whose parent must be there. A directory is merged into one that is there.
///
/// # Errors
/// The first failure, with the path below `from` that it is about.
pub fn copy_tree(
    source: &Root,
    from: &Path,
    target: &Root,
    to: &Path,
    options: &CopyOptions<'_>,
) -> Result<(), CopyError> {
    let fail = |error| CopyError {
        path: from.to_owned(),
        source: error,
    };
    let source = source.entry(from).map_err(fail)?;
    let target = target.entry(to).map_err(fail)?;
    Copy {
        options,
        links: HashMap::new(),
    }
    .any(&source, &target, Path::new(""))
    .map(|_| ())
}

/// A copy that failed at one path.
#[derive(Debug)]
pub struct CopyError {
    /// The path, below what was copied.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "copy {}", self.path.display())
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

struct Copy<'a> {
    options: &'a CopyOptions<'a>,
    /// Where files with several names were first copied to, by device and inode.
    links: HashMap<(u64, u64), (std::os::fd::OwnedFd, std::ffi::OsString)>,
}

impl Copy<'_> {
    /// Whether something was made.
    fn any(&mut self, from: &Entry, to: &Entry, path: &Path) -> Result<bool, CopyError> {
        let fail = |error: io::Error| CopyError {
            path: path.to_owned(),
            source: error,
        };
        let stat = from.stat().map_err(fail)?;
        let kind = file_type(&stat);
        let directory = kind == FileType::Directory;
        let select = match self.options.filter {
            Some(filter) if !path.as_os_str().is_empty() => filter(path, directory),
            _ => Select::Take,
        };
        match (select, directory) {
            (Select::Skip, _) | (Select::Descend, false) => Ok(false),
            (select, true) => self.directory(from, to, &stat, path, select == Select::Descend),
            (Select::Take, false) if kind == FileType::Socket => Ok(false),
            (Select::Take, false) => {
                self.other(from, to, &stat, kind).map_err(fail)?;
                Ok(true)
            }
        }
    }

    fn directory(
        &mut self,
        from: &Entry,
        to: &Entry,
        stat: &Stat,
        path: &Path,
        only_with_members: bool,
    ) -> Result<bool, CopyError> {
        let fail = |error: io::Error| CopyError {
            path: path.to_owned(),
            source: error,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |dir: &Entry| -> io::Result<_> {
            Ok(rustix::fs::openat(
                &dir.dir,
                &dir.name,
                flags,
                Mode::empty(),
            )?)
        };
        let members = open(from).map_err(fail)?;
        let mut made = None;
        if !only_with_members {
            made = Some(self.make_directory(to).map_err(fail)?);
        }
        for name in crate::root::names(members.as_fd()).map_err(fail)? {
            let path = path.join(&name);
            if made.is_none() {
                let probe = Entry {
                    dir: rustix::io::dup(&members).map_err(|e| fail(e.into()))?,
                    name: name.clone(),
                };
                if !self.selects_any(&probe, &path).map_err(fail)? {
                    continue;
                }
                made = Some(self.make_directory(to).map_err(fail)?);
            }
            let source = Entry {
                dir: rustix::io::dup(&members).map_err(|e| fail(e.into()))?,
                name: name.clone(),
            };
            let target = Entry {
                dir: open(to).map_err(fail)?,
                name,
            };
            self.any(&source, &target, &path)?;
        }
        // Last, because making members changes the times.
        if let Some(new) = made {
            if !new && self.options.keep_top && path.as_os_str().is_empty() {
                self.times(to, stat).map_err(fail)?;
            } else if new || (self.options.overwrite_metadata && !only_with_members) {
                self.metadata(from, to, stat).map_err(fail)?;
            }
        }
        Ok(made.is_some())
    }

    /// Whether anything at or below `from` would be copied.
    fn selects_any(&self, from: &Entry, path: &Path) -> io::Result<bool> {
        let Some(filter) = self.options.filter else {
            return Ok(true);
        };
        let directory = file_type(&from.stat()?) == FileType::Directory;
        match filter(path, directory) {
            Select::Skip => Ok(false),
            Select::Take => Ok(true),
            Select::Descend if !directory => Ok(false),
            Select::Descend => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let members = rustix::fs::openat(&from.dir, &from.name, flags, Mode::empty())?;
                for name in crate::root::names(members.as_fd())? {
                    let path = path.join(&name);
                    let member = Entry {
                        dir: rustix::io::dup(&members)?,
                        name,
                    };
                    if self.selects_any(&member, &path)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Whether the directory is new.
    fn make_directory(&self, to: &Entry) -> io::Result<bool> {
        match rustix::fs::mkdirat(&to.dir, &to.name, Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => match file_type(&to.stat()?) {
                FileType::Directory => Ok(false),
                _ if self.options.replace => {
                    to.remove_all()?;
                    rustix::fs::mkdirat(&to.dir, &to.name, Mode::RWXU)?;
                    Ok(true)
                }
                _ => Err(io::Error::other(format!(
                    "cannot copy to non-directory: {}",
                    to.name.display()
                ))),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn other(&mut self, from: &Entry, to: &Entry, stat: &Stat, kind: FileType) -> io::Result<()> {
        match to.stat() {
            Ok(there) if file_type(&there) == FileType::Directory && !self.options.replace => {
                return Err(io::Error::other(format!(
                    "cannot replace to directory {} with file",
                    to.name.display()
                )));
            }
            Ok(_) => to.remove_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        #[allow(clippy::unnecessary_cast)]
        let id = (stat.st_dev as u64, stat.st_ino as u64);
        if stat.st_nlink > 1 && kind != FileType::Directory {
            if let Some((dir, name)) = self.links.get(&id) {
                rustix::fs::linkat(dir, name, &to.dir, &to.name, AtFlags::empty())?;
                return Ok(());
            }
            self.links
                .insert(id, (rustix::io::dup(&to.dir)?, to.name.clone()));
        }
        match kind {
            FileType::RegularFile => copy_file(from, to)?,
            FileType::Symlink => {
                rustix::fs::symlinkat(&from.read_link()?, &to.dir, &to.name)?;
            }
            _ => {
                rustix::fs::mknodat(&to.dir, &to.name, kind, Mode::RUSR, stat.st_rdev)?;
            }
        }
        self.metadata(from, to, stat)
    }

    fn metadata(&self, from: &Entry, to: &Entry, stat: &Stat) -> io::Result<()> {
        let kind = file_type(stat);
        let owner = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let here = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(&to.dir, &to.name, Some(uid), Some(gid), here)
            .map_err(|error| crate::userns::explain_owner(error.into(), owner.0, owner.1))?;
        if kind != FileType::Symlink {
            let mode = stat.st_mode & 0o7777;
            let directory = kind == FileType::Directory;
            let mode = self
                .options
                .mode
                .map_or(mode, |mode_for| mode_for(mode, directory));
            // After the owner: chown(2) takes the set-id bits away.
            rustix::fs::chmodat(
                &to.dir,
                &to.name,
                Mode::from_raw_mode(mode),
                AtFlags::empty(),
            )?;
        }
        copy_xattrs(&from.proc_path(), &to.proc_path())?;
        self.times(to, stat)
    }

    fn times(&self, to: &Entry, stat: &Stat) -> io::Result<()> {
        let modified = match self.options.timestamp {
            Some(nanoseconds) => timespec(nanoseconds),
            #[allow(clippy::cast_possible_wrap)]
            None => Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec as _,
            },
        };
        let times = Timestamps {
            last_access: modified,
            last_modification: modified,
        };
        Ok(rustix::fs::utimensat(
            &to.dir,
            &to.name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Nanoseconds since 1970 as the kernel wants them.
fn timespec(nanoseconds: i128) -> Timespec {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let rest = nanoseconds.rem_euclid(1_000_000_000);
    Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(0),
        tv_nsec: i64::try_from(rest).unwrap_or(0),
    }
}

fn copy_file(from: &Entry, to: &Entry) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source: File = rustix::fs::openat(&from.dir, &from.name, flags, Mode::empty())?.into();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target: File =
        rustix::fs::openat(&to.dir, &to.name, flags, Mode::RUSR | Mode::WUSR)?.into();
    copy_content(&source, &target)
}

/// Copies the content of one file into another, empty one.
pub fn copy_content(source: &File, target: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    if size <= SMALL as u64 {
        return copy_small(source, target);
    }
    let mut position = 0;
    while position < size {
        // The next range of data; a file system that knows no holes says that all is data.
        let begin = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            Err(_) => position,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(begin))
            .unwrap_or(size)
            .min(size);
        copy_range(source, target, begin, end)?;
        position = end.max(begin + 1);
    }
    target.set_len(size)
}

/// Up to here a file is read and written: the kernel's own copy goes through a pipe, which for
/// little is slower, and so is the look for holes.
const SMALL: usize = 16 << 10;

fn copy_small(source: &File, target: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = [0; SMALL];
    let mut position = 0;
    loop {
        match source.read_at(&mut buffer, position) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                target.write_all_at(&buffer[..length], position)?;
                position += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn copy_range(source: &File, target: &File, begin: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (begin, begin);
    while from < end {
        let length = usize::try_from(end - from)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                let mut buffer = vec![0; 128 << 10];
                while from < end {
                    let most = buffer
                        .len()
                        .min(usize::try_from(end - from).unwrap_or(usize::MAX));
                    let read = source.read_at(&mut buffer[..most], from)?;
                    if read == 0 {
                        return Ok(());
                    }
                    target.write_all_at(&buffer[..read], from)?;
                    from += read as u64;
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Overlayfs's own marks say where a layer stands, not what a file is.
fn is_overlay_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// The extended attributes of `path`, a link not followed, ordered by name; overlayfs's own
/// marks are left out. A file system without attributes has none.
pub fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let list = match read_xattr(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0) {
        if name.is_empty() || is_overlay_mark(name) {
            continue;
        }
        match read_xattr(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
            Ok(value) => found.push((name.to_vec(), value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}

/// A list or a value: most are short or empty, and the largest that Linux has are 64 KiB
/// (xattr(7)).
fn read_xattr(
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut short = [0; 512];
    match read(&mut short) {
        Ok(length) => return Ok(short[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut long = vec![0; 64 << 10];
    let length = read(&mut long)?;
    long.truncate(length);
    Ok(long)
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    for (name, value) in xattrs(from)? {
        let name = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&name);
        match rustix::fs::lsetxattr(to, name, &value, rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    struct Pair {
        _dir: tempfile::TempDir,
        from: PathBuf,
        to: PathBuf,
    }

    fn pair() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        Pair {
            _dir: dir,
            from,
            to,
        }
    }

    fn copy(pair: &Pair, path: &str, options: &CopyOptions<'_>) -> Result<(), CopyError> {
        let (source, target) = (
            Root::open(&pair.from).unwrap(),
            Root::open(&pair.to).unwrap(),
        );
        copy_tree(&source, Path::new(path), &target, Path::new("out"), options)
    }

    #[test]
    fn everything_that_a_file_is_comes_along() {
        let pair = pair();
        let tree = pair.from.join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "content").unwrap();
        std::fs::set_permissions(tree.join("file"), PermissionsExt::from_mode(0o4750)).unwrap();
        std::fs::hard_link(tree.join("file"), tree.join("hard")).unwrap();
        symlink("/nowhere", tree.join("link")).unwrap();
        rustix::fs::lsetxattr(
            tree.join("file"),
            "user.k",
            b"v",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let sparse = File::create(tree.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 8 << 20).unwrap();
        copy(&pair, "tree", &CopyOptions::default()).unwrap();
        let out = pair.to.join("out");
        let (old, new) = (
            tree.join("file").metadata().unwrap(),
            out.join("file").metadata().unwrap(),
        );
        assert_eq!(
            (old.mode(), old.mtime_nsec()),
            (new.mode(), new.mtime_nsec())
        );
        assert_eq!(new.nlink(), 2);
        assert_eq!(out.join("link").read_link().unwrap(), Path::new("/nowhere"));
        assert_eq!(
            xattrs(&out.join("file")).unwrap(),
            [(b"user.k".to_vec(), b"v".to_vec())]
        );
        let sparse = out.join("sparse").metadata().unwrap();
        assert_eq!(sparse.len(), (8 << 20) + 3);
        assert!(sparse.blocks() * 512 < 1 << 20, "the hole was filled");
        assert_eq!(
            tree.metadata().unwrap().mtime_nsec(),
            out.metadata().unwrap().mtime_nsec()
        );
    }

    #[test]
    fn options_change_owner_mode_and_time_and_choose() {
        let pair = pair();
        std::fs::create_dir_all(pair.from.join("a/b")).unwrap();
        std::fs::create_dir_all(pair.from.join("a/empty")).unwrap();
        std::fs::write(pair.from.join("a/b/yes"), "").unwrap();
        std::fs::write(pair.from.join("a/b/no"), "").unwrap();
        let filter = |path: &Path, _: bool| match path.to_str().unwrap() {
            "b/yes" => Select::Take,
            "b" | "empty" => Select::Descend,
            _ => Select::Skip,
        };
        let mode = |_: u32, directory: bool| if directory { 0o711 } else { 0o600 };
        let options = CopyOptions {
            owner: Some((7, 8)),
            mode: Some(&mode),
            timestamp: Some(5_000_000_001),
            filter: Some(&filter),
            ..CopyOptions::default()
        };
        copy(&pair, "a", &options).unwrap();
        let yes = pair.to.join("out/b/yes").metadata().unwrap();
        assert_eq!((yes.uid(), yes.gid(), yes.mode() & 0o7777), (7, 8, 0o600));
        assert_eq!((yes.mtime(), yes.mtime_nsec()), (5, 1));
        assert!(!pair.to.join("out/b/no").exists());
        assert!(!pair.to.join("out/empty").exists());
    }

    #[test]
    fn another_type_is_replaced_only_when_that_is_asked_for() {
        let pair = pair();
        std::fs::write(pair.from.join("file"), "new").unwrap();
        std::fs::create_dir(pair.from.join("dir")).unwrap();
        std::fs::create_dir(pair.to.join("out")).unwrap();
        let error = copy(&pair, "file", &CopyOptions::default()).unwrap_err();
        assert!(
            error
                .source
                .to_string()
                .contains("cannot replace to directory out with file")
        );
        let replace = CopyOptions {
            replace: true,
            ..CopyOptions::default()
        };
        copy(&pair, "file", &replace).unwrap();
        let error = copy(&pair, "dir", &CopyOptions::default()).unwrap_err();
        assert!(
            error
                .source
                .to_string()
                .contains("cannot copy to non-directory")
        );
        copy(&pair, "dir", &replace).unwrap();
        assert!(pair.to.join("out").is_dir());
    }
}
