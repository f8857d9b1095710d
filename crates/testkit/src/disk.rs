//! A small disk that can be filled up.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::run::run;

/// Space is taken in pieces of so many bytes where the exact number cannot be had.
const PIECE: u64 = 4096;

/// An ext4 file system of its own in a file, mounted by a loop device; unmounted and removed
/// when dropped. What is in it has to be closed by then.
#[derive(Debug)]
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Makes one of `mib` MiB.
    #[track_caller]
    pub fn new(mib: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-disk-")
            .tempdir()
            .unwrap();
        let (image, target) = (dir.path().join("image"), dir.path().join("disk"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&target).unwrap();
        // No blocks that only root may use, for the daemon is root; no journal, which would
        // take a quarter of it.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-O", "^has_journal", "-N", "20000"])
            .arg(&image))
        .success();
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&target))
        .success();
        Self { dir }
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
