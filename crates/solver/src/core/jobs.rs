//! Jobs, the vertices that they bring, and what they ask for.

use std::collections::BTreeMap;

use super::{
    Command, Content, Core, Dep, EdgeId, EdgeState, Exec, RequestId, Spec, VertexId, VertexState,
    Want,
};
use crate::shared::JobId;

impl<O: Clone, E: Clone> Core<O, E> {
    /// The vertex with the digest of `spec`, made if it is not there, as one that `job` needs.
    /// Its inputs have to be added before.
    pub(crate) fn add(&mut self, job: JobId, spec: Spec) -> VertexId {
        // Who wants it built anew shares it only with those who want the same, and everybody
        // else is served with what is built anew.
        let anew = Spec {
            ignore_cache: true,
            ..spec.clone()
        };
        let known = self.by_digest.get(&anew.name());
        let known = known.or_else(|| self.by_digest.get(&spec.name()));
        let id = match known.copied() {
            Some(id) => id,
            None => {
                let id = self.number();
                self.by_digest.insert(spec.name(), id);
                let content = vec![Content::Unknown; spec.inputs.len()];
                self.vertices.insert(
                    id,
                    VertexState {
                        spec,
                        jobs: Default::default(),
                        maps: Vec::new(),
                        map_task: None,
                        content,
                        exec: Exec::Idle,
                        error: None,
                        edges: BTreeMap::new(),
                    },
                );
                id
            }
        };
        self.join(id, job);
        id
    }

    /// `job` needs the vertex, and all that its edges were merged with, and their inputs.
    pub(crate) fn join(&mut self, vertex: VertexId, job: JobId) {
        let mut open = vec![vertex];
        while let Some(id) = open.pop() {
            if !self.vertex_mut(id).jobs.insert(job) {
                continue;
            }
            self.commands.push(Command::Joined { vertex: id, job });
            let state = self.vertex(id);
            open.extend(state.spec.inputs.iter().map(|(input, _)| *input));
            let edges: Vec<_> = state.edges.values().copied().collect();
            for edge in edges {
                open.push(self.edge(self.find(edge)).vertex);
            }
        }
    }

    /// `job` asks for an output.
    pub(crate) fn request(
        &mut self,
        job: JobId,
        request: RequestId,
        vertex: VertexId,
        index: usize,
    ) -> Vec<Command<O, E>> {
        self.forgive(vertex);
        let edge = self.edge_of(vertex, index);
        let edge = self.find(edge);
        self.requests.insert(request, (job, edge));
        self.edge_mut(edge).requests.insert(request);
        self.want(edge, Want::Complete);
        self.enqueue(edge);
        self.settle()
    }

    /// A request is not waited for any more. What it began goes on for the job.
    pub(crate) fn cancel_request(&mut self, request: RequestId) {
        if let Some((_, edge)) = self.requests.remove(&request) {
            self.edge_mut(edge).requests.remove(&request);
        }
    }

    /// The job ends: what only it needed is given up.
    pub(crate) fn end_job(&mut self, job: JobId) -> Vec<Command<O, E>> {
        let gone: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, (owner, _))| *owner == job)
            .map(|(request, _)| *request)
            .collect();
        for request in gone {
            self.cancel_request(request);
        }
        let left: Vec<_> = self
            .vertices
            .iter_mut()
            .filter_map(|(id, vertex)| vertex.jobs.remove(&job).then_some(*id))
            .collect();
        // Those who take inputs come after their inputs: they go first.
        for id in left.into_iter().rev() {
            self.commands.push(Command::Left { vertex: id, job });
            if self.vertex(id).jobs.is_empty() {
                self.forget(id);
            }
        }
        self.settle()
    }

    fn forget(&mut self, id: VertexId) {
        let Some(vertex) = self.vertices.remove(&id) else {
            return;
        };
        self.by_digest.remove(&vertex.spec.name());
        let mut tasks: Vec<_> = vertex.map_task.into_iter().collect();
        for content in &vertex.content {
            if let Content::Running(task) = content {
                tasks.push(*task);
            }
        }
        if let Exec::Running(task) = vertex.exec {
            tasks.push(task);
        }
        for edge in vertex.edges.into_values() {
            let Some(state) = self.edges.remove(&edge) else {
                continue;
            };
            self.merged.remove(&edge);
            tasks.extend(state.loading);
            for key in &state.ids {
                self.forget_key(key, edge);
            }
            for dep in &state.deps {
                let dep = self.find(dep.edge);
                if let Some(dep) = self.edges.get_mut(&dep) {
                    dep.dependents.remove(&edge);
                }
            }
            self.queued.remove(&edge);
            self.queue.retain(|queued| *queued != edge);
        }
        for task in tasks {
            self.abort(task);
        }
        self.commands.push(Command::Forget { vertex: id });
    }

    /// The edge for an output, made with the edges of its inputs if it is not there.
    pub(super) fn edge_of(&mut self, vertex: VertexId, index: usize) -> EdgeId {
        // An explicit stack: how deep a graph is, is the client's to choose.
        let mut open = vec![(vertex, index)];
        while let Some((vertex, index)) = open.last().copied() {
            if self.vertex(vertex).edges.contains_key(&index) {
                open.pop();
                continue;
            }
            let inputs = self.vertex(vertex).spec.inputs.clone();
            let missing = inputs
                .iter()
                .find(|(input, index)| !self.vertex(*input).edges.contains_key(index));
            if let Some(missing) = missing {
                open.push(*missing);
                continue;
            }
            let id = self.number();
            let mut deps = Vec::with_capacity(inputs.len());
            for (input, index) in inputs {
                let edge = self.vertex(input).edges[&index];
                let now = self.find(edge);
                self.edge_mut(now).dependents.insert(id);
                deps.push(Dep {
                    edge,
                    seen: Vec::new(),
                    content_seen: Vec::new(),
                });
            }
            self.edges.insert(
                id,
                EdgeState {
                    vertex,
                    index,
                    want: Want::Nothing,
                    reached: Want::Nothing,
                    deps,
                    matched: Vec::new(),
                    led: Vec::new(),
                    ids: Vec::new(),
                    valid: Default::default(),
                    fresh: Vec::new(),
                    records: Vec::new(),
                    tried: Default::default(),
                    loading: None,
                    result: None,
                    error: None,
                    dependents: Default::default(),
                    requests: Default::default(),
                },
            );
            self.vertex_mut(vertex).edges.insert(index, id);
            open.pop();
        }
        self.vertex(vertex).edges[&index]
    }

    /// A failure is not for ever: whoever asks again has it tried again.
    fn forgive(&mut self, vertex: VertexId) {
        let mut open = vec![vertex];
        let mut seen = std::collections::HashSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let edges: Vec<_> = self.vertex(id).edges.values().copied().collect();
            self.vertex_mut(id).error = None;
            for edge in edges {
                let edge = self.find(edge);
                if self.edge_mut(edge).error.take().is_some() {
                    self.enqueue(edge);
                }
                open.push(self.edge(edge).vertex);
            }
            let inputs = &self.vertex(id).spec.inputs;
            open.extend(inputs.iter().map(|(input, _)| *input));
        }
    }
}
