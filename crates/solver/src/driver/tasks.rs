//! What is begun for the core, and how it ended.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinError;

use super::{Driver, Ended, Entry, MAPS, MAPS_AT_ONCE, Running, STARTING};
use crate::core::{CacheId, Outcome, TaskId, VertexId, Work};
use crate::explain::{Miss, MissInput};
use crate::once::{Once, once};
use crate::runner::{Runner, describe, failure};
use crate::starting::Begun;
use crate::{CacheSource, Domain, OpContext, OpError};

impl<D: Domain> Driver<D> {
    /// Whether there are maps to begin, and few enough are waited for.
    pub(super) fn has_maps(&self) -> bool {
        self.mapping < MAPS && !self.unmapped.is_empty()
    }

    /// Begins maps that wait. Those of vertices with inputs mostly follow from what is here and
    /// are there at once; a graph asks for all of them at the same time, so others are heard in
    /// between.
    pub(super) fn begin_maps(&mut self) {
        for _ in 0..MAPS_AT_ONCE {
            if self.mapping == MAPS {
                break;
            }
            let Some((task, vertex, index)) = self.unmapped.pop_front() else {
                self.unmapped = VecDeque::new();
                break;
            };
            if self.core.runs(task) {
                self.begin_map(task, vertex, index);
            }
        }
    }

    fn begin_map(&mut self, task: TaskId, vertex: VertexId, index: usize) {
        let Some(entry) = self.vertices.get(&vertex) else {
            return;
        };
        let map = self.runner(entry, None, None).run_map(index);
        let ended = match once(map) {
            Once::Ended(ended) => Some(ended),
            Once::Panicked => None,
            Once::Waits(waits) => {
                let handle = self.tasks.spawn(async move { (task, None, waits.await) });
                let running = Running {
                    handle,
                    vertex: Some(vertex),
                    maps: true,
                };
                self.mapping += 1;
                self.running.insert(task, running);
                return;
            }
        };
        self.finish(task, Some(vertex), ended);
    }

    /// Begins tasks that wait: a graph may have as many that can be carried out as it has
    /// vertices, and a task takes more memory than a vertex. What has come to wait for something
    /// keeps nobody waiting; maps of sources wait for nobody: they look far away.
    pub(super) fn begin_waiting(&mut self) {
        while self.starting.count() < STARTING
            && let Some((task, vertex, work)) = self.unstarted.pop_front()
        {
            if self.core.runs(task) {
                self.start(task, vertex, work);
            }
        }
        if self.unstarted.is_empty() {
            self.unstarted = VecDeque::new();
        }
    }

    pub(super) fn start(&mut self, task: TaskId, vertex: VertexId, work: Work<D::Output>) {
        let Some(entry) = self.vertices.get(&vertex) else {
            return;
        };
        let miss = match work {
            Work::Execute { .. } => self.miss(vertex, entry),
            _ => None,
        };
        let cache = match &work {
            Work::Load { cache, .. } => cache.and_then(|cache| self.caches.get(&cache).cloned()),
            _ => None,
        };
        let starting = self
            .starting
            .watch(self.runner(entry, cache, miss).run(work));
        let handle = self.tasks.spawn(async move {
            let (begun, ended) = starting.await;
            (task, begun, ended)
        });
        let running = Running {
            handle,
            vertex: Some(vertex),
            maps: false,
        };
        self.running.insert(task, running);
    }

    fn runner(
        &self,
        entry: &Entry<D>,
        cache: Option<Arc<dyn CacheSource<D>>>,
        miss: Option<Box<Miss>>,
    ) -> Runner<D> {
        Runner {
            cx: OpContext::new(entry.shared.clone()),
            map: entry.map.clone(),
            results: self.results.clone(),
            cache,
            journal: self.journal.clone(),
            miss,
        }
    }

