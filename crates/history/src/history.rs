//! The history as others see it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cooper_content::ContentStore;
use cooper_progress::Event;
use cooper_proto::control::Descriptor;
use cooper_proto::rpc;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::keeper::{self, Call, Finished, Keeper};
use crate::kept::Kept;
use crate::{HistoryError, LogStream, Record, redact};

/// How many pieces of news wait for a listener before it misses some.
const NEWS: usize = 1024;

/// How long records stay. One goes when it is older than `max_age` and there are `max_entries`
/// newer ones; pinned ones stay and do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Since the end of its build.
    pub max_age: Duration,
    /// That many records stay whatever their age.
    pub max_entries: usize,
}

impl Default for Limits {
    /// BuildKit's: 48 hours, 50 records.
    fn default() -> Self {
        Self {
            max_age: Duration::from_hours(48),
            max_entries: 50,
        }
    }
}

/// How a build ended.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Why it failed, with its details, which are kept as a blob; `None` when it did not.
    pub error: Option<rpc::Status>,
    /// What its client was told.
    pub exporter_response: BTreeMap<String, String>,
    /// What its exporters made, by their numbers.
    pub results: BTreeMap<i64, Descriptor>,
    /// What else is kept with it. The record has them among the attestations of its result, where
    /// clients look for what is attached to a build.
    pub attachments: Vec<Attachment>,
}

/// Something that is kept with a build.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// What it is.
    pub media_type: &'static str,
    /// Its content.
    pub content: Vec<u8>,
}

/// Something happened to a build, or to its record.
#[derive(Clone, Debug)]
pub enum News {
    /// It began.
    Started(Arc<Record>),
    /// It ended and is kept, or its record was changed.
    Complete(Arc<Record>),
    /// The record of this build is gone.
    Deleted(String),
}

/// News as they come.
pub struct NewsStream {
    news: broadcast::Receiver<News>,
}

impl NewsStream {
    /// The next one; `None` when the history is gone. A listener that is too slow misses some.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            match self.news.recv().await {
                Ok(news) => return Some(news),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// The builds that run, and the news from then on.
pub struct Listening {
    /// The oldest first.
    pub running: Vec<Arc<Record>>,
    /// What has happened since.
    pub news: NewsStream,
}

/// The history. Clones share it.
#[derive(Clone)]
pub struct History {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Nothing is kept without it.
    kept: Option<(Kept, mpsc::UnboundedSender<Call>)>,
}

/// What is known of builds that are not kept yet.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Changes when a build that ended is kept.
    settled: watch::Sender<()>,
    news: broadcast::Sender<News>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<String, Arc<Record>>,
    /// Names of builds that have ended and are not kept yet, by the number of their end.
    ending: HashMap<u64, String>,
    ends: u64,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            settled: watch::Sender::default(),
            news: broadcast::Sender::new(NEWS),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        Self::new()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, news: News) {
        // Nobody has to listen.
        let _ = self.news.send(news);
    }
}

/// A build that has ended and is not kept yet, until this goes.
pub(crate) struct Pending {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.state().ending.remove(&self.number);
        self.shared.settled.send_replace(());
    }
}

