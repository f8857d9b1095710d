//! Random graphs, and what their operations give.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A generator of numbers (splitmix64).
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % bound.max(1)
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

pub(super) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// An output: two parts, so that there is something to select.
pub(super) type Value = [u64; 2];

/// How an operation looks at an input.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Look {
    /// The part that it sees; else both.
    pub(super) part: Option<usize>,
    /// Whether that content gives a key.
    pub(super) content: bool,
}

impl Look {
    /// What is seen.
    pub(super) fn at(self, value: Value) -> Value {
        match self.part {
            Some(part) => [value[part], 0],
            None => value,
        }
    }
}

/// What an operation does. Vertices with one number do the same, so that keys are true.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Act {
    /// Gives something of its own, whatever it sees.
    Constant,
    /// Gives what it sees of its first input: changes nothing.
    Pass,
    /// Gives what it sees of the first input in one part, and something new in the other.
    Part,
    /// Gives something of all that it sees.
    Mix,
}

/// The kinds of operations of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) act: Act,
    /// For input number i modulo their number.
    pub(super) looks: [Look; 3],
    pub(super) maps: usize,
    pub(super) outputs: usize,
}

/// A vertex.
#[derive(Clone, Debug, Hash)]
pub(super) struct Node {
    /// Its kind; of a source, which one it is.
    pub(super) op: usize,
    /// Vertex and output.
    pub(super) inputs: Vec<(usize, usize)>,
    pub(super) anew: bool,
    /// A source whose first key is good for its own name only.
    pub(super) fleeting: bool,
}

/// What a job builds.
#[derive(Clone, Debug)]
pub(super) struct JobCase {
    /// Vertices with one salt and one place in alike graphs are one vertex.
    pub(super) salt: u64,
    pub(super) graph: Vec<Node>,
    /// Vertex and output.
    pub(super) targets: Vec<(usize, usize)>,
    /// Events that pass before it comes.
    pub(super) comes: usize,
    /// Events after which it goes, and whether it stops waiting before that.
    pub(super) goes: Option<usize>,
    pub(super) stops: Option<usize>,
    /// It asks again after a failure.
    pub(super) again: bool,
    /// The caches from elsewhere that it may use.
    pub(super) sources: Vec<usize>,
}

/// A cache from elsewhere.
#[derive(Clone, Debug)]
pub(super) struct SourceCase {
    /// What was built there.
    pub(super) graphs: Vec<Vec<Node>>,
    pub(super) opens: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Orders,
    Alike,
    Chaos,
}

/// A case of the simulation.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) mode: Mode,
    pub(super) kinds: Vec<Kind>,
    pub(super) jobs: Vec<JobCase>,
    /// What was built here before.
    pub(super) before: Vec<Vec<Node>>,
    /// Results of those that were pruned with their keys, one in so many, and that are gone
    /// while their keys are still there.
    pub(super) pruned: Option<usize>,
    pub(super) lost: Option<usize>,
    pub(super) sources: Vec<SourceCase>,
    /// Operations fail, those of these kinds.
    pub(super) fails: bool,
    pub(super) failing: Vec<usize>,
    /// How often each thing is carried out is the same in every order, too.
    pub(super) exact: bool,
}

