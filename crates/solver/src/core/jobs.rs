//! Jobs, the vertices that they bring, and what they ask for.

use std::collections::HashSet;

use super::{
    CacheId, CacheState, Command, Content, Core, Dep, EdgeId, EdgeState, Exec, LEVELS, One,
    RequestId, Seldom, Spec, Stage, VertexId, VertexState, Want,
};
use crate::shared::JobId;

impl<O: Clone, E: Clone> Core<O, E> {
    /// The vertex with the name of `spec`, made if it is not there, as one that `job` needs
    /// and that `caches` may have. Its inputs have to be added before.
    pub(crate) fn add(&mut self, job: JobId, spec: Spec, caches: &[CacheId]) -> VertexId {
        // Who wants it built anew shares it only with those who want the same, and everybody
        // else is served with what is built anew.
        let known = match self.by_name_anew.get(&spec.name) {
            None if !spec.ignore_cache => self.by_name.get(&spec.name),
            anew => anew,
        };
        let id = match known.copied() {
            Some(id) => id,
            None => self.make(spec),
        };
        self.join(id, job);
        for cache in caches {
            if !self.vertex(id).caches.contains(cache) {
                self.vertex_mut(id).caches.push(*cache);
                let closed = CacheState {
                    users: 0,
                    task: None,
                    open: None,
                    waiting: Vec::new(),
                };
                self.caches.entry(*cache).or_insert(closed).users += 1;
            }
        }
        id
    }

    fn make(&mut self, spec: Spec) -> VertexId {
        let id = self.vertices.number();
        let names = match spec.ignore_cache {
            true => &mut self.by_name_anew,
            false => &mut self.by_name,
        };
        names.insert(spec.name, id);
        let state = VertexState {
            content: Vec::new(),
            spec,
            jobs: One::new(),
            caches: Vec::new(),
            maps: One::new(),
            map_task: None,
            exec: Exec::Idle,
            error: None,
            edges: One::new(),
        };
        self.vertices.insert(id, state);
        id
    }

