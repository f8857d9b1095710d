//! What can go wrong before, around and after a process. Its exit code is not among it.

use std::path::PathBuf;

use cooper_snapshot::SnapshotError;

/// A failure to run a process in a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The id cannot name a container.
    #[error("invalid container id {id:?}")]
    InvalidId {
        /// The id.
        id: String,
    },
    /// A container of this id runs.
    #[error("container {id} already exists")]
    Exists {
        /// Its id.
        id: String,
    },
    /// Something is asked of a container that is not running any more.
    #[error("container {id} has stopped")]
    Stopped {
        /// Its id.
        id: String,
    },
    /// The executor takes no more containers.
    #[error("the executor is closed")]
    Closed,
    /// There is no argument to run.
    #[error("no process to run: args are empty")]
    NoArgs,
    /// The user is not in the root file system. The wording is that of `moby/sys/user`.
    #[error("unable to find user {user}: no matching entries in passwd file")]
    UnknownUser {
        /// The name.
        user: String,
    },
    /// The group is not in the root file system. The wording is that of `moby/sys/user`.
    #[error("unable to find group {group}: no matching entries in group file")]
    UnknownGroup {
        /// The name.
        group: String,
    },
    /// A number is none that a user or group can have. The wording is that of `moby/sys/user`.
    #[error("uids and gids must be in range 0-2147483647")]
    IdRange,
    /// An ordinary user's containers have only the users that are mapped for them.
    #[error(
        "user {uid} or group {gid} is not mapped for an ordinary user: {}",
        cooper_sys::userns::HINT
    )]
    NotMapped {
        /// The number of the user.
        uid: u32,
        /// And of the group.
        gid: u32,
    },
    /// The kernel has no limit of this name.
    #[error("invalid ulimit {name:?}")]
    Ulimit {
        /// The name, as in `nofile`.
        name: String,
    },
    /// A name of a host cannot stand in a hosts file.
    #[error("invalid host name {name:?}")]
    HostName {
        /// The name.
        name: String,
    },
    /// The working directory could not be made.
    #[error("failed to create working directory {path}")]
    Cwd {
        /// The directory, as seen from inside.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder in which the kernel's file systems are mounted leads elsewhere.
    #[error("{path} in the root file system is a symbolic link")]
    SpecialLink {
        /// The folder, as seen from inside.
        path: PathBuf,
    },
    /// A mount of the container could not be prepared.
    #[error("failed to mount {dest}")]
    Mount {
        /// Where it was to be, as seen from inside.
        dest: String,
        /// Why.
        source: std::io::Error,
    },
    /// The root file system, or a file system with it, could not be mounted.
    #[error("mount the file systems of container {id}")]
    Root {
        /// The container.
        id: String,
        /// Why.
        source: SnapshotError,
    },
    /// The network mode is not one that this executor has.
    #[error("unknown network mode {mode}")]
    Network {
        /// The mode.
        mode: &'static str,
    },
    /// A network could not be set up.
    #[error("failed to set up the network of container {id}")]
    Cni {
        /// The container.
        id: String,
        /// Why.
        source: crate::cni::CniError,
    },
    /// A file could not be made, read or removed.
    #[error("{attempt} {path}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A process could not be started, waited for or signalled.
    #[error("{attempt}")]
    Process {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What the runtime reported.
    #[error("{message}")]
    Runtime {
        /// The runtime's message.
        message: String,
    },
    /// The runtime to use is not there.
    #[error("failed to find {binary} binary")]
    NoRuntime {
        /// What was looked for.
        binary: String,
    },
}

impl ExecError {
    /// Adds what was tried and on which file to an error of the system.
    pub fn io(
        attempt: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            attempt,
            path,
            source,
        }
    }

    /// Adds what was tried with a process to an error of the system.
    pub fn process(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Process { attempt, source }
    }
}
