//! Keys from the content of inputs, and when they are worth having.

use super::{Content, Core, EdgeId, Stage, Task, Want, Work};

impl<O: Clone, E: Clone> Core<O, E> {
    /// All maps are known: sees whether what is known of the inputs leads anywhere.
    pub(super) fn begin_slow(&mut self, id: EdgeId) {
        let edge = self.edge(id);
        let vertex = self.vertex(edge.vertex);
        let open = (0..edge.deps.len()).filter(|place| {
            let known = matches!(vertex.content(*place), Content::Known(_));
            vertex.maps[0].by_content(*place) && !known
        });
        let contents = u32::try_from(open.count()).unwrap_or(u32::MAX);
        let count = u32::try_from(edge.deps.len()).unwrap_or(u32::MAX);
        let edge = self.edge_mut(id);
        edge.contents = contents;
        edge.changed = (0..count).collect();
        for place in 0..count as usize {
            let edge = self.edge(id);
            let known = matches!(self.vertex(edge.vertex).content(place), Content::Known(_));
            self.edge_mut(id).deps[place].content_seen = known;
        }
        self.look_at_changed(id);
    }

    /// Looks at the inputs that got further.
    pub(super) fn look_at_changed(&mut self, id: EdgeId) {
        let mut changed = std::mem::take(&mut self.edge_mut(id).changed);
        for place in changed.drain(..) {
            self.look_at(id, place as usize);
        }
        // Nothing was added meanwhile: the room is used again.
        self.edge_mut(id).changed = changed;
    }

    fn look_at(&mut self, id: EdgeId, place: usize) {
        let edge = self.edge(id);
        let vertex = self.vertex(edge.vertex);
        let by_content = vertex.maps[0].by_content(place);
        let known = matches!(vertex.content(place), Content::Known(_));
        let dep = &edge.deps[place];
        if known && !dep.content_seen {
            let edge = self.edge_mut(id);
            edge.deps[place].content_seen = true;
            if by_content {
                edge.contents -= 1;
                edge.needed -= u32::from(edge.deps[place].needed);
            }
        }
        let edge = self.edge(id);
        let (stage, dep) = (edge.stage, &edge.deps[place]);
        if dep.seen < Want::Slow {
            return self.look_at_content(id, place);
        }
        if !dep.nowhere {
            if stage > Stage::Slow {
                return self.look_at_content(id, place);
            }
            let nowhere = !self.leads_anywhere(id, place, false);
            self.edge_mut(id).deps[place].nowhere = nowhere;
            if !nowhere {
                return self.look_at_content(id, place);
            }
        }
        if !by_content || (known && !self.leads_anywhere(id, place, true)) {
            self.edge_mut(id).hopeless = true;
        } else if !known {
            // Nothing but its content can lead to a result: it is not made to wait for the
            // other inputs, so that independent branches are built at the same time.
            let edge = self.edge_mut(id);
            if !std::mem::replace(&mut edge.deps[place].needed, true) {
                edge.needed += 1;
            }
            self.ask_content(id, place);
        }
        self.look_at_content(id, place);
    }

    /// Computes the key of content that was asked for, once the input is there.
    fn look_at_content(&mut self, id: EdgeId, place: usize) {
        let edge = self.edge(id);
        let (vertex, dep) = (edge.vertex, &edge.deps[place]);
        let unknown = *self.vertex(vertex).content(place) == Content::Unknown;
        if !dep.content_asked || !unknown || self.vertex(vertex).error.is_some() {
            return;
        }
        if let Some(output) = self.edge(dep.edge).result.clone() {
            let work = Work::ContentKey {
                input: place,
                output,
            };
            let task = self.start(vertex, Task::ContentKey(vertex, place), work);
            self.vertex_mut(vertex)
                .set_content(place, Content::Running(task));
        }
    }

    fn ask_content(&mut self, id: EdgeId, place: usize) {
        let edge = self.edge_mut(id);
        if std::mem::replace(&mut edge.deps[place].content_asked, true) {
            return;
        }
        let (dep, complete) = (edge.deps[place].edge, edge.deps[place].complete);
        self.want(dep, Want::Complete);
        if !complete && self.edge(dep).error.is_some() {
            self.edge_mut(id).doomed = u32::try_from(place).ok();
        }
        self.look_at_content(id, place);
    }

    /// Whether the keys from content are known: those that are needed before all others, or
    /// all. Those that are not are asked for.
    pub(super) fn contents_known(&mut self, id: EdgeId, needed: bool) -> bool {
        let edge = self.edge(id);
        let open = if needed { edge.needed } else { edge.contents };
        if open == 0 {
            return true;
        }
        if let Some(error) = self.vertex(edge.vertex).error.clone() {
            self.fail(id, error);
            return false;
        }
        if !needed && !self.edge(id).contents_asked {
            self.edge_mut(id).contents_asked = true;
            for place in 0..self.edge(id).deps.len() {
                let vertex = self.vertex(self.edge(id).vertex);
                if vertex.maps[0].by_content(place) {
                    self.ask_content(id, place);
                }
            }
        }
        false
    }
}
