//! What a program asks of its helper, and what of it the helper refuses.

use std::borrow::Cow;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxSeccomp, Process, Spec};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::RuntimeError;

/// A request. With each come descriptors, in the order that is said here.
#[derive(Debug, Serialize, Deserialize)]
// There is one at a time.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Request<'a> {
    /// Make a container. With it: the status socket, then with a `cgroup` the directory to be
    /// born in, then without a terminal standard input, output and error.
    Create {
        spec: Cow<'a, Spec>,
        /// The directories of its control group.
        groups: Cow<'a, [PathBuf]>,
        cgroup: bool,
    },
    /// Start a process in a container. With it: the status socket, the container's first
    /// process, then as above.
    Exec {
        process: Cow<'a, Process>,
        seccomp: Option<Cow<'a, LinuxSeccomp>>,
        /// The bits of the namespaces that the container has of its own.
        namespaces: u32,
        /// The groups to go to, if it cannot be born there.
        groups: Cow<'a, [PathBuf]>,
        cgroup: bool,
    },
    /// Make a process that goes to these groups, says so, and waits for one request. With it:
    /// its socket.
    Park { groups: Cow<'a, [PathBuf]> },
}

/// The answer. With `Started` comes the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Started {
        pid: u32,
    },
    /// A parked process is where it should be.
    Parked,
    Failed {
        message: String,
    },
}

/// The namespaces that a container begins, and the one for its network that it joins.
pub(crate) fn namespaces(linux: &Linux) -> Result<(UnshareFlags, Option<PathBuf>), RuntimeError> {
    let mut flags = UnshareFlags::empty();
    let mut network = None;
    for namespace in linux.namespaces().as_deref().unwrap_or_default() {
        let kind = namespace.typ();
        let flag = match kind {
            LinuxNamespaceType::Mount => UnshareFlags::NEWNS,
            LinuxNamespaceType::Cgroup => UnshareFlags::NEWCGROUP,
            LinuxNamespaceType::Uts => UnshareFlags::NEWUTS,
            LinuxNamespaceType::Ipc => UnshareFlags::NEWIPC,
            LinuxNamespaceType::Pid => UnshareFlags::NEWPID,
            LinuxNamespaceType::Network => UnshareFlags::NEWNET,
            LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                return Err(RuntimeError::unsupported(format!("{kind} namespaces")));
            }
        };
        match (namespace.path(), kind) {
            (None, _) => flags |= flag,
            (Some(path), LinuxNamespaceType::Network) => network = Some(path.clone()),
            (Some(_), _) => {
                let what = format!("joining a {kind} namespace");
                return Err(RuntimeError::unsupported(what));
            }
        }
    }
    for (needed, name) in [
        (UnshareFlags::NEWNS, "mount"),
        (UnshareFlags::NEWPID, "pid"),
    ] {
        if !flags.contains(needed) {
            let what = format!("containers without a {name} namespace of their own");
            return Err(RuntimeError::unsupported(what));
        }
    }
    Ok((flags, network))
}

/// Refuses what is asked for and not done. Nothing is passed over in silence.
pub(crate) fn check(spec: &Spec) -> Result<(), RuntimeError> {
    let linux = spec.linux().as_ref();
    let linux = linux.ok_or(RuntimeError::Missing { what: "linux" })?;
    if spec.root().is_none() {
        return Err(RuntimeError::Missing { what: "root" });
    }
    let process = spec.process().as_ref();
    check_process(process.ok_or(RuntimeError::Missing { what: "process" })?)?;
    namespaces(linux)?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mapped = mounts
        .iter()
        .any(|mount| some(mount.uid_mappings()) || some(mount.gid_mappings()));
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        let kinds = [
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ];
        #[allow(deprecated)]
        let prestart = some(hooks.prestart());
        prestart || kinds.into_iter().any(some)
    });
    let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    let map = |sysctl: &Option<std::collections::HashMap<String, String>>| {
        sysctl.as_ref().is_some_and(|map| !map.is_empty())
    };
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    refuse(&[
        (hooks, "hooks"),
        (spec.vm().is_some(), "virtual machines"),
        (mapped, "mounts with id mappings"),
        (
            some(linux.uid_mappings()) || some(linux.gid_mappings()),
            "user namespaces",
        ),
        (map(linux.sysctl()), "sysctl"),
        (linux.intel_rdt().is_some(), "intelRdt"),
        (linux.memory_policy().is_some(), "memoryPolicy"),
        (linux.personality().is_some(), "personality"),
        (
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
            "netDevices",
        ),
        (
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
            "timeOffsets",
        ),
        (!empty(linux.mount_label()), "mountLabel"),
        (
            !matches!(
                propagation,
                "" | "slave" | "rslave" | "private" | "rprivate"
            ),
            "this rootfsPropagation",
        ),
    ])
}

/// The same for a process alone.
pub(crate) fn check_process(process: &Process) -> Result<(), RuntimeError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(RuntimeError::Missing { what: "args" });
    }
    let label = process.selinux_label().as_deref().unwrap_or_default();
    refuse(&[
        (!label.is_empty(), "selinuxLabel"),
        (process.io_priority().is_some(), "ioPriority"),
        (process.scheduler().is_some(), "scheduler"),
        (process.exec_cpu_affinity().is_some(), "execCPUAffinity"),
        (process.command_line().is_some(), "commandLine"),
    ])
}

fn refuse(asked: &[(bool, &str)]) -> Result<(), RuntimeError> {
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(RuntimeError::unsupported(*what)),
        None => Ok(()),
    }
}

fn some<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}
