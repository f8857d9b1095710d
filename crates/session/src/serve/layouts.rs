//! Image layouts of the client, as stores of blobs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cooper_proto::content::content_server;
use cooper_proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use futures::{StreamExt, TryStreamExt};
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

use crate::SessionError;
use crate::content::{STORE_ID, WRITE};
use crate::filesync::values;
use crate::stat::errno_text;

use super::answers::{Answer, driven};

/// Bytes of a blob that go in one message.
const PIECE: usize = 256 << 10;

/// A folder that is laid out as an OCI image layout: `blobs/sha256/…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The folder.
    pub dir: PathBuf,
    /// Whether the daemon may add blobs.
    pub writable: bool,
}

pub(super) struct Layouts(pub(super) Arc<BTreeMap<String, Layout>>);

impl Layouts {
    fn choose(&self, metadata: &MetadataMap) -> Result<&Layout, Status> {
        let Some(name) = values(metadata, STORE_ID).into_iter().next() else {
            let text = format!("request lacks metadata {STORE_ID:?}: invalid argument");
            return Err(Status::invalid_argument(text));
        };
        let found = self.0.get(&name);
        found.ok_or_else(|| Status::not_found(format!("unknown store {name}: not found")))
    }
}

/// Where a blob lies. A digest that was understood leads nowhere else.
fn path(dir: &Path, digest: &str) -> Result<PathBuf, Status> {
    let parsed: Digest = digest
        .parse()
        .map_err(|_| Status::invalid_argument(format!("invalid digest {digest}")))?;
    let dir = dir.join("blobs").join(parsed.algorithm().as_ref());
    Ok(dir.join(parsed.digest()))
}

