//! The changes from one state of a file system to another.
//!
//! [`upper_changes`] reads them off the upper folder of an overlay; [`walk_changes`] compares
//! two whole trees, for everything else. Both name the same changes, in the order of paths, a
//! folder before what is in it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use cooper_sys::{Entry, Root};
use rustix::fs::{FileType, Stat};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is only in the upper state.
    Add,
    /// It is in both, and another file or of other metadata.
    Modify,
    /// It is only in the lower state; what was below it is not named.
    Delete,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// Relative to the root of both states.
    pub path: PathBuf,
}

/// Called for each change; an error ends the walk.
pub type Visit<'a> = dyn FnMut(Change) -> io::Result<()> + 'a;

/// The changes that the folder `upper` of an overlay holds over `lower`. Unchanged folders that
/// only lead to a change are not named.
pub fn upper_changes(lower: Option<&Root>, upper: &Root, visit: &mut Visit<'_>) -> io::Result<()> {
    upper_folder(lower, upper, Path::new(""), visit)
}

fn upper_folder(
    lower: Option<&Root>,
    upper: &Root,
    folder: &Path,
    visit: &mut Visit<'_>,
) -> io::Result<()> {
    for name in upper.read_dir(folder)? {
        let path = folder.join(name);
        let new = upper.lstat(&path)?;
        let old = look(lower, &path)?;
        if is_whiteout(&new) {
            if old.is_some() {
                visit(Change {
                    kind: ChangeKind::Delete,
                    path,
                })?;
            }
            continue;
        }
        let directory = kind(&new) == FileType::Directory;
        match &old {
            None => visit(Change {
                kind: ChangeKind::Add,
                path: path.clone(),
            })?,
            // A file that was moved away and back is in the upper folder too.
            Some(old) if !same(lower, &path, old, upper, &new, Content::Read)? => {
                visit(Change {
                    kind: ChangeKind::Modify,
                    path: path.clone(),
                })?;
            }
            Some(_) => {}
        }
        if directory {
            let merged = old
                .as_ref()
                .is_some_and(|old| kind(old) == FileType::Directory);
            if merged && is_opaque(&upper.entry(&path)?)? {
                // Nothing of the lower folder shows through: compare the two as they are.
                walk_folder(lower, upper, &path, visit)?;
            } else {
                upper_folder(if merged { lower } else { None }, upper, &path, visit)?;
            }
        }
    }
    Ok(())
}

/// The changes from the whole tree `lower` to the whole tree `upper`.
pub fn walk_changes(lower: Option<&Root>, upper: &Root, visit: &mut Visit<'_>) -> io::Result<()> {
    walk_folder(lower, upper, Path::new(""), visit)
}

fn walk_folder(
    lower: Option<&Root>,
    upper: &Root,
    folder: &Path,
    visit: &mut Visit<'_>,
) -> io::Result<()> {
    let new = upper.read_dir(folder)?;
    let old = match lower {
        Some(lower) => lower.read_dir(folder)?,
        None => Vec::new(),
    };
    let mut names: Vec<&OsString> = new.iter().chain(&old).collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = folder.join(name);
        let new = if new.binary_search(name).is_ok() {
            Some(upper.lstat(&path)?)
        } else {
            None
        };
        let old = if old.binary_search(name).is_ok() {
            look(lower, &path)?
        } else {
            None
        };
        // Inside an opaque folder of an overlay a whiteout can stand too.
        let new = new.filter(|new| !is_whiteout(new));
        let Some(new) = new else {
            if old.is_some() {
                visit(Change {
                    kind: ChangeKind::Delete,
                    path,
                })?;
            }
            continue;
        };
        match &old {
            None => visit(Change {
                kind: ChangeKind::Add,
                path: path.clone(),
            })?,
            Some(old) if !same(lower, &path, old, upper, &new, Content::ByTimes)? => {
                visit(Change {
                    kind: ChangeKind::Modify,
                    path: path.clone(),
                })?;
            }
            Some(_) => {}
        }
        if kind(&new) == FileType::Directory {
            let both = old.is_some_and(|old| kind(&old) == FileType::Directory);
            walk_folder(if both { lower } else { None }, upper, &path, visit)?;
        }
    }
    Ok(())
}

fn look(root: Option<&Root>, path: &Path) -> io::Result<Option<Stat>> {
    let Some(root) = root else { return Ok(None) };
    match root.lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A character device 0/0 says that the name is gone (overlayfs.rst, "whiteouts").
fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(entry: &Entry) -> io::Result<bool> {
    let path = entry.proc_path();
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let mut value = [0; 1];
        match rustix::fs::lgetxattr(&path, name, value.as_mut_slice()) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// How much the content of files counts that are alike in everything else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Times with fractions say that it is the same: there are too many files to read.
    ByTimes,
    /// The files were written, and a writer can set times.
    Read,
}

/// Whether the path is the same in both states, as containerd's walking differ decides it:
/// metadata, link target and, when size and time leave a doubt, content.
fn same(
    lower: Option<&Root>,
    path: &Path,
    old: &Stat,
    upper: &Root,
    new: &Stat,
    content: Content,
) -> io::Result<bool> {
    let Some(lower) = lower else { return Ok(false) };
    if old.st_ino == new.st_ino && old.st_dev == new.st_dev {
        return Ok(true);
    }
    let device = matches!(kind(new), FileType::CharacterDevice | FileType::BlockDevice);
    if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid)
        || (device && old.st_rdev != new.st_rdev)
    {
        return Ok(false);
    }
    // What is known already first: most files that were written differ in these.
    let times = (old.st_mtime, old.st_mtime_nsec) == (new.st_mtime, new.st_mtime_nsec);
    match kind(new) {
        // A folder's time changes with its members, which are named themselves.
        FileType::Directory => {}
        FileType::RegularFile if old.st_size != new.st_size => return Ok(false),
        _ if !times => return Ok(false),
        _ => {}
    }
    let (before, after) = (lower.entry(path)?, upper.entry(path)?);
    let attributes = |entry: &Entry| cooper_sys::copy::xattrs(&entry.proc_path());
    if attributes(&before)? != attributes(&after)? {
        return Ok(false);
    }
    // Times without fractions were made by hand or by an archive.
    let read = content == Content::Read || new.st_mtime_nsec == 0;
    match kind(new) {
        FileType::Symlink => Ok(before.read_link()? == after.read_link()?),
        FileType::RegularFile if read && new.st_size > 0 => {
            same_content(&lower.open_file(path)?, &upper.open_file(path)?)
        }
        _ => Ok(true),
    }
}

fn same_content(a: &std::fs::File, b: &std::fs::File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut offset = 0;
    loop {
        let length = a.read_at(&mut left, offset)?;
        if length == 0 {
            return Ok(b.read_at(&mut right[..1], offset)? == 0);
        }
        match b.read_exact_at(&mut right[..length], offset) {
            Ok(()) if left[..length] == right[..length] => offset += length as u64,
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
