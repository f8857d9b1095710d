//! Capabilities of processes.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities as CapabilitySet, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder,
};

/// What containerd leaves a container (`oci/spec.go`, `defaultUnixCaps`).
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// A set of capabilities (capabilities(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(CapabilitySet);

impl Capabilities {
    /// In the order of their numbers (`linux/capability.h`).
    const BY_NUMBER: [Capability; 41] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::DacReadSearch,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setpcap,
        Capability::LinuxImmutable,
        Capability::NetBindService,
        Capability::NetBroadcast,
        Capability::NetAdmin,
        Capability::NetRaw,
        Capability::IpcLock,
        Capability::IpcOwner,
        Capability::SysModule,
        Capability::SysRawio,
        Capability::SysChroot,
        Capability::SysPtrace,
        Capability::SysPacct,
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysNice,
        Capability::SysResource,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::Mknod,
        Capability::Lease,
        Capability::AuditWrite,
        Capability::AuditControl,
        Capability::Setfcap,
        Capability::MacOverride,
        Capability::MacAdmin,
        Capability::Syslog,
        Capability::WakeAlarm,
        Capability::BlockSuspend,
        Capability::AuditRead,
        Capability::Perfmon,
        Capability::Bpf,
        Capability::CheckpointRestore,
    ];

    /// Those that a status file of `/proc` names as effective.
    pub fn effective(status: &str) -> Self {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0);
        let numbered = Self::BY_NUMBER.iter().enumerate();
        Self(
            numbered
                .filter(|(number, _)| mask & (1 << number) != 0)
                .map(|(_, capability)| *capability)
                .collect(),
        )
    }

    /// What a process of a container gets: the usual, and without confinement these as well.
    pub(crate) fn of_container(&self, insecure: bool) -> Result<LinuxCapabilities, OciSpecError> {
        let mut all: CapabilitySet = DEFAULT_CAPABILITIES.into_iter().collect();
        let mut ambient = CapabilitySet::new();
        if insecure {
            all.extend(&self.0);
            ambient.extend(&self.0);
        }
        LinuxCapabilitiesBuilder::default()
            .bounding(all.clone())
            .effective(all.clone())
            .permitted(all)
            // What is ambient must be inheritable (capabilities(7)).
            .inheritable(ambient.clone())
            .ambient(ambient)
            .build()
    }
}
