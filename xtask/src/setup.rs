//! What a fresh Debian machine lacks, by its package manager.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

/// What something is needed for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// To build with no daemon.
    Demo,
    /// The end-to-end tests as well.
    Tests,
}

/// A program that shows that the package is there, the package, what it does, and for whom.
const NEEDED: &[(&str, &str, &str, Purpose)] = &[
    ("runc", "runc", "runs the steps", Purpose::Demo),
    (
        "cc",
        "gcc",
        "compiles the C parts of SQLite, zstd and libdeflate",
        Purpose::Demo,
    ),
    (
        "busybox",
        "busybox-static",
        "is the base image of the demo and of the tests",
        Purpose::Demo,
    ),
    (
        "docker-registry",
        "docker-registry",
        "is the registry of the tests",
        Purpose::Tests,
    ),
    (
        "containerd",
        "containerd",
        "is the other way to run steps; the tests start their own",
        Purpose::Tests,
    ),
    (
        "skopeo",
        "skopeo",
        "checks images from outside",
        Purpose::Tests,
    ),
    (
        "openssl",
        "openssl",
        "makes the certificates of the tests",
        Purpose::Tests,
    ),
    (
        "mkfs.ext4",
        "e2fsprogs",
        "makes the small disks of the tests",
        Purpose::Tests,
    ),
    (
        "newuidmap",
        "uidmap",
        "gives ordinary users further ids, for the tests of their builds",
        Purpose::Tests,
    ),
    (
        "rootlesskit",
        "rootlesskit",
        "makes user namespaces, as BuildKit's users have it",
        Purpose::Tests,
    ),
    (
        "debootstrap",
        "debootstrap",
        "makes the Debian base image of the tests",
        Purpose::Tests,
    ),
];

/// Installs what is missing; says what and why. Nothing is done when nothing is missing.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(program, .., of)| *of <= purpose && !run::have(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (_, package, why, _) in &missing {
        eprintln!("setup: {package} is missing; it {why}");
    }
    let packages: Vec<_> = missing.iter().map(|(_, package, ..)| *package).collect();
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this machine has no apt-get: install {} by hand",
            packages.join(", ")
        );
    }
    // The uid of this process, without a dependency for it.
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !root {
        bail!("not root; run `{by_hand}` as root, then again");
    }
    eprintln!("setup: installing {}", packages.join(", "));
    run::check(apt().arg("update"))?;
    run::check(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages),
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("--quiet=2");
    command
}
