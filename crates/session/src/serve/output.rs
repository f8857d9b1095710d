//! Where a build's results go on the client's side.
//!
//! One method carries fsutil's packets for a directory and plain pieces for a file; only the
//! exporter's number tells which. So messages are taken as bytes here and read when that is
//! known.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::filesync::BytesMessage;
use cooper_proto::fsutil::Packet;
use futures::StreamExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use crate::SessionError;
use crate::filesync::{EXPORTER_ALL, EXPORTER_ID, FILE_SEND, values};
use crate::transfer::{self, QUEUE};
use crate::writer::Options;

use super::answers::{Answer, driven};

/// Something that bytes are written to.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Where an exporter's result goes.
#[derive(Clone)]
#[non_exhaustive]
pub enum Output {
    /// Files, into a directory; what is there and not sent stays.
    Dir(PathBuf),
    /// Files, into a directory; what is there and not sent is removed. A daemon that does not
    /// say that it sends all at once is refused.
    Mirror(PathBuf),
    /// A stream, into a file, which is only there when all of it is.
    File(PathBuf),
    /// A stream, to something that is open already; once.
    Stream(Arc<Mutex<Option<Writer>>>),
}

impl Output {
    /// A stream to `writer`.
    pub fn stream(writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::Stream(Arc::new(Mutex::new(Some(Box::new(writer)))))
    }
}

/// The service `moby.filesync.v1.FileSend`.
#[derive(Clone)]
pub(super) struct FileSend {
    outputs: Arc<BTreeMap<usize, Output>>,
}

impl FileSend {
    pub(super) fn new(outputs: BTreeMap<usize, Output>) -> Self {
        Self {
            outputs: Arc::new(outputs),
        }
    }

    fn take(self, request: Request<Streaming<Bytes>>) -> Result<Response<Answer<Bytes>>, Status> {
        let id = values(request.metadata(), EXPORTER_ID);
        // Daemons that know of one exporter only do not number it.
        let id = id.first().and_then(|id| id.parse().ok()).unwrap_or(0);
        let Some(output) = self.outputs.get(&id).cloned() else {
            return Err(Status::unknown(format!("exporter {id} not found")));
        };
        let all = !values(request.metadata(), EXPORTER_ALL).is_empty();
        let incoming = request.into_inner();
        let into_dir = |dir: PathBuf, merge| {
            let (outgoing, packets) = mpsc::channel(QUEUE);
            let packets = ReceiverStream::new(packets);
            let packets = packets.map(|packet: Packet| Bytes::from(packet.encode_to_vec()));
            move |incoming| driven(packets, receive_dir(incoming, outgoing, dir, merge))
        };
        let answer = match output {
            Output::Dir(dir) => into_dir(dir, true)(incoming),
            Output::Mirror(dir) if all => into_dir(dir, false)(incoming),
            Output::Mirror(_) => {
                return Err(Status::unimplemented(
                    "local exporter mode=delete requires a daemon that sends all files at once",
                ));
            }
            Output::File(path) => {
                let work = async move { receive_file(incoming, &path).await };
                driven(futures::stream::empty(), work)
            }
            Output::Stream(writer) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(mut writer) = writer else {
                    return Err(Status::already_exists("target already exists"));
                };
                let work = async move {
                    let copied = copy(incoming, &mut writer).await;
                    copied?.map_err(SessionError::io("write", "the output"))
                };
                driven(futures::stream::empty(), work)
            }
        };
        Ok(Response::new(answer))
    }
}

async fn receive_dir(
    incoming: Streaming<Bytes>,
    outgoing: mpsc::Sender<Packet>,
    dir: PathBuf,
    merge: bool,
) -> Result<(), SessionError> {
    let made = tokio::fs::create_dir_all(&dir).await;
    made.map_err(SessionError::io("create directory", &dir))?;
    let packets = incoming.map(|message| decode::<Packet>(message?));
    let options = Options {
        merge,
        devices: true,
        own: true,
        ..Options::default()
    };
    transfer::receive(packets, outgoing, &dir, options, Arc::new(()), FILE_SEND).await
}

async fn receive_file(incoming: Streaming<Bytes>, path: &Path) -> Result<(), SessionError> {
    let failed = |attempt| move |error| SessionError::io(attempt, path)(error);
    // A device or a FIFO is written to as it is.
    let special = tokio::fs::metadata(path).await;
    if special.is_ok_and(|metadata| !metadata.is_file()) {
        let file = OpenOptions::new().write(true).open(path).await;
        let mut file = file.map_err(failed("open"))?;
        return copy(incoming, &mut file).await?.map_err(failed("write"));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    tokio::fs::create_dir_all(dir)
        .await
        .map_err(failed("create directory of"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:08x}", rand::random::<u32>()));
    let unfinished = Unfinished(dir.join(name));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&unfinished.0)
        .await;
    let mut file = file.map_err(failed("create"))?;
    copy(incoming, &mut file).await?.map_err(failed("write"))?;
    drop(file);
    tokio::fs::rename(&unfinished.0, path)
        .await
        .map_err(failed("rename to"))
}

/// A file that is removed unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The outer error is the sender's, the inner the writer's.
async fn copy<W: AsyncWrite + Unpin>(
    mut incoming: Streaming<Bytes>,
    writer: &mut W,
) -> Result<io::Result<()>, SessionError> {
    while let Some(message) = incoming.next().await {
        let message = message.and_then(decode::<BytesMessage>);
        let message = message.map_err(SessionError::call(FILE_SEND))?;
        if let Err(error) = writer.write_all(&message.data).await {
            return Ok(Err(error));
        }
    }
    Ok(writer.flush().await)
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

impl StreamingService<Bytes> for FileSend {
    type Response = Bytes;
    type ResponseStream = Answer<Bytes>;
    type Future = std::future::Ready<Result<Response<Answer<Bytes>>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        std::future::ready(self.clone().take(request))
    }
}

impl NamedService for FileSend {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower::Service<http::Request<tonic::body::Body>> for FileSend {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != FILE_SEND {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let mut grpc = Grpc::new(RawCodec)
                .max_decoding_message_size(MAX_MESSAGE_SIZE)
                .max_encoding_message_size(MAX_MESSAGE_SIZE);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

/// Messages as the bytes that they are.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
