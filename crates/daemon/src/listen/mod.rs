//! Where clients connect: Unix sockets, TCP ports with and without TLS, and sockets that a
//! service manager opened.
//!
//! Modules in reading order: this one (addresses), `socket` (making and taking sockets), `tls`,
//! `connections` (accepting), `greeting` (whether a client says anything).

mod connections;
mod greeting;
mod socket;
mod tls;

use std::fmt;
use std::net::SocketAddr;

use cooper_sys::activation::Passed;
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::DaemonError;
use crate::config::GrpcConfig;

pub(crate) use connections::accept_plain;
pub use connections::{Connection, Connections};
use socket::SocketFile;
pub(crate) use socket::group_id;

/// Something that clients connect to. A Unix socket's file is removed when it is dropped.
pub struct Listener {
    socket: Socket,
    /// What clients of a TCP port have to speak first.
    tls: Option<TlsAcceptor>,
    /// The file that was made for it.
    _file: Option<SocketFile>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Listens on all addresses of `config`, or on none of them. `passed` is what a service manager
/// opened, for `fd://` addresses; what no address names is closed.
///
/// The forms are those of buildkitd: `unix://PATH`, `tcp://HOST:PORT` (an empty host is every
/// one of the machine), `fd://` or `fd://*` for all that was passed, `fd://NAME` for those of
/// that name or number. Certificates are for TCP only.
///
/// # Errors
/// An address is of no known form or cannot be listened on, nothing of that name was passed, or
/// the certificates cannot be used.
pub async fn listen(
    config: &GrpcConfig,
    mut passed: Vec<Passed>,
) -> Result<Vec<Listener>, DaemonError> {
    let tls = tls::acceptor(&config.tls)?;
    let mut listeners = Vec::new();
    for address in &config.address {
        let invalid = |reason: String| DaemonError::Address {
            address: address.clone(),
            reason,
        };
        let failed = |source| DaemonError::Listen {
            address: address.clone(),
            source,
        };
        match address.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => {
                if tls.is_some() {
                    tracing::warn!("TLS is disabled for {address}");
                }
                let owner = (config.uid, config.gid);
                listeners.push(socket::unix(path.as_ref(), owner).map_err(failed)?);
            }
            Some(("tcp", host)) => {
                let listener = socket::tcp(host).await.map_err(failed)?;
                listeners.push(guarded(listener, tls.as_ref(), address));
            }
            Some(("fd", name)) => {
                let found = socket::named(name, &mut passed);
                if found.is_empty() {
                    let reason = "no sockets found via socket activation: make sure the service \
                                  was started by systemd";
                    return Err(invalid(reason.to_owned()));
                }
                for fd in found {
                    let listener = socket::adopt(fd).map_err(failed)?;
                    listeners.push(match listener {
                        Socket::Tcp(tcp) => guarded(tcp, tls.as_ref(), address),
                        unix @ Socket::Unix(_) => Listener {
                            socket: unix,
                            tls: None,
                            _file: None,
                        },
                    });
                }
            }
            Some((scheme, _)) => return Err(invalid(format!("{scheme} is not supported"))),
            None => {
                return Err(invalid(format!(
                    "it does not contain proto, you meant unix://{address} ?"
                )));
            }
        }
    }
    if listeners.is_empty() {
        return Err(DaemonError::Flag {
            flag: "addr",
            value: String::new(),
            reason: "it cannot be empty".to_owned(),
        });
    }
    Ok(listeners)
}

/// Listens on the address of the debug handlers: `tcp://HOST:PORT`, `HOST:PORT` or `unix://PATH`.
/// There is no TLS: who may connect is said by the address alone.
///
/// # Errors
/// The address is of no such form or cannot be listened on.
pub async fn listen_debug(address: &str) -> Result<Listener, DaemonError> {
    let failed = |source| DaemonError::Listen {
        address: address.to_owned(),
        source,
    };
    match address.split_once("://") {
        None => Ok(port(socket::tcp(address).await.map_err(failed)?, None)),
        Some(("tcp", host)) => Ok(port(socket::tcp(host).await.map_err(failed)?, None)),
        Some(("unix", path)) if !path.is_empty() => {
            socket::unix(path.as_ref(), (None, None)).map_err(failed)
        }
        Some((scheme, _)) => Err(DaemonError::Address {
            address: address.to_owned(),
            reason: format!("{scheme} is not supported"),
        }),
    }
}

fn port(listener: TcpListener, tls: Option<TlsAcceptor>) -> Listener {
    Listener {
        socket: Socket::Tcp(listener),
        tls,
        _file: None,
    }
}

/// A TCP port, with TLS where there is a certificate.
fn guarded(listener: TcpListener, tls: Option<&TlsAcceptor>, address: &str) -> Listener {
    if tls.is_none() {
        tracing::warn!(
            "TLS is not enabled for {address}. enabling mutual TLS authentication is highly \
             recommended"
        );
    }
    port(listener, tls.cloned())
}

impl Listener {
    /// Where a TCP port listens; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

/// What it listens on: the path of a Unix socket, or host and port.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                write!(f, "{}", path.unwrap_or("@".as_ref()).display())
            }
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("a TCP port"),
            },
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.to_string())
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
