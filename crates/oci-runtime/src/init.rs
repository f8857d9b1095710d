//! The first process of a container, from its birth to the program that was asked for.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::mounts::Mounts;
use crate::seccomp::Filter;
use crate::status::Reporter;
use crate::{console, devices, helper, loopback, mask, process};

/// What the process needs to know, put together before it is there.
pub(crate) struct Container<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) filter: Option<Filter>,
    pub(crate) groups: &'a [PathBuf],
    pub(crate) namespaces: UnshareFlags,
    pub(crate) network: Option<&'a Path>,
    pub(crate) status: &'a Reporter,
    /// Without a terminal: standard input, output and error.
    pub(crate) stdio: Vec<OwnedFd>,
}

impl Container<'_> {
    /// Runs the program; returns only if that fails.
    pub(crate) fn run(&self) -> u8 {
        let Err(message) = self.try_run();
        self.status.failed(&message);
        1
    }

    fn try_run(&self) -> Result<std::convert::Infallible, String> {
        let process = helper::process(self.spec)?;
        process::begin(process, &self.stdio)?;
        if self.namespaces.contains(UnshareFlags::NEWCGROUP) {
            // Begun at the clone, its root would be where this process was cloned from.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
                .map_err(|error| format!("begin a cgroup namespace: {error}"))?;
        }
        self.network()?;
        let container_error = |error| {
            format!("unable to start container process: error during container init: {error}")
        };
        let outer = self.file_systems().map_err(container_error)?;
        self.names().map_err(container_error)?;
        process::run(process, self.filter.as_ref(), self.status, outer)
    }

    fn network(&self) -> Result<(), String> {
        if let Some(path) = self.network {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let join = rustix::fs::open(path, flags, Mode::empty()).and_then(|fd| {
                let kind = LinkNameSpaceType::Network;
                let fd = std::os::fd::AsFd::as_fd(&fd);
                rustix::thread::move_into_link_name_space(fd, Some(kind))
            });
            join.map_err(|error| format!("join the network {}: {error}", path.display()))?;
        } else if self.namespaces.contains(UnshareFlags::NEWNET) {
            loopback::up().map_err(|error| format!("set up loopback: {error}"))?;
        }
        Ok(())
    }

    /// Mounts everything and makes it all there is. Returns the outer end of the terminal.
    fn file_systems(&self) -> Result<Option<OwnedFd>, String> {
        let spec = self.spec;
        let linux = spec.linux().as_ref().ok_or("no linux")?;
        let root = spec.root().as_ref().ok_or("no root")?;
        // Nothing that is mounted from here on shows outside.
        let private = matches!(
            linux.rootfs_propagation().as_deref(),
            Some("private" | "rprivate")
        );
        let kind = if private {
            MountPropagationFlags::PRIVATE
        } else {
            MountPropagationFlags::DOWNSTREAM
        };
        rustix::mount::mount_change("/", kind | MountPropagationFlags::REC)
            .map_err(|error| format!("keep mounts apart: {error}"))?;
        let null = devices::null()?;
        let mounts = Mounts::enter(root.path())?;
        let list = spec.mounts().as_deref().unwrap_or_default();
        for mount in list {
            mounts.add(mount, self.groups)?;
        }
        let mut outer = None;
        let dev = list
            .iter()
            .rfind(|mount| mount.destination() == Path::new("/dev"));
        // A folder of the host in its place has what it has.
        if dev.is_none_or(|mount| !crate::mounts::is_bind(mount)) {
            devices::make(
                mounts.root(),
                linux.devices().as_deref().unwrap_or_default(),
            )?;
        }
        let process = helper::process(spec)?;
        mounts.make_cwd(process.cwd())?;
        if process.terminal().unwrap_or_default() {
            outer = Some(console::open(mounts.root(), process)?);
        }
        if let Some(dev) = dev {
            mounts.seal_dev(dev)?;
        }
        mask::read_only(
            mounts.root(),
            linux.readonly_paths().as_deref().unwrap_or_default(),
        )?;
        mask::mask(
            mounts.root(),
            &null,
            linux.masked_paths().as_deref().unwrap_or_default(),
        )?;
        if root.readonly().unwrap_or_default() {
            mounts.seal_root()?;
        }
        pivot(&mounts)?;
        Ok(outer)
    }

    fn names(&self) -> Result<(), String> {
        let own = self.namespaces.contains(UnshareFlags::NEWUTS);
        if let Some(name) = self.spec.hostname() {
            if !own {
                return Err("unable to set hostname without a private UTS namespace".to_owned());
            }
            rustix::system::sethostname(name.as_bytes())
                .map_err(|error| format!("sethostname: {error}"))?;
        }
        if let Some(name) = self.spec.domainname() {
            if !own {
                return Err("unable to set domainname without a private UTS namespace".to_owned());
            }
            rustix::system::setdomainname(name.as_bytes())
                .map_err(|error| format!("setdomainname: {error}"))?;
        }
        Ok(())
    }
}

/// Makes the container's root the root of this process, and lets go of the host's
/// (pivot_root(2), "pivot_root(".", ".")").
fn pivot(mounts: &Mounts) -> Result<(), String> {
    let steps = || {
        rustix::process::fchdir(mounts.root())?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    steps().map_err(|error: rustix::io::Errno| {
        format!("error jailing process inside rootfs: pivot_root: {error}")
    })
}
