//! Mounting: overlays layer by layer with a way back for older kernels, and
//! everything else by mount(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};

/// The most layers that one overlay is made of. The kernel takes 500 (`OVL_MAX_STACK` in
/// fs/overlayfs/params.h).
const MOST_LAYERS: usize = 490;

/// The most bytes of options that mount(2) takes, their end included.
const PAGE: usize = 4096;

/// The longest string that fsconfig(2) takes, its end included.
const FSCONFIG_MAX: usize = 256;

/// Mounts `source` on `target` with options in the form of mount(8): flags like `ro`, `nosuid`
/// and `rbind`, and whatever the file system takes, like `lowerdir=/a:/b`.
///
/// An overlay is put together with `fsopen`, one `lowerdir+` for each layer, so that the number
/// of layers is not bound by the length of a page; where the kernel does not know that
/// ([`knows_layers`]), mount(2) is used. Where there are more layers than one overlay takes, the
/// lower ones are put into an overlay of their own, which is the lowest layer then; nobody sees it
/// but the kernel. With that 979 layers can be had.
pub fn mount(kind: &str, source: &Path, options: &[String], target: &Path) -> io::Result<()> {
    let parsed = Options::parse(options);
    if kind == "overlay" && knows_layers() {
        match overlay(&parsed, target) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            result => return Ok(result?),
        }
    }
    plain(kind, source, &parsed, target)
}

/// Whether the kernel takes the layers of an overlay one by one. One that does looks for each at
/// once, and does not find this one. Others refuse the word or, before 6.5, take every word, and
/// refuse the whole later with a line in the kernel's log: so it is asked once.
fn knows_layers() -> bool {
    static KNOWS: OnceLock<bool> = OnceLock::new();
    *KNOWS.get_or_init(|| {
        let asked = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .and_then(|context| fsconfig_set_string(&context, "lowerdir+", "/proc/self/no-layer"));
        asked == Err(Errno::NOENT)
    })
}

/// By mount(2).
fn plain(kind: &str, source: &Path, parsed: &Options, target: &Path) -> io::Result<()> {
    let data = CString::new(parsed.data.join(",")).map_err(|_| io::ErrorKind::InvalidInput)?;
    if kind == "overlay" && data.count_bytes() >= PAGE {
        return from_their_folder(source, parsed, target);
    }
    if parsed.bind {
        let bind = if parsed.recursive {
            rustix::mount::mount_bind_recursive(source, target)
        } else {
            rustix::mount::mount_bind(source, target)
        };
        bind?;
        if !parsed.flags.is_empty() {
            // A bind takes its flags only by being mounted again (mount(2), "Remounting").
            let remount =
                |flags| rustix::mount::mount_remount(target, MountFlags::BIND | flags, c"");
            let again = match remount(parsed.flags) {
                // In a user namespace flags that the mount had before stay (mount_namespaces(7),
                // "Restrictions on mount namespaces").
                Err(Errno::PERM) => locked(target).and_then(|kept| remount(parsed.flags | kept)),
                result => result,
            };
            if let Err(error) = again {
                let _ = unmount(target);
                return Err(error.into());
            }
        }
        return Ok(());
    }
    Ok(rustix::mount::mount(
        source,
        target,
        kind,
        parsed.flags,
        data.as_c_str(),
    )?)
}

