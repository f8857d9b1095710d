//! The device files of a container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::mounts::clone_tree;
use crate::reach::{Kind, reach};

/// Name and numbers of what every container has (config-linux.md, "Default Devices").
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// The null device of the host, to be copied over files that are masked. It is opened and not
/// copied here: kernels before 6.15 copy no mount that is nowhere.
pub(crate) fn null() -> Result<OwnedFd, String> {
    let open = || {
        let null = open(CWD, "/dev/null", OFlags::PATH)?;
        let stat = rustix::fs::fstat(&null)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !device || stat.st_rdev != makedev(1, 3) {
            return Err(Errno::NODEV.into());
        }
        Ok(null)
    };
    open().map_err(|error: io::Error| format!("open /dev/null: {error}"))
}

/// Makes the default devices, and `more`.
pub(crate) fn make(root: &OwnedFd, more: &[LinuxDevice]) -> Result<(), String> {
    // Modes are as they are said.
    let umask = rustix::process::umask(Mode::empty());
    let made = make_all(root, more);
    rustix::process::umask(umask);
    made
}

fn make_all(root: &OwnedFd, more: &[LinuxDevice]) -> Result<(), String> {
    let dev = reach(root, Path::new("/dev"), Kind::Directory);
    let dev = dev.map_err(|error| format!("error creating device nodes: {error}"))?;
    let all = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEFAULTS {
        node(
            &dev,
            name,
            FileType::CharacterDevice,
            all,
            makedev(major, minor),
        )
        .or_else(|error| borrow(root, error, &format!("/dev/{name}")))
        .map_err(|error| format!("error creating device node /dev/{name}: {error}"))?;
    }
    for device in more {
        let path = device.path();
        own(root, device)
            .map_err(|error| format!("error creating device node {}: {error}", path.display()))?;
    }
    for (target, name) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("error setting up {name:?} symlink: {error}")),
        }
    }
    Ok(())
}

fn node(dir: impl AsFd, name: &str, kind: FileType, mode: Mode, number: u64) -> Result<(), Errno> {
    match rustix::fs::mknodat(&dir, name, kind, mode, number) {
        Err(Errno::EXIST) => {
            // As it is, if it is what is wanted.
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number;
            if same { Ok(()) } else { Err(Errno::EXIST) }
        }
        result => result,
    }
}

/// In a user namespace nobody makes devices: the host's is used, if it was `error` that said so.
fn borrow(root: &OwnedFd, error: Errno, path: &str) -> io::Result<()> {
    if error != Errno::PERM {
        return Err(error.into());
    }
    let host = clone_tree(CWD, Path::new(path), false)?;
    let place = reach(root, Path::new(path), Kind::File)?;
    Ok(crate::mounts::cover(&host, &place)?)
}

fn own(root: &OwnedFd, device: &LinuxDevice) -> io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(io::Error::other("unknown device type a")),
    };
    let path = device.path();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let number = |number: i64| u32::try_from(number).map_err(io::Error::other);
    let number = makedev(number(device.major())?, number(device.minor())?);
    let dir = reach(root, parent, Kind::Directory)?;
    let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777);
    if let Err(error) = node(&dir, name, kind, mode, number) {
        return borrow(
            root,
            error,
            path.to_str().ok_or(io::ErrorKind::InvalidInput)?,
        );
    }
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&dir, name, Some(uid), Some(gid), flags)?;
    }
    Ok(())
}

/// Binds what `source` is open on to the file `name` of `/dev`.
pub(crate) fn bind(root: &OwnedFd, source: impl AsFd, path: &str) -> io::Result<()> {
    let tree = clone_tree(source, Path::new(""), false)?;
    let place = reach(root, Path::new(path), Kind::File)?;
    Ok(crate::mounts::cover(&tree, &place)?)
}

/// Opens a path of the container as it is, without following a last link.
pub(crate) fn open(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
    Ok(rustix::fs::openat(root, path, flags, Mode::empty())?)
}
