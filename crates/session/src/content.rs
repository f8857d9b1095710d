//! Blobs that a client keeps: the image layouts that it builds from, and those that its results
//! go to. Spoken is containerd's content service; which of the client's stores is meant stands
//! in the call's metadata, as BuildKit's `session/content` has it.

use std::io;

use bytes::Bytes;
use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::content::content_client::ContentClient;
use cooper_proto::content::{
    InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::filesync::{append, lazy};
use crate::{Session, SessionError};

pub(crate) const STORE_ID: &str = "buildkit-attachable-store-id";
pub(crate) const INFO: &str = "/containerd.services.content.v1.Content/Info";
pub(crate) const READ: &str = "/containerd.services.content.v1.Content/Read";
pub(crate) const WRITE: &str = "/containerd.services.content.v1.Content/Write";

/// The store that results are written to.
pub const EXPORT: &str = "export";
/// What the name of a store begins with that is an image layout to build from: `oci:NAME`.
pub const LAYOUT: &str = "oci:";

/// Bytes of a blob that go in one message.
const PIECE: usize = 256 << 10;

/// One of a client's stores of blobs. Nothing that it gives is verified: who keeps it does.
#[derive(Clone, Debug)]
pub struct Store {
    session: Session,
    name: String,
}

impl Store {
    /// The store `name` of the client. Whether there is one shows when it is asked.
    ///
    /// # Errors
    /// [`SessionError::Unsupported`] when the client has no stores at all.
    pub fn new(session: &Session, name: impl Into<String>) -> Result<Self, SessionError> {
        session.require(READ)?;
        Ok(Self {
            session: session.clone(),
            name: name.into(),
        })
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.session.channel())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    fn call<T>(&self, message: T) -> Request<T> {
        let mut call = Request::new(message);
        let name = std::slice::from_ref(&self.name);
        append(call.metadata_mut(), STORE_ID, name);
        call
    }

    /// Size of the blob `digest` in bytes.
    ///
    /// # Errors
    /// The client's, [`SessionError::is_not_found`] when it has no such blob or no such store.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn size(&self, digest: &str) -> Result<u64, SessionError> {
        let request = self.call(InfoRequest {
            digest: digest.to_owned(),
        });
        let answer = self.client().info(request).await;
        let answer = answer.map_err(SessionError::call(INFO))?.into_inner();
        let size = answer.info.unwrap_or_default().size;
        u64::try_from(size)
            .map_err(|_| SessionError::Protocol(format!("invalid size {size} of blob {digest}")))
    }

    /// Reads the blob `digest` from `offset` bytes on.
    ///
    /// # Errors
    /// The client's; one that comes later comes with a read.
    pub async fn read(
        &self,
        digest: &str,
        offset: u64,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, SessionError> {
        let request = self.call(ReadContentRequest {
            digest: digest.to_owned(),
            offset: signed(offset)?,
            size: 0,
        });
        let answer = self.client().read(request).await;
        let pieces = answer.map_err(SessionError::call(READ))?.into_inner();
        let pieces = pieces
            .map_ok(|piece| piece.data)
            .map_err(|status| io::Error::other(SessionError::call(READ)(status)));
        Ok(StreamReader::new(pieces.boxed()))
    }

    /// Writes the blob `digest` of `size` bytes; the client verifies it. One that the client has
    /// is not sent.
    ///
    /// # Errors
    /// The client's, or `reader`'s.
    ///
    /// # Cancel safety
    /// Dropping the future ends the transfer; the client may keep a part of it and goes on
    /// from there.
    pub async fn write<R>(&self, digest: &str, size: u64, reader: R) -> Result<(), SessionError>
    where
        R: AsyncRead + Send,
    {
        self.session.require(WRITE)?;
        let (outgoing, messages) = mpsc::channel(4);
        let call = self.call(ReceiverStream::new(messages));
        let mut client = self.client();
        let answers = lazy(async move { client.write(call).await });
        let (told, offset) = oneshot::channel();
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: format!("blob-{digest}"),
            total: signed(size)?,
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        let feed = feed(first, outgoing, offset, reader);
        let written = tokio::try_join!(feed, committed(answers, told)).map(drop);
        match written {
            Err(error) if error.is_already_exists() => Ok(()),
            written => written,
        }
    }
}

fn signed(size: u64) -> Result<i64, SessionError> {
    i64::try_from(size).map_err(|_| SessionError::Protocol(format!("invalid size {size}")))
}

/// Asks where the client is, and sends all from there on. Who does not take it any more says
/// why in the answers.
async fn feed<R: AsyncRead>(
    first: WriteContentRequest,
    outgoing: mpsc::Sender<WriteContentRequest>,
    offset: oneshot::Receiver<i64>,
    reader: R,
) -> Result<(), SessionError> {
    let (total, expected) = (first.total, first.expected.clone());
    if outgoing.send(first).await.is_err() {
        return Ok(());
    }
    let Ok(mut offset) = offset.await else {
        return Ok(());
    };
    let failed = |error| SessionError::io("read", "the blob that is sent")(error);
    let mut reader = std::pin::pin!(reader);
    let there = u64::try_from(offset).unwrap_or_default();
    let mut skipped = reader.as_mut().take(there);
    tokio::io::copy(&mut skipped, &mut tokio::io::sink())
        .await
        .map_err(failed)?;
    loop {
        let mut data = Vec::with_capacity(PIECE);
        while data.len() < PIECE {
            let mut rest = reader.as_mut().take((PIECE - data.len()) as u64);
            if rest.read_buf(&mut data).await.map_err(failed)? == 0 {
                break;
            }
        }
        let last = data.is_empty();
        let message = WriteContentRequest {
            action: match last {
                true => WriteAction::Commit,
                false => WriteAction::Write,
            } as i32,
            offset,
            total: if last { total } else { 0 },
            expected: if last {
                expected.clone()
            } else {
                String::new()
            },
            data: Bytes::from(data),
            ..WriteContentRequest::default()
        };
        offset += i64::try_from(message.data.len()).unwrap_or(i64::MAX);
        if outgoing.send(message).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Waits until the client says that it has the blob; `told` hears where it was at the begin.
async fn committed(
    answers: impl futures::Stream<Item = Result<WriteContentResponse, Status>>,
    told: oneshot::Sender<i64>,
) -> Result<(), SessionError> {
    let mut answers = std::pin::pin!(answers);
    let mut told = Some(told);
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(SessionError::call(WRITE))?;
        if let Some(told) = told.take() {
            // Who has it all already needs no more than the commit.
            let _ = told.send(answer.offset);
        }
        if answer.action == WriteAction::Commit as i32 {
            return Ok(());
        }
    }
    Err(SessionError::Closed)
}