/// An overlay by mount(2), which takes no more than a page of options and cuts off what is longer:
/// its folders are named from the one that all of them are in, by a thread that is there.
///
/// # Errors
/// [`io::ErrorKind::ArgumentListTooLong`] when that is too long, too.
fn from_their_folder(source: &Path, parsed: &Options, target: &Path) -> io::Result<()> {
    let target = std::path::absolute(target)?;
    let mut paths = parsed.data.iter().filter_map(|option| folders(option));
    let paths = paths.by_ref().flat_map(|(_, paths)| paths.split(':'));
    let above = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    let common = paths.map(Path::new).fold(None, |common, path| {
        let mut common: PathBuf = common.unwrap_or_else(|| above(path));
        while !path.starts_with(&common) {
            common = above(&common);
        }
        Some(common)
    });
    let common = common.unwrap_or_default();
    let short = |path: &str| match Path::new(path).strip_prefix(&common) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.display().to_string(),
        _ => path.to_owned(),
    };
    let options = parsed.data.iter().map(|option| match folders(option) {
        Some((key, paths)) => {
            let paths: Vec<_> = paths.split(':').map(short).collect();
            format!("{key}={}", paths.join(":"))
        }
        None => option.clone(),
    });
    let options: Vec<_> = options.collect();
    let data = CString::new(options.join(",")).map_err(|_| io::ErrorKind::InvalidInput)?;
    if data.count_bytes() >= PAGE {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let mount = || {
        // SAFETY: only this thread has another working directory from here on, and it ends.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
        rustix::process::chdir(&common)?;
        rustix::mount::mount(source, &target, "overlay", parsed.flags, data.as_c_str())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, mount)?;
        let mounted = thread
            .join()
            .map_err(|_| io::Error::other("mounting panicked"))?;
        Ok(mounted?)
    })
}

/// The option and its paths, if it names folders of an overlay.
fn folders(option: &str) -> Option<(&str, &str)> {
    let (key, paths) = option.split_once('=')?;
    matches!(key, "lowerdir" | "upperdir" | "workdir").then_some((key, paths))
}

/// The flags of the mount at `target` that a user namespace may have locked.
fn locked(target: &Path) -> Result<MountFlags, Errno> {
    let found = rustix::fs::statvfs(target)?.f_flag;
    let pairs = [
        (rustix::fs::StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (
            rustix::fs::StatVfsMountFlags::NODIRATIME,
            MountFlags::NODIRATIME,
        ),
        (
            rustix::fs::StatVfsMountFlags::RELATIME,
            MountFlags::RELATIME,
        ),
    ];
    let kept = pairs.iter().filter(|(flag, _)| found.contains(*flag));
    Ok(kept.map(|(_, flag)| *flag).collect())
}

/// Unmounts `target`, lazily: what is busy goes when its last user goes. A target that is not
/// a mount point is no error.
pub fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes `target` a mount of its own from which nothing spreads (mount_namespaces(7)).
pub fn make_private(target: &Path) -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(target, flags)?)
}

/// What changes about mounts (mount_setattr(2)). Of the kinds of access times one is set and
/// the others cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// And to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; zero for no change.
    pub propagation: u64,
}

/// Changes the mount that `mount` is open on, and with `recursive` those below it, too.
///
/// # Errors
/// `EINVAL` if it is not the root of a mount; nothing has changed then.
pub fn set_attributes(mount: impl AsFd, recursive: bool, attributes: Attributes) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    if attributes == Attributes::default() {
        return Ok(());
    }
    let attributes = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    let recursive = if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, the kernel reads the structure, whose size is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    crate::process::check(result)
}

/// Options in the form of mount(8), sorted into what the kernel takes where.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    bind: bool,
    recursive: bool,
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            bind: false,
            recursive: false,
            data: Vec::new(),
        };
        for option in options {
            match option.as_str() {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "ro" => parsed.flags |= MountFlags::RDONLY,
                "rw" => parsed.flags -= MountFlags::RDONLY,
                "nosuid" => parsed.flags |= MountFlags::NOSUID,
                "nodev" => parsed.flags |= MountFlags::NODEV,
                "noexec" => parsed.flags |= MountFlags::NOEXEC,
                "noatime" => parsed.flags |= MountFlags::NOATIME,
                "nodiratime" => parsed.flags |= MountFlags::NODIRATIME,
                "relatime" => parsed.flags |= MountFlags::RELATIME,
                "strictatime" => parsed.flags |= MountFlags::STRICTATIME,
                "defaults" | "suid" | "dev" | "exec" => {}
                _ => parsed.data.push(option.clone()),
            }
        }
        parsed
    }
}