impl Case {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x51ed);
        let random = &mut random;
        let mode = match random.below(4) {
            0 => Mode::Alike,
            1 => Mode::Chaos,
            _ => Mode::Orders,
        };
        let several = random.one_in(3) && mode != Mode::Alike;
        let kinds: Vec<_> = (0..3 + random.below(12))
            .map(|_| kind(random, several))
            .collect();
        let size = match random.below(8) {
            0 => 100 + random.below(101),
            1..4 => 10 + random.below(50),
            _ => 1 + random.below(12),
        };
        let anew = random.one_in(4) && mode != Mode::Alike;
        let mut base = graph(random, &kinds, size, anew);
        if mode == Mode::Alike {
            // What is good for one name only is not what others have.
            for node in &mut base {
                node.fleeting = false;
            }
        }
        let failing = random.one_in(if mode == Mode::Chaos { 2 } else { 5 });
        let fails = failing && mode != Mode::Alike;
        let mut jobs = Vec::new();
        // What one job has built anew while another one takes what is there, is there for those
        // who come after it: no more than one job at once says what that is.
        let alone = anew && mode == Mode::Orders;
        for place in 0..if alone { 1 } else { 1 + random.below(8) } {
            jobs.push(job(random, &kinds, mode, &base, place));
        }
        let mut before = Vec::new();
        for _ in 0..random.below(3) {
            before.push(changed(random, &kinds, &base));
        }
        let mut sources = Vec::new();
        if random.one_in(3) {
            for _ in 0..1 + random.below(3) {
                let graphs = (0..1 + random.below(2)).map(|_| changed(random, &kinds, &base));
                let graphs = graphs.collect();
                let opens = !random.one_in(5);
                sources.push(SourceCase { graphs, opens });
            }
            // Those who build the same use the same ones, or it is not the same that they find.
            let all: Vec<_> = (0..sources.len()).collect();
            for job in &mut jobs {
                let some = mode == Mode::Chaos && random.one_in(2);
                let take = if some {
                    random.below(all.len() + 1)
                } else {
                    all.len()
                };
                job.sources = all[..take].to_vec();
            }
        }
        let plain = |job: &JobCase| job.graph.iter().all(|node| !node.anew);
        let one = |job: &JobCase| job.targets.iter().all(|(_, output)| *output == 0);
        let mut exact = kinds.iter().all(|kind| kind.outputs == 1);
        exact &= jobs.iter().all(plain) && jobs.iter().all(one);
        Self {
            mode,
            failing: match fails {
                true => (0..1 + random.below(2))
                    .map(|_| random.below(kinds.len()))
                    .collect(),
                false => Vec::new(),
            },
            kinds,
            jobs,
            before,
            // Keys that are known to be the same while their result is gone have whoever is
            // first make it anew: which inputs that takes depends on who that is.
            pruned: (mode != Mode::Alike && random.one_in(3)).then(|| 2 + random.below(5)),
            lost: (mode == Mode::Chaos && random.one_in(3)).then(|| 2 + random.below(5)),
            sources,
            fails,
            exact,
        }
    }

    /// How many outputs the vertex has.
    pub(super) fn outputs(&self, node: &Node) -> usize {
        match node.inputs.is_empty() {
            true => 1,
            false => self.kinds[node.op].outputs,
        }
    }

    pub(super) fn look(&self, node: &Node, input: usize) -> Look {
        self.kinds[node.op].looks[input % 3]
    }

    /// What the vertex gives of its inputs.
    pub(super) fn evaluate(&self, node: &Node, inputs: &[Value]) -> Vec<Value> {
        if node.inputs.is_empty() {
            // Some have the same content.
            return vec![[hash(("left", node.op % 3)), hash(("right", node.op / 2))]];
        }
        let seen = inputs.iter().enumerate();
        let seen: Vec<_> = seen
            .map(|(i, value)| self.look(node, i).at(*value))
            .collect();
        let of = |index: usize| match self.kinds[node.op].act {
            Act::Constant => [hash((node.op, index, 1)), hash((node.op, index, 2))],
            Act::Pass => seen[0],
            Act::Part => [seen[0][0], hash((node.op, index))],
            Act::Mix => [
                hash((node.op, index, &seen, 1)),
                hash((node.op, index, &seen, 2)),
            ],
        };
        (0..self.outputs(node)).map(of).collect()
    }

    /// The values of all vertices.
    pub(super) fn values(&self, graph: &[Node]) -> Vec<Vec<Value>> {
        let mut values: Vec<Vec<Value>> = Vec::new();
        for node in graph {
            let inputs = node
                .inputs
                .iter()
                .map(|(vertex, output)| values[*vertex][*output]);
            let inputs: Vec<_> = inputs.collect();
            values.push(self.evaluate(node, &inputs));
        }
        values
    }
}