    /// `job` needs the vertex, and all whose results its edges take, and their inputs.
    pub(super) fn join(&mut self, vertex: VertexId, job: JobId) {
        let mut open = vec![vertex];
        while let Some(id) = open.pop() {
            let state = self.vertex_mut(id);
            let Err(place) = state.jobs.binary_search(&job) else {
                continue;
            };
            state.jobs.insert(place, job);
            open.extend(state.spec.inputs.iter().map(|(input, _)| *input));
            for (_, edge) in &self.vertex(id).edges {
                open.extend(self.edge(*edge).follows.map(|edge| self.edge(edge).vertex));
            }
            self.jobs.entry(job).or_default().vertices.push(id);
            self.commands.push(Command::Joined { vertex: id, job });
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
        self.requests.insert(request, (job, edge));
        self.jobs.entry(job).or_default().requests.insert(request);
        self.edge_mut(edge).rare.make().requests.push(request);
        self.want(edge, Want::Complete);
        self.enqueue(edge);
        self.settle()
    }

    /// A request is not waited for any more. What only it needed is given up.
    pub(crate) fn cancel_request(&mut self, request: RequestId) -> Vec<Command<O, E>> {
        self.forget_request(request);
        self.settle()
    }

    fn forget_request(&mut self, request: RequestId) {
        self.released = true;
        if let Some((job, edge)) = self.requests.remove(&request) {
            self.unask(edge, request);
            if let Some(job) = self.jobs.get_mut(&job) {
                job.requests.remove(&request);
            }
        }
    }

    pub(super) fn unask(&mut self, edge: EdgeId, request: RequestId) {
        if let Some(rare) = self.edge_mut(edge).rare.made() {
            rare.requests.retain(|id| *id != request);
        }
    }

    /// The job ends: what only it needed is given up.
    pub(crate) fn end_job(&mut self, job: JobId) -> Vec<Command<O, E>> {
        let mut state = self.jobs.remove(&job).unwrap_or_default();
        for request in state.requests {
            self.forget_request(request);
        }
        // Those who take inputs come after their inputs: they go first.
        state.vertices.sort_unstable();
        for id in state.vertices.into_iter().rev() {
            let vertex = self.vertex_mut(id);
            if let Ok(place) = vertex.jobs.binary_search(&job) {
                vertex.jobs.remove(place);
            }
            let left = vertex.jobs.is_empty();
            self.commands.push(Command::Left { vertex: id, job });
            if left {
                self.forget(id);
            }
        }
        self.settle()
    }

    fn forget(&mut self, id: VertexId) {
        let Some(vertex) = self.vertices.remove(&id) else {
            return;
        };
        let names = match vertex.spec.ignore_cache {
            true => &mut self.by_name_anew,
            false => &mut self.by_name,
        };
        names.remove(&vertex.spec.name);
        self.failures -= usize::from(vertex.error.is_some());
        let mut tasks: Vec<_> = vertex.map_task.into_iter().collect();
        for content in &vertex.content {
            if let Content::Running(task) = content {
                tasks.push(*task);
            }
        }
        if let Exec::Running(task) = vertex.exec {
            tasks.push(task);
        }
        for (_, edge) in vertex.edges {
            let Some(state) = self.edges.remove(&edge) else {
                continue;
            };
            self.failures -= usize::from(state.error.is_some());
            if let Some(kept) = state.kept.as_ref().filter(|_| state.made) {
                self.forget_made(kept);
            }
            tasks.extend(state.loading);
            for key in &state.ids {
                self.forget_key(&key.id, edge);
            }
            for dep in &state.deps {
                self.forget_dependent(dep.edge);
            }
        }
        for task in tasks {
            self.abort(task);
        }
        self.commands.push(Command::Forget { vertex: id });
        for cache in vertex.caches {
            self.forget_cache(cache);
        }
    }

    /// One of those who take `id` is gone. They are taken out of its list when they are many:
    /// each time would look at all of them.
    fn forget_dependent(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get_mut(&id) else {
            return;
        };
        edge.gone += 1;
        if edge.gone * 2 > edge.dependents.len() {
            let mut dependents = std::mem::take(&mut edge.dependents);
            dependents.retain(|(edge, _)| self.edges.contains_key(edge));
            let edge = self.edge_mut(id);
            edge.dependents = dependents;
            edge.gone = 0;
        }
    }

    /// The edge for an output, made with the edges of its inputs if it is not there.
    fn edge_of(&mut self, vertex: VertexId, index: usize) -> EdgeId {
        // An explicit stack: how deep a graph is, is the client's to choose. With each vertex
        // the number of its inputs that are there.
        let mut open = vec![(vertex, index, 0)];
        while let Some((vertex, index, there)) = open.pop() {
            if self.edge_at(vertex, index).is_some() {
                continue;
            }
            let inputs = &self.vertex(vertex).spec.inputs;
            let mut missing = inputs[there..].iter().enumerate();
            let missing =
                missing.find(|(_, (input, index))| self.edge_at(*input, *index).is_none());
            match missing.map(|(place, input)| (there + place, *input)) {
                Some((place, (input, input_index))) => {
                    open.push((vertex, index, place));
                    open.push((input, input_index, 0));
                }
                None => self.make_edge(vertex, index),
            }
        }
        self.edge_at(vertex, index)
            .expect("it was made or found just now")
    }

    fn edge_at(&self, vertex: VertexId, index: usize) -> Option<EdgeId> {
        let edges = &self.vertex(vertex).edges;
        let place = edges.binary_search_by_key(&index, |(index, _)| *index);
        place.ok().map(|place| edges[place].1)
    }

    /// Makes the edge for an output; those of the inputs are there.
    fn make_edge(&mut self, vertex: VertexId, index: usize) {
        let id = self.edges.number();
        let count = self.vertex(vertex).spec.inputs.len();
        let mut deps = One::with_capacity(count);
        let mut ready = [0; 4];
        for place in 0..count {
            let (input, output) = self.vertex(vertex).spec.inputs[place];
            let input = self.edge_at(input, output).expect("inputs are made before");
            let place = u32::try_from(place).expect("a graph has fewer inputs than that");
            let edge = self.edge_mut(input);
            edge.dependents.push((id, place));
            let dep = Dep {
                edge: input,
                seen: edge.reached,
                complete: edge.result.is_some(),
                nowhere: false,
                content_asked: false,
                content_seen: false,
                needed: false,
            };
            for (level, ready) in LEVELS.iter().zip(&mut ready) {
                *ready += u32::from(dep.is(*level));
            }
            deps.push(dep);
        }
        let state = EdgeState {
            vertex,
            index,
            want: Want::Nothing,
            keys_wanted: Want::Nothing,
            asked: Want::Nothing,
            reached: Want::Nothing,
            stage: Stage::Local,
            queued: false,
            hopeless: false,
            shown: false,
            caches_asked: 0,
            contents_asked: false,
            ready,
            needed: 0,
            contents: 0,
            deps,
            changed: Vec::new(),
            doomed: None,
            ids: One::new(),
            ends: [0; 3],
            weight: 0,
            own: One::new(),
            records: Vec::new(),
            loading: None,
            follows: None,
            result: None,
            kept: None,
            made: false,
            error: None,
            dependents: One::new(),
            gone: 0,
            rare: Seldom::default(),
        };
        self.edges.insert(id, state);
        let edges = &mut self.vertex_mut(vertex).edges;
        let place = edges.partition_point(|(other, _)| *other < index);
        edges.insert(place, (index, id));
    }

    /// A failure is not for ever: whoever asks again has it tried again.
    fn forgive(&mut self, vertex: VertexId) {
        if self.failures == 0 {
            return;
        }
        let mut open = vec![vertex];
        let mut seen = HashSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let failed = self.vertex_mut(id).error.take().is_some();
            self.failures -= usize::from(failed);
            for place in 0..self.vertex(id).edges.len() {
                let (_, edge) = self.vertex(id).edges[place];
                let follows = self.edge(edge).follows;
                open.extend(follows.map(|edge| self.edge(edge).vertex));
                self.forgive_edge(edge, failed);
            }
            let inputs = &self.vertex(id).spec.inputs;
            open.extend(inputs.iter().map(|(input, _)| *input));
        }
    }

    /// `failed`: its vertex had, which it may not have noticed.
    fn forgive_edge(&mut self, id: EdgeId, failed: bool) {
        let edge = self.edge_mut(id);
        let error = edge.error.take().is_some();
        if !error && !failed {
            return;
        }
        edge.doomed = None;
        // Content that was asked for in vain is asked for again.
        let asked = edge.deps.iter().zip(0..);
        let asked = asked.filter(|(dep, _)| dep.content_asked && !dep.content_seen);
        let asked: Vec<_> = asked.map(|(_, place)| place).collect();
        edge.changed.extend(asked);
        self.failures -= usize::from(error);
        self.enqueue(id);
    }
}
