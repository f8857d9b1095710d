#![allow(clippy::unwrap_used)]
//! The core against a world in which events come in any order.

mod simulate;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_spec::image::Digest;
use proptest::prelude::*;
use sha2::Digest as _;

use super::{Command, Core, Errors, MapInfo, Name, Outcome, Spec, TaskId, VertexId, Work};
use crate::keys::{CacheResult, KeyStore};
use crate::memory::MemoryKeyStore;

fn digest(text: &str) -> Digest {
    let hash = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    format!("sha256:{hash}").parse().unwrap()
}

/// A vertex of a random graph.
#[derive(Clone, Debug)]
struct Node {
    /// What it does; nodes with one number do the same.
    op: u8,
    /// Its output does not depend on its inputs.
    constant: bool,
    inputs: Vec<usize>,
    /// Whether its inputs are looked at by content.
    content: bool,
    maps: usize,
    anew: bool,
    fails: bool,
}

fn graphs(max: usize) -> impl Strategy<Value = Vec<Node>> {
    let node = (
        0..6_u8,
        any::<bool>(),
        prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        any::<bool>(),
        1..3_usize,
    );
    prop::collection::vec(node, 1..max).prop_map(|nodes| {
        let make = |(place, node): (usize, (u8, bool, Vec<prop::sample::Index>, bool, usize))| {
            let (op, constant, inputs, content, maps) = node;
            Node {
                op,
                constant,
                inputs: if place == 0 {
                    vec![]
                } else {
                    inputs.iter().map(|input| input.index(place)).collect()
                },
                content,
                maps,
                anew: false,
                fails: false,
            }
        };
        nodes.into_iter().enumerate().map(make).collect()
    })
}

fn errors() -> Errors<String> {
    Errors {
        missing: |_, _, _| "no such output".into(),
        stuck: |state| panic!("stuck: {state}"),
    }
}

/// Carries out what the core asks for, one task at a time, in an order of its own.
struct World {
    core: Core<String, String>,
    order: u64,
    nodes: HashMap<VertexId, Node>,
    open: BTreeMap<TaskId, (VertexId, Work<String>)>,
    replies: HashMap<u64, Result<String, String>>,
    executed: Vec<String>,
    clock: u64,
    kept: HashMap<String, String>,
}

impl World {
    fn new(keys: Arc<MemoryKeyStore>, kept: HashMap<String, String>, order: u64) -> Self {
        let keys: Arc<dyn KeyStore> = keys;
        Self {
            core: Core::new(keys, errors()),
            order,
            nodes: HashMap::new(),
            open: BTreeMap::new(),
            replies: HashMap::new(),
            executed: Vec::new(),
            clock: kept.len() as u64,
            kept,
        }
    }

    fn random(&mut self, bound: usize) -> usize {
        // Knuth's MMIX constants.
        self.order = self
            .order
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.order >> 33).unwrap() % bound
    }

    /// Adds the graph for `job` and asks for its last node.
    fn build(&mut self, job: u64, salt: &str, graph: &[Node]) {
        let mut digests: Vec<Digest> = Vec::new();
        let mut ids = Vec::new();
        for node in graph {
            let inputs: String = node
                .inputs
                .iter()
                .map(|i| digests[*i].to_string())
                .collect();
            let name = format!("{salt} {node:?} {inputs}");
            digests.push(digest(&name));
            let spec = Spec {
                name: Name::of(&name),
                inputs: node.inputs.iter().map(|input| (ids[*input], 0)).collect(),
                ignore_cache: node.anew,
            };
            let id = self.core.add(job, spec, &[]);
            self.nodes.insert(id, node.clone());
            ids.push(id);
        }
        let commands = self.core.request(job, job, *ids.last().unwrap(), 0);
        self.take(commands);
    }

    fn take(&mut self, commands: Vec<Command<String, String>>) {
        self.core.check();
        for command in commands {
            match command {
                Command::Start { task, vertex, work } => {
                    self.open.insert(task, (vertex, work));
                }
                Command::Abort { task } => {
                    self.open.remove(&task).unwrap();
                }
                Command::Reply { request, result } => {
                    assert!(self.replies.insert(request, result).is_none());
                }
                _ => {}
            }
        }
    }

    fn step(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let place = self.random(self.open.len());
        let task = *self.open.keys().nth(place).unwrap();
        let (vertex, work) = self.open.remove(&task).unwrap();
        let node = self.nodes[&vertex].clone();
        let outcome = match work {
            Work::CacheMap { index } => Outcome::CacheMap(MapInfo {
                // As in real operations, the number of inputs is part of it.
                digest: digest(&format!("op {} {} {index}", node.op, node.inputs.len())),
                deps: vec![(None, node.content); node.inputs.len()],
                last: index + 1 >= node.maps,
            }),
            Work::ContentKey { output, .. } => Outcome::ContentKey(digest(&output)),
            Work::Load { result, .. } => {
                Outcome::Loaded(self.kept.get(&*result).map(|output| (output.clone(), None)))
            }
            Work::Execute { .. } if node.fails => Outcome::Failed("failed".into()),
            Work::Execute { inputs } => {
                let output = evaluate(&node, &inputs);
                self.executed.push(format!("{} of {inputs:?}", node.op));
                let id = format!("result {}", self.kept.len());
                self.kept.insert(id.clone(), output.clone());
                self.clock += 1;
                let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock);
                let id = id.into();
                Outcome::Executed(vec![(output, Some(CacheResult { id, created_at }))], None)
            }
        };
        let commands = self.core.done(task, outcome);
        self.take(commands);
        true
    }

    fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
    }

    fn end(&mut self, job: u64) {
        let commands = self.core.end_job(job);
        self.take(commands);
    }
}