    /// What is to be explained of a vertex that has to be carried out, if somebody asks.
    fn miss(&self, vertex: VertexId, entry: &Entry<D>) -> Option<Box<Miss>> {
        self.journal.as_ref()?;
        let asking = entry.shared.who_asks();
        if asking.is_empty() {
            return None;
        }
        let description = entry.shared.vertex.describe()?;
        if description.volatile {
            return None;
        }
        let inputs = self.core.inputs(vertex).into_iter().map(|input| {
            let entry = self.vertices.get(&input.vertex);
            let map = entry.and_then(|entry| entry.map.as_ref());
            let shared = entry.map(|entry| &entry.shared);
            MissInput {
                name: shared.map_or_else(String::new, |shared| shared.vertex.name.clone()),
                digest: map.map(|map| map.digest.clone()),
                description: shared.and_then(|shared| shared.vertex.describe()),
                keys: input.keys,
                counts: input.counts,
                content: input.content,
                files: None,
                explanation: shared.and_then(|shared| shared.explanation()),
            }
        });
        let shared = &entry.shared.vertex;
        Some(Box::new(Miss {
            vertex: shared.digest.clone(),
            name: shared.name.clone(),
            digest: entry.map.as_ref()?.digest.clone(),
            description,
            anew: shared.options.ignore_cache,
            inputs: inputs.collect(),
            builds: asking
                .iter()
                .map(|(job, asks)| asks.operations(self.maps, || self.core.operations(*job)))
                .collect(),
        }))
    }

    pub(super) fn open(&mut self, task: TaskId, cache: CacheId) {
        let Some(cache) = self.caches.get(&cache).cloned() else {
            return;
        };
        let handle = self.tasks.spawn(async move {
            let keys = cache.open().await;
            let keys = keys.inspect_err(|error| {
                let error = describe(error);
                tracing::warn!(cache = cache.name(), error, "a cache is not used");
            });
            (task, None, (Outcome::Opened(keys.ok()), None))
        });
        let running = Running {
            handle,
            vertex: None,
            maps: false,
        };
        self.running.insert(task, running);
    }

    pub(super) fn ended(&mut self, ended: Result<(TaskId, Option<Begun>, Ended<D>), JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, _, outcome)) => (task, Some(outcome)),
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                // One that panicked does not say which it is.
                let mut running = self.running.iter();
                let running = running.find(|(_, running)| running.handle.id() == error.id());
                let Some((task, _)) = running else {
                    return; // Aborted.
                };
                (*task, None)
            }
        };
        let Some(Running { vertex, maps, .. }) = self.running.remove(&task) else {
            return; // Aborted.
        };
        self.mapping -= usize::from(maps);
        self.finish(task, vertex, outcome);
    }

    /// `ended`: `None` when it panicked.
    fn finish(&mut self, task: TaskId, vertex: Option<VertexId>, ended: Option<Ended<D>>) {
        let entry = vertex.and_then(|vertex| self.vertices.get_mut(&vertex));
        let (outcome, map) = match (ended, &entry) {
            (Some(ended), _) => ended,
            (None, Some(entry)) => {
                let error: OpError = "the operation panicked, see the daemon's log".into();
                entry.shared.completed(Some(error.to_string()));
                (Outcome::Failed(failure(&entry.shared, error)), None)
            }
            (None, None) => (Outcome::Opened(None), None),
        };
        let journal = self.journal.is_some();
        let made = matches!(outcome, Outcome::Executed(..));
        let made = entry.and_then(|entry| {
            self.maps += u64::from(map.is_some());
            // The first one says how content is looked at.
            let needed = map.filter(|map| {
                let mut deps = map.deps.iter();
                journal || deps.any(|dep| dep.content.is_some())
            });
            entry.map = entry.map.take().or(needed);
            made.then(|| entry.shared.clone())
        });
        let commands = self.core.done(task, outcome);
        // Whoever is told that it is done finds it in the cache, also when this process dies now:
        // the result is kept, and the store was given its keys.
        if let Some(made) = made {
            made.completed(None);
        }
        self.carry_out(commands);
    }
}
