//! How tasks end.

use super::{Command, Content, Core, EdgeId, Exec, Outcome, Task, TaskId, VertexId};
use crate::keys::KeyId;

impl<O: Clone, E: Clone> Core<O, E> {
    /// A task ended. One that was aborted is ignored.
    pub(crate) fn done(&mut self, task: TaskId, outcome: Outcome<O, E>) -> Vec<Command<O, E>> {
        let Some(kind) = self.tasks.remove(&task) else {
            return Vec::new();
        };
        match (kind, outcome) {
            (Task::CacheMap(vertex), Outcome::CacheMap(mut map)) => {
                let state = self.vertex_mut(vertex);
                state.map_task = None;
                // Fewer than there are inputs: the rest is looked at as a whole.
                map.deps.resize(state.spec.inputs.len(), (None, false));
                state.maps.push(map);
                self.enqueue_vertex(vertex);
            }
            (Task::ContentKey(vertex, input), Outcome::ContentKey(digest)) => {
                let key = KeyId::root(&digest, -1);
                self.vertex_mut(vertex).content[input] = Content::Known(key);
                self.enqueue_vertex(vertex);
            }
            (Task::Load(edge, record), Outcome::Loaded(output)) => {
                self.edge_mut(edge).loading = None;
                match output {
                    Some(output) => {
                        self.show_cached(edge);
                        self.complete(edge, output);
                    }
                    None => {
                        self.keys.release(&record.id);
                        self.enqueue(edge);
                    }
                }
            }
            (Task::Execute(vertex), Outcome::Executed(outputs, draft)) => {
                self.vertex_mut(vertex).exec = Exec::Done(outputs);
                self.draft = draft.map(|draft| (vertex, draft));
                self.enqueue_vertex(vertex);
            }
            (Task::Load(edge, _), Outcome::Failed(error)) => {
                self.edge_mut(edge).loading = None;
                self.fail(edge, error);
            }
            (kind, Outcome::Failed(error)) => self.fail_vertex(kind, error),
            (..) => debug_assert!(false, "a task ends with what it was started for"),
        }
        let commands = self.settle();
        self.draft = None;
        commands
    }

    /// What was found in the cache, and what led to it and is in the cache too: users see all of
    /// it as cached, although only the last one was loaded, inputs before those who take them.
    fn show_cached(&mut self, edge: EdgeId) {
        let mut open = vec![edge];
        let mut seen = std::collections::HashSet::new();
        // Inputs are added before those who take them: their numbers are lower.
        let mut found = std::collections::BTreeSet::new();
        while let Some(id) = open.pop() {
            let id = self.find(id);
            if !seen.insert(id) {
                continue;
            }
            let state = self.edge(id);
            if id == edge || (state.result.is_none() && !state.records.is_empty()) {
                found.insert(state.vertex);
                open.extend(state.deps.iter().map(|dep| dep.edge));
            }
        }
        let shown = found.into_iter().map(|vertex| Command::Cached { vertex });
        self.commands.extend(shown);
    }

    fn fail_vertex(&mut self, kind: Task, error: E) {
        let vertex: VertexId = match kind {
            Task::CacheMap(vertex) => {
                self.vertex_mut(vertex).map_task = None;
                vertex
            }
            Task::ContentKey(vertex, input) => {
                self.vertex_mut(vertex).content[input] = Content::Unknown;
                vertex
            }
            Task::Execute(vertex) => {
                self.vertex_mut(vertex).exec = Exec::Idle;
                vertex
            }
            Task::Load(..) => return,
        };
        self.vertex_mut(vertex).error = Some(error);
        self.enqueue_vertex(vertex);
    }
}
