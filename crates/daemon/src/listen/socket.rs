//! Making sockets, and taking those that were made by others.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cooper_sys::activation::Passed;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener};

use super::{Listener, Socket};
use crate::DaemonError;

/// Connections that wait to be accepted; the kernel's own limit may be lower.
const BACKLOG: i32 = 1024;

/// The file of a socket, removed when it is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A Unix socket of `owner` (user and group) and mode 0660, as BuildKit's.
pub(super) fn unix(path: &Path, owner: (Option<u32>, Option<u32>)) -> io::Result<Listener> {
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
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // Before it has a name: the file gets these rights, and nobody finds it with others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile(path.to_owned());
    std::os::unix::fs::chown(path, owner.0, owner.1)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(Listener {
        socket: Socket::Unix(UnixListener::from_std(socket.into())?),
        tls: None,
        _file: Some(file),
    })
}

/// A TCP port of `HOST:PORT`; without a host of all the machine's addresses, as in Go.
pub(super) async fn tcp(host: &str) -> io::Result<TcpListener> {
    let Some(port) = host.strip_prefix(':') else {
        return TcpListener::bind(host).await;
    };
    let port: u16 = port
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "invalid port"))?;
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // A machine without IPv6.
        Err(error)
            if matches!(error.raw_os_error(), Some(code) if code == nix::errno::Errno::EAFNOSUPPORT as i32
                || code == nix::errno::Errno::EADDRNOTAVAIL as i32) =>
        {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        bound => bound,
    }
}

/// Takes those of `passed` that `name` names: all for an empty one and `*`, else by name or by
/// number.
pub(super) fn named(name: &str, passed: &mut Vec<Passed>) -> Vec<OwnedFd> {
    use std::os::fd::AsRawFd;
    let all = name.is_empty() || name == "*";
    let number: Option<i32> = name.parse().ok();
    let wanted = |it: &mut Passed| {
        all || it.name == name || number.is_some_and(|number| it.fd.as_raw_fd() == number)
    };
    passed.extract_if(.., wanted).map(|it| it.fd).collect()
}

/// A socket that somebody else made listens already.
pub(super) fn adopt(fd: OwnedFd) -> io::Result<Socket> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    let listens = sockopt::socket_acceptconn(fd.as_fd());
    let listens = listens.map_err(|_| invalid("what was passed is no socket"))?;
    if !listens || sockopt::socket_type(fd.as_fd())? != SocketType::STREAM {
        return Err(invalid("the socket that was passed does not listen"));
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    match sockopt::socket_domain(fd.as_fd())? {
        AddressFamily::UNIX => UnixListener::from_std(fd.into()).map(Socket::Unix),
        AddressFamily::INET | AddressFamily::INET6 => {
            TcpListener::from_std(fd.into()).map(Socket::Tcp)
        }
        _ => Err(invalid("the socket that was passed is of an unknown kind")),
    }
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
