//! The one task that writes the history, so that nothing else waits for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cooper_content::{ContentStore, Digest};
use cooper_progress::Event;
use cooper_proto::control::{BuildResultInfo, Descriptor};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::history::{End, News, Pending, Shared};
use crate::kept::{Entry, Kept};
use crate::log::{self, MOST_LOG};
use crate::{HistoryError, Limits, Record, image, media_type, trace};

/// Bytes that all records and their blobs take at most: from there on the oldest ones go that are
/// not pinned, whatever their age.
pub const MOST_BYTES: u64 = 1 << 30;
/// How often it is looked for records that are too old (BuildKit's value), and how long it takes at
/// most until what is written survives the death of the machine.
const TICK: Duration = Duration::from_secs(120);

/// A build that ended, to be kept.
pub(crate) struct Finished {
    pub(crate) record: Record,
    pub(crate) end: End,
    pub(crate) seen: Vec<Arc<Event>>,
    /// Where the texts of the images are that it made.
    pub(crate) images: Option<Arc<dyn ContentStore>>,
    /// Those who wait for the record wait for this to go.
    pub(crate) pending: Pending,
}

type Reply = oneshot::Sender<Result<(), HistoryError>>;

pub(crate) enum Call {
    Keep(Box<Finished>),
    Pin(String, bool, Reply),
    Delete(String, Reply),
    Close(Reply),
}

/// What is known of a record without reading it.
struct Known {
    completed: SystemTime,
    pinned: bool,
    bytes: u64,
    blobs: Vec<Digest>,
}

/// How many records have a blob, and how large it is.
struct Use {
    records: usize,
    bytes: u64,
}

pub(crate) struct Keeper {
    kept: Kept,
    shared: Arc<Shared>,
    limits: Limits,
    most_bytes: u64,
    known: BTreeMap<String, Known>,
    blobs: HashMap<Digest, Use>,
    /// Of rows and blobs.
    bytes: u64,
    /// How many logs were written: the number tells their ingests apart.
    logs: u64,
    /// Whether something was written since the last checkpoint.
    changed: bool,
}

type Checkpoint = Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send>>;

impl Keeper {
    pub(crate) async fn open(
        kept: Kept,
        shared: Arc<Shared>,
        limits: Limits,
    ) -> Result<Self, HistoryError> {
        let entries = kept.mend().await?;
        let mut keeper = Self {
            kept,
            shared,
            limits,
            most_bytes: MOST_BYTES,
            known: BTreeMap::new(),
            blobs: HashMap::new(),
            bytes: 0,
            logs: 0,
            changed: false,
        };
        for entry in &entries {
            keeper.learn(entry);
        }
        Ok(keeper)
    }

