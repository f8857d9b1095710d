//! Bytes that are made on a blocking thread and go to the client as they come.

use std::io::{self, Write};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cooper_content::Digest;
use cooper_session::content::Store;
use cooper_session::{Session, SessionError, filesync};
use futures::stream;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::{ExportContext, ExportError, Response};

/// How long an exporter waits for the client's session (BuildKit's value).
const WAIT: Duration = Duration::from_secs(5);
/// Bytes that go to the client at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the client.
const QUEUE: usize = 4;

/// The session of the client that takes files.
pub(crate) async fn session(cx: &ExportContext) -> Result<Session, ExportError> {
    cx.sessions.first(WAIT).await.map_err(ExportError::session)
}

/// Sends what `write` writes to the client, for its exporter number `index`. A client that has
/// it already is content.
///
/// # Cancel safety
/// Dropping the future makes `write` fail at its next piece.
pub(crate) async fn send(
    cx: &ExportContext,
    index: usize,
    response: &Response,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError> + Send + 'static,
) -> Result<(), ExportError> {
    let session = session(cx).await?;
    let (reader, writing) = piped(write);
    let sent = filesync::send_stream(&session, index, response, reader).await;
    match (sent, written(writing).await?) {
        (Err(error), _) if error.is_already_exists() => Ok(()),
        // The writer failed on its own account: that is the cause.
        (_, (Err(error), false)) => Err(error),
        (Err(error), _) => Err(ExportError::session(error)),
        // The client ended the stream and called that a success before it was whole.
        (Ok(()), (Err(_), true)) => Err(ExportError::session(SessionError::Closed)),
        (Ok(()), (Ok(()), _)) => Ok(()),
    }
}

/// Sends the blob `digest` of `size` bytes, which `write` writes, into a store of the client's.
///
/// # Cancel safety
/// As [`send`].
pub(crate) async fn send_blob(
    store: &Store,
    digest: &Digest,
    size: u64,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError> + Send + 'static,
) -> Result<(), ExportError> {
    let (reader, writing) = piped(write);
    let sent = store.write(digest.as_ref(), size, reader).await;
    match written(writing).await? {
        // The writer failed on its own account: that is the cause.
        (Err(error), false) => Err(error),
        // A client that has the blob takes nothing, and that is no failure.
        _ => sent.map_err(ExportError::session),
    }
}

/// How a writer ended, and whether it did because nobody took any more.
type Written = (Result<(), ExportError>, bool);

/// What `write` writes, as a stream, and the thread that writes.
fn piped(
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError> + Send + 'static,
) -> (impl AsyncRead + Send, tokio::task::JoinHandle<Written>) {
    let (pieces, mut queue) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = Out {
            pieces,
            buffer: BytesMut::with_capacity(PIECE),
            gone: false,
        };
        let done = write(&mut out).and_then(|()| {
            out.flush()
                .map_err(ExportError::io("send", "the end of the stream"))
        });
        if done.is_err() {
            // Without this the client would take the half for the whole.
            let broken = io::Error::other("the stream was not finished");
            let _ = out.pieces.blocking_send(Err(broken));
        }
        (done, out.gone)
    });
    let queue = stream::poll_fn(move |cx| queue.poll_recv(cx));
    (StreamReader::new(queue), writing)
}

async fn written(writing: tokio::task::JoinHandle<Written>) -> Result<Written, ExportError> {
    writing.await.map_err(|_| ExportError::Interrupted {
        attempt: "writing the stream",
    })
}

struct Out {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
    /// Nobody takes pieces any more.
    gone: bool,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces.blocking_send(Ok(piece)).map_err(|_| {
            self.gone = true;
            io::ErrorKind::BrokenPipe.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_whole_and_a_reader_that_left_is_noticed() {
        let (pieces, mut queue) = mpsc::channel(QUEUE);
        let writing = tokio::task::spawn_blocking(move || {
            let mut out = Out {
                pieces,
                buffer: BytesMut::new(),
                gone: false,
            };
            out.write_all(&vec![7; PIECE + 1]).unwrap();
            out.flush().unwrap();
            // Until the queue is closed this fills it.
            let mut failed = None;
            while failed.is_none() {
                failed = out.write_all(&vec![7; PIECE]).err();
            }
            (failed.unwrap().kind(), out.gone)
        });
        let mut sizes = Vec::new();
        for _ in 0..2 {
            sizes.push(queue.recv().await.unwrap().unwrap().len());
        }
        drop(queue);
        assert_eq!(sizes, [PIECE, 1]);
        assert_eq!(writing.await.unwrap(), (io::ErrorKind::BrokenPipe, true));
    }
}
