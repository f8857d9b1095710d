//! What is true after every step.

use super::{Command, Core};
#[cfg(test)]
use super::{Content, Exec, Task};

impl<O: Clone, E: Clone> Core<O, E> {
    /// Nobody waits for nothing. Were it otherwise, a build that never ends would be the worst
    /// way to hear of it.
    pub(super) fn release_stuck(&mut self) {
        if self.requests.is_empty() || !self.tasks.is_empty() {
            return;
        }
        let state = self.describe();
        debug_assert!(false, "somebody waits and nothing runs: {state}");
        for (request, (job, edge)) in std::mem::take(&mut self.requests) {
            self.unask(edge, request);
            if let Some(job) = self.jobs.get_mut(&job) {
                job.requests.remove(&request);
            }
            self.commands.push(Command::Reply {
                request,
                result: Err((self.errors.stuck)(state.clone())),
            });
        }
    }

    /// All that is known of each edge, for who looks for a mistake here.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        let mut edges: Vec<_> = self.edges.iter().collect();
        edges.sort_by_key(|(id, _)| *id);
        for (id, edge) in edges {
            let vertex = self.vertices.get(&edge.vertex);
            let deps: Vec<_> = edge.deps.iter().map(|dep| dep.edge).collect();
            let line = format!(
                "\nedge {id} of {}: wants {:?} asked {:?} reached {:?} at {:?} inputs {deps:?} \
                 ready {:?} keys {:?} records {} loading {:?} follows {:?} result {} error {} \
                 doomed {:?} needed {} contents {} {:?} maps {} requests {:?}",
                edge.vertex,
                edge.want,
                edge.asked,
                edge.reached,
                edge.stage,
                edge.ready,
                edge.ids,
                edge.records.len(),
                edge.loading,
                edge.follows,
                edge.result.is_some(),
                edge.error.is_some(),
                edge.doomed,
                edge.needed,
                edge.contents,
                vertex.map(|vertex| &vertex.content),
                vertex.map_or(0, |vertex| vertex.maps.len()),
                edge.rare.get().requests,
            );
            text.push_str(&line);
        }
        text
    }

    /// Asserts that everything that refers to something refers to something that is there, and
    /// that what is counted is so many. Looks at everything: for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.queue.is_empty());
        let mut failures = 0;
        for (id, vertex) in self.vertices.iter() {
            assert!(!vertex.jobs.is_empty(), "somebody needs each vertex");
            let names = match vertex.spec.ignore_cache {
                true => &self.by_name_anew,
                false => &self.by_name,
            };
            assert_eq!(names.get(&vertex.spec.name), Some(&id));
            let live_as_long = |other: &u64| {
                let jobs = &self.vertices[other].jobs;
                vertex.jobs.iter().all(|job| jobs.contains(job))
            };
            for (input, _) in &vertex.spec.inputs {
                assert!(live_as_long(input), "inputs live as long");
            }
            for job in &vertex.jobs {
                assert!(
                    self.jobs[job].vertices.contains(&id),
                    "jobs know what they need"
                );
            }
            for (index, edge) in &vertex.edges {
                let edge = &self.edges[edge];
                assert_eq!((edge.vertex, edge.index), (id, *index));
                if let Some(other) = &edge.follows {
                    let vertex = &self.edges[other].vertex;
                    assert!(live_as_long(vertex), "what is followed lives as long");
                }
            }
            let mut tasks: Vec<_> = vertex.map_task.iter().collect();
            tasks.extend(vertex.content.iter().filter_map(|content| match content {
                Content::Running(task) => Some(task),
                _ => None,
            }));
            if let Exec::Running(task) = &vertex.exec {
                tasks.push(task);
            }
            for task in tasks {
                assert!(self.tasks.contains_key(task), "what runs is known");
            }
            for cache in &vertex.caches {
                assert!(self.caches.contains_key(cache), "caches live as long");
            }
            failures += usize::from(vertex.error.is_some());
        }
        if self.requests.is_empty() {
            assert!(self.tasks.is_empty(), "nobody waits, and nothing runs");
        }
        for (id, task) in &self.tasks {
            let there = match task {
                Task::CacheMap(vertex) | Task::ContentKey(vertex, _) | Task::Execute(vertex) => {
                    self.vertices.contains_key(vertex)
                }
                Task::Load(edge, _) => self.edges[edge].loading == Some(*id),
                Task::Open(cache) => self.caches[cache].task == Some(*id),
            };
            assert!(there, "task {id} is for nobody");
        }
        for edge in self.edges.values() {
            self.check_edge(edge);
            failures += usize::from(edge.error.is_some());
        }
        assert_eq!(failures, self.failures);
        let held: usize = self
            .known
            .values()
            .map(|known| known.holders as usize)
            .sum();
        let ids: usize = self.edges.values().map(|edge| edge.ids.len()).sum();
        assert_eq!(held, ids, "keys are held by those who have them");
        let links: usize = self.known.values().map(|known| known.links.len()).sum();
        let pending: usize = self.pending.values().map(|targets| targets.len()).sum();
        assert_eq!(links, pending);
        for (request, (job, edge)) in &self.requests {
            assert!(self.edges[edge].rare.get().requests.contains(request));
            assert!(self.jobs[job].requests.contains(request));
            let edge = &self.edges[edge];
            let open = edge.result.is_none() && edge.error.is_none();
            assert!(open, "an answered request is closed");
        }
    }

    #[cfg(test)]
    fn check_edge(&self, edge: &super::EdgeState<O, E>) {
        assert!(!edge.queued);
        for (level, ready) in super::LEVELS.iter().zip(edge.ready) {
            let reached = edge.deps.iter().filter(|dep| dep.is(*level)).count();
            assert_eq!(reached, ready as usize);
        }
        for dep in &edge.deps {
            let input = &self.edges[&dep.edge];
            let now = (input.reached, input.result.is_some());
            assert_eq!((dep.seen, dep.complete), now, "news are told");
        }
        let needed = edge
            .deps
            .iter()
            .filter(|dep| dep.needed && !dep.content_seen);
        if edge.changed.is_empty() && edge.result.is_none() {
            assert_eq!(needed.count(), edge.needed as usize);
        }
        for key in &edge.ids {
            assert!(self.known.contains_key(&key.id));
        }
    }

    /// Whether nothing is left.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.vertices.is_empty()
            && self.by_name.is_empty()
            && self.by_name_anew.is_empty()
            && self.edges.is_empty()
            && self.known.is_empty()
            && self.pending.is_empty()
            && self.caches.is_empty()
            && self.made.is_empty()
            && self.tasks.is_empty()
            && self.jobs.is_empty()
            && self.requests.is_empty()
            && self.failures == 0
    }
}