fn failed(digest: &str) -> impl Fn(io::Error) -> Status + use<> {
    let digest = digest.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
        _ => Status::unknown(format!("content {digest}: {}", errno_text(&error))),
    }
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[async_trait]
impl content_server::Content for Layouts {
    type ListStream = Answer<ListContentResponse>;
    type ReadStream = Answer<ReadContentResponse>;
    type WriteStream = Answer<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let layout = self.choose(request.metadata())?;
        let digest = request.into_inner().digest;
        let found = tokio::fs::metadata(path(&layout.dir, &digest)?).await;
        let size = signed(found.map_err(failed(&digest))?.len());
        let info = Info {
            digest,
            size,
            ..Info::default()
        };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let layout = self.choose(request.metadata())?;
        let wanted = request.into_inner();
        let failed = failed(&wanted.digest);
        let file = File::open(path(&layout.dir, &wanted.digest)?).await;
        let mut file = file.map_err(&failed)?;
        let size = file.metadata().await.map_err(&failed)?.len();
        let offset = u64::try_from(wanted.offset)
            .ok()
            .filter(|offset| *offset <= size)
            .ok_or_else(|| Status::out_of_range("read past object length"))?;
        let length = match u64::try_from(wanted.size) {
            Err(_) => return Err(Status::out_of_range("negative length of a read")),
            Ok(0) => size - offset,
            Ok(length) => length.min(size - offset),
        };
        let at = file.seek(io::SeekFrom::Start(offset)).await;
        at.map_err(&failed)?;
        let pieces = futures::stream::try_unfold(
            (file.take(length), offset),
            |(mut file, offset)| async move {
                let mut data = Vec::with_capacity(PIECE);
                let read = (&mut file).take(PIECE as u64).read_to_end(&mut data).await;
                let read = read.map_err(|error| Status::unknown(errno_text(&error)))?;
                if read == 0 {
                    return Ok(None);
                }
                let piece = ReadContentResponse {
                    offset: signed(offset),
                    data: Bytes::from(data),
                };
                Ok(Some((piece, (file, offset + read as u64))))
            },
        );
        Ok(Response::new(pieces.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let layout = self.choose(request.metadata())?;
        if !layout.writable {
            return Err(Status::permission_denied("the store cannot be written to"));
        }
        let dir = layout.dir.clone();
        let mut incoming = request.into_inner();
        let (answers, answered) = mpsc::channel(4);
        let work = async move {
            let first = incoming.try_next().await.map_err(SessionError::call(WRITE));
            let Some(first) = first? else {
                return Ok(());
            };
            let mut ingest = Ingest::new(&dir, &first).await.map_err(write_error)?;
            let mut next = Some(first);
            while let Some(message) = next {
                let (answer, done) = ingest.take(message).await.map_err(write_error)?;
                if answers.send(answer).await.is_err() || done {
                    break;
                }
                let message = incoming.try_next().await;
                next = message.map_err(SessionError::call(WRITE))?;
            }
            Ok(())
        };
        let answered = ReceiverStream::new(answered);
        Ok(Response::new(driven(answered, work)))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        // A write that was not finished leaves nothing.
        Ok(Response::new(()))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let name = request.into_inner().r#ref;
        Err(Status::not_found(format!("ingest {name}: not found")))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn list(
        &self,
        _: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Err(not_offered())
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(not_offered())
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(not_offered())
    }
}

fn not_offered() -> Status {
    Status::new(Code::Unimplemented, "a layout is read and added to only")
}

fn write_error(status: Status) -> SessionError {
    SessionError::call(WRITE)(status)
}

/// A blob on its way into a layout. What is not committed is removed.
struct Ingest {
    digest: String,
    target: PathBuf,
    file: File,
    unfinished: Unfinished,
    hash: Sha256,
    offset: u64,
    total: i64,
}

struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Ingest {
    async fn new(dir: &Path, first: &WriteContentRequest) -> Result<Self, Status> {
        if first.r#ref.is_empty() {
            return Err(Status::invalid_argument(
                "first message must have a reference",
            ));
        }
        let digest = first.expected.clone();
        if !digest.starts_with("sha256:") {
            let text = format!("the digest of a blob must be told and be of sha256: {digest:?}");
            return Err(Status::invalid_argument(text));
        }
        let target = path(dir, &digest)?;
        if tokio::fs::try_exists(&target).await.unwrap_or(false) {
            let text = format!("content {digest}: already exists");
            return Err(Status::already_exists(text));
        }
        let folder = target.parent().unwrap_or(dir);
        let failed = failed(&digest);
        let made = tokio::fs::create_dir_all(folder).await;
        made.map_err(&failed)?;
        let unfinished = folder.join(format!(".{:016x}", rand::random::<u64>()));
        let file = File::create_new(&unfinished).await.map_err(&failed)?;
        Ok(Self {
            unfinished: Unfinished(unfinished),
            digest,
            target,
            file,
            hash: Sha256::new(),
            offset: 0,
            total: first.total,
        })
    }

    /// The answer to a message, and whether it was the last.
    async fn take(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<(WriteContentResponse, bool), Status> {
        let action = WriteAction::try_from(message.action)
            .map_err(|_| Status::invalid_argument("unknown action of a write"))?;
        if action != WriteAction::Stat {
            if message.offset != signed(self.offset) && message.offset != 0 {
                return Err(Status::out_of_range(format!(
                    "write @{} must occur at current offset {}",
                    message.offset, self.offset
                )));
            }
            if !message.data.is_empty() {
                let written = self.file.write_all(&message.data).await;
                written.map_err(failed(&self.digest))?;
                self.hash.update(&message.data);
                self.offset += message.data.len() as u64;
            }
        }
        let last = action == WriteAction::Commit;
        if last {
            self.commit(&message).await?;
        }
        let answer = WriteContentResponse {
            action: message.action,
            offset: signed(self.offset),
            total: self.total,
            digest: if last {
                self.digest.clone()
            } else {
                String::new()
            },
            ..WriteContentResponse::default()
        };
        Ok((answer, last))
    }

    async fn commit(&mut self, message: &WriteContentRequest) -> Result<(), Status> {
        let size = signed(self.offset);
        if message.total > 0 && message.total != size {
            return Err(Status::failed_precondition(format!(
                "unexpected commit size {size}, expected {}",
                message.total
            )));
        }
        let found = format!("sha256:{}", hex::encode(self.hash.clone().finalize()));
        if found != self.digest {
            return Err(Status::failed_precondition(format!(
                "unexpected commit digest {found}, expected {}",
                self.digest
            )));
        }
        let failed = failed(&self.digest);
        self.file.flush().await.map_err(&failed)?;
        let renamed = tokio::fs::rename(&self.unfinished.0, &self.target).await;
        renamed.map_err(&failed)
    }
}
