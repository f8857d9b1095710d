//! Making the changes between two states again on top of a third one, with the files that are
//! there: each gets a further name, so nothing is read, and nothing is on the disk twice.
//!
//! What comes out is what packing the changes and unpacking the layer would give.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use cooper_cache::Changes;
use cooper_snapshot::Mount;
use cooper_snapshot::diff::{Change, ChangeKind};
use cooper_sys::Root;
use cooper_sys::copy::{CopyOptions, copy_tree};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::LayerError;
use crate::archive::{Entry, Kind, Time};
use crate::pack::{Trees, kept_xattrs};
use crate::parents::{Folder, Tree};
use crate::unpack::{Limits, Unpacker, times};

/// Makes `changes` again in the mounts of a snapshot that is written, until `stopped` says that
/// nobody wants them, and gives the bytes on the disk that both have then. Blocks: for a thread
/// that may. On an error the snapshot is to be thrown away.
pub(crate) fn link(
    changes: &Changes,
    target: &[Mount],
    stopped: &dyn Fn() -> bool,
) -> Result<u64, LayerError> {
    let trees = Trees::open(&changes.lower, &changes.upper, &changes.scratch)?;
    let mut linker = Linker {
        upper: trees.upper(),
        target: Unpacker::new(Tree::open(target)?, &Limits::default()),
        folders: HashSet::new(),
        linked: HashMap::new(),
    };
    trees.walk(&mut |change| match stopped() {
        true => Err(LayerError::Canceled),
        false => linker.change(&change),
    })?;
    linker.target.tree.set_times()?;
    Ok(linker.linked.values().sum())
}

struct Linker<'a> {
    upper: &'a Root,
    target: Unpacker,
    /// Folders that were made.
    folders: HashSet<std::path::PathBuf>,
    /// Bytes on the disk of each file that got a further name, by its number.
    linked: HashMap<u64, u64>,
}

impl Linker<'_> {
    fn change(&mut self, change: &Change) -> Result<(), LayerError> {
        let path = &change.path;
        let fail = |error: io::Error| LayerError::entry(path)(error);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root itself is the snapshot's.
            return Ok(());
        };
        self.parents(path).map_err(fail)?;
        if change.kind == ChangeKind::Delete {
            let folder = self.target.tree.folder(parent).map_err(fail)?;
            return self.target.whiteout(&folder, name).map_err(fail);
        }
        self.file(path, parent, name).map_err(fail)
    }

    /// Makes the folders above `path` what they are in the upper state.
    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let Some(folder) = path.parent() else {
            return Ok(());
        };
        let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
            return Ok(());
        };
        if self.folders.contains(folder) {
            return Ok(());
        }
        self.parents(folder)?;
        self.file(folder, parent, name)
    }

    fn file(&mut self, path: &Path, parent: &Path, name: &OsStr) -> io::Result<()> {
        let entry = self.upper.entry(path)?;
        let stat = entry.stat()?;
        match FileType::from_raw_mode(stat.st_mode) {
            // Without its server it is nothing.
            FileType::Socket => return Ok(()),
            FileType::Directory => {
                if self.folders.insert(path.to_owned()) {
                    let folder = self.target.tree.folder(parent)?;
                    self.folder(&entry, &stat, &folder, name)?;
                    self.target.wrote(&folder, name);
                }
                return Ok(());
            }
            _ => {}
        }
        let folder = self.target.tree.folder(parent)?;
        let link = || {
            let none = AtFlags::empty();
            rustix::fs::linkat(&entry.dir, &entry.name, &folder.fd, name, none)
        };
        match self.target.replacing(&folder, name, link) {
            Err(error) if cannot_link(&error) => self.copy(path, &folder, name)?,
            result => {
                result?;
                let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
                self.linked.insert(stat.st_ino, blocks * 512);
            }
        }
        self.target.wrote(&folder, name);
        Ok(())
    }

    fn folder(
        &mut self,
        entry: &cooper_sys::Entry,
        stat: &rustix::fs::Stat,
        folder: &Rc<Folder>,
        name: &OsStr,
    ) -> io::Result<()> {
        let made = Entry {
            path: Vec::new(),
            kind: Kind::Directory,
            link: Vec::new(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: 0,
            modified: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            accessed: None,
            device: (0, 0),
            xattrs: kept_xattrs(&entry.proc_path())?,
            pieces: None,
        };
        self.target.directory(folder, name)?;
        self.target.metadata(&made, folder.fd.as_fd(), name)?;
        let place = (folder.path.join(name), times(&made));
        self.target.tree.times.push(place);
        Ok(())
    }

    fn copy(&self, path: &Path, folder: &Folder, name: &OsStr) -> io::Result<()> {
        let (target, to) = (&self.target.tree.root, folder.path.join(name));
        let options = CopyOptions {
            replace: true,
            ..CopyOptions::default()
        };
        let copied = copy_tree(self.upper, path, target, &to, &options);
        copied.map_err(|error| error.source)
    }
}

