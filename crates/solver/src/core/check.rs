//! What is true after every step.

use super::{Content, Core, Exec, Task, Want};

impl<O: Clone, E: Clone> Core<O, E> {
    /// Asserts, in builds with debug assertions, that everything that refers to something
    /// refers to something that is there, and that nothing waits for nothing.
    pub(super) fn check(&self) {
        if !cfg!(debug_assertions) || self.edges.len() > 300 {
            return;
        }
        assert!(self.queue.is_empty() && self.queued.is_empty());
        for (id, vertex) in &self.vertices {
            assert!(!vertex.jobs.is_empty(), "somebody needs each vertex");
            assert_eq!(self.by_digest.get(&vertex.spec.name()), Some(id));
            for (input, _) in &vertex.spec.inputs {
                let input = &self.vertices[input];
                assert!(vertex.jobs.is_subset(&input.jobs), "inputs live as long");
            }
            for edge in vertex.edges.values() {
                let target = &self.edges[&self.find(*edge)];
                let jobs = &self.vertices[&target.vertex].jobs;
                assert!(vertex.jobs.is_subset(jobs), "merged edges live as long");
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
        }
        for (id, task) in &self.tasks {
            match task {
                Task::CacheMap(vertex) | Task::ContentKey(vertex, _) | Task::Execute(vertex) => {
                    assert!(
                        self.vertices.contains_key(vertex),
                        "task {id} is for nobody"
                    );
                }
                Task::Load(edge, _) => assert!(self.edges.contains_key(edge)),
            }
        }
        for (id, edge) in &self.edges {
            if let Some(target) = self.merged.get(id) {
                assert!(self.edges.contains_key(target), "merged into something");
                assert!(edge.requests.is_empty() && edge.dependents.is_empty());
            }
            assert!(edge.result.is_none() || edge.reached == Want::Complete);
        }
        for edge in self.by_key.values() {
            assert!(
                self.edges.contains_key(edge),
                "a key is of an edge that is there"
            );
        }
        for (request, (_, edge)) in &self.requests {
            assert!(self.edges[edge].requests.contains(request));
            let edge = &self.edges[edge];
            let open = edge.result.is_none() && edge.error.is_none();
            assert!(open, "an answered request is closed");
        }
        assert!(
            self.requests.is_empty() || !self.tasks.is_empty(),
            "somebody waits and nothing runs: {}",
            self.describe()
        );
    }

    /// All that is known of each edge, for who looks for a mistake here.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for (id, edge) in &self.edges {
            let vertex = self.vertices.get(&edge.vertex);
            let deps: Vec<_> = edge.deps.iter().map(|dep| self.find(dep.edge)).collect();
            let line = format!(
                "\nedge {id} of {}: now {} wants {:?} reached {:?} inputs {deps:?} keys {:?} \
                 records {} loading {:?} result {} error {} content {:?} maps {} idle {} requests {:?}",
                edge.vertex,
                self.find(*id),
                edge.want,
                edge.reached,
                edge.ids,
                edge.records.len(),
                edge.loading,
                edge.result.is_some(),
                edge.error.is_some(),
                vertex.map(|vertex| &vertex.content),
                vertex.map_or(0, |vertex| vertex.maps.len()),
                vertex.is_some_and(|vertex| matches!(vertex.exec, Exec::Idle)),
                edge.requests,
            );
            text.push_str(&line);
        }
        text
    }

    /// Whether nothing is left.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.vertices.is_empty()
            && self.by_digest.is_empty()
            && self.edges.is_empty()
            && self.merged.is_empty()
            && self.by_key.is_empty()
            && self.pending.is_empty()
            && self.pending_of.is_empty()
            && self.tasks.is_empty()
            && self.requests.is_empty()
    }
}
