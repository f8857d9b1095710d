//! The builds by id: who may listen to them, who may build through them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cooper_content::ContentStore;
use cooper_history::{End, History, Record, Recording};
use cooper_ops::Build as Domain;
use cooper_solver::Solver;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::events::EventLog;
use crate::process::Describe;
use crate::{EngineError, Gateway};

/// How long a build can be listened to after its end (BuildKit's value): its own client may ask
/// late.
const KEPT: Duration = Duration::from_secs(10);
/// The builds by id.
pub(crate) struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Mutex<HashMap<String, Entry>>,
    arrivals: watch::Sender<()>,
    ended: mpsc::UnboundedSender<Ended>,
    history: History,
    /// What errors are in records.
    describe: Describe,
}

pub(crate) struct Entry {
    pub(crate) log: Arc<EventLog>,
    /// As long as its client may build through it.
    pub(crate) gateway: Option<Arc<Gateway>>,
}

/// What a build is worked on with.
pub(crate) struct With {
    pub(crate) log: Arc<EventLog>,
    pub(crate) solver: Solver<Domain>,
    /// Where the texts of the images are that it makes.
    pub(crate) content: Arc<dyn ContentStore>,
}

struct Ended {
    id: String,
    with: With,
    recording: Option<Recording>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// No builds. Starts the task that closes and forgets those that ended; it ends with this.
    pub(crate) fn new(history: History, describe: Describe) -> Self {
        let (ended, mailbox) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            entries: Mutex::default(),
            arrivals: watch::Sender::default(),
            ended,
            history,
            describe,
        });
        tokio::spawn(tidy(mailbox, Arc::downgrade(&inner)));
        Self { inner }
    }

    pub(crate) fn history(&self) -> &History {
        &self.inner.history
    }

    /// Enters the build `id` until the guard goes. It is in the history if there is a record of it.
    pub(crate) fn enter(
        &self,
        id: String,
        record: Option<Record>,
        gateway: Option<Arc<Gateway>>,
        with: With,
    ) -> Result<Entered, EngineError> {
        let mut entries = self.inner.lock();
        if entries.contains_key(&id) {
            return Err(EngineError::JobExists { id });
        }
        let entry = Entry {
            log: with.log.clone(),
            gateway,
        };
        entries.insert(id.clone(), entry);
        drop(entries);
        let recording = record.map(|record| self.inner.history.begin(record));
        self.inner.arrivals.send_replace(());
        Ok(Entered {
            inner: self.inner.clone(),
            end: None,
            ended: Some(Ended {
                id,
                with,
                recording,
            }),
        })
    }

    /// What `find` finds in the build `id`, if it is there.
    pub(crate) fn find<T>(&self, id: &str, find: impl Fn(&Entry) -> Option<T>) -> Option<T> {
        self.inner.lock().get(id).and_then(find)
    }

    /// What `find` finds in the build `id`, waiting for it to come.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn wait<T>(
        &self,
        id: &str,
        limit: Duration,
        find: impl Fn(&Entry) -> Option<T>,
    ) -> Result<T, EngineError> {
        let mut arrivals = self.inner.arrivals.subscribe();
        let found = async {
            loop {
                arrivals.borrow_and_update();
                if let Some(found) = self.inner.lock().get(id).and_then(&find) {
                    return found;
                }
                // The sender lives as long as this.
                let _ = arrivals.changed().await;
            }
        };
        let found = tokio::time::timeout(limit, found).await;
        found.map_err(|_| EngineError::NoJob { id: id.to_owned() })
    }
}

/// A build that runs. Dropping it ends the build for all who listen.
pub(crate) struct Entered {
    inner: Arc<Inner>,
    /// How it ended; without it, it was given up.
    pub(crate) end: Option<End>,
    /// There until it is dropped.
    ended: Option<Ended>,
}

