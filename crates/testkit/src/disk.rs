//! A small disk that can be filled up.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::run::{run, wait_until};

/// Space is taken in pieces of so many bytes where the exact number cannot be had.
const PIECE: u64 = 4096;

/// An ext4 file system of its own in a file, mounted by a loop device; unmounted and removed
/// when dropped. What is in it has to be closed by then.
#[derive(Debug)]
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Makes one of `mib` MiB, with no journal, which would take a quarter of it.
    #[track_caller]
    pub fn new(mib: u64) -> Self {
        Self::made(mib, &["-O", "^has_journal", "-N", "20000"])
    }

    /// One with a journal, as disks have it that survive the end of the machine.
    #[track_caller]
    pub fn with_journal(mib: u64) -> Self {
        Self::made(mib, &[])
    }

    #[track_caller]
    fn made(mib: u64, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-disk-")
            .tempdir()
            .unwrap();
        let made = Self { dir };
        File::create(made.image())
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        std::fs::create_dir(made.path()).unwrap();
        // No blocks that only root may use, for the daemon is root.
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-m", "0"]).args(options);
        run(make.arg(made.image())).success();
        made.mount();
        made
    }

    #[track_caller]
    fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(self.image());
        run(mount.arg(self.path())).success();
    }

    /// Unmounts what is mounted below it, which the daemon that mounted it does not do any more.
    #[track_caller]
    pub fn unmount_below(&self) {
        let inside = self.path();
        let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let places = text.lines().filter_map(|line| line.split(' ').nth(1));
        let places: Vec<_> = places
            .filter(|place| {
                Path::new(place).starts_with(&inside) && Path::new(place) != self.path()
            })
            .collect();
        // What is on top goes first.
        for place in places.iter().rev() {
            run(Command::new("umount").arg("--lazy").arg(place)).success();
        }
    }

    /// Unmounts it, which nobody may use any more, and mounts it again.
    #[track_caller]
    pub fn remount(&self) {
        wait_until("nobody uses the disk", Duration::from_secs(20), || {
            let unmounted = Command::new("umount").arg(self.path()).status();
            unmounted.unwrap().success()
        });
        self.mount();
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let stat = statvfs(&self.path()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }

    /// Fills it until no more than `free` bytes are left, and less by some blocks for the
    /// filling file's own.
    #[track_caller]
    pub fn fill(&self, free: u64) {
        let mut file = File::create(self.filler()).unwrap();
        let mut taken = 0;
        loop {
            let left = self.free();
            if left <= free {
                return;
            }
            let want = i64::try_from(left - free).expect("a small disk");
            let more = fallocate(&file, FallocateFlags::empty(), taken, want);
            if more.is_err() {
                break;
            }
            taken += want;
        }
        // The last blocks, which the file system wants for itself when asked for many.
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
        while self.free() > free {
            if file.write_all(&vec![0; PIECE as usize]).is_err() {
                return;
            }
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = |lazily: bool| {
            let mut command = Command::new("umount");
            command.args(lazily.then_some("--lazy")).arg(self.path());
            run(&mut command)
        };
        if std::thread::panicking() {
            unmount(true);
        } else {
            unmount(false).success();
        }
    }
}
