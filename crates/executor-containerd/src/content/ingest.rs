//! Writing a blob into containerd's content store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use cooper_content::{ContentError, Digest, Ingest};
use cooper_proto::content as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::{ContainerdContentStore, LET_GO, LOOK};

/// The most bytes of one message.
const PIECE: usize = 1 << 20;

/// A stream of pieces and what is said to each.
pub(super) struct Writer {
    pub(super) sender: mpsc::Sender<wire::WriteContentRequest>,
    pub(super) answers: Streaming<wire::WriteContentResponse>,
    pub(super) offset: i64,
}

impl Writer {
    pub(super) async fn answer(&mut self) -> Result<wire::WriteContentResponse, Status> {
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

/// The name of an ingest that is being written. Dropping it frees the name.
pub(super) struct Lock {
    writing: Arc<Mutex<HashSet<String>>>,
    name: String,
}

impl Lock {
    pub(super) fn take(writing: &Arc<Mutex<HashSet<String>>>, name: &str) -> Option<Self> {
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

pub(super) struct ContainerdIngest {
    pub(super) store: ContainerdContentStore,
    pub(super) writer: Writer,
    pub(super) lock: Lock,
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
        self: Box<Self>,
        size: Option<u64>,
        digest: Option<&Digest>,
    ) -> Result<Digest, ContentError> {
        let store = self.store.clone();
        let failed = |status| store.failed(format!("commit ingest {}", self.lock.name), status);
        // What is there already may belong to nobody any more: containerd's collector could take
        // it before it is labelled.
        let lease = match digest {
            Some(digest) => store.spare(digest).await.map_err(failed)?,
            None => None,
        };
        let committed = self.finish(size, digest).await;
        if let Some(lease) = lease {
            lease.end().await;
        }
        committed
    }

    async fn abort(self: Box<Self>) -> Result<(), ContentError> {
        self.discard().await
    }
}

impl ContainerdIngest {
    async fn finish(
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
}
