//! What was seen of one build, from its begin: any number of listeners read it from the begin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cooper_progress::{Event, Sink};
use tokio::sync::watch;

/// How often part of a vertex's work is shown to go on. What is in between is dropped: the next
/// one says more, and the end always comes.
const INTERVAL: Duration = Duration::from_millis(100);
/// How many events a listener gets at once at most.
const BATCH: usize = 1024;

/// Keeps the events of a build.
#[derive(Default)]
pub(crate) struct EventLog {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    events: Vec<Arc<Event>>,
    closed: bool,
    /// When a part of a vertex's work was shown last.
    shown: HashMap<(String, String), SystemTime>,
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All events so far.
    pub(crate) fn all(&self) -> Vec<Arc<Event>> {
        self.lock().events.clone()
    }

    /// Nothing more comes: listeners end when they have read all.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.shown = HashMap::new();
        drop(state);
        self.changed.send_replace(());
    }
}

impl State {
    /// Whether the event says more than the ones before.
    fn is_news(&mut self, event: &Event) -> bool {
        let Event::Status(status) = event else {
            return true;
        };
        let key = (status.vertex.to_string(), status.id.clone());
        if status.completed.is_some() {
            self.shown.remove(&key);
            return true;
        }
        if let Some(last) = self.shown.get(&key) {
            let since = status.timestamp.duration_since(*last);
            if since.is_ok_and(|since| since < INTERVAL) {
                return false;
            }
        }
        self.shown.insert(key, status.timestamp);
        true
    }
}

impl Sink for EventLog {
    fn emit(&self, event: Event) {
        let mut state = self.lock();
        if state.closed || !state.is_news(&event) {
            return;
        }
        state.events.push(Arc::new(event));
        drop(state);
        self.changed.send_replace(());
    }
}

/// Reads what is seen of a build, from its begin to its end.
pub struct Events {
    log: Arc<EventLog>,
    next: usize,
    changed: watch::Receiver<()>,
}

impl Events {
    pub(crate) fn new(log: Arc<EventLog>) -> Self {
        let changed = log.changed.subscribe();
        Self {
            log,
            next: 0,
            changed,
        }
    }

    /// What was seen since the last call, at least one event; `None` after the end.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Vec<Arc<Event>>> {
        loop {
            // Marked as seen before it is looked at: what comes later wakes us.
            self.changed.borrow_and_update();
            {
                let state = self.log.lock();
                let new = &state.events[self.next..];
                if !new.is_empty() {
                    let batch = new[..new.len().min(BATCH)].to_vec();
                    self.next += batch.len();
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            // The log holds the sender, and this holds the log.
            let _ = self.changed.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_progress::VertexProgress;

    fn progress(log: &Arc<EventLog>) -> VertexProgress {
        VertexProgress::new(VertexProgress::discard().digest().clone(), log.clone())
    }

    #[tokio::test]
    async fn every_listener_reads_from_the_begin_to_the_end() {
        let log = Arc::new(EventLog::default());
        let progress = progress(&log);
        let mut early = Events::new(log.clone());
        progress.log(1, "one".into());
        assert_eq!(early.next().await.unwrap().len(), 1);
        let waiting = tokio::spawn(async move { (early.next().await.unwrap().len(), early) });
        tokio::task::yield_now().await;
        progress.log(1, "two".into());
        let (count, mut early) = waiting.await.unwrap();
        assert_eq!(count, 1);
        log.close();
        progress.log(1, "too late".into());
        assert!(early.next().await.is_none());
        let mut late = Events::new(log);
        assert_eq!(late.next().await.unwrap().len(), 2);
        assert!(late.next().await.is_none());
    }

    #[tokio::test]
    async fn the_middle_of_a_transfer_is_thinned_out_and_its_end_is_not() {
        let log = Arc::new(EventLog::default());
        let status = progress(&log).status("id", "name");
        for current in 1..1000 {
            status.set(current, 1000);
        }
        status.finish(1000, 1000);
        log.close();
        let seen = Events::new(log).next().await.unwrap();
        let seen: Vec<i64> = seen
            .iter()
            .filter_map(|event| match &**event {
                Event::Status(status) => Some(status.current),
                _ => None,
            })
            .collect();
        assert!(seen.len() < 100, "{}", seen.len());
        assert_eq!((seen[0], seen.last()), (0, Some(&1000)));
    }
}
