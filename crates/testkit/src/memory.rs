//! How much memory processes have, as the kernel counts it (proc_pid_status(5)).

use std::path::Path;

/// A field of `/proc/PID/status` in KiB, `VmRSS` or `VmHWM`; none when there is no such process.
pub fn kib(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Begins the peak (`VmHWM`) anew with what the process has now (proc_pid_clear_refs(5)).
///
/// # Errors
///
/// When there is no such process, or it is somebody else's.
pub fn forget_peak(pid: u32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// The process `pid` and the processes that it started by itself and whose name is `name`.
pub fn with_children(pid: u32, name: &str) -> Vec<u32> {
    let mut found = vec![pid];
    let list = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    found.extend(list.filter_map(|entry| {
        let child: u32 = entry.file_name().to_str()?.parse().ok()?;
        (parent(&entry.path(), name)? == pid).then_some(child)
    }));
    found
}

/// The parent of the process of `folder`, if its name is `name` (proc_pid_stat(5)).
fn parent(folder: &Path, name: &str) -> Option<u32> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let (_, rest) = stat.split_once('(')?;
    let (found, rest) = rest.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    (found == name).then_some(parent)
}