impl Entered {
    /// An end with this error.
    pub(crate) fn failed(&self, error: &EngineError) -> End {
        End {
            error: Some((self.inner.describe)(error)),
            ..End::default()
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(mut ended) = self.ended.take() else {
            return;
        };
        let left = {
            let mut entries = self.inner.lock();
            entries.get_mut(&ended.id).map(|entry| entry.gateway.take())
        };
        // Outside of the lock: it may hold the last handles on results.
        drop(left);
        if let Some(recording) = &mut ended.recording {
            let end = self.end.take().unwrap_or_else(|| {
                self.failed(match std::thread::panicking() {
                    true => &EngineError::Panicked,
                    false => &EngineError::Cancelled,
                })
            });
            // From here on who asks for the history waits for the record.
            recording.end(end);
        }
        let _ = self.inner.ended.send(ended);
    }
}

/// Closes the logs of builds that ended when the solver has said its last word about them, hands
/// them to the history, and forgets them a while later.
async fn tidy(mut mailbox: mpsc::UnboundedReceiver<Ended>, jobs: Weak<Inner>) {
    let mut kept: VecDeque<(Instant, String)> = VecDeque::new();
    loop {
        let until = kept.front().map(|(until, _)| *until);
        let expired = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = mailbox.recv() => {
                let Some(Ended { id, with, recording }) = ended else { return };
                let With { log, solver, content } = with;
                // The answer comes after everything that the solver had to tell before.
                solver.load().await;
                log.close();
                if let Some(recording) = recording {
                    recording.keep(log.all(), Some(content));
                }
                kept.push_back((Instant::now() + KEPT, id));
            }
            () = expired => {
                let Some(jobs) = jobs.upgrade() else { return };
                if let Some((_, id)) = kept.pop_front() {
                    jobs.lock().remove(&id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_history::News;
    use cooper_solver::SolverConfig;

    fn jobs() -> Jobs {
        Jobs::new(History::none(), |error| cooper_proto::rpc::Status {
            message: error.to_string(),
            ..Default::default()
        })
    }

    fn enter(jobs: &Jobs, id: &str) -> Result<Entered, EngineError> {
        let record = Record {
            r#ref: id.into(),
            ..Record::default()
        };
        let with = With {
            log: Arc::default(),
            solver: Solver::new(SolverConfig::in_memory()),
            content: Arc::new(cooper_content::MemoryContentStore::default()),
        };
        jobs.enter(id.into(), Some(record), None, with)
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_is_waited_for_and_kept_for_a_while() {
        let jobs = Arc::new(jobs());
        let mut listening = jobs.history().listen();
        assert!(listening.running.is_empty());
        let waiting = {
            let jobs = jobs.clone();
            let log = |entry: &Entry| Some(entry.log.clone());
            tokio::spawn(async move { jobs.wait("a", Duration::from_secs(6), log).await })
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        let entered = enter(&jobs, "a").unwrap();
        assert!(waiting.await.unwrap().is_ok());
        let news = listening.news.next().await;
        assert!(matches!(news, Some(News::Started(record)) if record.r#ref == "a"));
        assert_eq!(jobs.history().listen().running.len(), 1);
        let again = enter(&jobs, "a").err().unwrap();
        assert_eq!(again.to_string(), "job ID a exists");

        drop(entered);
        assert!(jobs.history().listen().running.is_empty());
        match listening.news.next().await {
            Some(News::Complete(record)) => {
                assert_eq!(record.error.as_ref().unwrap().message, "context canceled");
            }
            other => panic!("{other:?}"),
        }
        let there = |jobs: Arc<Jobs>| async move {
            let log = |entry: &Entry| Some(entry.log.clone());
            jobs.wait("a", Duration::ZERO, log).await.is_ok()
        };
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(there(jobs.clone()).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!there(jobs.clone()).await);
        assert!(enter(&jobs, "a").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_that_does_not_come_is_an_error() {
        let jobs = jobs();
        let found = jobs.wait("x", Duration::from_secs(6), |_| Some(())).await;
        assert_eq!(found.unwrap_err().to_string(), "no such job x");
    }
}
