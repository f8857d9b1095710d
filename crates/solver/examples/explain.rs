//! Why is a step not cached, and what does it cost to be able to say so?
//!
//! `cargo run --release -p cooper-solver --example explain` builds a chain of steps, changes one,
//! and prints the causes. Then it builds longer chains that are all cached, in turn without and
//! with a journal, and with a job that asks, and prints what each takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cooper_progress::Discard;
use cooper_solver::{
    CacheMap, Description, Digest, Domain, Edge, MemoryKeyStore, MemoryResults, Op, OpContext,
    OpError, SolveError, Solver, SolverConfig, Vertex, VertexOptions,
};
use sha2::Digest as _;

/// Steps of each chain that is measured.
const STEPS: usize = 1000;
/// Builds of each kind; without optimisation their times say nothing.
const BUILDS: usize = if cfg!(debug_assertions) { 3 } else { 101 };

struct Numbers;

impl Domain for Numbers {
    type Output = usize;
    type Job = ();
}

/// Adds a number.
struct Add(usize);

fn digest(text: &str) -> Digest {
    let hash = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    let digest = format!("sha256:{hash}").parse();
    digest.expect("a hash is a digest")
}

#[async_trait]
impl Op<Numbers> for Add {
    async fn cache_map(
        &self,
        cx: &OpContext<Numbers>,
        _: usize,
    ) -> Result<CacheMap<Numbers>, OpError> {
        let text = format!("add {} {}", self.0, cx.vertex().name);
        Ok(CacheMap {
            digest: digest(&text),
            deps: Vec::new(),
            last: true,
        })
    }

    fn describe(&self, vertex: &Vertex<Numbers>) -> Option<Description> {
        let mut description = Description::new("add", &vertex.name);
        description.part("number", &self.0.to_string());
        Some(description)
    }

    async fn execute(
        &self,
        _: &OpContext<Numbers>,
        inputs: &[usize],
    ) -> Result<Vec<usize>, OpError> {
        Ok(vec![inputs.iter().sum::<usize>() + self.0])
    }
}

/// A chain in which the step `changed` adds another number.
fn chain(length: usize, changed: Option<usize>) -> Vec<Arc<Vertex<Numbers>>> {
    let mut vertices: Vec<Arc<Vertex<Numbers>>> = Vec::with_capacity(length);
    for step in 0..length {
        let number = if changed == Some(step) { 100 } else { step };
        let below = vertices.last().map(|vertex| vertex.digest.clone());
        let id = format!("{step} {number} {below:?}");
        let inputs = below.into_iter();
        vertices.push(Arc::new(Vertex {
            digest: digest(&id),
            name: format!("step {step}"),
            inputs: inputs.map(|vertex| Edge { vertex, index: 0 }).collect(),
            op: Arc::new(Add(number)),
            options: VertexOptions::default(),
        }));
    }
    vertices
}

fn solver(keys: MemoryKeyStore) -> Solver<Numbers> {
    Solver::new(SolverConfig {
        keys: Arc::new(keys),
        results: Arc::new(MemoryResults::default()),
    })
}

/// Builds a chain, and says how long that took and why steps were not cached.
async fn build(
    solver: &Solver<Numbers>,
    vertices: Vec<Arc<Vertex<Numbers>>>,
    asks: bool,
) -> Result<(Duration, Vec<String>), SolveError> {
    let job = solver.job((), Arc::new(Discard));
    if asks {
        job.explain();
    }
    let last = vertices.last().map(|vertex| vertex.digest.clone());
    let edge = Edge {
        vertex: last.expect("a chain has a last step"),
        index: 0,
    };
    let begin = Instant::now();
    job.build(vertices, edge).await?;
    let took = begin.elapsed();
    let told = job.explanations();
    let told = told.iter().map(|one| format!("{}: {one}", one.name));
    Ok((took, told.collect()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SolveError> {
    let remembers = solver(MemoryKeyStore::with_journal());
    build(&remembers, chain(4, None), false).await?;
    let (_, told) = build(&remembers, chain(4, Some(2)), true).await?;
    for line in told {
        println!("{line}");
    }

    let (forgets, remembers) = (
        solver(MemoryKeyStore::default()),
        solver(MemoryKeyStore::with_journal()),
    );
    for solver in [&forgets, &remembers] {
        build(solver, chain(STEPS, None), false).await?;
    }
    let ways = [(&forgets, false), (&remembers, false), (&remembers, true)];
    let mut times = [(); 3].map(|()| Vec::with_capacity(BUILDS));
    for turn in 0..BUILDS {
        // None of them is always the first.
        for way in 0..3 {
            let way = (turn + way) % 3;
            let (solver, asks) = ways[way];
            let (took, told) = build(solver, chain(STEPS, None), asks).await?;
            assert!(told.is_empty(), "all of it is cached");
            times[way].push(took);
        }
    }
    let names = [
        "without a journal",
        "with a journal",
        "with a job that asks",
    ];
    let mut first = None;
    for (name, mut times) in names.into_iter().zip(times) {
        times.sort_unstable();
        let median = times[BUILDS / 2];
        let of = first.get_or_insert(median).as_secs_f64();
        println!(
            "{STEPS} cached steps {name}: {:.2} µs each, {:.3} times",
            median.as_secs_f64() * 1e6 / STEPS as f64,
            median.as_secs_f64() / of
        );
    }
    Ok(())
}
