//! What an edge does next.

use super::matching::Contents;
use super::{Command, Core, EdgeId, Exec, LEVELS, Stage, Task, VertexId, Want, Work};

impl<O: Clone, E: Clone> Core<O, E> {
    /// `edge` is needed at least that far.
    pub(super) fn want(&mut self, id: EdgeId, want: Want) {
        let edge = self.edge_mut(id);
        if edge.want < want {
            edge.want = want;
            self.enqueue(id);
        }
    }

    /// Its keys are needed at least that far, also when it has its result.
    fn want_keys(&mut self, id: EdgeId, want: Want) {
        let edge = self.edge_mut(id);
        if edge.keys_wanted < want {
            edge.keys_wanted = want;
            self.enqueue(id);
        }
        self.want(id, want);
    }

    /// Asks the inputs. Says whether all of them are that far, else it is told when they are.
    fn inputs_reach(&mut self, id: EdgeId, want: Want) -> bool {
        let edge = self.edge(id);
        if edge.asked < want {
            let count = edge.deps.len();
            self.edge_mut(id).asked = want;
            for place in 0..count {
                let dep = &self.edge(id).deps[place];
                let (input, there) = (dep.edge, dep.is(want));
                match want {
                    Want::Complete => self.want(input, want),
                    _ => self.want_keys(input, want),
                }
                if !there && self.edge(input).error.is_some() {
                    self.edge_mut(id).doomed = u32::try_from(place).ok();
                }
            }
        }
        let edge = self.edge(id);
        let level = LEVELS.iter().position(|level| *level == want);
        let ready = level.map_or(0, |level| edge.ready[level]);
        ready as usize == edge.deps.len()
    }

    pub(super) fn advance(&mut self, id: EdgeId) {
        let edge = self.edge(id);
        if edge.want == Want::Nothing || edge.error.is_some() {
            return;
        }
        if let Some(other) = edge.follows {
            self.follow(id, other);
        }
        if self.edge(id).result.is_some() {
            self.answer(id);
        }
        while self.step(id) {}
    }

    /// Goes on to the next stage; says whether it did.
    fn step(&mut self, id: EdgeId) -> bool {
        if self.edge(id).error.is_some() {
            return false;
        }
        self.load(id);
        let settled = self.is_settled(id);
        if settled && self.edge(id).stage > Stage::Fast {
            self.reach(id, Want::Slow);
            return false;
        }
        if !settled && self.fail_with_input(id) {
            return false;
        }
        let edge = self.edge(id);
        let vertex = edge.vertex;
        let want = if settled { edge.keys_wanted } else { edge.want };
        if edge.stage >= Stage::Slow && want >= Want::Slow {
            self.look_at_changed(id);
        }
        match self.edge(id).stage {
            Stage::Local => {
                // The map and the inputs' keys are looked for at the same time.
                let inputs = self.inputs_reach(id, Want::Local);
                if !self.ask_map(id) || !inputs {
                    return self.is_doomed(id);
                }
                self.match_keys(id, Want::Local, Contents::None);
                self.pass(id, Stage::Fast, Want::Local)
            }
            Stage::Fast => {
                // Without caches from elsewhere there is nothing to wait for.
                let edge = self.edge(id);
                let inputs = edge.ready[1] as usize == edge.deps.len();
                if !(inputs && self.vertex(vertex).caches.is_empty()) {
                    if want < Want::Fast {
                        return false;
                    }
                    let open = self.caches_open(id);
                    if !self.inputs_reach(id, Want::Fast) {
                        return self.is_doomed(id);
                    }
                    if !open {
                        return false;
                    }
                }
                self.match_keys(id, Want::Fast, Contents::None);
                self.pass(id, Stage::Maps, Want::Fast)
            }
            Stage::Maps => {
                if want < Want::Slow || !self.ask_map(id) {
                    return false;
                }
                self.match_keys(id, Want::Fast, Contents::None);
                self.edge_mut(id).stage = Stage::Slow;
                self.begin_slow(id);
                true
            }
            Stage::Slow => {
                if self.give_up(id) {
                    return true;
                }
                if want < Want::Slow {
                    return false;
                }
                if !self.inputs_reach(id, Want::Slow) {
                    return self.is_doomed(id);
                }
                self.look_at_changed(id);
                self.match_keys(id, Want::Slow, Contents::None);
                self.edge_mut(id).stage = Stage::Needed;
                true
            }
            Stage::Needed => {
                if self.give_up(id) {
                    return true;
                }
                if want < Want::Slow {
                    return false;
                }
                if !self.contents_known(id, true) {
                    return self.is_doomed(id);
                }
                self.match_keys(id, Want::Slow, Contents::Needed);
                self.edge_mut(id).stage = Stage::Content;
                true
            }
            Stage::Content => {
                if self.give_up(id) {
                    return true;
                }
                if want < Want::Slow {
                    return false;
                }
                if !self.contents_known(id, false) {
                    return self.is_doomed(id);
                }
                self.match_keys(id, Want::Slow, Contents::All);
                self.pass(id, Stage::Last, Want::Slow)
            }
            Stage::Last => {
                if want < Want::Complete {
                    return false;
                }
                // All their keys, too, also where nothing is found with them: what is made is
                // kept under all that lead to it, whoever else asked for them.
                let keys = self.inputs_reach(id, Want::Slow);
                let inputs = self.inputs_reach(id, Want::Complete);
                let contents = self.contents_known(id, false);
                if !(keys && inputs && contents && self.caches_open(id)) {
                    return self.is_doomed(id);
                }
                // With all that came to be known since: nothing is carried out that is there.
                self.match_keys(id, Want::Slow, Contents::All);
                self.reach(id, Want::Slow);
                if !self.edge(id).records.is_empty() {
                    return true;
                }
                if !self.take_output(id) {
                    self.execute(id);
                }
                false
            }
        }
    }

