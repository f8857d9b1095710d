//! Project quotas: a limit on what is in a folder, kept by the file system (quotactl(2), and
//! Documentation/filesystems/ext4/ of the kernel, "project").

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{Getter, Opcode, Setter};

/// What is asked of a quota: `PRJQUOTA` of linux/quota.h.
const PROJECT: u32 = 2;
const SET_QUOTA: u32 = 0x80_0008;
const GET_QUOTA: u32 = 0x80_0007;
/// `Q_XGETQSTAT` of linux/dqblk_xfs.h, which every file system with quotas understands.
const GET_STATE: u32 = 0x5805;
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are kept.
const ENFORCED: u16 = 1 << 5;
/// quotactl_fd(2), the same on all architectures that Linux came to since 5.14.
const QUOTACTL_FD: libc::c_long = 443;
/// `QIF_BLIMITS`: the limits of bytes are given.
const LIMITS: u32 = 1;
/// Bytes of a block of a limit (`QIF_DQBLKSIZE`).
const BLOCK: u64 = 1024;
/// What is made in a folder belongs to its project (`FS_XFLAG_PROJINHERIT` of linux/fs.h).
const INHERIT: u32 = 0x200;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    flags: u32,
    extent: u32,
    extents: u32,
    project: u32,
    cow_extent: u32,
    pad: [u8; 8],
}

/// `struct if_dqblk` of linux/quota.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

const GET: Opcode = rustix::ioctl::opcode::read::<Attributes>(b'X', 31);
const SET: Opcode = rustix::ioctl::opcode::write::<Attributes>(b'X', 32);

/// Puts the folder that is open into a project: what is made in it from now on is in it too.
///
/// # Errors
/// The file system knows no projects (`ENOTTY`, `EOPNOTSUPP`), or one is not root.
pub fn set_project(folder: impl AsFd, project: u32) -> io::Result<()> {
    // SAFETY: the call fills a `struct fsxattr`, which `Attributes` is (fs/ioctl.c).
    let mut now = unsafe { rustix::ioctl::ioctl(&folder, Getter::<GET, Attributes>::new())? };
    now.flags |= INHERIT;
    now.project = project;
    // SAFETY: the call reads a `struct fsxattr`, which it is given, and changes no memory.
    unsafe { rustix::ioctl::ioctl(&folder, Setter::<SET, Attributes>::new(now))? };
    Ok(())
}

/// Whether the file system of `file` keeps the limits of projects: an ext4 that was made with
/// `-O quota,project` and mounted with `prjquota`, an XFS that was mounted with `pquota`.
///
/// A process that has `CAP_SYS_RESOURCE` may still go beyond them on an ext4; what writes through
/// an overlay has not.
pub fn are_kept(file: &File) -> bool {
    // `struct fs_quota_stat` has 80 bytes, with its flags from the third on.
    let mut state = [0_u64; 32];
    let result = call(file, GET_STATE, 0, state.as_mut_ptr().cast());
    let flags = (state[0].to_ne_bytes()[2], state[0].to_ne_bytes()[3]);
    result.is_ok() && u16::from_ne_bytes(flags.into()) & ENFORCED != 0
}

/// Bytes that `project` may have at most on the file system of `file`, rounded up to 1 KiB; 0
/// for no limit. Linux 5.14.
///
/// # Errors
/// The file system keeps no quotas of projects, or one is not root.
pub fn set_limit(file: &File, project: u32, bytes: u64) -> io::Result<()> {
    let mut quota = Quota {
        hard_blocks: bytes.div_ceil(BLOCK),
        valid: LIMITS,
        ..Quota::default()
    };
    call(
        file,
        SET_QUOTA,
        project,
        std::ptr::from_mut(&mut quota).cast(),
    )
}

/// Bytes that `project` has on the file system of `file`.
///
/// # Errors
/// As [`set_limit`].
pub fn used(file: &File, project: u32) -> io::Result<u64> {
    let mut quota = Quota::default();
    call(
        file,
        GET_QUOTA,
        project,
        std::ptr::from_mut(&mut quota).cast(),
    )?;
    Ok(quota.bytes)
}

/// `place` is where what the command reads or fills is, for as long as the call takes.
fn call(file: &File, command: u32, project: u32, place: *mut libc::c_void) -> io::Result<()> {
    let command = libc::c_long::from(command << 8 | PROJECT);
    // SAFETY: two of the commands read or fill a `struct if_dqblk`, which `Quota` is, and the
    // third fills a `struct fs_quota_stat`, which is shorter than the array that it is given; all
    // are borrowed by the callers (fs/quota/quota.c).
    let result = unsafe {
        libc::syscall(
            QUOTACTL_FD,
            file.as_raw_fd(),
            command,
            libc::c_long::from(project),
            place,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
