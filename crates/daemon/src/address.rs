//! Addresses, and listening on them.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use crate::DaemonError;

/// Something that clients connect to. A Unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, with the file to remove.
    Unix(UnixListener, Option<SocketFile>),
    /// A TCP port.
    Tcp(TcpListener),
}

/// The file of a socket.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `address`. A Unix socket gets `owner` (user and group) and mode 0660, as
/// BuildKit's does.
pub async fn listen(
    address: &str,
    owner: (Option<u32>, Option<u32>),
) -> Result<Listener, DaemonError> {
    let failed = |source| DaemonError::Listen {
        address: address.to_owned(),
        source,
    };
    let invalid = |reason: &str| DaemonError::Address {
        address: address.to_owned(),
        reason: reason.to_owned(),
    };
    match address.split_once("://") {
        Some(("unix", path)) if !path.is_empty() => unix(Path::new(path), owner).map_err(failed),
        Some(("tcp", host)) => {
            tracing::warn!(
                address,
                "TLS is not enabled, the address is open to everybody who reaches it"
            );
            TcpListener::bind(host)
                .await
                .map(Listener::Tcp)
                .map_err(failed)
        }
        Some((scheme, _)) => Err(invalid(&format!("{scheme} is not supported"))),
        None => Err(invalid(&format!(
            "it does not contain a scheme, you meant unix://{address} ?"
        ))),
    }
}

fn unix(path: &Path, (uid, gid): (Option<u32>, Option<u32>)) -> io::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A daemon that was killed leaves its socket; the lock on the root says that it is dead, and
    // a socket that answers belongs to somebody else.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "somebody is listening there",
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::os::unix::fs::chown(path, uid, gid)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(Listener::Unix(listener, Some(file)))
}

/// The number of the group `name`, which may be a number already.
pub(crate) fn group_id(name: &str) -> Result<u32, DaemonError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = nix::unistd::Group::from_name(name).ok().flatten();
    found
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| DaemonError::Flag {
            flag: "group",
            value: name.to_owned(),
            reason: "there is no such group".to_owned(),
        })
}
