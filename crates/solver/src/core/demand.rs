//! What nobody needs any more is given up, also while its job goes on: when a request is not
//! waited for any more, when one of several inputs has failed, and when the one job of several
//! that asked for a vertex has ended.
//!
//! Who is asked knows only the most that was ever asked of it. So when somebody may need less
//! than before, what is needed is found anew from the requests that are open, and edges of which
//! less is needed take back what they asked. They keep all that they found.

use super::{ByNumber, Command, Content, Core, EdgeId, Exec, Stage, Task, TaskId, VertexId, Want};

/// How much of an edge is needed.
#[derive(Clone, Copy)]
struct Need {
    want: Want,
    keys: Want,
}

const NOTHING: Need = Need {
    want: Want::Nothing,
    keys: Want::Nothing,
};

/// Edges that are needed, and those of them whose needs are to be looked at.
#[derive(Default)]
struct Needed {
    edges: ByNumber<Need>,
    open: Vec<EdgeId>,
}

impl Needed {
    fn raise(&mut self, id: EdgeId, want: Want, keys: Want) {
        let need = self.edges.entry(id).or_insert(NOTHING);
        if want > need.want || keys > need.keys {
            need.want = need.want.max(want);
            need.keys = need.keys.max(keys);
            self.open.push(id);
        }
    }
}

impl<O: Clone, E: Clone> Core<O, E> {
    /// Gives up what is not needed any more, if something may have become so.
    pub(super) fn give_up_unneeded(&mut self) {
        if !std::mem::take(&mut self.released) || self.tasks.is_empty() {
            return;
        }
        let mut needed = Needed::default();
        for (_, edge) in self.requests.values() {
            needed.raise(*edge, Want::Complete, Want::Nothing);
        }
        while let Some(id) = needed.open.pop() {
            self.raise_inputs(id, &mut needed);
        }
        let less: Vec<_> = self
            .edges
            .iter()
            .filter_map(|(id, edge)| {
                let need = needed.edges.get(&id).copied().unwrap_or(NOTHING);
                let less = need.want < edge.want || need.keys < edge.keys_wanted;
                // One that failed needs nothing of its inputs until it is forgiven.
                (less || edge.error.is_some()).then_some((id, need))
            })
            .collect();
        for (id, need) in less {
            self.lower(id, need);
        }
        let mut unneeded: Vec<TaskId> = Vec::new();
        for (id, task) in &self.tasks {
            if !self.is_needed(task) {
                unneeded.push(*id);
            }
        }
        unneeded.sort_unstable();
        for task in unneeded {
            self.give_up_task(task);
        }
    }

    /// What an edge needs of its inputs, of all that it asked them for.
    fn raise_inputs(&self, id: EdgeId, needed: &mut Needed) {
        let need = needed.edges[&id];
        let edge = self.edge(id);
        if edge.error.is_some() {
            return;
        }
        let want = match edge.result {
            Some(_) => need.keys,
            None => need.want,
        };
        if let Some(other) = edge.follows
            && want == Want::Complete
        {
            needed.raise(other, Want::Complete, Want::Nothing);
        }
        let asked = edge.asked.min(want);
        for (place, dep) in edge.deps.iter().enumerate() {
            if asked > Want::Nothing {
                needed.raise(dep.edge, asked, asked.min(Want::Slow));
            }
            if dep.content_asked && want >= Want::Slow && self.is_open(id, place) {
                needed.raise(dep.edge, Want::Complete, Want::Nothing);
            }
        }
    }

    /// Whether the key of an input's content is still to be computed for the edge.
    fn is_open(&self, id: EdgeId, place: usize) -> bool {
        let edge = self.edge(id);
        let content = self.vertex(edge.vertex).content(place);
        edge.result.is_none() && !matches!(content, Content::Known(_))
    }

    /// Less is needed of the edge: it asks again for what it still needs.
    fn lower(&mut self, id: EdgeId, need: Need) {
        for place in 0..self.edge(id).deps.len() {
            let open = self.is_open(id, place);
            let edge = self.edge_mut(id);
            if std::mem::take(&mut edge.deps[place].content_asked) && open {
                edge.changed.extend(u32::try_from(place));
            }
        }
        let edge = self.edge_mut(id);
        (edge.want, edge.keys_wanted) = (need.want, need.keys);
        (edge.asked, edge.caches_asked) = (Want::Nothing, 0);
        (edge.contents_asked, edge.doomed) = (false, None);
        if need.want < Want::Complete {
            edge.follows = None;
            // It may have given up looking for keys that are all that is needed of it now.
            if edge.stage == Stage::Last && edge.reached < Want::Slow {
                edge.stage = Stage::Slow;
            }
        }
        self.enqueue(id);
    }

    /// Whether an edge that wants something of it waits for the task.
    fn is_needed(&self, task: &Task) -> bool {
        let some = |vertex: VertexId, needs: &dyn Fn(EdgeId) -> bool| {
            let edges = &self.vertex(vertex).edges;
            edges.iter().any(|(_, id)| {
                let edge = self.edge(*id);
                edge.want > Want::Nothing && edge.error.is_none() && needs(*id)
            })
        };
        match task {
            Task::CacheMap(vertex) => some(*vertex, &|_| true),
            Task::ContentKey(vertex, place) => some(*vertex, &|id| {
                let edge = self.edge(id);
                // One that was lowered asks again when it is looked at.
                let asks = edge.deps[*place].content_asked
                    || edge
                        .changed
                        .iter()
                        .any(|changed| *changed as usize == *place);
                edge.want >= Want::Slow && edge.result.is_none() && asks
            }),
            Task::Execute(vertex) => some(*vertex, &|id| {
                let edge = self.edge(id);
                edge.want == Want::Complete && edge.result.is_none()
            }),
            Task::Load(edge, _) => self.edge(*edge).want == Want::Complete,
            Task::Open(cache) => self.caches.get(cache).is_some_and(|cache| {
                let waiting = cache.waiting.iter().filter_map(|id| self.edges.get(id));
                let mut waiting = waiting.map(|edge| edge.want);
                waiting.any(|want| want >= Want::Fast)
            }),
        }
    }

    fn give_up_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(&id) else {
            return;
        };
        self.commands.push(Command::Abort { task: id });
        match task {
            Task::CacheMap(vertex) => {
                self.vertex_mut(vertex).map_task = None;
                self.commands.push(Command::GivenUp { vertex });
            }
            Task::ContentKey(vertex, place) => {
                self.vertex_mut(vertex).set_content(place, Content::Unknown);
            }
            Task::Execute(vertex) => {
                self.vertex_mut(vertex).exec = Exec::Idle;
                for place in 0..self.vertex(vertex).edges.len() {
                    let (_, edge) = self.vertex(vertex).edges[place];
                    if self.edge(edge).result.is_none() {
                        self.give_back_claims(edge);
                    }
                }
                self.commands.push(Command::GivenUp { vertex });
            }
            Task::Load(edge, record) => {
                // It is still there, and the best.
                let edge = self.edge_mut(edge);
                edge.loading = None;
                if let Some(rare) = edge.rare.made() {
                    rare.tried.pop();
                }
                edge.records.push(*record);
            }
            Task::Open(cache) => {
                if let Some(cache) = self.caches.get_mut(&cache) {
                    cache.task = None;
                    cache.waiting.clear();
                }
            }
        }
    }
}
