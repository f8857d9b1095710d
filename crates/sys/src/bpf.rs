//! Programs that decide which devices a control group of version 2 may use
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::process::check;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of the groups above stay in force.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for loading, as far as it is used; what follows is zero for the kernel.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
}

/// The same for attaching.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// Loads a program for devices, given as the instructions' eight bytes each, and attaches it to
/// the control group that `cgroup` is the directory of. It goes with the group.
///
/// # Errors
/// Those of bpf(2): `EACCES` for a program that the kernel cannot prove to be harmless, `EPERM`
/// without privilege.
pub fn attach_device_program(program: &[u64], cgroup: impl AsFd) -> io::Result<()> {
    let count = u32::try_from(program.len());
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: count.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure is the beginning of what the kernel takes, its size is said, and
    // both pointers in it are to memory that outlives the call.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<Load>(),
        )
    };
    check(loaded)?;
    let loaded = libc::c_int::try_from(loaded).map_err(io::Error::other)?;
    // SAFETY: the kernel has returned a new descriptor, which nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        ..Attach::default()
    };
    // SAFETY: as above; there is no pointer in it.
    let attached = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    check(attached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_refused() {
        let dir = std::fs::File::open("/").unwrap();
        assert!(attach_device_program(&[0], dir).is_err());
    }
}
