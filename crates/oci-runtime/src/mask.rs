//! Paths of a container that it cannot see, or not write to.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cooper_sys::Root;
use cooper_sys::mount::set_attributes;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::mounts::{PROC, SYSFS, clone_tree, cover, magic};
use crate::options::READ_ONLY;

/// Makes paths that are there read-only, with all that is mounted below them.
pub(crate) fn read_only(root: &OwnedFd, paths: &[String]) -> Result<(), String> {
    let root = open(root).map_err(|error| format!("read-only paths: {error}"))?;
    for path in paths {
        let seal = || {
            let Some(place) = place(&root, path)? else {
                return Ok(());
            };
            let tree = clone_tree(&place, Path::new(""), true)?;
            set_attributes(&tree, true, READ_ONLY)?;
            Ok::<_, io::Error>(cover(&tree, &place)?)
        };
        seal().map_err(|error| format!("readonly path {path:?}: {error}"))?;
    }
    Ok(())
}

/// Covers paths that are there: files with the null device, folders with an empty one. `null`
/// is the host's: what the container has in its place is the image's (CVE-2025-31133).
pub(crate) fn mask(root: &OwnedFd, null: &OwnedFd, paths: &[String]) -> Result<(), String> {
    let root = open(root).map_err(|error| format!("masked paths: {error}"))?;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let mut cover_one = || {
            let Some(place) = place(&root, path)? else {
                return Ok(());
            };
            let stat = rustix::fs::fstat(&place)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let tree = clone_tree(null, Path::new(""), false)?;
                return Ok::<_, io::Error>(cover(&tree, &place)?);
            }
            // One for all: the first is put in its place and copied for the others, because
            // kernels before 6.15 copy no mount that is nowhere.
            match &empty {
                Some(first) => cover(&clone_tree(first, Path::new(""), false)?, &place)?,
                None => cover(empty.insert(empty_folder()?), &place)?,
            }
            Ok(())
        };
        cover_one().map_err(|error| format!("can't mask path {path:?}: {error}"))?;
    }
    Ok(())
}

fn empty_folder() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_string(&context, "size", "0k")?;
    fsconfig_set_string(&context, "nr_blocks", "1")?;
    fsconfig_set_string(&context, "nr_inodes", "1")?;
    fsconfig_create(&context)?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, read_only)?)
}

fn open(root: &OwnedFd) -> io::Result<Root> {
    Ok(Root::from(root.try_clone()?))
}

/// The place that a path names, if there is any. What is to be hidden in proc and sysfs is
/// hidden there and nowhere else.
fn place(root: &Root, path: &str) -> io::Result<Option<OwnedFd>> {
    let place = match root.open_with(path, OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let expected = match path.split('/').find(|name| !name.is_empty()) {
        Some("proc") => PROC,
        Some("sys") => SYSFS,
        _ => return Ok(Some(place)),
    };
    if magic(&place)? == expected {
        return Ok(Some(place));
    }
    // What is not the kernel's hides nothing of it, unless it was put over it.
    let top = path
        .split('/')
        .find(|name| !name.is_empty())
        .unwrap_or_default();
    let top = root.open_with(top, OFlags::PATH, Mode::empty())?;
    if magic(&top)? == expected {
        return Err(io::Error::other("another file system is in its place"));
    }
    Ok(Some(place))
}
