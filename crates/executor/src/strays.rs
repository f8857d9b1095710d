//! Processes that an earlier process started and nobody waits for any more.

use cooper_sys::PidFd;

/// The processes in whose command lines each of `pairs` is: an option and its value. Blocks.
///
/// Others than ours can be among them: the value has to be one that nobody else says.
pub fn processes_with(pairs: &[[&[u8]; 2]]) -> Vec<PidFd> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        // Opened before it is looked at: the number may be another's afterwards.
        let found = PidFd::open(pid).ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args: Vec<_> = line.split(|byte| *byte == 0).collect();
        let has = |pair: &[&[u8]; 2]| args.windows(2).any(|args| args == pair);
        pairs.iter().all(has).then_some(found)
    })
    .collect()
}
