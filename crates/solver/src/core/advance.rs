//! What an edge does next.

use super::{Content, Core, EdgeId, Exec, Task, Want, Work};

impl<O: Clone, E: Clone> Core<O, E> {
    /// `edge` is needed at least that far.
    pub(super) fn want(&mut self, edge: EdgeId, want: Want) {
        let edge = self.find(edge);
        let state = self.edge_mut(edge);
        if state.want < want {
            state.want = want;
            self.enqueue(edge);
        }
    }

    fn want_inputs(&mut self, id: EdgeId, want: Want) {
        let deps: Vec<_> = self.edge(id).deps.iter().map(|dep| dep.edge).collect();
        for dep in deps {
            self.want(dep, want);
        }
    }

    /// How far the input `index` of `id` is.
    fn dep_reached(&self, id: EdgeId, index: usize) -> Want {
        self.edge(self.find(self.edge(id).deps[index].edge)).reached
    }

    pub(super) fn advance(&mut self, id: EdgeId) {
        let edge = self.edge(id);
        if edge.want == Want::Nothing || edge.error.is_some() {
            return;
        }
        if edge.result.is_some() {
            return self.answer(id);
        }
        let vertex = edge.vertex;
        // The map and the inputs' keys are looked for at the same time.
        self.want_inputs(id, Want::Fast);
        let state = self.vertex(vertex);
        if let Some(error) = state.error.clone() {
            return self.fail(id, error);
        }
        if state.maps.is_empty() {
            self.ask_map(vertex);
            self.fail_with_inputs(id);
            return;
        }
        let Some(id) = self.match_keys(id) else {
            return; // It is another edge now, which is queued.
        };
        if self.try_records(id) {
            return;
        }
        if self.take_output(id) {
            return;
        }
        if self.fail_with_inputs(id) {
            return;
        }
        let count = self.edge(id).deps.len();
        if (0..count).any(|dep| self.dep_reached(id, dep) < Want::Fast) {
            return;
        }
        self.reach(id, Want::Fast);
        if self.edge(id).want >= Want::Slow {
            self.advance_slow(id, count);
        }
    }

    /// Looks for further keys, and then gives up on the cache.
    fn advance_slow(&mut self, id: EdgeId, count: usize) {
        let vertex = self.edge(id).vertex;
        let maps_done = self.vertex(vertex).maps.last().is_some_and(|map| map.last);
        if !maps_done {
            self.ask_map(vertex);
        }
        let by_content: Vec<bool> = self.vertex(vertex).maps[0]
            .deps
            .iter()
            .map(|(_, content)| *content)
            .collect();
        let known =
            |core: &Self, dep: usize| matches!(core.vertex(vertex).content[dep], Content::Known(_));
        // An input whose keys are all known and lead nowhere: nothing will be found.
        let hopeless = maps_done
            && (0..count).any(|dep| {
                self.dep_reached(id, dep) >= Want::Slow
                    && (!by_content[dep] || known(self, dep))
                    && self.edge(id).led.iter().all(|map| map[dep].is_empty())
            });
        if !hopeless || self.edge(id).want < Want::Complete {
            self.want_inputs(id, Want::Slow);
        }
        let slow = (0..count).all(|dep| self.dep_reached(id, dep) >= Want::Slow);
        for dep in (0..count).filter(|dep| by_content[*dep]) {
            // Nothing but its content can lead to a result: it is not made to wait for the other
            // inputs, so that independent branches are built at the same time.
            let needed = self.dep_reached(id, dep) >= Want::Slow
                && self.edge(id).led.iter().all(|map| map[dep].is_empty());
            if slow || hopeless || needed {
                self.compute_content(id, dep);
            }
        }
        let content = (0..count).all(|dep| !by_content[dep] || known(self, dep));
        if slow && content && maps_done {
            self.reach(id, Want::Slow);
        }
        let edge = self.edge(id);
        if edge.want < Want::Complete || edge.loading.is_some() {
            return;
        }
        if hopeless || (slow && content && maps_done) {
            self.want_inputs(id, Want::Complete);
            if content && maps_done {
                self.execute(id);
            }
        }
    }