/// Mounts an overlay, in one step: until it is complete there is none at `target`, but for those
/// that it is made of.
fn overlay(options: &Options, target: &Path) -> Result<(), Errno> {
    let layers = options.data.iter();
    let layers = layers.filter_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<_> = layers.flat_map(|layers| layers.split(':')).collect();
    let mounted = if layers.len() <= MOST_LAYERS {
        new_overlay(options, &layers)?
    } else {
        nested(options, &layers, target)?
    };
    move_mount(
        &mounted,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// An overlay of more layers than one can have, with the lower ones in an overlay of their own.
///
/// There is one such overlay and no more: what it removes is removed in itself and not in what
/// would be below it, and the kernel takes no overlay of overlays of overlays.
fn nested(options: &Options, layers: &[&str], target: &Path) -> Result<OwnedFd, Errno> {
    let (topmost, below) = layers.split_at(layers.len() - MOST_LAYERS);
    if topmost.len() >= MOST_LAYERS {
        return Err(Errno::TOOBIG);
    }
    let only_read = Options {
        flags: options.flags,
        bind: false,
        recursive: false,
        data: options
            .data
            .iter()
            .filter(|option| {
                let written = ["upperdir=", "workdir="];
                *option != "volatile" && !written.iter().any(|key| option.starts_with(key))
            })
            .cloned()
            .collect(),
    };
    let inner = new_overlay(&only_read, below)?;
    // It has to be mounted somewhere while the kernel makes a mount of its own of it.
    let place = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&inner, "", CWD, target, place)?;
    let lowest = format!("/proc/self/fd/{}", inner.as_raw_fd());
    let all: Vec<_> = topmost.iter().copied().chain([lowest.as_str()]).collect();
    let mounted = new_overlay(options, &all);
    rustix::mount::unmount(target, UnmountFlags::DETACH)?;
    mounted
}

/// An overlay of these layers, the topmost first, that is mounted nowhere. Its other options are
/// those of `options`.
fn new_overlay(options: &Options, layers: &[&str]) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for layer in layers {
        if layer.len() >= FSCONFIG_MAX {
            return Err(Errno::INVAL);
        }
        fsconfig_set_string(&context, "lowerdir+", *layer)?;
    }
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", _)) => {}
            Some((_, value)) if value.len() >= FSCONFIG_MAX => return Err(Errno::INVAL),
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::empty();
    let pairs = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ];
    for (flag, attribute) in pairs {
        if options.flags.contains(flag) {
            attributes |= attribute;
        }
    }
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A mount that is there as long as this value is. Dropping it unmounts lazily, at once.
#[derive(Debug)]
#[must_use = "the mount goes when this value does"]
pub struct MountGuard {
    target: Option<PathBuf>,
}

impl MountGuard {
    /// Mounts as [`mount`] does.
    pub fn mount(kind: &str, source: &Path, options: &[String], target: &Path) -> io::Result<Self> {
        mount(kind, source, options, target)?;
        Ok(Self {
            target: Some(target.to_owned()),
        })
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        self.target.as_deref().unwrap_or(Path::new(""))
    }

    /// Unmounts and says whether that went well.
    pub fn close(mut self) -> io::Result<()> {
        self.target.take().map_or(Ok(()), |target| unmount(&target))
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            let _ = unmount(&target);
        }
    }
}

/// One line of mountinfo, as far as it is needed here (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The type of its file system.
    pub kind: String,
}

impl MountPoint {
    /// The mounts of this process's namespace, in the order in which they were made.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Those at or below `dir`, the innermost first: the order in which to unmount them.
    pub fn below(dir: &Path) -> io::Result<Vec<Self>> {
        let mut found = Self::all()?;
        found.retain(|mount| mount.target.starts_with(dir));
        found.reverse();
        Ok(found)
    }

    fn parse(info: &[u8]) -> Vec<Self> {
        let lines = info.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| {
                let mut fields = line.split(|byte| *byte == b' ');
                let target = PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(fields.nth(4)?)));
                fields.find(|field| *field == b"-")?;
                let kind = String::from_utf8_lossy(fields.next()?).into_owned();
                Some(Self { target, kind })
            })
            .collect()
    }
}

