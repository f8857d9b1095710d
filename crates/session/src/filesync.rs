//! Files over a session: those of the client to the daemon, and what was built to the client.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::filesync::BytesMessage;
use cooper_proto::filesync::file_send_client::FileSendClient;
use cooper_proto::filesync::file_sync_client::FileSyncClient;
use cooper_proto::fsutil::Packet;
use futures::{Stream, TryStreamExt, stream};
use http::uri::PathAndQuery;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use crate::pattern::Matcher;
use crate::transfer::{self, QUEUE};
use crate::writer::Options;
use crate::{Session, SessionError};

pub use crate::tree::{MapStat, Tree};
pub use crate::writer::{Change, Differ, Watch};

pub(crate) const FILE_SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
pub(crate) const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

pub(crate) const DIR_NAME: &str = "dir-name";
pub(crate) const INCLUDE: &str = "include-patterns";
pub(crate) const EXCLUDE: &str = "exclude-patterns";
pub(crate) const FOLLOW: &str = "followpaths";
pub(crate) const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
pub(crate) const EXPORTER_ALL: &str = "buildkit-exporter-multi-platform";
pub(crate) const EXPORTER_METADATA: &str = "exporter-md-";

/// Bytes of a stream that go in one message; clients take up to 16 MiB, old ones 4.
const PIECE: usize = 256 << 10;

/// Which files of a client are wanted.
#[derive(Clone, Debug, Default)]
pub struct SyncRequest {
    /// The name under which the client offers a directory: `context`, `dockerfile`.
    pub name: String,
    /// Only what these patterns match; none: all.
    pub include: Vec<String>,
    /// Not what these patterns match.
    pub exclude: Vec<String>,
    /// Paths that are included with the links that they lead through.
    pub follow: Vec<String>,
    /// When a file that is there already counts as changed.
    pub differ: Differ,
    /// Where there is a list, only what its patterns match is brought, and the metadata of all
    /// files, in the file `.fsutil-metadata`.
    pub only: Option<Vec<String>>,
}

/// Makes the directory `target` equal to the client's: what differs is sent, what the client
/// does not have is removed. `watch` is told of every change.
///
/// # Errors
/// [`SessionError::NoLocalSources`] when the client offers no files, its own error when it does
/// not know the name (see [`SessionError::is_not_found`]), or a breach of the protocol: what is
/// in `target` after an error is undefined.
///
/// # Cancel safety
/// Dropping the future ends the transfer; the write that is under way ends in its own time.
pub async fn receive(
    session: &Session,
    request: &SyncRequest,
    target: &Path,
    watch: Arc<dyn Watch>,
) -> Result<(), SessionError> {
    if !session.supports(FILE_SYNC) {
        return Err(SessionError::NoLocalSources);
    }
    let (outgoing, packets) = mpsc::channel(QUEUE);
    let mut call = Request::new(ReceiverStream::new(packets));
    let metadata = call.metadata_mut();
    append(metadata, DIR_NAME, std::slice::from_ref(&request.name));
    append(metadata, INCLUDE, &request.include);
    append(metadata, EXCLUDE, &request.exclude);
    append(metadata, FOLLOW, &request.follow);
    let mut client = FileSyncClient::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let incoming = Box::pin(lazy(async move { client.diff_copy(call).await }));
    let only = request.only.as_ref().map(Matcher::new).transpose()?;
    let options = Options {
        differ: request.differ,
        only,
        ..Options::default()
    };
    transfer::receive(incoming, outgoing, target, options, watch, FILE_SYNC).await
}

/// Sends `trees` into the directory that the client gave for its exporter number `exporter`.
/// What is there already and is not sent stays, unless the client knows better and is told that
/// this is all there is (`all`): then it may remove the rest.
///
/// # Cancel safety
/// Dropping the future ends the transfer.
pub async fn send_dir(
    session: &Session,
    exporter: usize,
    trees: Vec<Tree>,
    all: bool,
    watch: Arc<dyn Watch>,
) -> Result<(), SessionError> {
    session.require(FILE_SEND)?;
    let (outgoing, packets) = mpsc::channel(QUEUE);
    let mut call = Request::new(ReceiverStream::new(packets));
    append(call.metadata_mut(), EXPORTER_ID, &[exporter.to_string()]);
    if all {
        append(call.metadata_mut(), EXPORTER_ALL, &["1".to_owned()]);
    }
    let mut grpc = Grpc::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let incoming = Box::pin(lazy(async move {
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        // The method's declared message is another one: the other end knows what it gets.
        let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
        let path = PathAndQuery::from_static(FILE_SEND);
        grpc.streaming(call, path, codec).await
    }));
    transfer::send(incoming, outgoing, trees, watch, FILE_SEND).await
}

