//! The system calls that Cooper needs and the standard library does not have: mounts, paths
//! that stay inside a root, processes by pidfd, control groups, locks, quotas, syncing.
//!
//! This crate is the only home of `unsafe` in the workspace; what rustix offers safely needs
//! none. It refuses to know what a mount, a tree or a process is for.
//!
//! ```
//! use cooper_sys::Root;
//!
//! let dir = tempfile::tempdir()?;
//! std::os::unix::fs::symlink("/etc", dir.path().join("link"))?;
//! let root = Root::open(dir.path())?;
//! // Inside the root `/etc` is the root's own, and there is none.
//! assert!(root.open_file("link/passwd").is_err());
//! # Ok::<_, std::io::Error>(())
//! ```

pub mod abi;
pub mod activation;
pub mod bpf;
pub mod cgroup;
mod clone;
pub mod copy;
mod files;
mod lock;
pub mod mount;
pub mod netns;
mod pidfd;
pub mod process;
pub mod quota;
mod root;
mod sync;
pub mod userns;
mod watch;

pub use clone::{Clone, Cloned};
pub use files::{open_files_before, raise_open_files};
pub use lock::FileLock;
pub use mount::{MountGuard, MountPoint};
pub use pidfd::PidFd;
pub use root::{Entry, Root};
pub use sync::{boot_id, cut_off, sync_fs};
pub use watch::watch;
