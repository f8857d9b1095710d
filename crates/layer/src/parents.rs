//! The folder that an entry goes into, found or made, inside the root whatever links lie on the
//! way.
//!
//! Below an overlay's upper folder are lower ones that are not seen there. A folder that is
//! only in those is made anew in the upper one with what it was, and a link that is only in
//! those is followed: the result is what writing through a mounted overlay would give.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cooper_snapshot::Mount;
use cooper_sys::{Entry, Root};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};

use crate::LayerError;

/// Links on one way at most, as in the kernel.
const MAX_LINKS: usize = 40;

/// Where a layer is written to.
pub(crate) struct Tree {
    pub(crate) root: Root,
    /// Set when `root` is the upper folder of an overlay.
    pub(crate) overlay: Option<Overlay>,
    /// The last folder that was asked for: entries come in the order of folders.
    last: Option<(PathBuf, Rc<Folder>)>,
    /// Folders whose times have to be set at the end, since work in them changes them.
    pub(crate) times: Vec<(PathBuf, Timestamps)>,
}

/// The lower folders of an overlay, the uppermost first.
pub(crate) struct Overlay {
    lowers: Vec<Root>,
    /// The attribute that hides what is below a folder.
    pub(crate) opaque: &'static str,
}

/// A folder of the tree.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) fd: OwnedFd,
    /// Its place below the root, without links.
    pub(crate) path: PathBuf,
}

impl Tree {
    /// The tree that the mounts of a snapshot write to.
    pub(crate) fn open(mounts: &[Mount]) -> Result<Self, LayerError> {
        let refused = || LayerError::Target {
            mounts: format!("{mounts:?}"),
        };
        let [mount] = mounts else {
            return Err(refused());
        };
        let upper = mount.upper().ok_or_else(refused)?;
        let open = |path: &Path| Root::open(path).map_err(LayerError::io("open", path));
        let overlay = if mount.kind == "overlay" {
            let lowers = mount.option("lowerdir").unwrap_or_default();
            let lowers = lowers.split(':').filter(|lower| !lower.is_empty());
            let lowers: Result<_, _> = lowers.map(|lower| open(Path::new(lower))).collect();
            let user = mount.options.iter().any(|option| option == "userxattr");
            Some(Overlay {
                lowers: lowers?,
                opaque: if user {
                    "user.overlay.opaque"
                } else {
                    "trusted.overlay.opaque"
                },
            })
        } else {
            None
        };
        Ok(Self {
            root: open(upper)?,
            overlay,
            last: None,
            times: Vec::new(),
        })
    }

