//! Whether the one who connected is a client at all: the first bytes of HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What every client says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose client has said the preface, which is read again.
pub(super) struct Greeted<I> {
    io: I,
    /// How much of the preface was read again.
    read: usize,
}

/// Waits for the preface; `None` when the client went away without a word.
///
/// # Errors
/// The client says something else.
///
/// # Cancel safety
/// Dropping the future drops the stream.
pub(super) async fn greeted<I>(mut io: I) -> io::Result<Option<Greeted<I>>>
where
    I: AsyncRead + Unpin,
{
    let mut said = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < said.len() {
        let count = io.read(&mut said[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        if said[..filled] != PREFACE[..filled] {
            let text = "the client does not speak HTTP/2";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    Ok(Some(Greeted { io, read: 0 }))
}

impl<I: AsyncRead + Unpin> AsyncRead for Greeted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.read..];
        if rest.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Greeted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_was_said_is_read_again() {
        let (mut client, server) = tokio::io::duplex(7);
        let saying = async {
            client.write_all(PREFACE).await.unwrap();
            client.write_all(b"more").await.unwrap();
            drop(client);
        };
        let hearing = async {
            let mut greeted = greeted(server).await.unwrap().unwrap();
            let mut all = Vec::new();
            greeted.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), all) = tokio::join!(saying, hearing);
        assert_eq!(all, [PREFACE.as_slice(), b"more"].concat());
    }

    #[tokio::test]
    async fn others_are_told_apart_at_their_first_byte() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRIX").await.unwrap();
        assert!(greeted(server).await.is_err());
        let (client, server) = tokio::io::duplex(64);
        drop(client);
        assert!(greeted(server).await.unwrap().is_none());
    }
}