/// Sends a stream of bytes into the file that the client gave for its exporter number
/// `exporter`; `metadata` is what the client may name the file by (`containerimage.digest`).
/// Ends when the client has taken all of it.
///
/// # Errors
/// The client's answer, with code `AlreadyExists` when it wants no file; or `reader`'s error.
///
/// # Cancel safety
/// Dropping the future ends the transfer.
pub async fn send_stream<R>(
    session: &Session,
    exporter: usize,
    metadata: &BTreeMap<String, String>,
    reader: R,
) -> Result<(), SessionError>
where
    R: AsyncRead + Send,
{
    session.require(FILE_SEND)?;
    let (outgoing, messages) = mpsc::channel(4);
    let mut call = Request::new(ReceiverStream::new(messages));
    append(call.metadata_mut(), EXPORTER_ID, &[exporter.to_string()]);
    for (name, value) in metadata {
        let name = format!("{EXPORTER_METADATA}{name}");
        append(call.metadata_mut(), &name, std::slice::from_ref(value));
    }
    let mut client = FileSendClient::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let feed = async move {
        let mut reader = std::pin::pin!(reader);
        loop {
            let mut data = Vec::with_capacity(PIECE);
            // A full piece each time: a message costs more than the bytes in it.
            while data.len() < PIECE {
                let mut rest = reader.as_mut().take((PIECE - data.len()) as u64);
                let read = rest.read_buf(&mut data).await;
                if read.map_err(SessionError::io("read", "the exported stream"))? == 0 {
                    break;
                }
            }
            if data.is_empty() {
                return Ok(());
            }
            let message = BytesMessage {
                data: Bytes::from(data),
            };
            // The client hung up: its answer tells why.
            if outgoing.send(message).await.is_err() {
                return Ok(());
            }
        }
    };
    let call = async move {
        let answer = client.diff_copy(call).await;
        let mut answer = answer.map_err(SessionError::call(FILE_SEND))?.into_inner();
        while let Some(_ignored) = answer
            .message()
            .await
            .map_err(SessionError::call(FILE_SEND))?
        {}
        Ok(())
    };
    tokio::try_join!(feed, call).map(drop)
}

/// The stream of an answer that comes only after something was sent: Go's servers send their
/// headers with the first message.
pub(crate) fn lazy<T, F>(call: F) -> impl Stream<Item = Result<T, Status>>
where
    F: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    stream::once(call)
        .map_ok(Response::into_inner)
        .try_flatten()
}

/// Adds values under one name. If one of them cannot stand in a header all are escaped, which
/// `NAME-encoded` says.
pub(crate) fn append(metadata: &mut MetadataMap, name: &str, values: &[String]) {
    let plain = |value: &String| value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let encoded = !values.iter().all(plain);
    let Ok(key) = name.parse::<AsciiMetadataKey>() else {
        return;
    };
    for value in values {
        let text = if encoded {
            escape(value)
        } else {
            value.clone()
        };
        if let Ok(value) = AsciiMetadataValue::try_from(text) {
            metadata.append(key.clone(), value);
        }
    }
    if encoded && let Ok(key) = format!("{name}-encoded").parse::<AsciiMetadataKey>() {
        metadata.insert(key, AsciiMetadataValue::from_static("1"));
    }
}

/// The values under `name`, as [`append`] put them there.
pub(crate) fn values(metadata: &MetadataMap, name: &str) -> Vec<String> {
    let encoded = metadata.get(format!("{name}-encoded"));
    let encoded = encoded.is_some_and(|value| {
        matches!(
            value.as_bytes(),
            b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True"
        )
    });
    let all = metadata.get_all(name).iter();
    all.map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        if encoded {
            unescape(&text)
        } else {
            text.into_owned()
        }
    })
    .collect()
}

/// As Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// As Go's `url.QueryUnescape`; what is malformed gives nothing.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = rest.get(..2).and_then(|two| hex::decode(two).ok());
                let Some(&[byte]) = digits.as_deref() else {
                    return String::new();
                };
                rest = &rest[2..];
                byte
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_were_put() {
        let cases: [&[&str]; 5] = [
            &["**/*.go", "!a b+c%20"],
            &["café", "a b+c%20&=/"],
            &["line\nbreak"],
            &[""],
            &[],
        ];
        for case in cases {
            let given: Vec<String> = case.iter().map(|text| text.to_string()).collect();
            let mut metadata = MetadataMap::new();
            append(&mut metadata, INCLUDE, &given);
            assert_eq!(values(&metadata, INCLUDE), given);
        }
        assert_eq!(escape("a b/é~"), "a+b%2F%C3%A9~");
        assert_eq!(unescape("%zz"), "");
    }
}