impl History {
    /// Opens the history in the folder `root`, which exists, and begins to write it behind, in a
    /// task on the current runtime that ends with the last clone. Two must not be open in one root.
    ///
    /// # Errors
    /// The files cannot be opened, or a later version wrote them. One that is damaged is kept aside.
    pub async fn open(root: &Path, limits: Limits) -> Result<Self, HistoryError> {
        let root = root.to_owned();
        let opened = tokio::task::spawn_blocking(move || Kept::open(&root)).await;
        let kept = opened.map_err(|_| HistoryError::Closed)??;
        let shared = Shared::new();
        let keeper = Keeper::open(kept.clone(), shared.clone(), limits).await?;
        let (calls, mailbox) = mpsc::unbounded_channel();
        tokio::spawn(keeper.run(mailbox));
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                kept: Some((kept, calls)),
            }),
        })
    }

    /// One that tells of builds while they run and keeps nothing.
    pub fn none() -> Self {
        Self {
            inner: Arc::new(Inner {
                shared: Shared::new(),
                kept: None,
            }),
        }
    }

    /// A build begins: it is listed as running from now on. `record` has its name, which no other
    /// running build has, and what was asked for; credentials in addresses are taken out of that.
    pub fn begin(&self, mut record: Record) -> Recording {
        redact::options(&mut record.frontend_attrs);
        for exporter in &mut record.exporters {
            redact::options(&mut exporter.attrs);
        }
        record.created_at.get_or_insert(SystemTime::now().into());
        let shared = self.inner.shared.clone();
        let running = Arc::new(record.clone());
        let mut state = shared.state();
        state.running.insert(record.r#ref.clone(), running.clone());
        // Under the lock: who listens sees it in one of both.
        shared.tell(News::Started(running));
        drop(state);
        Recording {
            history: self.clone(),
            record,
            ended: None,
        }
    }

    /// The builds that run, and the news from now on.
    pub fn listen(&self) -> Listening {
        let shared = &self.inner.shared;
        let state = shared.state();
        let news = NewsStream {
            news: shared.news.subscribe(),
        };
        let mut running: Vec<_> = state.running.values().cloned().collect();
        drop(state);
        running.sort_by_key(|record| record.created_at.map(|time| (time.seconds, time.nanos)));
        Listening { running, news }
    }

    /// Waits until builds that have ended by now are kept: the one of this name, or all for an
    /// empty one.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn settled(&self, reference: &str) {
        let shared = &self.inner.shared;
        let mut settled = shared.settled.subscribe();
        let is_meant = |name: &String| reference.is_empty() || *name == reference;
        let waited: Vec<u64> = {
            let state = shared.state();
            let meant = state.ending.iter().filter(|(_, name)| is_meant(name));
            meant.map(|(number, _)| *number).collect()
        };
        loop {
            settled.borrow_and_update();
            let waits = {
                let state = shared.state();
                waited
                    .iter()
                    .any(|number| state.ending.contains_key(number))
            };
            if !waits || settled.changed().await.is_err() {
                return;
            }
        }
    }

    /// The records that are kept, in the order of their names: that of `reference`, or all for an
    /// empty one.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn records(&self, reference: &str) -> Result<Vec<Record>, HistoryError> {
        let Some((kept, _)) = &self.inner.kept else {
            return Ok(Vec::new());
        };
        if !reference.is_empty() {
            let found = kept.get(reference)?;
            return Ok(found.into_iter().map(|entry| entry.record).collect());
        }
        let kept = kept.clone();
        let all = tokio::task::spawn_blocking(move || kept.all()).await;
        let all = all.map_err(|_| HistoryError::Closed)??;
        Ok(all.into_iter().map(|entry| entry.record).collect())
    }

    /// What was seen of a build that is kept; `None` when it is not.
    ///
    /// # Errors
    /// The record or its log cannot be read.
    pub async fn log(&self, reference: &str) -> Result<Option<LogStream>, HistoryError> {
        let Some((kept, _)) = &self.inner.kept else {
            return Ok(None);
        };
        let Some(entry) = kept.get(reference)? else {
            return Ok(None);
        };
        let Some(log) = entry.record.logs else {
            return Ok(Some(LogStream::empty()));
        };
        let damaged = |_| HistoryError::Log {
            reference: reference.to_owned(),
        };
        let digest = log.digest.parse().map_err(damaged)?;
        let blob = kept.content.open(&digest).await?;
        Ok(Some(LogStream::read(blob, reference.to_owned())))
    }

    /// The blobs that records speak of; `None` when nothing is kept.
    pub fn content(&self) -> Option<&dyn ContentStore> {
        let (kept, _) = self.inner.kept.as_ref()?;
        Some(&kept.content)
    }

    /// Keeps a record whatever its age, or no longer does.
    ///
    /// # Errors
    /// There is none of this name, or it cannot be written.
    ///
    /// # Cancel safety
    /// It is done even if the future is dropped.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<(), HistoryError> {
        self.settled(reference).await;
        self.ask(reference, |reply| {
            Call::Pin(reference.to_owned(), pinned, reply)
        })
        .await
    }

    /// Removes a record, pinned or not, and its blobs.
    ///
    /// # Errors
    /// There is none of this name, or it cannot be removed.
    ///
    /// # Cancel safety
    /// It is done even if the future is dropped.
    pub async fn delete(&self, reference: &str) -> Result<(), HistoryError> {
        self.settled(reference).await;
        self.ask(reference, |reply| Call::Delete(reference.to_owned(), reply))
            .await
    }

    /// Waits until everything is written that was handed over, durably.
    pub async fn close(&self) {
        if self.inner.kept.is_none() {
            return;
        }
        if let Err(error) = self.ask("", Call::Close).await {
            tracing::warn!(%error, "the history of builds is not durable");
        }
    }

    async fn ask(
        &self,
        reference: &str,
        call: impl FnOnce(oneshot::Sender<Result<(), HistoryError>>) -> Call,
    ) -> Result<(), HistoryError> {
        let Some((_, calls)) = &self.inner.kept else {
            return Err(HistoryError::NotFound {
                reference: reference.to_owned(),
            });
        };
        let (reply, answer) = oneshot::channel();
        calls.send(call(reply)).map_err(|_| HistoryError::Closed)?;
        answer.await.map_err(|_| HistoryError::Closed)?
    }
}

/// A build that is recorded. When it is dropped, nothing of the build is kept.
#[must_use = "a build that is not recorded to its end is not kept"]
pub struct Recording {
    history: History,
    record: Record,
    ended: Option<(End, Pending)>,
}

impl Recording {
    /// The build has ended: it runs no longer, and who lists records waits for this one.
    pub fn end(&mut self, end: End) {
        let shared = self.history.inner.shared.clone();
        let mut state = shared.state();
        state.running.remove(&self.record.r#ref);
        state.ends += 1;
        let number = state.ends;
        state.ending.insert(number, self.record.r#ref.clone());
        drop(state);
        self.record.completed_at = Some(SystemTime::now().into());
        self.ended = Some((end, Pending { shared, number }));
    }

    /// Hands over what was `seen`, to be written behind. The texts of the images that the build
    /// made are copied from `images`. Waits for nothing.
    pub fn keep(mut self, seen: Vec<Arc<Event>>, images: Option<Arc<dyn ContentStore>>) {
        let Some((end, pending)) = self.ended.take() else {
            return;
        };
        let mut record = std::mem::take(&mut self.record);
        let Some((_, calls)) = &self.history.inner.kept else {
            keeper::counted(&mut record, &seen);
            record.error = end.error.map(|error| rpc::Status {
                details: Vec::new(),
                ..error
            });
            record.exporter_response = end.exporter_response;
            return pending.shared.tell(News::Complete(Arc::new(record)));
        };
        let finished = Finished {
            record,
            end,
            seen,
            images,
            pending,
        };
        // Without the task nobody waits for it either: it goes here.
        let _ = calls.send(Call::Keep(Box::new(finished)));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut state = self.history.inner.shared.state();
        let running = state.running.get(&self.record.r#ref);
        // Another build may have the name by now.
        if running.is_some_and(|running| running.created_at == self.record.created_at) {
            state.running.remove(&self.record.r#ref);
        }
    }
}
