//! Accepting, and keeping those who say nothing from those who build.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{Listener, Socket, greeting};

/// So long a client may take until it has said who it is, TLS included. Go's gRPC gives it two
/// minutes; one that means to speak does it at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many may be silent at a time; then the one that has been silent longest has to go, which is
/// none of those that mean to speak.
const MOST_SILENT: usize = 256;
/// A client whose machine is gone is noticed by questions of the kernel so far apart (Go's
/// value).
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// After an accept that failed, most of all for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Any kind of connection.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Boxed = Box<dyn Connection>;

/// The connections of clients that have begun to speak. Dropping it closes the listeners.
pub struct Connections {
    greeted: mpsc::Receiver<io::Result<Boxed>>,
    _accepting: Vec<AbortOnDropHandle<()>>,
}

impl Connections {
    /// Accepts on all `listeners` from now on.
    pub fn of(listeners: Vec<Listener>) -> Self {
        let (sender, greeted) = mpsc::channel(16);
        let accepting = listeners
            .into_iter()
            .map(|listener| {
                let accepting = accept(listener, sender.clone());
                AbortOnDropHandle::new(tokio::spawn(accepting))
            })
            .collect();
        Self {
            greeted,
            _accepting: accepting,
        }
    }
}

impl Stream for Connections {
    type Item = io::Result<Boxed>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.greeted.poll_recv(cx)
    }
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The next connection to `listener`, whatever it says: for the debug handlers.
///
/// # Cancel safety
/// No connection is lost that was accepted.
pub(crate) async fn accept_plain(listener: &Listener) -> Boxed {
    loop {
        match next(listener).await {
            Accepted::Unix(io) => return boxed(io),
            Accepted::Tcp(io) => match keep_alive(&io) {
                Ok(()) => return boxed(io),
                Err(error) => tracing::debug!(%error, "a connection was closed"),
            },
        }
    }
}

async fn next(listener: &Listener) -> Accepted {
    loop {
        let accepted = match &listener.socket {
            Socket::Unix(socket) => socket.accept().await.map(|(io, _)| Accepted::Unix(io)),
            Socket::Tcp(socket) => socket.accept().await.map(|(io, _)| Accepted::Tcp(io)),
        };
        match accepted {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection on {listener}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn keep_alive(io: &TcpStream) -> io::Result<()> {
    io.set_nodelay(true)?;
    sockopt::set_socket_keepalive(io, true)?;
    sockopt::set_tcp_keepidle(io, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(io, KEEP_ALIVE)?;
    Ok(())
}

async fn accept(listener: Listener, sender: mpsc::Sender<io::Result<Boxed>>) {
    // Dropped with this future, and with it everybody who has not said anything.
    let mut greetings = JoinSet::new();
    let mut silent: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = next(&listener).await;
        while greetings.try_join_next().is_some() {}
        silent.retain(|greeting| !greeting.is_finished());
        if silent.len() >= MOST_SILENT
            && let Some(oldest) = silent.pop_front()
        {
            oldest.abort();
        }
        let (tls, sender) = (listener.tls.clone(), sender.clone());
        silent.push_back(greetings.spawn(async move {
            let greeted = timeout(PATIENCE, greet(accepted, tls)).await;
            match greeted.unwrap_or_else(|late| Err(late.into())) {
                // Nobody receives at the end of the daemon.
                Ok(Some(connection)) => drop(sender.send(Ok(connection)).await),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a connection was closed"),
            }
        }));
    }
}

async fn greet(accepted: Accepted, tls: Option<TlsAcceptor>) -> io::Result<Option<Boxed>> {
    Ok(match accepted {
        Accepted::Unix(io) => greeting::greeted(io).await?.map(boxed),
        Accepted::Tcp(io) => {
            keep_alive(&io)?;
            match tls {
                None => greeting::greeted(io).await?.map(boxed),
                Some(tls) => {
                    let peer = io.peer_addr();
                    let io = tls.accept(io).await.inspect_err(|error| {
                        let peer = peer.map_or_else(|_| "a client".to_owned(), |it| it.to_string());
                        tracing::info!("the TLS handshake with {peer} failed: {error}");
                    })?;
                    greeting::greeted(io).await?.map(boxed)
                }
            }
        }
    })
}

fn boxed<T: Connection + 'static>(io: T) -> Boxed {
    Box::new(io)
}
