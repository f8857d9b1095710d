//! The disk image of the guest: Debian with its kernel for virtual machines, made once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;
use crate::workspace;

/// Raised whenever what is made here changes.
const VERSION: &str = "vm-2";
/// What is in the guest besides the base of Debian.
const PACKAGES: &[&str] = &[
    "apparmor",
    "busybox-static",
    "ca-certificates",
    "containernetworking-plugins",
    "crun",
    "dbus",
    "docker-registry",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "openssl",
    "procps",
    "rootlesskit",
    "runc",
    "skopeo",
    "systemd-sysv",
    "udev",
    "uidmap",
];
/// What the guest's own initrd loads to reach its disks.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// Programs of the guest that are ours: where they go, and their text.
const FILES: &[(&str, &str)] = &[
    ("sbin/vm-init", include_str!("guest/init.sh")),
    ("sbin/vm-run", include_str!("guest/run.sh")),
];
/// With systemd the script of a boot is a service, in the slice of the system like others.
const SERVICE: &str = "[Unit]\nAfter=apparmor.service\n[Service]\nExecStart=/sbin/vm-run\n\
                       [Install]\nWantedBy=multi-user.target\n";

/// What a guest is booted from.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) root: PathBuf,
}

impl Image {
    /// The image, made first when it is not there yet.
    pub(super) fn get() -> Result<Self> {
        let ready = workspace::target_dir().join(VERSION);
        if !ready.exists() {
            let work = workspace::target_dir().join(format!("{VERSION}.tmp"));
            if work.exists() {
                fs::remove_dir_all(&work).context("remove a half-made image")?;
            }
            fs::create_dir_all(&work).context("make a folder for the image")?;
            eprintln!("test-vm: making the guest's disk, once: this takes some minutes");
            make(&work)?;
            fs::rename(&work, &ready).context("name the image")?;
        }
        Ok(Self {
            kernel: ready.join("kernel"),
            initrd: ready.join("initrd"),
            root: ready.join("root.img"),
        })
    }
}

fn make(work: &Path) -> Result<()> {
    let root = work.join("root");
    let (mirror, suite) = mirror()?;
    run::check(
        Command::new("debootstrap")
            .arg("--variant=minbase")
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(suite)
            .arg(&root)
            .arg(mirror)
            .stdout(Stdio::null()),
    )?;
    let version = only_name(&root.join("lib/modules"))?;
    fs::copy(
        root.join(format!("boot/vmlinuz-{version}")),
        work.join("kernel"),
    )
    .context("take the kernel out")?;
    initrd(work, &root, &version)?;
    for (path, text) in FILES {
        program(&root.join(path), text)?;
    }
    fs::create_dir_all(root.join("data"))?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("vm-run.service"), SERVICE)?;
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../vm-run.service", wants.join("vm-run.service"))?;
    fs::write(root.join("etc/hostname"), "guest\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n")?;
    // The machine's own would be of no use in there; some cases look for a server's line.
    fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.1\n")?;
    for folder in [
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "boot",
    ] {
        fs::remove_dir_all(root.join(folder)).with_context(|| format!("empty {folder}"))?;
    }
    disk(&work.join("root.img"), "4G", &root)?;
    fs::remove_dir_all(&root).context("remove the tree of the image")
}

/// Where this machine's own apt fetches Debian from, and its release: programs that are compiled
/// here run there.
fn mirror() -> Result<(String, String)> {
    let format = "$(ORIGIN) $(COMPONENT) $(SITE) $(CODENAME)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .output()
        .context("ask apt for its mirror")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| {
        let (site, suite) = line.strip_prefix("Debian main ")?.split_once(' ')?;
        (!suite.contains('-')).then(|| (site.to_owned(), suite.to_owned()))
    });
    found.context("apt knows no mirror of Debian: the guest is a Debian of the same release")
}

/// A small one: busybox, and the modules up to the root disk.
fn initrd(work: &Path, root: &Path, version: &str) -> Result<()> {
    let tree = work.join("initrd.tree");
    for folder in ["bin", "modules", "new", "dev", "proc"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(root.join("bin/busybox"), tree.join("bin/busybox")).context("take busybox out")?;
    program(&tree.join("init"), include_str!("guest/initrd.sh"))?;
    let mut order = Vec::new();
    for module in MODULES {
        let output = Command::new("chroot")
            .arg(root)
            .args([
                "modprobe",
                "--set-version",
                version,
                "--show-depends",
                module,
            ])
            .output()
            .context("ask for the modules")?;
        let text = String::from_utf8(output.stdout).context("paths of modules are text")?;
        for path in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = path.trim();
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            if !order.contains(&name) {
                fs::copy(
                    root.join(path.trim_start_matches('/')),
                    tree.join("modules").join(&name),
                )
                .with_context(|| format!("take {path} out"))?;
                order.push(name);
            }
        }
    }
    fs::write(tree.join("modules/order"), order.join("\n") + "\n")?;
    let script = "find . | busybox cpio -o -H newc > ../initrd";
    run::check(Command::new("sh").args(["-c", script]).current_dir(&tree))?;
    fs::remove_dir_all(&tree).context("remove the tree of the initrd")
}

/// An ext4 file system of `size` in the file `path` with what is in `tree`. It takes no more
/// space than that.
pub(super) fn disk(path: &Path, size: &str, tree: &Path) -> Result<()> {
    run::check(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "assume_storage_prezeroed=1", "-d"])
            .arg(tree)
            .arg(path)
            .arg(size)
            // Where root's PATH may not lead.
            .env(
                "PATH",
                format!(
                    "{}:/usr/sbin:/sbin",
                    std::env::var("PATH").unwrap_or_default()
                ),
            ),
    )
}

fn program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("make it executable")
}

fn only_name(dir: &Path) -> Result<String> {
    let mut names = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name?.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} has not exactly one kernel", dir.display()),
    }
}
