//! Capabilities of a process (capabilities(7)).

use oci_spec::runtime::{Capabilities, Capability, Process};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

/// In the order of their numbers (linux/capability.h).
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

/// The sets of a process. Without any it has none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    permitted: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    pub(crate) fn of(process: &Process) -> Result<Self, String> {
        let all = process.capabilities().as_ref();
        let set = |list: Option<&Option<Capabilities>>| bits(list.and_then(Option::as_ref));
        Ok(Self {
            bounding: set(all.map(|all| all.bounding()))?,
            effective: set(all.map(|all| all.effective()))?,
            inheritable: set(all.map(|all| all.inheritable()))?,
            permitted: set(all.map(|all| all.permitted()))?,
            ambient: set(all.map(|all| all.ambient()))?,
        })
    }

    /// Drops from the bounding set what is not wanted there.
    pub(crate) fn bound(&self) -> Result<(), Errno> {
        for number in 0..64 {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(one) {
                continue;
            }
            // One that is not there is no error.
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // The kernel knows no more.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets the others.
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective,
                permitted: self.permitted,
                inheritable: self.inheritable,
            },
        )?;
        clear_ambient_capability_set()?;
        for one in self.ambient.iter() {
            configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    }
}

fn bits(list: Option<&Capabilities>) -> Result<CapabilitySet, String> {
    let mut bits = CapabilitySet::empty();
    for capability in list.into_iter().flatten() {
        let number = BY_NUMBER.iter().position(|known| known == capability);
        let number = number.ok_or_else(|| format!("unknown capability {capability}"))?;
        bits |= CapabilitySet::from_bits_retain(1 << number);
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let set: Capabilities = [Capability::Chown, Capability::SysAdmin]
            .into_iter()
            .collect();
        let bits = bits(Some(&set)).unwrap();
        assert_eq!(bits, CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN);
        let last = Capabilities::from([Capability::CheckpointRestore]);
        assert_eq!(
            super::bits(Some(&last)).unwrap(),
            CapabilitySet::CHECKPOINT_RESTORE
        );
        assert_eq!(super::bits(None).unwrap(), CapabilitySet::empty());
    }
}
