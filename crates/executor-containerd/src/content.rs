//! Blobs in containerd's content store.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use cooper_content::{
    Blob, ContentError, ContentStore, Descriptor, Digest, ImageStore, Info, Ingest,
};
use cooper_proto::containerd::services::images::v1 as images;
use cooper_proto::containerd::types;
use cooper_proto::content as wire;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::collect::Collector;
use crate::snapshots::{OWNER, ROOT};
use crate::{Containerd, ContainerdError};

/// The labels that say which blobs one needs, with a number behind: containerd's collector goes
/// by them.
const REFERENCE: &str = "containerd.io/gc.ref.content";

/// The most bytes of one message.
const PIECE: usize = 1 << 20;

/// How long containerd may take to let go of an ingest whose writer is gone.
const LET_GO: Duration = Duration::from_secs(5);

/// The time between two looks at that.
const LOOK: Duration = Duration::from_millis(10);

/// The blobs of one owner in containerd's content store, in the namespace of the connection.
///
/// What belongs to the owner carries a label that says so and one that keeps containerd's
/// garbage collector from it; deleting takes both away. So blobs of others in the namespace are
/// neither listed nor lost, and one that an image of containerd's needs as well stays.
///
/// Blobs are read from containerd's files: it runs on this machine.
#[derive(Clone, Debug)]
pub struct ContainerdContentStore {
    containerd: Containerd,
    owner: String,
    /// Where containerd keeps them.
    root: PathBuf,
    /// Names of ingests that are being written.
    writing: Arc<Mutex<HashSet<String>>>,
    collector: Collector,
}

impl ContainerdContentStore {
    /// The blobs of `owner`, at most 64 letters and digits.
    ///
    /// # Errors
    /// When containerd does not say where it keeps blobs: they are not on this machine then.
    pub async fn open(containerd: Containerd, owner: &str) -> Result<Self, ContainerdError> {
        let plugins = containerd.plugins("io.containerd.content.v1").await?;
        let root = plugins
            .into_iter()
            .find_map(|mut plugin| plugin.exports.remove("root"));
        let root = root.ok_or_else(|| ContainerdError::Refused {
            code: Code::Unimplemented,
            message: "containerd does not say where its content store is".into(),
        })?;
        Ok(Self {
            collector: Collector::new(containerd.clone()),
            containerd,
            owner: owner.to_owned(),
            root: root.into(),
            writing: Arc::default(),
        })
    }