/// What an operation gives; by its number alone or of its inputs.
fn evaluate(node: &Node, inputs: &[String]) -> String {
    // Nodes that do the same are constant or not by their number, so that keys are true.
    let inputs = if node.constant && node.op.is_multiple_of(2) {
        String::new()
    } else {
        inputs.join(",")
    };
    digest(&format!("{} {inputs}", node.op)).to_string()
}

/// Makes nodes that do the same look the same in all that their keys stand for.
fn consistent(mut graph: Vec<Node>) -> Vec<Node> {
    for node in &mut graph {
        node.constant = node.op < 3;
        node.content = !matches!(node.op, 1 | 4);
        node.maps = if node.op == 5 { 2 } else { 1 };
    }
    graph
}

fn expected(graph: &[Node]) -> String {
    let mut values: Vec<String> = Vec::new();
    for node in graph {
        let inputs: Vec<_> = node.inputs.iter().map(|i| values[*i].clone()).collect();
        values.push(evaluate(node, &inputs));
    }
    values.pop().unwrap()
}

type Kept = (Arc<MemoryKeyStore>, HashMap<String, String>);

/// Builds `graph` and returns what was carried out.
fn build(kept: &mut Kept, order: u64, salt: &str, graph: &[Node]) -> Vec<String> {
    let mut world = World::new(kept.0.clone(), kept.1.clone(), order);
    world.build(1, salt, graph);
    world.run();
    assert_eq!(world.replies[&1].as_ref().unwrap(), &expected(graph));
    world.end(1);
    assert!(world.core.is_empty() && world.open.is_empty());
    kept.1 = world.kept;
    world.executed.sort();
    world.executed
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("COOPER_PROPTEST_CASES");
    let cases = cases.ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_order_of_events_changes_neither_hits_nor_executions(
        graph in graphs(9), changed in any::<prop::sample::Index>(), orders in any::<[u64; 2]>(),
    ) {
        let graph = consistent(graph);
        let mut next = graph.clone();
        let place = changed.index(next.len());
        next[place].op = (next[place].op + 1) % 6;
        let next = consistent(next);
        let mut runs = Vec::new();
        for order in orders {
            let mut kept = Kept::default();
            let first = build(&mut kept, order, "a", &graph);
            let second = build(&mut kept, order ^ 7, "b", &next);
            let third = build(&mut kept, order ^ 9, "c", &next);
            runs.push((first, second, third));
        }
        prop_assert_eq!(&runs[0], &runs[1]);
        // Under other names it is found again, unless nothing names it but its inputs' names.
        prop_assert_eq!(&runs[0].2, &Vec::<String>::new());
    }

    #[test]
    fn two_jobs_at_once_carry_out_what_one_does(
        graph in graphs(9), orders in any::<[u64; 2]>(),
    ) {
        let graph = consistent(graph);
        let alone = build(&mut Kept::default(), orders[0], "a", &graph);
        let mut world = World::new(Arc::default(), HashMap::new(), orders[1]);
        world.build(1, "a", &graph);
        for _ in 0..orders[1] % 5 {
            world.step();
        }
        world.build(2, "b", &graph);
        world.run();
        for job in [1, 2] {
            prop_assert_eq!(world.replies[&job].as_ref().unwrap(), &expected(&graph));
        }
        world.executed.sort();
        prop_assert_eq!(alone, world.executed.clone(), "{}", world.core.describe());
        world.end(1);
        world.end(2);
        prop_assert!(world.core.is_empty());
    }

    #[test]
    fn failures_and_ends_leave_nothing_open(
        graph in graphs(12), other in graphs(12), fails in any::<u16>(), anew in any::<u16>(),
        order in any::<u64>(), end_after in 0..40_usize,
    ) {
        let mark = |mut graph: Vec<Node>| {
            for (place, node) in graph.iter_mut().enumerate() {
                node.fails = fails >> place & 1 == 1;
                node.anew = anew >> place & 1 == 1;
            }
            consistent(graph)
        };
        let (graph, other) = (mark(graph), mark(other));
        let mut world = World::new(Arc::default(), HashMap::new(), order);
        world.build(1, "a", &graph);
        world.build(2, "b", &other);
        world.build(3, "c", &graph);
        for _ in 0..end_after {
            world.step();
        }
        world.end(1);
        world.build(4, "d", &other);
        world.run();
        for (job, graph) in [(2, &other), (3, &graph), (4, &other)] {
            let reply = world.replies.get(&job);
            match reply.expect("each request is answered") {
                Ok(value) => prop_assert_eq!(value, &expected(graph)),
                Err(error) => prop_assert_eq!(error, "failed"),
            }
        }
        for job in [2, 3, 4] {
            world.end(job);
        }
        prop_assert!(world.core.is_empty(), "something is left");
        prop_assert!(world.open.is_empty());
    }
}

