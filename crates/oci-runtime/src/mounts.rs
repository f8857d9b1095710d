//! The mounts of a container.
//!
//! Every mount is made where nobody can see it and then moved to a place that is held open: no
//! path is walked twice, so that a link put in its way changes nothing
//! (CVE-2021-30465, CVE-2025-31133 and their kind).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cooper_sys::mount::{Attributes, set_attributes};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::options::{Options, READ_ONLY};
use crate::reach::{Kind, reach};

const MOVE: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);

/// `PROC_SUPER_MAGIC` (linux/magic.h).
pub(crate) const PROC: i64 = 0x9fa0;
/// `SYSFS_MAGIC`.
pub(crate) const SYSFS: i64 = 0x6265_6572;
/// `DEVPTS_SUPER_MAGIC`.
pub(crate) const DEVPTS: i64 = 0x1cd1;

/// The files of proc that may be replaced (runc, `checkProcMount`).
const REPLACED: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
    "/proc/net/dev",
];

/// The root of a container that is being made.
pub(crate) struct Mounts {
    root: OwnedFd,
}

/// Whether a mount is a part of the host's files.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
}

impl Mounts {
    /// Makes the folder `root` a mount of its own.
    pub(crate) fn enter(root: &Path) -> Result<Self, String> {
        let enter = || {
            let tree = clone_tree(CWD, root, true)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree, "", CWD, root, flags)?;
            Ok::<_, Errno>(tree)
        };
        let root = enter().map_err(|error| format!("error preparing rootfs: {error}"))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Adds a mount. Those of control groups show `groups`.
    pub(crate) fn add(&self, mount: &Mount, groups: &[PathBuf]) -> Result<(), String> {
        let dest = mount.destination();
        let kind = mount.typ().as_deref().unwrap_or_default();
        let source = mount.source().as_deref().unwrap_or(Path::new(kind));
        let added = match Options::parse(mount) {
            Ok(options) => match kind {
                _ if is_bind(mount) => self.bind(source, dest, &options),
                "cgroup" => self.control_groups(dest, &options, groups),
                _ => self.file_system(kind, source, dest, &options),
            },
            Err(option) => Err(io::Error::other(format!("unknown option {option:?}"))),
        };
        added.map_err(|error| {
            format!(
                "error mounting {:?} to rootfs at {:?}: {error}",
                source.display(),
                dest.display()
            )
        })
    }

    fn bind(&self, source: &Path, dest: &Path, options: &Options) -> io::Result<()> {
        if let Some(data) = options.data.first() {
            return Err(io::Error::other(format!(
                "unknown option {data:?} of a bind"
            )));
        }
        let recursive = options.bind == Some(true);
        let tree = clone_tree(CWD, source, recursive)?;
        let target = reach(&self.root, dest, kind_of(&tree)?)?;
        check_proc(dest, &target, &tree)?;
        self.attach(&tree, &target, options)
    }