    /// Forgets what is known of folders: to be called when something was removed.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// The folder `path`, made with those above it where it is missing.
    pub(crate) fn folder(&mut self, path: &Path) -> io::Result<Rc<Folder>> {
        if let Some((known, folder)) = &self.last
            && known == path
        {
            return Ok(folder.clone());
        }
        let found = match self.existing(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = self.make(path)?;
                self.existing(&made)
            }
            found => found,
        };
        let folder = Rc::new(found?);
        self.last = Some((path.to_owned(), folder.clone()));
        Ok(folder)
    }

    fn existing(&self, path: &Path) -> io::Result<Folder> {
        let inner = self.root.sub(path)?;
        let (top, real) = (self.root.real_path()?, inner.real_path()?);
        let path = real
            .strip_prefix(&top)
            .map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder {
            path: path.to_owned(),
            fd: rustix::fs::openat(&inner, ".", flags, Mode::empty())?,
        })
    }

    /// Walks to a folder step by step, and makes what is missing; gives where it really is.
    fn make(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut todo: VecDeque<OsString> = steps(path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(step) = todo.pop_front() {
            if step == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&step);
            let target = match self.step(&next)? {
                Step::Folder => {
                    done = next;
                    continue;
                }
                Step::Link(target) => target,
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            if target.is_absolute() {
                done = PathBuf::new();
            }
            for step in steps(&target).into_iter().rev() {
                todo.push_front(step);
            }
        }
        Ok(done)
    }

    /// One step of the way: all but the last part of `path` are folders of the upper tree.
    fn step(&mut self, path: &Path) -> io::Result<Step> {
        let entry = self.root.entry(path)?;
        match entry.stat() {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(Step::Folder),
                FileType::Symlink => Ok(Step::Link(entry.read_link()?)),
                _ if self.overlay.is_some() && is_whiteout(&stat) => {
                    entry.remove_all()?;
                    mkdir(&entry, 0o755)?;
                    self.hide(&entry)?;
                    Ok(Step::Folder)
                }
                _ => Err(io::ErrorKind::NotADirectory.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.below(path)? {
                None => {
                    mkdir(&entry, 0o755)?;
                    Ok(Step::Folder)
                }
                Some((lower, stat)) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        self.copy_up(&entry, &lower, &stat)?;
                        self.times.push((path.to_owned(), times(&stat)));
                        Ok(Step::Folder)
                    }
                    FileType::Symlink => Ok(Step::Link(lower.read_link()?)),
                    _ => Err(io::ErrorKind::NotADirectory.into()),
                },
            },
            Err(error) => Err(error),
        }
    }

    /// Makes a folder hide what is below it.
    pub(crate) fn hide(&self, entry: &Entry) -> io::Result<()> {
        if let Some(overlay) = &self.overlay {
            let path = entry.proc_path();
            rustix::fs::lsetxattr(&path, overlay.opaque, b"y", XattrFlags::empty())?;
        }
        Ok(())
    }

    fn copy_up(&self, entry: &Entry, lower: &Entry, stat: &Stat) -> io::Result<()> {
        mkdir(entry, 0o700)?;
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let here = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&entry.dir, &entry.name, Some(owner.0), Some(owner.1), here)?;
        for (name, value) in cooper_sys::copy::xattrs(&lower.proc_path())? {
            let name = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&name);
            match rustix::fs::lsetxattr(entry.proc_path(), name, &value, XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(&entry.dir, &entry.name, mode, AtFlags::empty())?;
        Ok(())
    }

    /// What the lower folders show at `path`, whose upper folders do not hide them.
    pub(crate) fn below(&self, path: &Path) -> io::Result<Option<(Entry, Stat)>> {
        let Some(overlay) = &self.overlay else {
            return Ok(None);
        };
        let mut seen: Vec<&Root> = overlay.lowers.iter().collect();
        let mut so_far = PathBuf::new();
        let mut found = None;
        let parts = steps(path);
        for (at, part) in parts.iter().enumerate() {
            so_far.push(part);
            let last = at + 1 == parts.len();
            if !last && is_opaque(&self.root.entry(&so_far)?) {
                return Ok(None);
            }
            let mut deeper = Vec::new();
            for lower in seen {
                let entry = match lower.entry(&so_far) {
                    Ok(entry) => entry,
                    Err(error) if is_missing(&error) => continue,
                    Err(error) => return Err(error),
                };
                let stat = match entry.stat() {
                    Ok(stat) => stat,
                    Err(error) if is_missing(&error) => continue,
                    Err(error) => return Err(error),
                };
                if is_whiteout(&stat) {
                    break;
                }
                let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let ends = !folder || is_opaque(&entry);
                if last {
                    found = Some((entry, stat));
                    break;
                }
                if folder {
                    deeper.push(lower);
                }
                if ends {
                    break;
                }
            }
            seen = deeper;
        }
        Ok(found)
    }

    /// Sets the times of folders, now that nothing is written in them any more.
    pub(crate) fn set_times(&mut self) -> Result<(), LayerError> {
        for (path, times) in std::mem::take(&mut self.times) {
            let set = || -> io::Result<()> {
                let entry = self.root.entry(&path)?;
                // It may have been replaced by a later entry.
                if FileType::from_raw_mode(entry.stat()?.st_mode) == FileType::Directory {
                    let here = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(&entry.dir, &entry.name, &times, here)?;
                }
                Ok(())
            };
            match set() {
                Err(error) if !is_missing(&error) => return Err(LayerError::entry(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

enum Step {
    Folder,
    Link(PathBuf),
}

/// The parts of a path but `/` and `.`.
fn steps(path: &Path) -> VecDeque<OsString> {
    use std::path::Component;
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn mkdir(entry: &Entry, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::mkdirat(&entry.dir, &entry.name, mode)?;
    // The mode as asked for, whatever the umask is.
    rustix::fs::chmodat(&entry.dir, &entry.name, mode, AtFlags::empty())?;
    Ok(())
}

pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// A character device 0/0 says that the name is gone (overlayfs.rst, "whiteouts").
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(entry: &Entry) -> bool {
    let path = entry.proc_path();
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| {
            let mut value = [0; 1];
            matches!(
                rustix::fs::lgetxattr(&path, *name, value.as_mut_slice()),
                Ok(1)
            ) && value[0] == b'y'
        })
}

fn times(stat: &Stat) -> Timestamps {
    let modified = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}
