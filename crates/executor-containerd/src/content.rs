//! Blobs in containerd's content store.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use cooper_content::{Blob, ContentError, ContentStore, Digest, Info, Ingest};
use cooper_proto::content as wire;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::collect::Collector;
use crate::lease::Lease;
use crate::snapshots::{OWNER, ROOT};
use crate::{Containerd, ContainerdError};
use ingest::{ContainerdIngest, Lock, Writer};

mod ingest;

/// Bytes of a block of common file systems.
const BLOCK: u64 = 4096;

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
        let size: u64 = info.size.try_into().ok()?;
        Some(Info {
            digest: info.digest.parse().ok()?,
            size,
            // containerd does not tell; its files are in blocks like all others.
            disk: size.next_multiple_of(BLOCK),
            created_at: info
                .created_at
                .and_then(|time| SystemTime::try_from(time).ok())
                .unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Adds labels to a blob.
    pub(crate) async fn mark(
        &self,
        digest: &Digest,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
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

    /// What containerd says of a blob, whosever it is; `None` when it is not there.
    async fn look(&self, digest: &Digest) -> Result<Option<wire::Info>, Status> {
        let request = wire::InfoRequest {
            digest: digest.to_string(),
        };
        match self.containerd.content().info(request).await {
            Ok(answer) => Ok(Some(answer.into_inner().info.unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// A lease for a blob that is in containerd, whosever it is; `None` when it is not there.
    async fn spare(&self, digest: &Digest) -> Result<Option<Lease>, Status> {
        if self.look(digest).await?.is_none() {
            return Ok(None);
        }
        let lease = Lease::new(&self.containerd, "ingest").await?;
        lease.keep(digest).await?;
        Ok(Some(lease))
    }

    async fn label(&self, digest: &Digest, there: bool) -> Result<(), Status> {
        self.mark(digest, self.labels(there)).await
    }

    pub(crate) fn failed(&self, attempt: impl Into<String>, status: Status) -> ContentError {
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
        let info = self.look(digest).await;
        let info = info.map_err(|status| self.failed(format!("look for {digest}"), status))?;
        let own = info.and_then(|info| self.own(info));
        own.ok_or_else(|| ContentError::NotFound {
            digest: digest.clone(),
        })
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
