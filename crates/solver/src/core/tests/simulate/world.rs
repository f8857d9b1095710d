//! The world around the core: jobs come and go, tasks end in any order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::{digest, errors};
use super::graph::{Case, Mode, Node, Random, Value, hash};
use crate::core::{CacheId, Command, Core, MapInfo, Name, Outcome, Spec, TaskId, VertexId, Work};
use crate::keys::{CacheResult, KeyStore};
use crate::memory::MemoryKeyStore;

/// Graphs up to so many vertices are checked after each event, larger ones now and then.
const SMALL: usize = 40;

/// A cache: its keys, and its results by their names.
#[derive(Default)]
pub(super) struct Kept {
    keys: Arc<MemoryKeyStore>,
    results: HashMap<String, Value>,
    /// How many were ever made: no name is given twice.
    made: u64,
}

impl Kept {
    fn copy(&self) -> Self {
        Self {
            keys: Arc::new(self.keys.copy()),
            results: self.results.clone(),
            made: self.made,
        }
    }
}

/// What is there before a case begins.
pub(super) struct Prepared {
    here: Kept,
    sources: Vec<Kept>,
}

impl Prepared {
    pub(super) fn new(case: &Case) -> Self {
        let mut random = Random(case.kinds.len() as u64 ^ case.jobs.len() as u64);
        let mut here = build_all(case, &case.before);
        let mut names: Vec<_> = here.results.keys().cloned().collect();
        names.sort_unstable();
        for name in names {
            if case.pruned.is_some_and(|share| random.one_in(share)) {
                here.results.remove(&name);
                here.keys.release(&name);
            } else if case.lost.is_some_and(|share| random.one_in(share)) {
                here.results.remove(&name);
            }
        }
        let sources = case.sources.iter().enumerate().map(|(place, source)| {
            let kept = build_all(case, &source.graphs);
            // Another builder has other names for keys.
            Kept {
                keys: Arc::new(kept.keys.renamed(&format!("elsewhere {place} "))),
                results: kept.results,
                made: kept.made,
            }
        });
        Self {
            here,
            sources: sources.collect(),
        }
    }
}

/// Builds graphs one after another with nothing going wrong.
fn build_all(case: &Case, graphs: &[Vec<Node>]) -> Kept {
    let mut kept = Kept::default();
    for (salt, graph) in (1000..).zip(graphs) {
        let mut calm = case.clone();
        calm.failing.clear();
        calm.fails = false;
        calm.sources.clear();
        calm.mode = Mode::Orders;
        let last = graph.len() - 1;
        let mut job = case.jobs[0].clone();
        job.sources.clear();
        job.graph = graph.clone();
        job.targets = vec![(last, 0), (last / 2, 0)];
        (job.salt, job.comes, job.goes, job.stops) = (salt, 0, None, None);
        calm.jobs = vec![job];
        let prepared = Prepared {
            here: kept,
            sources: Vec::new(),
        };
        let mut world = World::new(&calm, &prepared, 1);
        world.run();
        world.end(0);
        assert!(world.is_empty());
        kept = world.kept;
    }
    kept
}

enum Open {
    Work(VertexId, Work<Value>),
    Cache(CacheId),
}

struct Place {
    node: Node,
    name: Arc<str>,
    attempts: usize,
    executed: usize,
}

/// A request, and what became of it.
struct Request {
    job: usize,
    target: (usize, usize),
    answer: Option<Result<Value, String>>,
    stopped: bool,
}

