//! The program of the helper, so that it can be run and not written to.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cooper_sys::mount::set_attributes;
use rustix::fs::{CWD, MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};
use rustix::io::Errno;

use crate::mounts::clone_tree;
use crate::options::READ_ONLY;

/// The program at `path`, which may be `/proc/self/exe`, to be run by its descriptor.
///
/// Seen from inside a container it is on a file system that cannot be written to, even when this
/// process has ended and the file is not busy any more (CVE-2019-5736). In a mount namespace other
/// than the one that this process was started in, `/proc/self/exe` cannot be cloned, because it
/// leads to the mount of before. There the same path does; and where that is another file by now,
/// a copy in memory.
pub(crate) fn sealed(path: &Path) -> io::Result<OwnedFd> {
    let elsewhere = match cloned(path) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => error,
        result => return result,
    };
    let Ok(found) = std::fs::read_link(path) else {
        return Err(elsewhere);
    };
    let program = File::open(path)?;
    if let Ok(clone) = cloned(&found) {
        let (ours, other) = (fstat(&program)?, fstat(&clone)?);
        if (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino) {
            return Ok(clone);
        }
    }
    copied(program)
}

fn cloned(path: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(CWD, path, false)?;
    set_attributes(&tree, false, READ_ONLY)?;
    Ok(tree)
}

fn copied(mut program: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("oci-runtime", flags)?);
    io::copy(&mut program, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use nix::sched::CloneFlags;
    use rustix::fs::{StatVfsMountFlags, fcntl_get_seals, fstatvfs};

    use super::*;

    fn runs(sealed: &OwnedFd) {
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let output = Command::new(&path).arg("--help").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn is_read_only(mount: &OwnedFd) -> bool {
        let flags = fstatvfs(mount).unwrap().f_flag;
        flags.contains(StatVfsMountFlags::RDONLY)
    }

    #[test]
    fn a_program_is_sealed_one_way_or_the_other() {
        let own = std::env::current_exe().unwrap();
        for path in [Path::new("/proc/self/exe"), &own] {
            let sealed = sealed(path).unwrap();
            runs(&sealed);
            assert!(is_read_only(&sealed));
        }
        let copy = copied(File::open(own).unwrap()).unwrap();
        runs(&copy);
        assert!(fcntl_get_seals(&copy).unwrap().contains(SealFlags::WRITE));
        let missing = sealed(Path::new("/nowhere")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_program_of_another_mount_namespace_is_sealed() {
        // The program is of the namespace that this thread was in.
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let program = Path::new("/proc/self/exe");
            let error = cloned(program).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
            let sealed = sealed(program).unwrap();
            runs(&sealed);
            assert!(is_read_only(&sealed));
        });
        thread.join().unwrap();
    }
}
