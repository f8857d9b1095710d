//! The builds by id: who may listen to them, who may build through them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use cooper_ops::Build as Domain;
use cooper_solver::{Explanation, Solver};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::events::EventLog;
use crate::{EngineError, ExporterRequest, Gateway};

/// How long a build can be listened to after its end (BuildKit's value): its own client may ask
/// late.
const KEPT: Duration = Duration::from_secs(10);
/// How many news of builds wait for a listener before it misses some.
const NEWS: usize = 64;

/// What is known of a build.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// Its id.
    pub id: String,
    /// The frontend that was asked for; empty when the client builds by itself.
    pub frontend: String,
    /// The frontend's options.
    pub frontend_attrs: BTreeMap<String, String>,
    /// What is done with the result.
    pub exporters: Vec<ExporterRequest>,
    /// When it began.
    pub created_at: SystemTime,
    /// When it ended.
    pub completed_at: Option<SystemTime>,
    /// What its client was told at the end.
    pub exporter_response: BTreeMap<String, String>,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// Why steps were not found in the cache, if its client asked; known when it has ended.
    pub explanations: Vec<Arc<Explanation>>,
}

/// A build began or ended.
#[derive(Clone, Debug)]
pub enum BuildEvent {
    /// It began.
    Started(BuildInfo),
    /// It ended.
    Completed(BuildInfo),
}

/// News of builds as they come.
pub struct BuildEvents {
    news: broadcast::Receiver<BuildEvent>,
}

impl BuildEvents {
    /// The next one; `None` when the engine is gone. A listener that is too slow misses some.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<BuildEvent> {
        loop {
            match self.news.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// The builds by id.
pub(crate) struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Mutex<HashMap<String, Entry>>,
    arrivals: watch::Sender<()>,
    ended: mpsc::UnboundedSender<Ended>,
    news: broadcast::Sender<BuildEvent>,
}

pub(crate) struct Entry {
    pub(crate) log: Arc<EventLog>,
    /// As long as its client may build through it.
    pub(crate) gateway: Option<Arc<Gateway>>,
    /// Of builds that run and are not internal.
    info: Option<BuildInfo>,
}

struct Ended {
    id: String,
    log: Arc<EventLog>,
    solver: Solver<Domain>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// No builds. Starts the task that closes and forgets those that ended; it ends with this.
    pub(crate) fn new() -> Self {
        let (ended, mailbox) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            entries: Mutex::default(),
            arrivals: watch::Sender::default(),
            ended,
            news: broadcast::Sender::new(NEWS),
        });
        tokio::spawn(tidy(mailbox, Arc::downgrade(&inner)));
        Self { inner }
    }

    /// Enters a build until the guard goes.
    pub(crate) fn enter(
        &self,
        info: BuildInfo,
        internal: bool,
        log: Arc<EventLog>,
        gateway: Option<Arc<Gateway>>,
        solver: Solver<Domain>,
    ) -> Result<Entered, EngineError> {
        let mut entries = self.inner.lock();
        if entries.contains_key(&info.id) {
            return Err(EngineError::JobExists { id: info.id });
        }
        let entry = Entry {
            log: log.clone(),
            gateway,
            info: (!internal).then(|| info.clone()),
        };
        entries.insert(info.id.clone(), entry);
        drop(entries);
        if !internal {
            // Nobody has to listen.
            let _ = self.inner.news.send(BuildEvent::Started(info.clone()));
        }
        self.inner.arrivals.send_replace(());
        Ok(Entered {
            inner: self.inner.clone(),
            info,
            internal,
            log,
            solver,
        })
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

    /// The builds that run now, and the news from now on.
    pub(crate) fn listen(&self) -> (Vec<BuildInfo>, BuildEvents) {
        let entries = self.inner.lock();
        let news = self.inner.news.subscribe();
        let mut running: Vec<_> = entries
            .values()
            .filter_map(|entry| entry.info.clone())
            .collect();
        running.sort_by_key(|info| info.created_at);
        (running, BuildEvents { news })
    }
}

/// A build that runs. Dropping it ends the build for all who listen.
pub(crate) struct Entered {
    inner: Arc<Inner>,
    pub(crate) info: BuildInfo,
    internal: bool,
    log: Arc<EventLog>,
    solver: Solver<Domain>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.info.completed_at = Some(SystemTime::now());
        let left = {
            let mut entries = self.inner.lock();
            entries.get_mut(&self.info.id).map(|entry| {
                entry.info = None;
                entry.gateway.take()
            })
        };
        // Outside of the lock: it may hold the last handles on results.
        drop(left);
        if !self.internal {
            let event = BuildEvent::Completed(self.info.clone());
            let _ = self.inner.news.send(event);
        }
        let _ = self.inner.ended.send(Ended {
            id: self.info.id.clone(),
            log: self.log.clone(),
            solver: self.solver.clone(),
        });
    }
}

/// Closes the logs of builds that ended when the solver has said its last word about them, and
/// forgets them a while later.
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
                let Some(Ended { id, log, solver }) = ended else { return };
                // The answer comes after everything that the solver had to tell before.
                solver.load().await;
                log.close();
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
    use cooper_solver::SolverConfig;

    fn info(id: &str) -> BuildInfo {
        BuildInfo {
            id: id.into(),
            frontend: String::new(),
            frontend_attrs: BTreeMap::new(),
            exporters: Vec::new(),
            created_at: SystemTime::now(),
            completed_at: None,
            exporter_response: BTreeMap::new(),
            error: String::new(),
            explanations: Vec::new(),
        }
    }

    fn enter(jobs: &Jobs, id: &str) -> Result<Entered, EngineError> {
        let solver = Solver::new(SolverConfig::in_memory());
        jobs.enter(info(id), false, Arc::default(), None, solver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_is_waited_for_and_kept_for_a_while() {
        let jobs = Arc::new(Jobs::new());
        let (running, mut news) = jobs.listen();
        assert!(running.is_empty());
        let waiting = {
            let jobs = jobs.clone();
            let log = |entry: &Entry| Some(entry.log.clone());
            tokio::spawn(async move { jobs.wait("a", Duration::from_secs(6), log).await })
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        let entered = enter(&jobs, "a").unwrap();
        assert!(waiting.await.unwrap().is_ok());
        assert!(matches!(news.next().await, Some(BuildEvent::Started(info)) if info.id == "a"));
        assert_eq!(jobs.listen().0.len(), 1);
        let again = enter(&jobs, "a").err().unwrap();
        assert_eq!(again.to_string(), "job ID a exists");

        drop(entered);
        assert!(matches!(news.next().await, Some(BuildEvent::Completed(_))));
        assert!(jobs.listen().0.is_empty());
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
        let jobs = Jobs::new();
        let found = jobs.wait("x", Duration::from_secs(6), |_| Some(())).await;
        assert_eq!(found.unwrap_err().to_string(), "no such job x");
    }
}