    /// Works until nobody can call any more.
    pub(crate) async fn run(mut self, mut calls: mpsc::UnboundedReceiver<Call>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Who lists records does not wait for the disk to sync.
        let mut checkpoint: Option<Checkpoint> = None;
        loop {
            let durable = async {
                match &mut checkpoint {
                    Some(checkpoint) => checkpoint.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                call = calls.recv() => match call {
                    Some(Call::Close(reply)) => {
                        if let Some(running) = checkpoint.take() {
                            self.checkpointed(running.await);
                        }
                        // Nobody has to wait for it.
                        let _ = reply.send(self.kept.clone().checkpoint().await);
                    }
                    Some(call) => self.call(call).await,
                    None => return,
                },
                done = durable => {
                    checkpoint = None;
                    self.checkpointed(done);
                }
                _ = ticks.tick() => {
                    self.collect(SystemTime::now()).await;
                    if self.changed && checkpoint.is_none() {
                        self.changed = false;
                        checkpoint = Some(Box::pin(self.kept.clone().checkpoint()));
                    }
                }
            }
        }
    }

    fn checkpointed(&mut self, done: Result<(), HistoryError>) {
        if let Err(error) = done {
            tracing::warn!(%error, "the history of builds is not durable");
            self.changed = true;
        }
    }

    async fn call(&mut self, call: Call) {
        match call {
            Call::Keep(finished) => self.keep(*finished).await,
            Call::Pin(reference, pinned, reply) => {
                let _ = reply.send(self.pin(&reference, pinned).await);
            }
            Call::Delete(reference, reply) => {
                let _ = reply.send(self.delete(&reference).await);
            }
            Call::Close(_) => {}
        }
    }

    async fn keep(&mut self, finished: Finished) {
        let Finished {
            mut record,
            end,
            seen,
            images,
            pending,
        } = finished;
        counted(&mut record, &seen);
        let mut blobs = Vec::new();
        // A record without its blobs is better than none: the disk may be full.
        match self.log(&seen).await {
            Ok(log) => record.logs = Some(note(&mut blobs, media_type::LOG, log)),
            Err(error) => lost(&record, &error),
        }
        if let Some(mut error) = end.error {
            match self.blob(&error.encode_to_vec()).await {
                Ok(blob) => {
                    record.external_error = Some(note(&mut blobs, media_type::ERROR, blob));
                }
                Err(error) => lost(&record, &error),
            }
            error.details.clear();
            record.error = Some(error);
        }
        if let Some(trace) = trace::write(&record, &seen) {
            match self.blob(&trace).await {
                Ok(blob) => record.trace = Some(note(&mut blobs, media_type::TRACE, blob)),
                Err(error) => lost(&record, &error),
            }
        }
        // The events may be many.
        drop(seen);
        let mut result = BuildResultInfo::default();
        for attachment in &end.attachments {
            match self.blob(&attachment.content).await {
                Ok(blob) => {
                    let attached = note(&mut blobs, attachment.media_type, blob);
                    result.attestations.push(attached);
                }
                Err(error) => lost(&record, &error),
            }
        }
        for descriptor in end.results.values() {
            let (Some(images), Ok(root)) = (&images, descriptor.digest.parse()) else {
                continue;
            };
            match image::copy(&**images, &self.kept.content, &root).await {
                Ok(copied) => blobs.extend(copied),
                Err(error) => lost(&record, &error.into()),
            }
        }
        result.result_deprecated = end.results.values().next().cloned();
        result.results = end.results;
        if result != BuildResultInfo::default() {
            record.result = Some(result);
        }
        record.exporter_response = end.exporter_response;
        blobs.sort_by(|(a, _), (b, _)| a.digest().cmp(b.digest()));
        blobs.dedup();
        let entry = Entry { record, blobs };
        if let Err(error) = self.put(&entry).await {
            lost(&entry.record, &error);
            let unknown = entry.blobs.iter();
            let unknown = unknown.filter(|(digest, _)| !self.blobs.contains_key(digest));
            for (digest, _) in unknown {
                self.remove(digest).await;
            }
        }
        self.shared.tell(News::Complete(Arc::new(entry.record)));
        drop(pending);
        self.collect(SystemTime::now()).await;
    }

    async fn log(&mut self, seen: &[Arc<Event>]) -> Result<(Digest, u64), HistoryError> {
        self.logs += 1;
        let name = format!("log-{}", self.logs);
        Ok(log::write(&self.kept.content, &name, seen, MOST_LOG).await?)
    }

    async fn blob(&self, bytes: &[u8]) -> Result<(Digest, u64), HistoryError> {
        let digest = self.kept.content.write_all(bytes).await?;
        Ok((digest, bytes.len() as u64))
    }

    async fn put(&mut self, entry: &Entry) -> Result<(), HistoryError> {
        self.kept.put(entry).await?;
        self.changed = true;
        // First: what both have stays.
        let before = self.known.remove(&entry.record.r#ref);
        self.learn(entry);
        if let Some(before) = before {
            self.forget(before).await;
        }
        Ok(())
    }

    async fn pin(&mut self, reference: &str, pinned: bool) -> Result<(), HistoryError> {
        let entry = self.kept.get(reference)?;
        let mut entry = entry.ok_or_else(|| HistoryError::NotFound {
            reference: reference.to_owned(),
        })?;
        entry.record.pinned = pinned;
        entry.record.generation = entry.record.generation.saturating_add(1);
        self.put(&entry).await?;
        self.shared.tell(News::Complete(Arc::new(entry.record)));
        Ok(())
    }

    async fn delete(&mut self, reference: &str) -> Result<(), HistoryError> {
        if !self.known.contains_key(reference) {
            return Err(HistoryError::NotFound {
                reference: reference.to_owned(),
            });
        }
        self.kept.delete(reference).await?;
        self.changed = true;
        if let Some(known) = self.known.remove(reference) {
            self.forget(known).await;
        }
        self.shared.tell(News::Deleted(reference.to_owned()));
        Ok(())
    }

    /// Removes records that are too old and too many (both, as BuildKit does), and the oldest while
    /// all together take too much.
    async fn collect(&mut self, now: SystemTime) {
        let mut free: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| !known.pinned)
            .map(|(reference, known)| (Reverse(known.completed), reference.clone()))
            .collect();
        free.sort_unstable();
        let Limits {
            max_age,
            max_entries,
        } = self.limits;
        while let Some((Reverse(completed), reference)) = free.pop() {
            let old = now.duration_since(completed).is_ok_and(|age| age > max_age);
            let many = free.len() >= max_entries;
            if !(old && many) && self.bytes <= self.most_bytes {
                return;
            }
            if let Err(error) = self.delete(&reference).await {
                tracing::warn!(build = reference, %error, "a record of the history stays");
                return;
            }
        }
    }

    fn learn(&mut self, entry: &Entry) {
        let completed = entry.record.completed_at;
        let completed = completed.and_then(|time| SystemTime::try_from(time).ok());
        let bytes = entry.row_bytes();
        self.bytes += bytes;
        for (digest, bytes) in &entry.blobs {
            let used = self.blobs.entry(digest.clone()).or_insert(Use {
                records: 0,
                bytes: *bytes,
            });
            if used.records == 0 {
                self.bytes += *bytes;
            }
            used.records += 1;
        }
        let known = Known {
            completed: completed.unwrap_or(SystemTime::UNIX_EPOCH),
            pinned: entry.record.pinned,
            bytes,
            blobs: entry
                .blobs
                .iter()
                .map(|(digest, _)| digest.clone())
                .collect(),
        };
        self.known.insert(entry.record.r#ref.clone(), known);
    }

    /// A record is gone: so are the blobs that no other has.
    async fn forget(&mut self, known: Known) {
        self.bytes -= known.bytes;
        for digest in &known.blobs {
            let Some(used) = self.blobs.get_mut(digest) else {
                continue;
            };
            used.records -= 1;
            if used.records == 0 {
                self.bytes -= used.bytes;
                self.blobs.remove(digest);
                self.remove(digest).await;
            }
        }
    }

    async fn remove(&self, digest: &Digest) {
        if let Err(error) = self.kept.content.delete(digest).await {
            tracing::warn!(%digest, %error, "a blob of the history stays until the next start");
        }
    }
}

pub(crate) fn counted(record: &mut Record, seen: &[Arc<Event>]) {
    let counts = log::count(seen);
    record.num_total_steps = counts.total;
    record.num_cached_steps = counts.cached;
    record.num_completed_steps = counts.completed;
    record.num_warnings = counts.warnings;
}

fn lost(record: &Record, error: &HistoryError) {
    let build = &record.r#ref;
    let source = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(build, %error, source, "a build is not in the history as it was");
}

fn note(
    blobs: &mut Vec<(Digest, u64)>,
    media_type: &str,
    (digest, size): (Digest, u64),
) -> Descriptor {
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    };
    blobs.push((digest, size));
    descriptor
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
