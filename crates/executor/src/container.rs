//! What a container is made of.

use std::path::Path;

use cooper_snapshot::Mount;

use crate::ExecError;

/// The host name of a container that asks for none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// A container, as far as it does not depend on the process in it.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Its id; made up when there is none.
    pub id: Option<String>,
    /// The root file system. It is mounted writable even if [`Self::root_read_only`], because
    /// mount points may have to be made in it.
    pub root: Vec<Mount>,
    /// Whether processes see the root file system as read-only.
    pub root_read_only: bool,
    /// The other mounts, in the order in which they are mounted.
    pub mounts: Vec<ContainerMount>,
    /// The host name; empty for [`DEFAULT_HOSTNAME`].
    pub hostname: String,
    /// Names that its hosts file has besides its own.
    pub extra_hosts: Vec<HostIp>,
    /// Its network.
    pub network: NetworkMode,
    /// How far it is confined.
    pub security: SecurityMode,
    /// Resource limits of its processes; with none they have those of the daemon.
    pub ulimits: Vec<Ulimit>,
    /// The control group above the container's, instead of the executor's own.
    pub cgroup_parent: String,
    /// What it may use.
    pub resources: Resources,
    /// Whether folders above a mount point that had to be made are removed afterwards, too,
    /// and not only the mount point.
    pub remove_mount_stubs: bool,
}

impl ContainerSpec {
    /// A container whose root file system is the folder `root` itself: what its processes write
    /// is there afterwards. A relative path begins at this process's working directory.
    pub fn in_folder(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        // Without a working directory the mount says what is wrong.
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        Self {
            root: vec![Mount::bind(&root, false)],
            ..Self::default()
        }
    }
}

/// A mount that is not the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerMount {
    /// Where it is, from inside, absolute.
    pub dest: String,
    /// What is mounted there.
    pub mounts: Vec<Mount>,
    /// A path in what is mounted, if only that is wanted. Links do not lead out of it.
    pub selector: String,
    /// Whether it is read-only, whatever [`Self::mounts`] say.
    pub read_only: bool,
    /// Whether other containers may change what is in it while this one is made, as those that
    /// share a cache mount may. A mount point in it can become a link under the hands of a
    /// runtime, so what is mounted there is mounted on the host, by descriptor.
    pub shared: bool,
}

/// A line of the hosts file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIp {
    /// The name.
    pub host: String,
    /// The address, already checked.
    pub ip: String,
}

/// Which network processes see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// What the executor was set up with.
    #[default]
    Default,
    /// The host's.
    Host,
    /// None but their own loopback.
    None,
}

/// How far processes are confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecurityMode {
    /// As containers usually are.
    #[default]
    Sandbox,
    /// Hardly: every capability and every device.
    Insecure,
}

/// A resource limit (getrlimit(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// What counts; negative for no limit.
    pub soft: i64,
    /// Up to where a process can raise it itself; negative for no limit.
    pub hard: i64,
}

/// What a container may use of the machine; zero and empty mean: no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of memory and swap together; -1 for as much swap as there is.
    pub memory_swap: i64,
    /// Its share of the processors when others want them, too.
    pub cpu_shares: u64,
    /// Microseconds in which [`Self::cpu_quota`] is counted.
    pub cpu_period: u64,
    /// Microseconds of processor time in each period.
    pub cpu_quota: i64,
    /// The processors, in the form `0-2,5`.
    pub cpuset_cpus: String,
    /// The memory nodes, in the same form.
    pub cpuset_mems: String,
}

/// Checks that `id` can name a container and files of it.
pub fn container_id(id: &str) -> Result<&str, ExecError> {
    // runc refuses longer names of control groups than a file system takes, and other letters.
    let fits = (1..=128).contains(&id.len()) && id != "." && id != "..";
    let letters = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if fits && id.chars().all(letters) {
        Ok(id)
    } else {
        Err(ExecError::InvalidId { id: id.to_owned() })
    }
}