    fn ask_map(&mut self, vertex: u64) {
        let state = self.vertex(vertex);
        if state.map_task.is_none() && !state.maps.last().is_some_and(|map| map.last) {
            let index = state.maps.len();
            let task = self.start(vertex, Task::CacheMap(vertex), Work::CacheMap { index });
            self.vertex_mut(vertex).map_task = Some(task);
        }
    }

    fn compute_content(&mut self, id: EdgeId, dep: usize) {
        let edge = self.edge(id);
        let (vertex, input) = (edge.vertex, self.find(edge.deps[dep].edge));
        if self.vertex(vertex).content[dep] != Content::Unknown {
            return;
        }
        self.want(input, Want::Complete);
        if let Some(output) = self.edge(input).result.clone() {
            let work = Work::ContentKey { input: dep, output };
            let task = self.start(vertex, Task::ContentKey(vertex, dep), work);
            self.vertex_mut(vertex).content[dep] = Content::Running(task);
        }
    }

    /// With a result in the cache the edge is as far as anything but [`Want::Complete`] asks.
    fn try_records(&mut self, id: EdgeId) -> bool {
        let edge = self.edge_mut(id);
        if edge.loading.is_some() {
            return true;
        }
        let Some(record) = edge.records.last().cloned() else {
            return false;
        };
        if edge.want == Want::Complete {
            edge.records.pop();
            edge.tried.insert(record.id.clone());
            let vertex = edge.vertex;
            let work = Work::Load {
                result: record.id.clone(),
            };
            let task = self.start(vertex, Task::Load(id, record), work);
            self.edge_mut(id).loading = Some(task);
        }
        self.reach(id, Want::Slow);
        true
    }

    /// The vertex may have been carried out for another of its outputs.
    fn take_output(&mut self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        if edge.want != Want::Complete {
            return false;
        }
        let Exec::Done(outputs) = &self.vertex(edge.vertex).exec else {
            return false;
        };
        let (index, count) = (edge.index, outputs.len());
        let Some((output, kept)) = outputs.get(index).cloned() else {
            let digest = self.vertex(edge.vertex).spec.digest.clone();
            let error = (self.missing)(&digest, index, count);
            self.fail(id, error);
            return true;
        };
        if let Some(kept) = kept {
            self.keep(id, &kept);
        }
        self.complete(id, output);
        true
    }

    fn execute(&mut self, id: EdgeId) {
        let edge = self.edge(id);
        let vertex = edge.vertex;
        if !matches!(self.vertex(vertex).exec, Exec::Idle) {
            return;
        }
        let mut inputs = Vec::with_capacity(edge.deps.len());
        for dep in &edge.deps {
            match &self.edge(self.find(dep.edge)).result {
                Some(output) => inputs.push(output.clone()),
                None => return,
            }
        }
        let task = self.start(vertex, Task::Execute(vertex), Work::Execute { inputs });
        self.vertex_mut(vertex).exec = Exec::Running(task);
    }

    pub(super) fn reach(&mut self, id: EdgeId, reached: Want) {
        let edge = self.edge_mut(id);
        if edge.reached < reached {
            edge.reached = reached;
            self.enqueue_dependents(id);
        }
    }

    pub(super) fn complete(&mut self, id: EdgeId, output: O) {
        let edge = self.edge_mut(id);
        edge.result = Some(output);
        edge.loading = None;
        self.reach(id, Want::Complete);
        self.enqueue_dependents(id);
        self.answer(id);
    }

    pub(super) fn fail(&mut self, id: EdgeId, error: E) {
        self.edge_mut(id).error = Some(error);
        self.enqueue_dependents(id);
        self.answer(id);
    }

    /// An edge fails with its first input that does.
    fn fail_with_inputs(&mut self, id: EdgeId) -> bool {
        let deps = &self.edge(id).deps;
        let error = deps
            .iter()
            .find_map(|dep| self.edge(self.find(dep.edge)).error.clone());
        let failed = error.is_some();
        if let Some(error) = error {
            self.fail(id, error);
        }
        failed
    }

    pub(super) fn answer(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        let result = match (&edge.result, &edge.error) {
            (Some(output), _) => Ok(output.clone()),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => return,
        };
        for request in std::mem::take(&mut edge.requests) {
            self.requests.remove(&request);
            self.commands.push(super::Command::Reply {
                request,
                result: result.clone(),
            });
        }
    }
}