    /// Throws away what earlier processes left unfinished.
    pub async fn clear_ingests(&self) -> Result<(), ContainerdError> {
        let filters = vec![format!("ref~=\"^{}\"", self.reference(""))];
        let request = wire::ListStatusesRequest { filters };
        let answer = self.containerd.content().list_statuses(request).await;
        let answer = answer.map_err(self.containerd.failed())?.into_inner();
        for status in answer.statuses {
            let request = wire::AbortRequest {
                r#ref: status.r#ref,
            };
            let answer = self.containerd.content().abort(request).await;
            match answer.map_err(self.containerd.failed()) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn reference(&self, reference: &str) -> String {
        format!("cooper/{}/{reference}", self.owner)
    }

    fn labels(&self, there: bool) -> BTreeMap<String, String> {
        // An empty value takes a label away.
        let value = |value: &str| {
            if there {
                value.to_owned()
            } else {
                String::new()
            }
        };
        [
            (OWNER.to_owned(), value(&self.owner)),
            (ROOT.to_owned(), value("1")),
        ]
        .into()
    }

    /// What is known of a blob, if it is the owner's.
    fn own(&self, info: wire::Info) -> Option<Info> {
        if info.labels.get(OWNER) != Some(&self.owner) {
            return None;
        }
        Some(Info {
            digest: info.digest.parse().ok()?,
            size: info.size.try_into().ok()?,
            created_at: info
                .created_at
                .and_then(|time| SystemTime::try_from(time).ok())
                .unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Adds labels to a blob.
    async fn mark(&self, digest: &Digest, labels: BTreeMap<String, String>) -> Result<(), Status> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let request = wire::UpdateRequest {
            info: Some(wire::Info {
                digest: digest.to_string(),
                labels,
                ..Default::default()
            }),
            update_mask: Some(FieldMask { paths }),
        };
        self.containerd.content().update(request).await.map(drop)
    }

    async fn label(&self, digest: &Digest, there: bool) -> Result<(), Status> {
        self.mark(digest, self.labels(there)).await
    }

    fn failed(&self, attempt: impl Into<String>, status: Status) -> ContentError {
        ContentError::Backend {
            attempt: attempt.into(),
            source: self.containerd.failed()(status).into(),
        }
    }

    /// Opens the stream by which an ingest is written, and says how much there is of it.
    async fn stream(&self, reference: &str) -> Result<Writer, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let ask = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: self.reference(reference),
            ..Default::default()
        };
        // There is room for one.
        let _ = sender.try_send(ask);
        let mut client = self.containerd.content();
        let answers = client.write(ReceiverStream::new(receiver)).await?;
        let mut writer = Writer {
            sender,
            answers: answers.into_inner(),
            offset: 0,
        };
        writer.offset = writer.answer().await?.offset;
        Ok(writer)
    }
}

/// A stream of pieces and what is said to each.
struct Writer {
    sender: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    offset: i64,
}

impl Writer {
    async fn answer(&mut self) -> Result<wire::WriteContentResponse, Status> {
        let answer = self.answers.message().await?;
        answer.ok_or_else(|| Status::unavailable("the stream of an ingest ended"))
    }

    /// Waits until containerd has let go of the ingest.
    async fn end(self) {
        let Self {
            sender,
            mut answers,
            ..
        } = self;
        drop(sender);
        while let Ok(Some(_)) = answers.message().await {}
    }

    async fn ask(
        &mut self,
        request: wire::WriteContentRequest,
    ) -> Result<wire::WriteContentResponse, Status> {
        // When nobody takes it any more, the answer says why.
        let _ = self.sender.send(request).await;
        let answer = self.answer().await?;
        self.offset = answer.offset;
        Ok(answer)
    }
}

struct FileBlob {
    file: File,
    size: u64,
}

impl Blob for FileBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

#[async_trait]
impl ContentStore for ContainerdContentStore {
    async fn info(&self, digest: &Digest) -> Result<Info, ContentError> {
        let missing = || ContentError::NotFound {
            digest: digest.clone(),
        };
        let request = wire::InfoRequest {
            digest: digest.to_string(),
        };
        match self.containerd.content().info(request).await {
            Ok(answer) => {
                let info = answer.into_inner().info.unwrap_or_default();
                self.own(info).ok_or_else(missing)
            }
            Err(status) if status.code() == Code::NotFound => Err(missing()),
            Err(status) => Err(self.failed(format!("look for {digest}"), status)),
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Box<dyn Blob>, ContentError> {
        let info = self.info(digest).await?;
        let path = self.root.join("blobs").join(digest.algorithm().as_ref());
        let path = path.join(digest.digest());
        match File::open(&path) {
            Ok(file) => Ok(Box::new(FileBlob {
                file,
                size: info.size,
            })),
            Err(source) => Err(ContentError::Io {
                attempt: "open",
                path,
                source,
            }),
        }
    }

    async fn ingest(&self, reference: &str) -> Result<Box<dyn Ingest>, ContentError> {
        let busy = || ContentError::Busy {
            reference: reference.to_owned(),
        };
        let lock = Lock::take(&self.writing, reference).ok_or_else(busy)?;
        let begun = Instant::now();
        let writer = loop {
            match self.stream(reference).await {
                Ok(writer) => break writer,
                // Nobody here writes it: containerd has yet to see that the last one is gone.
                Err(status)
                    if status.code() == Code::Unavailable
                        && status.message().contains("locked") =>
                {
                    if begun.elapsed() > LET_GO {
                        return Err(busy());
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(status) => {
                    return Err(self.failed(format!("begin ingest {reference}"), status));
                }
            }
        };
        Ok(Box::new(ContainerdIngest {
            store: self.clone(),
            writer,
            lock,
        }))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), ContentError> {
        match self.info(digest).await {
            Ok(_) => {}
            Err(ContentError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        match self.label(digest, false).await {
            Ok(()) => self.collector.wanted(),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(self.failed(format!("delete {digest}"), status)),
        }
        Ok(())
    }

    async fn walk(&self) -> Result<Vec<Info>, ContentError> {
        let filters = vec![format!("labels.{OWNER:?}=={:?}", self.owner)];
        let list = |status| self.failed("list blobs", status);
        let request = wire::ListContentRequest { filters };
        let answer = self.containerd.content().list(request).await;
        let mut stream = answer.map_err(list)?.into_inner();
        let mut all = Vec::new();
        while let Some(some) = stream.message().await.map_err(list)? {
            all.extend(some.info.into_iter().filter_map(|info| self.own(info)));
        }
        Ok(all)
    }

    async fn sync(&self, _: &[Digest]) -> Result<(), ContentError> {
        // containerd syncs a file when it commits it, but not the folder that it moves it to.
        let root = self.root.clone();
        let synced = tokio::task::spawn_blocking(move || cooper_sys::sync_fs(&root)).await;
        let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
        synced.map_err(|source| ContentError::Io {
            attempt: "sync the file system of",
            path: self.root.clone(),
            source,
        })
    }
}

#[async_trait]
impl ImageStore for ContainerdContentStore {
    async fn name(
        &self,
        name: &str,
        target: &Descriptor,
        references: &[(Digest, Vec<Digest>)],
    ) -> Result<(), ContentError> {
        let failed = |status| self.failed(format!("name the image {name}"), status);
        // Before the image is there, so that the collector never sees it without its blobs.
        for (digest, needed) in references {
            let labels = needed.iter().enumerate();
            let labels = labels
                .map(|(number, needed)| (format!("{REFERENCE}.{number}"), needed.to_string()));
            self.mark(digest, labels.collect()).await.map_err(failed)?;
        }
        let image = images::Image {
            name: name.to_owned(),
            target: Some(types::Descriptor {
                media_type: target.media_type().to_string(),
                digest: target.digest().to_string(),
                size: target.size().try_into().unwrap_or(i64::MAX),
                annotations: Default::default(),
            }),
            ..Default::default()
        };
        let update = images::UpdateImageRequest {
            image: Some(image.clone()),
            update_mask: Some(FieldMask {
                paths: vec!["target".into()],
            }),
        };
        let mut client = self.containerd.images();
        match client.update(update).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(failed(status)),
        }
        let image = Some(image);
        let create = images::CreateImageRequest { image };
        client.create(create).await.map(drop).map_err(failed)
    }
}

/// The name of an ingest that is being written. Dropping it frees the name.
struct Lock {
    writing: Arc<Mutex<HashSet<String>>>,
    name: String,
}

impl Lock {
    fn take(writing: &Arc<Mutex<HashSet<String>>>, name: &str) -> Option<Self> {
        let mut names = writing.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned()).then(|| Self {
            writing: writing.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut names = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
    }
}

struct ContainerdIngest {
    store: ContainerdContentStore,
    writer: Writer,
    lock: Lock,
}

impl ContainerdIngest {
    fn request(&self, action: wire::WriteAction) -> wire::WriteContentRequest {
        wire::WriteContentRequest {
            action: action.into(),
            r#ref: self.store.reference(&self.lock.name),
            offset: self.writer.offset,
            ..Default::default()
        }
    }

    /// Throws it away. The stream has to be at its end first: until then containerd writes into
    /// the folder that is to be removed.
    async fn discard(self) -> Result<(), ContentError> {
        let Self {
            store,
            writer,
            lock,
        } = self;
        writer.end().await;
        let begun = Instant::now();
        loop {
            let request = wire::AbortRequest {
                r#ref: store.reference(&lock.name),
            };
            match store.containerd.content().abort(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) if status.code() == Code::Unavailable && begun.elapsed() < LET_GO => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(status) => {
                    return Err(store.failed(format!("abort ingest {}", lock.name), status));
                }
            }
        }
    }
}

/// What was found instead: containerd names both, and what it found first.
fn found(message: &str) -> Option<Digest> {
    let (_, rest) = message.split_once("sha256:")?;
    let hex: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    format!("sha256:{hex}").parse().ok()
}

#[async_trait]
impl Ingest for ContainerdIngest {
    fn offset(&self) -> u64 {
        self.writer.offset.try_into().unwrap_or(0)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        for piece in bytes.chunks(PIECE) {
            let request = wire::WriteContentRequest {
                data: Bytes::copy_from_slice(piece),
                ..self.request(wire::WriteAction::Write)
            };
            let answer = self.writer.ask(request).await;
            answer.map_err(|status| {
                self.store
                    .failed(format!("write ingest {}", self.lock.name), status)
            })?;
        }
        Ok(())
    }

    async fn commit(
        mut self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError> {
        let reference = self.lock.name.clone();
        let written = self.offset();
        if let Some(expected) = size
            && expected != written
        {
            self.discard().await?;
            return Err(ContentError::SizeMismatch {
                reference,
                found: written,
                expected,
            });
        }
        let request = wire::WriteContentRequest {
            total: self.writer.offset,
            expected: digest.map(ToString::to_string).unwrap_or_default(),
            labels: self.store.labels(true),
            ..self.request(wire::WriteAction::Commit)
        };
        let attempt = || format!("commit ingest {reference}");
        match self.writer.ask(request).await {
            Ok(answer) => answer
                .digest
                .parse()
                .map_err(|error| ContentError::Backend {
                    attempt: attempt(),
                    source: Box::new(error),
                }),
            Err(status) if status.code() == Code::AlreadyExists => {
                let there = match digest {
                    Some(digest) => Some(digest.clone()),
                    None => found(status.message()),
                };
                let Some(there) = there else {
                    return Err(self.store.failed(attempt(), status));
                };
                let labelled = self.store.label(&there, true).await;
                labelled.map_err(|status| self.store.failed(attempt(), status))?;
                self.discard().await?;
                Ok(there)
            }
            Err(status) => match (found(status.message()), digest) {
                (Some(found), Some(expected)) if found != *expected => {
                    let expected = expected.clone();
                    self.discard().await?;
                    Err(ContentError::DigestMismatch {
                        reference,
                        found,
                        expected,
                    })
                }
                _ => Err(self.store.failed(attempt(), status)),
            },
        }
    }

    async fn abort(self: Box<Self>) -> Result<(), ContentError> {
        self.discard().await
    }
}
