//! How tasks end.

use super::{Content, Core, Exec, Outcome, Stage, Task, TaskId};
use crate::keys::KeyId;

impl<O: Clone, E: Clone> Core<O, E> {
    /// Whether the task is still needed.
    pub(crate) fn runs(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    /// A task ended. One that was aborted is ignored.
    pub(crate) fn done(
        &mut self,
        task: TaskId,
        outcome: Outcome<O, E>,
    ) -> Vec<super::Command<O, E>> {
        let Some(kind) = self.tasks.remove(&task) else {
            return Vec::new();
        };
        match (kind, outcome) {
            (Task::CacheMap(vertex), Outcome::CacheMap(map)) => {
                let state = self.vertex_mut(vertex);
                state.map_task = None;
                state.maps.push(map);
                self.enqueue_vertex(vertex);
            }
            (Task::ContentKey(vertex, input), Outcome::ContentKey(digest)) => {
                let key = KeyId::root(&digest, -1);
                self.keys.is_root_of(&key, &digest, -1);
                self.vertex_mut(vertex)
                    .set_content(input, Content::Known(key));
                let place = u32::try_from(input).unwrap_or(u32::MAX);
                for edge in 0..self.vertex(vertex).edges.len() {
                    let (_, edge) = self.vertex(vertex).edges[edge];
                    let edge = self.edge_mut(edge);
                    if edge.stage >= Stage::Slow && edge.result.is_none() {
                        edge.changed.push(place);
                    }
                }
                self.enqueue_vertex(vertex);
            }
            (Task::Load(edge, record), Outcome::Loaded(output)) => {
                self.loaded(edge, *record, output);
            }
            (Task::Execute(vertex), Outcome::Executed(outputs, draft)) => {
                self.vertex_mut(vertex).exec = Exec::Done(outputs);
                self.draft = draft.map(|draft| (vertex, draft));
                self.enqueue_vertex(vertex);
            }
            (Task::Open(cache), Outcome::Opened(keys)) => self.opened(cache, keys),
            // A cache that cannot be opened has nothing.
            (Task::Open(cache), Outcome::Failed(_)) => self.opened(cache, None),
            // A result that cannot be loaded is as good as none, but may be there another time.
            (Task::Load(edge, _), Outcome::Failed(_)) => {
                self.edge_mut(edge).loading = None;
                self.enqueue(edge);
            }
            (Task::CacheMap(vertex), Outcome::Failed(error)) => {
                self.vertex_mut(vertex).map_task = None;
                self.fail_vertex(vertex, error);
            }
            (Task::ContentKey(vertex, input), Outcome::Failed(error)) => {
                self.vertex_mut(vertex).set_content(input, Content::Unknown);
                self.fail_vertex(vertex, error);
            }
            (Task::Execute(vertex), Outcome::Failed(error)) => {
                self.vertex_mut(vertex).exec = Exec::Idle;
                self.fail_vertex(vertex, error);
            }
            (kind, _) => {
                debug_assert!(false, "a task ends with what it was started for");
                self.tasks.insert(task, kind);
            }
        }
        let commands = self.settle();
        self.draft = None;
        commands
    }
}
