//! Limits, from the words of the specification to the files of both versions (config-linux.md,
//! "Control groups"; Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::Group;
use crate::RuntimeError;

pub(super) fn set(group: &Group, resources: &LinuxResources) -> Result<(), RuntimeError> {
    refuse(group, resources)?;
    if let Some(memory) = resources.memory() {
        set_memory(group, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        set_cpu(group, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        group.write("pids.max", limit(pids.limit()))?;
    }
    for (name, value) in resources.unified().iter().flatten() {
        if name.contains('/') || !name.contains('.') {
            return Err(RuntimeError::unsupported(format!("the limit {name}")));
        }
        group.write(name, value)?;
    }
    Ok(())
}

fn refuse(group: &Group, resources: &LinuxResources) -> Result<(), RuntimeError> {
    let memory = resources.memory().unwrap_or_default();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let network = resources.network().as_ref();
    let asked = [
        (
            resources
                .block_io()
                .as_ref()
                .is_some_and(|io| *io != Default::default()),
            "resources.blockIO",
        ),
        (
            resources
                .hugepage_limits()
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "resources.hugepageLimits",
        ),
        (
            network.is_some_and(|network| *network != Default::default()),
            "resources.network",
        ),
        (
            resources.rdma().as_ref().is_some_and(|map| !map.is_empty()),
            "resources.rdma",
        ),
        (
            !group.unified()
                && resources
                    .unified()
                    .as_ref()
                    .is_some_and(|map| !map.is_empty()),
            "resources.unified on control groups of version 1",
        ),
        (memory.kernel().is_some(), "resources.memory.kernel"),
        (memory.kernel_tcp().is_some(), "resources.memory.kernelTCP"),
        (
            group.unified() && memory.disable_oom_killer() == Some(true),
            "resources.memory.disableOOMKiller on control groups of version 2",
        ),
        (
            cpu.realtime_runtime().is_some(),
            "resources.cpu.realtimeRuntime",
        ),
        (
            cpu.realtime_period().is_some(),
            "resources.cpu.realtimePeriod",
        ),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(RuntimeError::unsupported(*what)),
        None => Ok(()),
    }
}

fn set_memory(group: &Group, memory: &LinuxMemory) -> Result<(), RuntimeError> {
    if group.unified() {
        if let Some(most) = memory.limit() {
            group.write("memory.max", limit(most))?;
        }
        if let Some(both) = memory.swap() {
            group.write("memory.swap.max", swap(memory.limit(), both)?)?;
        }
        if let Some(low) = memory.reservation() {
            group.write("memory.low", limit(low))?;
        }
        return Ok(());
    }
    let files = [
        ("memory.limit_in_bytes", memory.limit()),
        // With swap it cannot be less than without: a new group has neither.
        ("memory.memsw.limit_in_bytes", memory.swap()),
        ("memory.soft_limit_in_bytes", memory.reservation()),
    ];
    for (name, value) in files {
        if let Some(value) = value {
            group.write(name, value.to_string())?;
        }
    }
    if let Some(swappiness) = memory.swappiness() {
        group.write("memory.swappiness", swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        group.write("memory.oom_control", "1")?;
    }
    Ok(())
}

/// Version 2 counts swap by itself.
fn swap(memory: Option<i64>, both: i64) -> Result<String, RuntimeError> {
    match (memory, both) {
        (_, -1) => Ok("max".to_owned()),
        (Some(memory), both) if memory >= 0 && both >= memory => Ok((both - memory).to_string()),
        _ => Err(RuntimeError::unsupported(
            "a limit of swap that is below that of memory, or without one",
        )),
    }
}

fn set_cpu(group: &Group, cpu: &LinuxCpu) -> Result<(), RuntimeError> {
    if group.unified() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            group.write("cpu.weight", weight(shares).to_string())?;
        }
        if cpu.quota().is_some() || cpu.period().is_some() {
            let quota = cpu
                .quota()
                .filter(|quota| *quota > 0)
                .map_or(-1, |quota| quota);
            let period = cpu
                .period()
                .filter(|period| *period != 0)
                .unwrap_or(100_000);
            group.write("cpu.max", format!("{} {period}", limit(quota)))?;
        }
        if let Some(burst) = cpu.burst() {
            group.write("cpu.max.burst", burst.to_string())?;
        }
    } else {
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        let files = [
            (
                "cpu.shares",
                text(cpu.shares().filter(|shares| *shares != 0)),
            ),
            ("cpu.cfs_period_us", text(cpu.period())),
            (
                "cpu.cfs_quota_us",
                cpu.quota().map(|quota| quota.to_string()),
            ),
            ("cpu.cfs_burst_us", text(cpu.burst())),
        ];
        for (name, value) in files {
            if let Some(value) = value {
                group.write(name, value)?;
            }
        }
    }
    if let Some(idle) = cpu.idle() {
        group.write("cpu.idle", idle.to_string())?;
    }
    for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value {
            group.write(name, value)?;
        }
    }
    Ok(())
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000), as every runtime
/// turns them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn limit(number: i64) -> String {
    match number {
        ..=-1 => "max".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_version_1_become_those_of_version_2() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
        assert_eq!(swap(Some(10), 15).unwrap(), "5");
        assert_eq!(swap(Some(10), 10).unwrap(), "0");
        assert_eq!(swap(None, -1).unwrap(), "max");
        assert!(swap(Some(10), 5).is_err() && swap(None, 5).is_err());
        assert_eq!((limit(-1).as_str(), limit(7).as_str()), ("max", "7"));
    }
}
