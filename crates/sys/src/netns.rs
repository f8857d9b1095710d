//! Network namespaces that are kept without a process in them (network_namespaces(7)).

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::ioctl::{Opcode, Setter};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::UnshareFlags;

/// `SIOCSIFFLAGS` and `SIOCBRDELBR` (linux/sockios.h).
const SET_FLAGS: Opcode = 0x8914;
const REMOVE_BRIDGE: Opcode = 0x89a1;

/// `IFNAMSIZ` (linux/if.h).
const NAME_SIZE: usize = 16;

/// `struct ifreq` (netdevice(7)), as far as flags go.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    name: [u8; NAME_SIZE],
    flags: i16,
    unused: [u8; 22],
}

/// Makes a network namespace and keeps it at `path`, a new file. Blocks.
pub fn make(path: &Path) -> io::Result<()> {
    File::create_new(path)?;
    // A thread of its own, which ends: only it is in the new namespace.
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into());
        let made = thread.spawn_scoped(scope, || {
            // SAFETY: a network namespace is a thread's own and shares no memory, descriptors
            // or file systems with it; nothing else runs on this thread afterwards.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            let options = ["bind".to_owned()];
            crate::mount::mount(
                "bind",
                Path::new("/proc/thread-self/ns/net"),
                &options,
                path,
            )
        });
        let panicked = |_| io::Error::other("the thread of a network namespace panicked");
        made?.join().unwrap_or_else(|panic| Err(panicked(panic)))
    });
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Gives up the namespace at `path`; it goes when its last process does. One that is not there
/// is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    crate::mount::unmount(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the bridge `name` with nothing on it any more. One that is not there is no error.
pub fn remove_bridge(name: &str) -> io::Result<()> {
    if !Path::new("/sys/class/net")
        .join(name)
        .join("bridge")
        .exists()
    {
        return Ok(());
    }
    let mut request = Request {
        name: [0; NAME_SIZE],
        flags: 0,
        unused: [0; 22],
    };
    // The last byte stays zero: it ends the name.
    if name.is_empty() || name.len() >= NAME_SIZE || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: these requests read one `ifreq`, of which the first one uses name and flags and
    // the second one the name, and write nothing.
    unsafe {
        // It has to be down.
        rustix::ioctl::ioctl(&socket, Setter::<SET_FLAGS, Request>::new(request))?;
        rustix::ioctl::ioctl(&socket, Setter::<REMOVE_BRIDGE, Request>::new(request))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_namespace_is_kept_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        make(&path).unwrap();
        let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        assert_ne!(path.metadata().unwrap().ino(), own);
        assert!(make(&path).is_err());
        assert_ne!(path.metadata().unwrap().ino(), own);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(crate::MountPoint::below(dir.path()).unwrap(), []);
    }
}