fn node(op: u8, inputs: Vec<usize>) -> Node {
    Node {
        op,
        constant: false,
        inputs,
        content: false,
        maps: 1,
        anew: false,
        fails: false,
    }
}

#[test]
fn a_result_that_is_gone_is_made_again() {
    let mut kept = Kept::default();
    let graph = consistent(vec![node(3, vec![]), node(4, vec![0])]);
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 2);
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 0);
    kept.1.clear();
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 2);
}

#[test]
fn building_anew_carries_out_and_serves_those_who_come_later() {
    let mut kept = Kept::default();
    let mut graph = consistent(vec![node(3, vec![]), node(4, vec![0])]);
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 2);
    graph[1].anew = true;
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 1);
    graph[1].anew = false;
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 0);
}

#[test]
fn a_failure_is_tried_again_when_it_is_asked_for_again() {
    let mut world = World::new(Arc::default(), HashMap::new(), 1);
    let mut graph = consistent(vec![node(3, vec![])]);
    graph[0].fails = true;
    world.build(1, "a", &graph);
    world.run();
    assert!(world.replies[&1].is_err());
    for node in world.nodes.values_mut() {
        node.fails = false;
    }
    let vertex = *world.nodes.keys().next().unwrap();
    let commands = world.core.request(1, 2, vertex, 0);
    world.take(commands);
    world.run();
    assert!(world.replies[&2].is_ok());
}

/// Whoever takes an input that is built anew is not served with what came of the former one,
/// unless its content is the same and the content is what it looks at.
#[test]
fn what_comes_of_an_input_that_is_built_anew_is_found_by_its_content_alone() {
    let mut kept = Kept::default();
    // The fourth looks at its inputs' definitions alone, the others at their content.
    let mut graph = consistent(vec![
        node(3, vec![]),
        node(6, vec![0]),
        node(4, vec![1]),
        node(7, vec![1]),
        node(8, vec![2, 3]),
    ]);
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 5);
    graph[1].anew = true;
    let executed = build(&mut kept, 1, "a", &graph);
    assert_eq!(executed.len(), 2, "{executed:?}");
    assert!(
        executed[0].starts_with("4 ") && executed[1].starts_with("6 "),
        "{executed:?}"
    );
    graph[1].anew = false;
    assert_eq!(build(&mut kept, 1, "a", &graph).len(), 0);
}
