//! Durability: what has reached the disk, and whether the machine has died since.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::ioctl::{Opcode, Setter};

/// Writes everything of the file system that holds `path` to its disk (syncfs(2)).
///
/// Blocks for as long as that takes: not for an async thread.
pub fn sync_fs(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Cuts the ext4 that is mounted at `path` off from its disk, as the end of power does: nothing
/// more is written, not even its journal, and whatever is asked of it fails. Mounted anew it has
/// what the disk has (`EXT4_IOC_SHUTDOWN`, with `EXT4_GOING_FLAGS_NOLOGFLUSH`). For tests.
pub fn cut_off(path: &Path) -> io::Result<()> {
    const SHUTDOWN: Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    let root = File::open(path)?;
    // SAFETY: the call reads a number of 32 bits (fs/ext4/ioctl.c, `ext4_ioctl_shutdown`), which
    // is what it is given, and changes no memory of this process.
    unsafe { rustix::ioctl::ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH))? };
    Ok(())
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
