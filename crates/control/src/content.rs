//! The blobs of the default worker and of the history, for reading: clients look at what a build
//! left, and at what is there after pruning. Spoken is containerd's content service, as BuildKit's
//! daemon does (`control.roContentStore`): whatever writes is refused. What the worker does not
//! have is looked up in the history.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use cooper_content::{Blob, ContentError, ContentStore, Digest, Info};
use cooper_engine::Engine;
use cooper_proto::content::content_server::Content;
use cooper_proto::content::{self as wire};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::{filters, timestamp};
use crate::service::Answers;
use crate::status;

/// Blobs that go in one message of a listing: containerd's number.
const BATCH: usize = 100;
/// Bytes of a blob that go in one message.
const PIECE: usize = 256 << 10;
/// Messages that wait for a client that reads slowly.
const QUEUE: usize = 2;

pub(crate) struct ContentService {
    engine: Arc<Engine>,
}

impl ContentService {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// The stores in the order in which they are asked.
    fn stores(&self) -> impl Iterator<Item = &dyn ContentStore> {
        let worker: &dyn ContentStore = &*self.engine.workers().default_worker().content;
        let history = self.engine.history().content();
        std::iter::once(worker).chain(history)
    }

    /// The first store that has the blob, and what it says of it.
    async fn find(&self, digest: &Digest) -> Result<(&dyn ContentStore, Info), Status> {
        for store in self.stores() {
            match store.info(digest).await {
                Err(ContentError::NotFound { .. }) => {}
                found => {
                    let info = found.map_err(|error| failed(&error))?;
                    return Ok((store, info));
                }
            }
        }
        let digest = digest.clone();
        Err(failed(&ContentError::NotFound { digest }))
    }
}

fn read_only<T>() -> Result<Response<T>, Status> {
    Err(Status::unknown("read-only content store"))
}

fn digest_of(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{text:?}: {error}")))
}

fn failed(error: &ContentError) -> Status {
    match error {
        ContentError::NotFound { digest } => {
            Status::not_found(format!("content {digest}: not found"))
        }
        ContentError::Algorithm { .. } => Status::invalid_argument(error.to_string()),
        other => status::unknown(other),
    }
}

fn info_of(info: &Info) -> wire::Info {
    let created = Some(timestamp(info.created_at));
    wire::Info {
        digest: info.digest.to_string(),
        size: i64::try_from(info.size).unwrap_or(i64::MAX),
        created_at: created,
        updated_at: created,
        labels: BTreeMap::new(),
    }
}

/// Reads `blob` from `offset` on, `left` bytes. Blocks for the disk.
fn read(
    blob: &dyn Blob,
    mut offset: u64,
    mut left: u64,
    outgoing: &mpsc::Sender<Result<wire::ReadContentResponse, Status>>,
) {
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let mut data = vec![0; most];
        let answer = match blob.read_at(&mut data, offset) {
            Ok(0) => Err(Status::unknown("failed to read the blob: unexpected end")),
            Ok(read) => {
                data.truncate(read);
                let at = i64::try_from(offset).unwrap_or(i64::MAX);
                offset += read as u64;
                left -= read as u64;
                Ok(wire::ReadContentResponse {
                    offset: at,
                    data: Bytes::from(data),
                })
            }
            Err(error) => Err(Status::unknown(format!("failed to read the blob: {error}"))),
        };
        let over = answer.is_err();
        // A client that hung up wants no more.
        if outgoing.blocking_send(answer).is_err() || over {
            return;
        }
    }
}

#[tonic::async_trait]
impl Content for ContentService {
    type ListStream = Answers<wire::ListContentResponse>;
    type ReadStream = Answers<wire::ReadContentResponse>;
    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let digest = digest_of(&request.into_inner().digest)?;
        let (_, info) = self.find(&digest).await?;
        Ok(Response::new(wire::InfoResponse {
            info: Some(info_of(&info)),
        }))
    }

    async fn list(
        &self,
        request: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = filters(&request.into_inner().filters)?;
        let mut known = HashSet::new();
        let mut found = Vec::new();
        for store in self.stores() {
            let there = store.walk().await.map_err(|error| failed(&error))?;
            found.extend(
                there
                    .into_iter()
                    .filter(|info| known.insert(info.digest.clone())),
            );
        }
        let found: Vec<_> = found
            .iter()
            .filter(|info| {
                let (digest, size) = (info.digest.to_string(), info.size.to_string());
                let field = |path: &[String]| match path {
                    [field] if field == "digest" => Some(digest.as_str()),
                    [field] if field == "size" => Some(size.as_str()),
                    _ => None,
                };
                filters.is_empty() || filters.iter().any(|filter| filter.matches(field))
            })
            .map(info_of)
            .collect();
        let batches: Vec<_> = found
            .chunks(BATCH)
            .map(|batch| {
                Ok(wire::ListContentResponse {
                    info: batch.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(stream::iter(batches).boxed()))
    }

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let digest = digest_of(&request.digest)?;
        let (store, _) = self.find(&digest).await?;
        let blob = store.open(&digest).await;
        let blob = blob.map_err(|error| failed(&error))?;
        let size = blob.size();
        let out_of_range = || Status::out_of_range(format!("read past object length {size} bytes"));
        let offset = u64::try_from(request.offset).map_err(|_| out_of_range())?;
        let rest = size.checked_sub(offset).ok_or_else(out_of_range)?;
        // None, or more than there is, is all that there is.
        let left = match u64::try_from(request.size) {
            Ok(0) | Err(_) => rest,
            Ok(wanted) => wanted.min(rest),
        };
        let (outgoing, answers) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || read(&*blob, offset, left, &outgoing));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let name = request.into_inner().r#ref;
        Err(Status::not_found(format!("ingest {name}: not found")))
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        Ok(Response::new(wire::ListStatusesResponse::default()))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        read_only()
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        read_only()
    }

    async fn write(
        &self,
        _: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        read_only()
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        read_only()
    }
}
