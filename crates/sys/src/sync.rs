//! Durability: what has reached the disk, and whether the machine has died since.

use std::fs::File;
use std::io;
use std::path::Path;

/// Writes everything of the file system that holds `path` to its disk (syncfs(2)).
///
/// Blocks for as long as that takes: not for an async thread.
pub fn sync_fs(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// The identity of this boot of the machine, 36 characters: another one means that the page
/// cache of the earlier one is gone (random(4), `/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_an_identity_and_its_file_system_syncs() {
        assert_eq!(boot_id().unwrap().len(), 36);
        sync_fs(&std::env::temp_dir()).unwrap();
    }
}