fn kind(random: &mut Random, several: bool) -> Kind {
    let look = |random: &mut Random| Look {
        part: match random.below(4) {
            0 => Some(random.below(2)),
            _ => None,
        },
        content: random.one_in(2),
    };
    Kind {
        act: match random.below(6) {
            0 => Act::Constant,
            1 => Act::Pass,
            2 => Act::Part,
            _ => Act::Mix,
        },
        looks: [look(random), look(random), look(random)],
        maps: 1 + usize::from(random.one_in(5)),
        outputs: if several { 1 + random.below(3) } else { 1 },
    }
}

fn node(random: &mut Random, kinds: &[Kind], before: &[Node], anew: bool) -> Node {
    let op = random.below(kinds.len());
    let count = match random.below(8) {
        0 => 0,
        1..5 => 1,
        5 | 6 => 2,
        _ => 3 + random.below(5),
    };
    let count = if before.is_empty() { 0 } else { count };
    let input = |random: &mut Random| {
        // Rather a near one, so that graphs are deep, too.
        let back = match random.one_in(2) {
            true => random.below(before.len()),
            false => random.below(before.len().min(4)),
        };
        let vertex = before.len() - 1 - back;
        let outputs = match before[vertex].inputs.is_empty() {
            true => 1,
            false => kinds[before[vertex].op].outputs,
        };
        (vertex, random.below(outputs))
    };
    Node {
        op,
        inputs: (0..count).map(|_| input(random)).collect(),
        anew: anew && random.one_in(12),
        fleeting: random.one_in(3),
    }
}

fn graph(random: &mut Random, kinds: &[Kind], size: usize, anew: bool) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..size {
        let next = node(random, kinds, &nodes, anew);
        nodes.push(next);
    }
    nodes
}

/// The graph with some vertices changed, as between two builds.
fn changed(random: &mut Random, kinds: &[Kind], base: &[Node]) -> Vec<Node> {
    let mut nodes = base.to_vec();
    for _ in 0..random.below(4) {
        let place = random.below(nodes.len());
        // What takes an output of it must find it there.
        let old = nodes[place].clone();
        let new = node(random, kinds, &nodes[..place], false);
        let outputs = |node: &Node| match node.inputs.is_empty() {
            true => 1,
            false => kinds[node.op].outputs,
        };
        if outputs(&new) >= outputs(&old) {
            nodes[place] = new;
        }
    }
    for node in &mut nodes {
        node.anew = false;
    }
    nodes
}

fn job(random: &mut Random, kinds: &[Kind], mode: Mode, base: &[Node], place: usize) -> JobCase {
    let chaos = mode == Mode::Chaos;
    let graph = match mode {
        Mode::Alike => base.to_vec(),
        _ if random.one_in(3) => changed(random, kinds, base),
        _ => base.to_vec(),
    };
    let last = graph.len() - 1;
    let outputs = |place: usize| match graph[place].inputs.is_empty() {
        true => 1,
        false => kinds[graph[place].op].outputs,
    };
    let mut targets = vec![(last, random.below(outputs(last)))];
    if mode != Mode::Alike {
        for _ in 0..random.below(3) {
            let vertex = random.below(graph.len());
            let wrong = usize::from(random.one_in(40));
            targets.push((vertex, random.below(outputs(vertex)) + wrong * 9));
        }
    }
    let some = |random: &mut Random, bound: usize| {
        let some = chaos && random.one_in(3);
        some.then(|| random.below(bound))
    };
    JobCase {
        salt: match mode {
            Mode::Alike => place as u64,
            _ => random.below(3) as u64,
        },
        targets,
        comes: if chaos { random.below(60) } else { 0 },
        goes: some(random, 400),
        stops: some(random, 300),
        again: chaos && random.one_in(2),
        graph,
        sources: Vec::new(),
    }
}