pub(super) struct World {
    case: Arc<Case>,
    core: Core<Value, String>,
    random: Random,
    order: usize,
    vertices: HashMap<VertexId, Place>,
    open: BTreeMap<TaskId, Open>,
    requests: BTreeMap<u64, Request>,
    running: HashSet<usize>,
    gone: HashSet<usize>,
    tick: usize,
    kept: Kept,
    sources: Vec<Kept>,
    /// What was carried out: the operation and what it saw.
    pub(super) executed: Vec<(usize, u64)>,
    pub(super) log: Vec<(VertexId, &'static str)>,
}

/// Runs all of a case; jobs that do not go by themselves are still there.
pub(super) fn run_case(case: &Case, prepared: &Prepared, order: u64) -> World {
    let mut world = World::new(case, prepared, order);
    world.run();
    world
}

impl World {
    fn new(case: &Case, prepared: &Prepared, order: u64) -> Self {
        let kept = prepared.here.copy();
        let keys: Arc<dyn KeyStore> = kept.keys.clone();
        let mut random = Random(order);
        Self {
            case: Arc::new(case.clone()),
            core: Core::new(keys, errors()),
            order: random.below(4),
            random,
            vertices: HashMap::new(),
            open: BTreeMap::new(),
            requests: BTreeMap::new(),
            running: HashSet::new(),
            gone: HashSet::new(),
            tick: 0,
            sources: prepared.sources.iter().map(Kept::copy).collect(),
            kept,
            executed: Vec::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.core.is_empty() && self.open.is_empty() && self.vertices.is_empty()
    }

    pub(super) fn describe(&self) -> String {
        self.core.describe()
    }

    pub(super) fn jobs(&self) -> Vec<usize> {
        let mut jobs: Vec<_> = self.running.iter().copied().collect();
        jobs.sort_unstable();
        jobs
    }

    /// The values, or that there is none.
    pub(super) fn answers(&self) -> Vec<Option<Value>> {
        let answers = self
            .requests
            .values()
            .map(|request| request.answer.as_ref());
        answers
            .map(|answer| answer?.as_ref().ok().copied())
            .collect()
    }

    fn run(&mut self) {
        let case = self.case.clone();
        let size: usize = case.jobs.iter().map(|job| job.graph.len()).sum();
        loop {
            for (place, job) in case.jobs.iter().enumerate() {
                if job.comes <= self.tick && !self.gone.contains(&place) {
                    if !self.running.contains(&place) {
                        self.begin(place);
                    }
                    if job.stops.is_some_and(|tick| tick <= self.tick) {
                        self.stop(place);
                    }
                    if job.goes.is_some_and(|tick| tick <= self.tick) {
                        self.end(place);
                    }
                }
            }
            self.tick += 1;
            if size <= SMALL || self.tick.is_multiple_of(61) {
                self.core.check();
            }
            let waits = case.jobs.iter().any(|job| {
                let next = [Some(job.comes), job.goes, job.stops];
                next.into_iter().flatten().any(|tick| tick >= self.tick)
            });
            if !self.step() && !waits {
                break;
            }
            assert!(self.tick < 200_000, "it does not end");
        }
        self.core.check();
        for (number, request) in &self.requests {
            let left = request.stopped || self.gone.contains(&request.job);
            assert!(
                request.answer.is_some() || left,
                "request {number} has no answer"
            );
        }
    }

    /// The job comes with its graph and asks.
    fn begin(&mut self, place: usize) {
        self.running.insert(place);
        let case = self.case.clone();
        let job = &case.jobs[place];
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut ids = Vec::new();
        let caches: Vec<_> = job
            .sources
            .iter()
            .map(|source| *source as CacheId)
            .collect();
        for node in &job.graph {
            let inputs: Vec<_> = node
                .inputs
                .iter()
                .map(|(input, _)| &names[*input])
                .collect();
            let name: Arc<str> = format!("{:016x}", hash((job.salt, node, inputs))).into();
            let inputs = node.inputs.iter();
            let spec = Spec {
                name: Name::of(&name),
                inputs: inputs
                    .map(|(input, output)| (ids[*input], *output))
                    .collect(),
                ignore_cache: node.anew,
            };
            let id = self.core.add(place as u64, spec, &caches);
            self.vertices.entry(id).or_insert_with(|| Place {
                node: node.clone(),
                name: name.clone(),
                attempts: 0,
                executed: 0,
            });
            names.push(name);
            ids.push(id);
        }
        for target in &job.targets {
            self.ask(place, ids[target.0], *target);
        }
    }

    fn ask(&mut self, job: usize, vertex: VertexId, target: (usize, usize)) {
        let number = self.requests.len() as u64;
        let request = Request {
            job,
            target,
            answer: None,
            stopped: false,
        };
        self.requests.insert(number, request);
        let commands = self.core.request(job as u64, number, vertex, target.1);
        self.take(commands);
    }

    fn stop(&mut self, job: usize) {
        let mut stopped = Vec::new();
        for (number, request) in &mut self.requests {
            if request.job == job && request.answer.is_none() && !request.stopped {
                request.stopped = true;
                stopped.push(*number);
            }
        }
        for number in stopped {
            let commands = self.core.cancel_request(number);
            self.take(commands);
        }
    }

    pub(super) fn end(&mut self, job: usize) {
        self.running.remove(&job);
        self.gone.insert(job);
        let commands = self.core.end_job(job as u64);
        self.take(commands);
    }

    fn take(&mut self, commands: Vec<Command<Value, String>>) {
        for command in commands {
            match command {
                Command::Start { task, vertex, work } => {
                    self.open.insert(task, Open::Work(vertex, work));
                }
                Command::Open { task, cache } => {
                    self.open.insert(task, Open::Cache(cache));
                }
                Command::Abort { task } => {
                    self.open.remove(&task).expect("what is aborted was begun");
                }
                Command::Reply { request, result } => self.answered(request, result),
                Command::Forget { vertex } => {
                    self.vertices.remove(&vertex).expect("it was there");
                }
                Command::Cached { vertex }
                | Command::GivenUp { vertex }
                | Command::Joined { vertex, .. }
                | Command::Left { vertex, .. } => {
                    assert!(self.vertices.contains_key(&vertex));
                }
                Command::Close { .. } => {}
            }
        }
    }

    fn answered(&mut self, number: u64, result: Result<Value, String>) {
        let case = self.case.clone();
        let request = self.requests.get_mut(&number).unwrap();
        assert!(!request.stopped && !self.gone.contains(&request.job));
        let (vertex, output) = request.target;
        let graph = &case.jobs[request.job].graph;
        let right = case.values(graph)[vertex].get(output).copied();
        match (&result, right) {
            (Ok(value), Some(right)) => assert_eq!(*value, right, "a wrong result"),
            (Ok(_), None) => panic!("there is no such output"),
            (Err(error), Some(_)) => {
                assert_eq!(error, "failed");
                assert!(needs_failing(&case, graph, vertex), "nothing fails there");
            }
            (Err(_), None) => {}
        }
        assert!(request.answer.is_none(), "answered once");
        request.answer = Some(result);
    }

    /// A task ends; says whether one was there.
    fn step(&mut self) -> bool {
        if self.open.is_empty() {
            return self.ask_again();
        }
        let place = match self.order {
            0 => 0,
            1 => self.open.len() - 1,
            _ => self.random.below(self.open.len()),
        };
        let task = *self.open.keys().nth(place).unwrap();
        let outcome = match self.open.remove(&task).unwrap() {
            Open::Work(vertex, work) => self.outcome(vertex, work),
            Open::Cache(cache) => {
                let place = usize::try_from(cache).unwrap();
                self.log.push((cache, "open"));
                match self.case.sources[place].opens {
                    true => Outcome::Opened(Some(self.sources[place].keys.clone())),
                    false => Outcome::Opened(None),
                }
            }
        };
        let commands = self.core.done(task, outcome);
        self.take(commands);
        true
    }

    /// Jobs that ask again do so when nothing goes on, once.
    fn ask_again(&mut self) -> bool {
        let case = self.case.clone();
        for job in self.jobs() {
            if !case.jobs[job].again {
                continue;
            }
            let requests = self.requests.values();
            let requests: Vec<_> = requests.filter(|request| request.job == job).collect();
            let Some(first) = requests.first() else {
                continue;
            };
            let asked = requests.len() > case.jobs[job].targets.len();
            if !asked && matches!(first.answer, Some(Err(_))) {
                let target = first.target;
                let vertex = self.vertex_of(job, target.0);
                self.ask(job, vertex, target);
                return true;
            }
        }
        false
    }

    fn vertex_of(&mut self, job: usize, place: usize) -> VertexId {
        let case = self.case.clone();
        let job = &case.jobs[job];
        let mut names: Vec<Arc<str>> = Vec::new();
        for node in &job.graph[..=place] {
            let inputs: Vec<_> = node
                .inputs
                .iter()
                .map(|(input, _)| &names[*input])
                .collect();
            names.push(format!("{:016x}", hash((job.salt, node, inputs))).into());
        }
        let mut found = self.vertices.iter().filter(|(_, v)| v.name == names[place]);
        *found.next().expect("its job needs it").0
    }

    fn outcome(&mut self, vertex: VertexId, work: Work<Value>) -> Outcome<Value, String> {
        let place = &self.vertices[&vertex];
        let (node, name, first) = (place.node.clone(), place.name.clone(), place.attempts == 0);
        // The second time it works, so that it is seen whether that is noticed.
        let chaos = self.case.mode == Mode::Chaos;
        let fails = self.case.failing.contains(&node.op) && (first || !chaos);
        match work {
            Work::CacheMap { index } => {
                self.log.push((vertex, "map"));
                if fails && fails_at(&node) == 1 {
                    return self.failed(vertex);
                }
                Outcome::CacheMap(self.map(&node, &name, index))
            }
            Work::ContentKey { input, output } => {
                self.log.push((vertex, "content"));
                if fails && fails_at(&node) == 2 {
                    return self.failed(vertex);
                }
                let seen = self.case.look(&node, input).at(output);
                Outcome::ContentKey(digest(&format!("{seen:?}")))
            }
            Work::Load {
                cache: None,
                result,
            } => {
                self.log.push((vertex, "load"));
                let found = self.kept.results.get(&*result);
                Outcome::Loaded(found.map(|output| (*output, None)))
            }
            Work::Load {
                cache: Some(cache),
                result,
            } => {
                self.log.push((vertex, "load from elsewhere"));
                let place = usize::try_from(cache).unwrap();
                let lost = chaos && hash((cache, &result)).is_multiple_of(9);
                let found = self.sources[place].results.get(&*result).copied();
                let found = found.filter(|_| !lost);
                Outcome::Loaded(found.map(|output| (output, self.keep(output))))
            }
            Work::Execute { inputs } => {
                self.log.push((vertex, "execute"));
                if fails && fails_at(&node) != 1 {
                    return self.failed(vertex);
                }
                let place = self.vertices.get_mut(&vertex).unwrap();
                place.executed += 1;
                assert_eq!(
                    place.executed, 1,
                    "carried out once as long as it is needed"
                );
                let seen = inputs.iter().enumerate();
                let look = |(i, value): (usize, &Value)| self.case.look(&node, i).at(*value);
                let seen: Vec<_> = seen.map(look).collect();
                self.executed.push((node.op, hash((inputs.len(), seen))));
                let outputs = self.case.evaluate(&node, &inputs);
                let outputs = outputs.into_iter();
                Outcome::Executed(
                    outputs.map(|output| (output, self.keep(output))).collect(),
                    None,
                )
            }
        }
    }

    fn failed(&mut self, vertex: VertexId) -> Outcome<Value, String> {
        self.vertices.get_mut(&vertex).unwrap().attempts += 1;
        Outcome::Failed("failed".into())
    }

    fn keep(&mut self, output: Value) -> Option<CacheResult> {
        if self.case.mode == Mode::Chaos && self.random.one_in(15) {
            return None;
        }
        self.kept.made += 1;
        let id = format!("result {}", self.kept.made);
        self.kept.results.insert(id.clone(), output);
        Some(CacheResult {
            id: id.into(),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(self.kept.made),
        })
    }

    fn map(&self, node: &Node, name: &str, index: usize) -> MapInfo {
        if node.inputs.is_empty() {
            let fleeting = node.fleeting && index == 0;
            let text = match fleeting {
                true => format!("source {} of {name}", node.op),
                false => format!("source {}", node.op),
            };
            return MapInfo {
                digest: digest(&text),
                deps: Vec::new(),
                last: !fleeting || node.op.is_multiple_of(2),
            };
        }
        let part = |part: usize| digest(&format!("part {part}"));
        let looks = (0..node.inputs.len()).map(|input| self.case.look(node, input));
        let looks = looks.map(|look| (look.part.map(part), look.content));
        MapInfo {
            digest: digest(&format!("op {} {} {index}", node.op, node.inputs.len())),
            deps: looks.collect(),
            last: index + 1 >= self.case.kinds[node.op].maps,
        }
    }
}

/// Where it fails: 1 when it is asked what it is, 2 at its inputs' content, else when it is
/// carried out.
fn fails_at(node: &Node) -> usize {
    node.op % 3
}

/// Whether something that fails is among what the vertex needs.
fn needs_failing(case: &Case, graph: &[Node], vertex: usize) -> bool {
    let mut needed = vec![false; graph.len()];
    needed[vertex] = true;
    for place in (0..=vertex).rev() {
        if needed[place] {
            for (input, _) in &graph[place].inputs {
                needed[*input] = true;
            }
        }
    }
    let mut failing = graph.iter().zip(needed);
    failing.any(|(node, needed)| needed && case.failing.contains(&node.op))
}
