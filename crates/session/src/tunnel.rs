//! A byte stream inside a gRPC stream of `BytesMessage`s: what `Control.Session` is, and the
//! forwarding of ssh.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use cooper_proto::{control, ssh, upload};
use futures::Stream;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::Status;

/// The largest message that is sent, in bytes: Go's gRPC buffers in such pieces.
const PIECE: usize = 32 << 10;
/// Messages under way before a writer waits.
const QUEUE: usize = 16;

/// A message that carries bytes and nothing else.
pub trait BytesMessage: Send + 'static {
    /// Wraps bytes.
    fn wrap(data: Bytes) -> Self;
    /// Unwraps them.
    fn unwrap(self) -> Bytes;
}

macro_rules! bytes_message {
    ($($message:ty),*) => {$(
        impl BytesMessage for $message {
            fn wrap(data: Bytes) -> Self {
                Self { data }
            }
            fn unwrap(self) -> Bytes {
                self.data
            }
        }
    )*};
}
bytes_message!(
    control::BytesMessage,
    ssh::BytesMessage,
    upload::BytesMessage,
    cooper_proto::filesync::BytesMessage
);

/// A byte stream whose reads come from one stream of messages and whose writes go to another.
pub struct Tunnel<M> {
    incoming: BoxStream<'static, Result<M, Status>>,
    rest: Bytes,
    outgoing: PollSender<M>,
}

impl<M: BytesMessage> Tunnel<M> {
    /// A tunnel that reads `incoming`, and the stream of what is written to it: the body of the
    /// request on the client's side, of the response on the server's. That stream ends when the
    /// tunnel is shut down or dropped.
    pub fn new<S>(incoming: S) -> (Self, ReceiverStream<M>)
    where
        S: Stream<Item = Result<M, Status>> + Send + 'static,
    {
        let (outgoing, receiver) = Self::sender();
        (Self::join(incoming, outgoing), receiver)
    }

    /// The half that is written to, for a client that has to send its request before it has a
    /// stream to read.
    pub fn sender() -> (mpsc::Sender<M>, ReceiverStream<M>)
    where
        Self: Sized,
        M: Sized,
    {
        let (outgoing, receiver) = mpsc::channel(QUEUE);
        (outgoing, ReceiverStream::new(receiver))
    }

    /// Joins the two halves.
    pub fn join<S>(incoming: S, outgoing: mpsc::Sender<M>) -> Self
    where
        S: Stream<Item = Result<M, Status>> + Send + 'static,
    {
        Self {
            incoming: Box::pin(incoming),
            rest: Bytes::new(),
            outgoing: PollSender::new(outgoing),
        }
    }
}

impl<M: BytesMessage> AsyncRead for Tunnel<M> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match self.incoming.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Ok(message))) => self.rest = message.unwrap(),
                Poll::Ready(Some(Err(status))) => {
                    return Poll::Ready(Err(io::Error::other(status)));
                }
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<M: BytesMessage> AsyncWrite for Tunnel<M> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.outgoing.poll_reserve(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Ready(Ok(())) => {}
        }
        let length = bytes.len().min(PIECE);
        let message = M::wrap(Bytes::copy_from_slice(&bytes[..length]));
        let sent = self.outgoing.send_item(message);
        Poll::Ready(match sent {
            Ok(()) => Ok(length),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

impl<M> std::fmt::Debug for Tunnel<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in() {
        let (mut near, sent) = Tunnel::<control::BytesMessage>::new(futures::stream::empty());
        let (mut far, _) = Tunnel::new(sent.map(Ok));
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let expected = bytes.clone();
        let write = async move {
            near.write_all(&bytes).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, result) = tokio::join!(write, far.read_to_end(&mut read));
        result.unwrap();
        assert_eq!(read, expected);
    }
}