    /// With a result, or one in a cache, its keys are all that may be asked for.
    fn is_settled(&self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        edge.result.is_some()
            || edge.loading.is_some()
            || edge.follows.is_some()
            || !edge.records.is_empty()
    }

    /// An input failed that it needs: the next step sees that.
    fn is_doomed(&self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        edge.doomed.is_some() && edge.error.is_none() && !self.is_settled(id)
    }

    fn pass(&mut self, id: EdgeId, stage: Stage, reached: Want) -> bool {
        self.edge_mut(id).stage = stage;
        self.reach(id, reached);
        true
    }

    /// When nothing will be found, all is asked for at once that carrying it out needs.
    fn give_up(&mut self, id: EdgeId) -> bool {
        let edge = self.edge_mut(id);
        let hopeless = edge.hopeless && edge.want == Want::Complete;
        if hopeless {
            edge.stage = Stage::Last;
        }
        hopeless
    }

    /// Whether all maps are there up to the one that the stage needs; else the next is asked
    /// for.
    fn ask_map(&mut self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        let (vertex, stage) = (edge.vertex, edge.stage);
        let state = self.vertex(vertex);
        let there = match stage {
            Stage::Local => !state.maps.is_empty(),
            _ => state.maps.last().is_some_and(|map| map.last),
        };
        if there || state.map_task.is_some() {
            return there;
        }
        if let Some(error) = state.error.clone() {
            self.fail(id, error);
            return false;
        }
        let index = state.maps.len();
        let task = self.start(vertex, Task::CacheMap(vertex), Work::CacheMap { index });
        self.vertex_mut(vertex).map_task = Some(task);
        false
    }

    /// The vertex may have been carried out for another of its outputs. It makes no difference
    /// when that was: only what is not found in a cache is taken from there.
    fn take_output(&mut self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        let Exec::Done(outputs) = &self.vertex(edge.vertex).exec else {
            return false;
        };
        let (index, count) = (edge.index, outputs.len());
        match outputs.get(index).cloned() {
            Some((output, kept)) => {
                self.claim(id);
                self.edge_mut(id).kept = kept;
                self.complete(id, output, true);
            }
            None => {
                let error = (self.errors.missing)(edge.vertex, index, count);
                self.fail(id, error);
            }
        }
        true
    }

    fn execute(&mut self, id: EdgeId) {
        let edge = self.edge(id);
        let vertex = edge.vertex;
        let state = self.vertex(vertex);
        if !matches!(state.exec, Exec::Idle) {
            return;
        }
        if let Some(error) = state.error.clone() {
            return self.fail(id, error);
        }
        if let Some(other) = self.claimed(id) {
            return self.begin_to_follow(id, other);
        }
        let inputs = edge.deps.iter();
        let inputs: Option<_> = inputs
            .map(|dep| self.edge(dep.edge).result.clone())
            .collect();
        let inputs = inputs.expect("complete edges have results");
        self.claim(id);
        let task = self.start(vertex, Task::Execute(vertex), Work::Execute { inputs });
        self.vertex_mut(vertex).exec = Exec::Running(task);
    }

    /// `id` takes what `other`, which has one of its keys, gives.
    fn begin_to_follow(&mut self, id: EdgeId, other: EdgeId) {
        self.edge_mut(id).follows = Some(other);
        self.edge_mut(other).rare.make().followers.push(id);
        // It is needed by all who need this one.
        let target = self.edge(other).vertex;
        let source = self.edge(id).vertex;
        for job in self.vertex(source).jobs.clone() {
            self.join(target, job);
        }
        self.want(other, Want::Complete);
        self.follow(id, other);
    }