    fn file_system(
        &self,
        kind: &str,
        source: &Path,
        dest: &Path,
        options: &Options,
    ) -> io::Result<()> {
        let kernels = matches!(kind, "proc" | "sysfs");
        if kernels {
            self.plain_directory(dest, kind)?;
        }
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", source)?;
        for option in &options.data {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, option.as_str())?,
            }
        }
        for flag in &options.flags {
            fsconfig_set_flag(&context, *flag)?;
        }
        fsconfig_create(&context)?;
        let tree = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        let target = reach(&self.root, dest, Kind::Directory)?;
        if !kernels {
            check_proc(dest, &target, &tree)?;
        }
        let mut options = Attached::new(options);
        if dest == Path::new("/dev") {
            // Sealed when everything is in it.
            options.own.set &= !READ_ONLY.set;
        }
        self.attach_with(&tree, &target, options)
    }

    /// What the kernel shows is mounted where the path says: at a link it would be somewhere
    /// else, and what is masked in it would not be.
    fn plain_directory(&self, dest: &Path, kind: &str) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = dest.strip_prefix("/").unwrap_or(dest);
        match rustix::fs::openat(&self.root, path, flags, Mode::empty()) {
            Ok(found) if kind_of(&found)? == Kind::Directory => Ok(()),
            Err(Errno::NOENT) => Ok(()),
            Ok(_) => Err(io::Error::other(format!(
                "filesystem {kind:?} must be mounted on ordinary directory"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// The container's own control groups. With version 2 that is the group itself; with version
    /// 1 a folder with the group of each hierarchy (runc, `mountCgroupV1`).
    fn control_groups(&self, dest: &Path, options: &Options, groups: &[PathBuf]) -> io::Result<()> {
        let base = Path::new("/sys/fs/cgroup");
        let below = |group: &Path| match group.strip_prefix(base).ok()?.components().next()? {
            Component::Normal(name) => Some(PathBuf::from(name)),
            _ => None,
        };
        if base.join("cgroup.controllers").exists() {
            let target = reach(&self.root, dest, Kind::Directory)?;
            let tree = match groups.first() {
                Some(own) => clone_tree(CWD, own, false)?,
                None => {
                    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
                    fsconfig_create(&context)?;
                    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
                    fsmount(&context, flags, MountAttrFlags::empty())?
                }
            };
            return self.attach(&tree, &target, options);
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "tmpfs")?;
        fsconfig_set_string(&context, "mode", "755")?;
        fsconfig_create(&context)?;
        let folder = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        let target = reach(&self.root, dest, Kind::Directory)?;
        let attached = Attached::new(options);
        set_attributes(
            &folder,
            false,
            Attributes {
                set: attached.own.set & !READ_ONLY.set,
                ..attached.own
            },
        )?;
        move_mount(&folder, "", &target, "", MOVE)?;
        for group in groups {
            let Some(name) = below(group) else {
                continue;
            };
            rustix::fs::mkdirat(&folder, &name, Mode::from_raw_mode(0o755))?;
            let place = rustix::fs::openat(
                &folder,
                &name,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let tree = clone_tree(CWD, group, false)?;
            set_attributes(&tree, false, attached.own)?;
            move_mount(&tree, "", &place, "", MOVE)?;
        }
        // Controllers that share a hierarchy.
        for entry in std::fs::read_dir(base)?.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                let target = std::fs::read_link(entry.path())?;
                rustix::fs::symlinkat(&target, &folder, entry.file_name())?;
            }
        }
        set_attributes(&folder, false, attached.own)
    }

    fn attach(&self, tree: &OwnedFd, target: &OwnedFd, options: &Options) -> io::Result<()> {
        self.attach_with(tree, target, Attached::new(options))
    }

    fn attach_with(&self, tree: &OwnedFd, target: &OwnedFd, options: Attached) -> io::Result<()> {
        set_attributes(tree, true, options.all)?;
        set_attributes(tree, false, options.own)?;
        move_mount(tree, "", target, "", MOVE)?;
        set_attributes(tree, true, propagation(options.all_propagation))?;
        set_attributes(tree, false, propagation(options.propagation))
    }

    /// Makes the working directory if it is not there.
    pub(crate) fn make_cwd(&self, cwd: &Path) -> Result<(), String> {
        let make = || {
            let found = reach(&self.root, cwd, Kind::Directory)?;
            match kind_of(&found)? {
                Kind::Directory => Ok(()),
                Kind::File => Err(Errno::NOTDIR.into()),
            }
        };
        make().map_err(|error: io::Error| format!("mkdir {}: {}", cwd.display(), words(&error)))
    }

    /// Makes `/dev` read-only if it is to be.
    pub(crate) fn seal_dev(&self, dev: &Mount) -> Result<(), String> {
        let options = Options::parse(dev).unwrap_or_default();
        if is_bind(dev) || options.own.set & READ_ONLY.set == 0 {
            return Ok(());
        }
        let seal = || {
            let found = reach(&self.root, Path::new("/dev"), Kind::Directory)?;
            set_attributes(&found, false, READ_ONLY)
        };
        seal().map_err(|error| format!("error setting /dev read-only: {error}"))
    }

    /// Makes the root itself read-only, not what is mounted below it.
    pub(crate) fn seal_root(&self) -> Result<(), String> {
        set_attributes(&self.root, false, READ_ONLY)
            .map_err(|error| format!("error setting rootfs as readonly: {error}"))
    }
}

/// An error of the system in the words that Go has for it, which is what users look for.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    // The standard library adds the number.
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// What happens to a mount when it is attached.
struct Attached {
    own: Attributes,
    all: Attributes,
    propagation: u64,
    all_propagation: u64,
}

impl Attached {
    fn new(options: &Options) -> Self {
        Self {
            own: options.own,
            all: options.all,
            propagation: options.propagation,
            all_propagation: options.all_propagation,
        }
    }
}

fn propagation(propagation: u64) -> Attributes {
    Attributes {
        propagation,
        ..Attributes::default()
    }
}

/// A copy of what is mounted at `path`, seen by nobody else yet.
pub(crate) fn clone_tree(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags)
}

/// Covers the place `target` with `tree`.
pub(crate) fn cover(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    move_mount(tree, "", target, "", MOVE)
}

fn kind_of(fd: &OwnedFd) -> io::Result<Kind> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

/// The file system that something is on.
pub(crate) fn magic(fd: &OwnedFd) -> io::Result<i64> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64)
}

/// Keeps mounts out of proc but on a few files: a container is confined by what is in it.
fn check_proc(dest: &Path, target: &OwnedFd, tree: &OwnedFd) -> io::Result<()> {
    let inside = magic(target)? == PROC;
    // Where it really is, and not only by its name.
    let top = {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", target.as_raw_fd()))?;
        path.ends_with("proc") && dest == Path::new("/proc")
    };
    if !inside && !top {
        return Ok(());
    }
    if REPLACED.iter().any(|file| dest == Path::new(file)) || (top && magic(tree)? == PROC) {
        return Ok(());
    }
    let message = format!(
        "{:?} cannot be mounted because it is inside /proc",
        dest.display()
    );
    Err(io::Error::other(message))
}
