//! gRPC on a byte stream that is there already.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use cooper_proto::MAX_HEADER_SIZE;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Endpoint};

use crate::SessionError;

/// Flow-control windows in bytes: HTTP/2's own of 64 KiB would pay a round trip for each.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// h2 ends a connection on which many small frames wait to be read: each counts as 256 bytes,
/// and half of this window may be spent on what they are short of. A context of many files comes
/// as one frame of some 40 bytes for each; a full window of them is short of 6 MiB.
pub(crate) const CONNECTION_WINDOW: u32 = 64 << 20;

/// A channel over `io`, once: there is nothing to dial again. The connection ends when `closed`
/// is cancelled, and `closed` is cancelled when the connection ended.
pub(crate) async fn connect<I>(io: I, closed: CancellationToken) -> Result<Channel, SessionError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = Mutex::new(Some(Guarded {
        io,
        cancelled: Box::pin(closed.clone().cancelled_owned()),
        _on_drop: closed.drop_guard(),
    }));
    let connector = tower::service_fn(move |_| {
        let io = io.lock().ok().and_then(|mut io| io.take());
        async move {
            io.map(TokioIo::new)
                .ok_or_else(|| io::Error::other("only one connection allowed"))
        }
    });
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADER_SIZE)
        .connect_with_connector(connector)
        .await
        .map_err(|source| SessionError::Connect { source })
}

/// A byte stream that ends when a token is cancelled, and cancels it when it is dropped.
pub(crate) struct Guarded<I> {
    pub(crate) io: I,
    pub(crate) cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    pub(crate) _on_drop: DropGuard,
}

impl<I> Guarded<I> {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