/// Blanks, tabs, newlines and backslashes stand as octal numbers.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value =
            octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        if let Some(value) = value {
            plain.push(value);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    fn words(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn options_are_sorted_into_flags_and_data() {
        let parsed = Options::parse(&words(&["rbind", "ro", "nosuid", "size=3", "uid=1"]));
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(parsed.data, ["size=3", "uid=1"]);
    }

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line = b"36 35 98:0 /m /a\\040b\\134 rw,noatime shared:1 - overlay none rw\n";
        let parsed = MountPoint::parse(line);
        assert_eq!(
            parsed,
            [MountPoint {
                target: "/a b\\".into(),
                kind: "overlay".into()
            }]
        );
    }

    /// Mounts an overlay of so many layers and looks at it.
    fn check_layers(count: usize) -> io::Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut lower = Vec::new();
        for number in 0..count {
            let layer = dir.path().join(format!("layer-{number}"));
            std::fs::create_dir(&layer).unwrap();
            std::fs::write(layer.join("who"), number.to_string()).unwrap();
            std::fs::write(layer.join(format!("of-{number}")), "x").unwrap();
            // Each removes what the one below it has.
            let whiteout = layer.join(format!("of-{}", number + 1));
            let mode = rustix::fs::Mode::empty();
            rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, mode, 0).unwrap();
            lower.push(layer);
        }
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (upper, work, target) = (path("upper"), path("work"), path("target"));
        let lower: Vec<_> = lower.iter().map(|layer| layer.to_str().unwrap()).collect();
        let below = format!("lowerdir={}", lower.join(":"));
        let options = [
            below.clone(),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
            "volatile".into(),
            "index=off".into(),
        ];
        for options in [&options[..], &[below, "index=off".into(), "ro".into()]] {
            let mounted = MountGuard::mount("overlay", Path::new("overlay"), options, &target);
            let Ok(guard) = mounted else {
                assert_eq!(MountPoint::below(dir.path()).unwrap(), []);
                return mounted.map(drop);
            };
            assert_eq!(std::fs::read_to_string(target.join("who")).unwrap(), "0");
            let names = std::fs::read_dir(&target).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["of-0", "who"]);
            let written = std::fs::write(target.join("who"), "0");
            assert_eq!(written.is_ok(), options.len() > 3);
            assert_eq!(written.is_ok(), upper.join("who").exists());
            assert_eq!(MountPoint::below(&target).unwrap().len(), 1);
            guard.close().unwrap();
            assert_eq!(MountPoint::below(dir.path()).unwrap(), []);
            let _ = std::fs::remove_file(upper.join("who"));
        }
        Ok(())
    }

    #[test]
    fn an_overlay_of_many_layers_shows_the_topmost_and_goes_with_its_guard() {
        check_layers(200).unwrap();
    }

    #[test]
    fn layers_that_do_not_fit_on_a_page_are_named_from_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let layers = |count: usize| {
            let layers = (0..count).map(|number| dir.path().join(format!("{number}/fs")));
            let layers: Vec<_> = layers.map(|layer| layer.display().to_string()).collect();
            let options = [format!("lowerdir={}", layers.join(":")), "index=off".into()];
            (layers, Options::parse(&options))
        };
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let (paths, options) = layers(300);
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(Path::new(&paths[0]).join("who"), "0").unwrap();
        let here = std::env::current_dir().unwrap();
        plain("overlay", Path::new("overlay"), &options, &target).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("who")).unwrap(), "0");
        unmount(&target).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), here);
        let (_, options) = layers(2000);
        let error = plain("overlay", Path::new("overlay"), &options, &target).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ArgumentListTooLong);
    }

    #[test]
    fn an_overlay_has_more_layers_than_the_kernel_takes() {
        if !knows_layers() {
            // What does not fit on a page is an error there.
            return;
        }
        for count in [491, 979] {
            check_layers(count).unwrap();
        }
        let error = check_layers(980).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn a_read_only_bind_refuses_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("s"), dir.path().join("t"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let guard = MountGuard::mount("bind", &source, &words(&["rbind", "ro"]), &target).unwrap();
        let error = std::fs::write(target.join("x"), "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        drop(guard);
        std::fs::write(target.join("x"), "x").unwrap();
    }
}