/// Whether a file cannot get a further name there: on another file system, with as many names as
/// there may be, or where the kernel does not allow it to an ordinary user.
fn cannot_link(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        number,
        Some(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// From a folder with `kept` and `gone` to one with `kept` and a folder with a file.
    fn changes(dir: &Path) -> Changes {
        let (lower, upper) = (dir.join("lower"), dir.join("upper"));
        for folder in [&lower, &upper] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(lower.join("kept"), "kept").unwrap();
        std::fs::hard_link(lower.join("kept"), upper.join("kept")).unwrap();
        std::fs::write(lower.join("gone"), "gone").unwrap();
        std::fs::create_dir(upper.join("d")).unwrap();
        std::fs::write(upper.join("d/new"), "new").unwrap();
        std::fs::set_permissions(upper.join("d/new"), PermissionsExt::from_mode(0o4750)).unwrap();
        std::os::unix::fs::symlink("new", upper.join("d/link")).unwrap();
        Changes {
            lower: vec![Mount::bind(&lower, true)],
            upper: vec![Mount::bind(&upper, true)],
            scratch: dir.join("scratch"),
        }
    }

    #[test]
    fn files_are_linked_and_on_another_file_system_copied() {
        let dir = tempfile::tempdir().unwrap();
        let changes = changes(dir.path());
        let new = dir.path().join("upper/d/new").metadata().unwrap();
        for other in [false, true] {
            let target = dir.path().join(format!("target-{other}"));
            std::fs::create_dir(&target).unwrap();
            let none: [String; 0] = [];
            let mounted = other.then(|| {
                let tmpfs = Path::new("tmpfs");
                cooper_sys::MountGuard::mount("tmpfs", tmpfs, &none, &target).unwrap()
            });
            std::fs::write(target.join("gone"), "in the way").unwrap();
            std::fs::write(target.join("d"), "in the way").unwrap();
            let shared = link(&changes, &[Mount::bind(&target, false)], &|| false).unwrap();
            let mut names: Vec<_> = std::fs::read_dir(&target)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(names, ["d"], "only what changed");
            let made = target.join("d/new").metadata().unwrap();
            assert_eq!((made.mode(), made.uid()), (new.mode(), new.uid()));
            assert_eq!(made.ino() == new.ino(), !other);
            assert_eq!(shared >= new.blocks() * 512, !other, "{shared}");
            assert_eq!(made.mtime_nsec(), new.mtime_nsec());
            assert_eq!(std::fs::read(target.join("d/link")).unwrap(), b"new");
            drop(mounted);
        }
        // Nothing is made that nobody wants any more.
        let target = dir.path().join("unwanted");
        std::fs::create_dir(&target).unwrap();
        let ended = link(&changes, &[Mount::bind(&target, false)], &|| true);
        assert!(matches!(ended, Err(LayerError::Canceled)), "{ended:?}");
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}
