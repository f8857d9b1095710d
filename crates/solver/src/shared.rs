//! What an operation and the solver share about a vertex: who needs it, and who listens.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cooper_progress::{Event, Sink, VertexStatus};

use crate::core::One;
use crate::explain::Operations;
use crate::{Domain, Explanation, Vertex};

pub(crate) type JobId = u64;

pub(crate) struct Shared<D: Domain> {
    pub(crate) vertex: Arc<Vertex<D>>,
    state: Mutex<State<D>>,
}

struct State<D: Domain> {
    members: One<Arc<Member<D>>>,
    /// Why it was carried out, when somebody asked.
    explanation: Option<Arc<Explanation>>,
    shown: Shown,
}

/// What users see of the vertex besides what it is.
#[derive(Clone, Default)]
struct Shown {
    cached: bool,
    started: Option<SystemTime>,
    completed: Option<SystemTime>,
    error: String,
}

/// How users of BuildKit see a vertex end that was given up.
const CANCELLED: &str = "context canceled";

impl Shown {
    fn is_at_work(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    fn event<D: Domain>(&self, vertex: &Vertex<D>) -> Event {
        let inputs = vertex.inputs.iter().map(|input| &input.vertex);
        let inputs = match vertex.inputs.len() {
            0 | 1 => inputs.cloned().collect(),
            count => {
                let mut seen = HashSet::with_capacity(count);
                inputs
                    .filter(|input| seen.insert(*input))
                    .cloned()
                    .collect()
            }
        };
        Event::Vertex(cooper_progress::Vertex {
            digest: vertex.digest.clone(),
            inputs,
            name: vertex.name.clone(),
            cached: self.cached,
            started: self.started,
            completed: self.completed,
            error: self.error.clone(),
            progress_group: vertex.options.progress_group.clone(),
        })
    }
}

/// A job: what operations may ask it for, and who listens.
pub(crate) struct Member<D: Domain> {
    pub(crate) id: JobId,
    pub(crate) job: Arc<D::Job>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) explained: Arc<Explained>,
}

/// What a job wants to know of why things are not cached, and what it was told.
#[derive(Default)]
pub(crate) struct Explained {
    pub(crate) wanted: AtomicBool,
    /// The operations of its graphs, and as of when: made when something is to be explained.
    operations: Mutex<(u64, Arc<Operations>)>,
    pub(crate) told: Mutex<Vec<Arc<Explanation>>>,
}

impl Explained {
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The operations of the job's graphs, made by `make` unless they are those of `now`.
    pub(crate) fn operations(
        &self,
        now: u64,
        make: impl FnOnce() -> Operations,
    ) -> Arc<Operations> {
        let operations = self.operations.lock();
        let mut operations = operations.unwrap_or_else(PoisonError::into_inner);
        if operations.0 != now {
            *operations = (now, Arc::new(make()));
        }
        operations.1.clone()
    }
}

impl<D: Domain> Shared<D> {
    pub(crate) fn new(vertex: Arc<Vertex<D>>) -> Self {
        Self {
            vertex,
            state: Mutex::new(State {
                members: One::new(),
                explanation: None,
                shown: Shown::default(),
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn jobs(&self) -> Vec<Arc<D::Job>> {
        let state = self.lock();
        state
            .members
            .iter()
            .map(|member| member.job.clone())
            .collect()
    }

    /// A job that comes later is told what the vertex is like now.
    pub(crate) fn join(&self, member: Arc<Member<D>>) {
        let mut state = self.lock();
        if state.members.iter().any(|known| known.id == member.id) {
            return;
        }
        member.sink.emit(state.shown.event(&self.vertex));
        state.members.push(member);
    }

    /// The jobs that want to know why it is not cached.
    pub(crate) fn who_asks(&self) -> Vec<(JobId, Arc<Explained>)> {
        let state = self.lock();
        let asking = state.members.iter().filter(|m| m.explained.is_wanted());
        asking.map(|m| (m.id, m.explained.clone())).collect()
    }

    pub(crate) fn explanation(&self) -> Option<Arc<Explanation>> {
        self.lock().explanation.clone()
    }

    /// Tells those who want to know.
    pub(crate) fn explain(&self, explanation: Explanation) {
        let explanation = Arc::new(explanation);
        let mut state = self.lock();
        state.explanation = Some(explanation.clone());
        let now = Some(SystemTime::now());
        for member in state.members.iter().filter(|m| m.explained.is_wanted()) {
            // Clients show a part of a vertex's work by its id.
            member.sink.emit(Event::Status(VertexStatus {
                id: explanation.to_string(),
                vertex: self.vertex.digest.clone(),
                name: String::new(),
                current: 0,
                total: 0,
                timestamp: SystemTime::now(),
                started: now,
                completed: now,
            }));
            let told = member.explained.told.lock();
            let mut told = told.unwrap_or_else(PoisonError::into_inner);
            told.push(explanation.clone());
        }
    }

    /// A job that goes while the vertex is at work sees it end.
    pub(crate) fn leave(&self, id: JobId) {
        let mut state = self.lock();
        let Some(place) = state.members.iter().position(|member| member.id == id) else {
            return;
        };
        let member = state.members.swap_remove(place);
        if state.shown.is_at_work() {
            let mut shown = state.shown.clone();
            shown.completed = Some(SystemTime::now());
            shown.error = CANCELLED.into();
            member.sink.emit(shown.event(&self.vertex));
        }
    }

    /// Nobody waits for it any more: who sees it at work sees it end.
    pub(crate) fn given_up(&self) {
        let at_work = self.lock().shown.is_at_work();
        if at_work {
            self.completed(Some(CANCELLED.to_owned()));
        }
    }

    /// It was found instead of made; unless it was shown as made before. Sources are shown when
    /// they are looked up, before it is known whether they are cached.
    pub(crate) fn cached(&self) {
        let made = {
            let state = self.lock();
            state.shown.cached || (state.shown.started.is_some() && !self.vertex.inputs.is_empty())
        };
        if !made {
            self.started(true);
            self.completed(None);
        }
    }

    pub(crate) fn started(&self, cached: bool) {
        self.show(|shown| {
            shown.started = Some(SystemTime::now());
            shown.completed = None;
            shown.cached = cached;
            shown.error.clear();
        });
    }

    pub(crate) fn completed(&self, error: Option<String>) {
        self.show(|shown| {
            let now = SystemTime::now();
            // The end is not before the begin although the clock was set back.
            shown.completed = Some(now.max(*shown.started.get_or_insert(now)));
            shown.error = error.unwrap_or_default();
        });
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        let mut state = self.lock();
        change(&mut state.shown);
        let Some((last, rest)) = state.members.split_last() else {
            return;
        };
        let event = state.shown.event(&self.vertex);
        for member in rest {
            member.sink.emit(event.clone());
        }
        last.sink.emit(event);
    }
}

/// Whatever an operation says goes to everybody who needs the vertex now.
impl<D: Domain> Sink for Shared<D> {
    fn emit(&self, event: Event) {
        let state = self.lock();
        for member in &state.members {
            member.sink.emit(event.clone());
        }
    }
}