    fn follow(&mut self, id: EdgeId, other: EdgeId) {
        let other = self.edge(other);
        let kept = other.kept.clone();
        match (&other.result, &other.error) {
            (Some(output), _) => {
                let output = output.clone();
                self.edge_mut(id).kept = kept;
                self.complete(id, output, true);
            }
            (None, Some(error)) => {
                let error = error.clone();
                self.fail(id, error);
            }
            (None, None) => {}
        }
    }

    pub(super) fn reach(&mut self, id: EdgeId, reached: Want) {
        let edge = self.edge_mut(id);
        if edge.reached >= reached {
            return;
        }
        let count = u32::try_from(edge.ids.len()).unwrap_or(u32::MAX);
        for (end, level) in edge.ends.iter_mut().zip(LEVELS) {
            if edge.reached < level && level <= reached {
                *end = count;
            }
        }
        edge.reached = reached;
        self.notify(id);
    }

    /// Tells those who take it how far it is.
    fn notify(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        let (reached, failed) = (edge.reached, edge.error.is_some());
        let complete = edge.result.is_some();
        let dependents = std::mem::take(&mut edge.dependents);
        for (dependent, place) in &dependents {
            let Some(edge) = self.edges.get_mut(dependent) else {
                continue;
            };
            let dep = &mut edge.deps[*place as usize];
            let further = dep.seen < reached || dep.complete != complete;
            for (level, ready) in LEVELS.iter().zip(&mut edge.ready) {
                let was = dep.is(*level);
                let is = match level {
                    Want::Complete => complete,
                    level => *level <= reached,
                };
                *ready += u32::from(is && !was);
            }
            (dep.seen, dep.complete) = (reached, complete);
            if further && edge.stage >= Stage::Slow && edge.result.is_none() {
                edge.changed.push(*place);
            }
            if failed && (dep.content_asked || !dep.is(edge.asked)) {
                edge.doomed = Some(*place);
            }
            self.enqueue(*dependent);
        }
        self.edge_mut(id).dependents = dependents;
    }

    /// It has its result; `keep`: which is kept under its keys.
    pub(super) fn complete(&mut self, id: EdgeId, output: O, keep: bool) {
        let edge = self.edge_mut(id);
        edge.result = Some(output);
        // It looks for nothing any more.
        edge.follows = None;
        edge.changed = Vec::new();
        edge.records = Vec::new();
        let own = match edge.stage > Stage::Fast {
            true => std::mem::take(&mut edge.own),
            false => edge.own.clone(),
        };
        let kept = edge.kept.clone().filter(|_| keep);
        if let Some(kept) = kept {
            self.edge_mut(id).made = true;
            self.count_made(&kept);
            self.keep(id, &kept, &own);
        }
        self.notify(id);
        self.finish(id);
        // Its keys may be asked for still.
        self.enqueue(id);
    }

    pub(super) fn fail(&mut self, id: EdgeId, error: E) {
        self.failures += 1;
        let edge = self.edge_mut(id);
        edge.error = Some(error);
        edge.follows = None;
        self.give_back_claims(id);
        self.notify(id);
        self.finish(id);
    }

    fn finish(&mut self, id: EdgeId) {
        let rare = self.edge_mut(id).rare.made();
        let followers = rare.map(|rare| std::mem::take(&mut rare.followers));
        for follower in followers.into_iter().flatten() {
            self.enqueue(follower);
        }
        self.answer(id);
    }

    /// An edge fails with an input that did before it gave what it was asked for.
    fn fail_with_input(&mut self, id: EdgeId) -> bool {
        let edge = self.edge(id);
        let dep = edge.doomed.map(|place| edge.deps[place as usize].edge);
        let Some(dep) = dep else {
            return false;
        };
        match self.edge(dep).error.clone() {
            Some(error) => self.fail(id, error),
            // It was forgiven.
            None => self.edge_mut(id).doomed = None,
        }
        self.edge(id).error.is_some()
    }

    fn answer(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        let result = match (&edge.result, &edge.error) {
            (Some(output), _) => Ok(output.clone()),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => return,
        };
        let rare = edge.rare.made();
        let requests = rare.map(|rare| std::mem::take(&mut rare.requests));
        let requests = requests.unwrap_or_default();
        // What else was begun for one that fails is of no use.
        self.released |= result.is_err() && !requests.is_empty();
        for request in requests {
            if let Some((job, _)) = self.requests.remove(&request)
                && let Some(job) = self.jobs.get_mut(&job)
            {
                job.requests.remove(&request);
            }
            self.released |= self.requests.is_empty();
            self.commands.push(Command::Reply {
                request,
                result: result.clone(),
            });
        }
    }

    pub(super) fn fail_vertex(&mut self, vertex: VertexId, error: E) {
        let state = self.vertex_mut(vertex);
        if state.error.replace(error).is_none() {
            self.failures += 1;
        }
        self.enqueue_vertex(vertex);
    }
}
