//! What the configuration of every container depends on: the machine, and what an executor was
//! set up with.

use std::path::Path;
use std::sync::Arc;

use cooper_sys::cgroup::Hierarchies;
use cooper_sys::userns::{self, Mapped};

use crate::{
    Bundle, Capabilities, ContainerSpec, DnsConfig, ExecError, NetworkMode, OtherCalls,
    SecurityMode, SpecContext, User, hosts_file, resolv_conf, resolv_conf_of_host,
};

/// How many loop devices BuildKit gives an unconfined container beyond those in use.
const SPARE_LOOPS: u32 = 8;

/// What of the machine containers depend on.
#[derive(Clone, Debug)]
pub struct Machine {
    hierarchies: Arc<Hierarchies>,
    capabilities: Capabilities,
    /// Where the kernel filters system calls, what it takes of those of other architectures.
    seccomp: Option<OtherCalls>,
    /// The users that there are, in a user namespace.
    mapped: Option<Mapped>,
}

/// What all containers of an executor have in common.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// What they get as resolv.conf, as far as it is not the host's.
    pub dns: &'a DnsConfig,
    /// The network of those that ask for none in particular.
    pub network: NetworkMode,
    /// The control group above theirs.
    pub cgroup_parent: &'a str,
    /// AppArmor's profile for confined ones; empty for none.
    pub apparmor_profile: &'a str,
    /// How ready the kernel is to kill them for want of memory.
    pub oom_score_adj: Option<i32>,
    /// Whether they share the host's process namespace.
    pub no_process_sandbox: bool,
}

impl Machine {
    /// Looks at the machine. Blocks.
    pub fn detect() -> Result<Self, ExecError> {
        let mapped = match userns::inside() {
            true => Some(Mapped::read().map_err(ExecError::io("read", "/proc/self/uid_map"))?),
            false => None,
        };
        let hierarchies = match mapped {
            // The control groups are the machine's, but for what a user was given of them.
            Some(_) => Hierarchies::of_user(),
            None => Hierarchies::detect().map_err(ExecError::io("read", "/sys/fs/cgroup"))?,
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Self {
            hierarchies: Arc::new(hierarchies),
            capabilities: Capabilities::effective(&status),
            seccomp: Path::new("/proc/sys/kernel/seccomp")
                .exists()
                .then(OtherCalls::of_kernel),
            mapped,
        })
    }

    /// Looks whether processes can be those of `user`.
    ///
    /// # Errors
    /// [`ExecError::NotMapped`] in a user namespace that has no such user or group.
    pub fn check_user(&self, user: &User) -> Result<(), ExecError> {
        let Some(mapped) = &self.mapped else {
            return Ok(());
        };
        if mapped.user(user.uid) && mapped.group(user.gid) {
            return Ok(());
        }
        let (uid, gid) = (user.uid, user.gid);
        Err(ExecError::NotMapped { uid, gid })
    }

    /// The hierarchies of control groups.
    pub fn hierarchies(&self) -> &Arc<Hierarchies> {
        &self.hierarchies
    }

    /// What the configuration of the container `id` depends on, without mounts and with its
    /// hosts and resolv.conf written into its bundle. Blocks.
    pub fn context(
        &self,
        id: &str,
        root: &Path,
        spec: &ContainerSpec,
        bundle: &Bundle,
        common: Common<'_>,
    ) -> Result<SpecContext, ExecError> {
        let host = resolv_conf_of_host(spec.network);
        let host = host.map_err(ExecError::io("read", "/etc/resolv.conf"))?;
        let resolv = resolv_conf(&host, common.dns, spec.network);
        let network = match spec.network {
            NetworkMode::Default => common.network,
            asked => asked,
        };
        Ok(SpecContext {
            resolv_conf: Some(bundle.write("resolv.conf", resolv)?),
            hosts: Some(bundle.write("hosts", hosts_file(&spec.hostname, &spec.extra_hosts))?),
            host_network: network != NetworkMode::None,
            cgroup_parent: common.cgroup_parent.to_owned(),
            cgroup_delegated: self.hierarchies.delegated().map(str::to_owned),
            cgroup_namespace: self.hierarchies.unified(),
            apparmor_profile: common.apparmor_profile.to_owned(),
            seccomp: self.seccomp,
            oom_score_adj: common.oom_score_adj,
            capabilities: self.capabilities.clone(),
            loop_devices: match spec.security {
                SecurityMode::Insecure => loop_devices() + SPARE_LOOPS,
                SecurityMode::Sandbox => 0,
            },
            open_files: cooper_sys::open_files_before(),
            user_namespace: self.mapped.is_some(),
            no_process_sandbox: common.no_process_sandbox,
            ..SpecContext::new(id, root)
        })
    }
}

/// One more than the highest number of a loop device of the host.
fn loop_devices() -> u32 {
    let Ok(entries) = std::fs::read_dir("/dev") else {
        return 0;
    };
    let numbers = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let number = name.to_str()?.strip_prefix("loop")?.parse::<u32>().ok()?;
        number.checked_add(1)
    });
    // The kernel can have a million of them; a container need not.
    numbers.filter(|number| *number <= 256).max().unwrap_or(0)
}
