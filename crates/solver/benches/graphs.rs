//! What a vertex costs the solver, whose operation costs nothing: a chain and a fan of up to
//! 100,000 of them, uncached and all cached. Before the times it prints the processor time and the
//! memory that each takes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cooper_progress::Discard;
use cooper_solver::{
    CacheDep, CacheMap, Digest, Domain, Edge, MemoryKeyStore, MemoryResults, Op, OpContext,
    OpError, Solver, SolverConfig, Vertex, VertexOptions,
};
use criterion::{BenchmarkId, Criterion, Throughput};
use peak_alloc::PeakAlloc;
use tokio::runtime::Runtime;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

struct Numbers;

impl Domain for Numbers {
    type Output = u64;
    type Job = ();
}

struct Add;

#[async_trait]
impl Op<Numbers> for Add {
    async fn cache_map(
        &self,
        cx: &OpContext<Numbers>,
        _: usize,
    ) -> Result<CacheMap<Numbers>, OpError> {
        let vertex = cx.vertex();
        Ok(CacheMap {
            digest: vertex.digest.clone(),
            deps: vertex.inputs.iter().map(|_| CacheDep::default()).collect(),
            last: true,
        })
    }

    async fn execute(&self, _: &OpContext<Numbers>, inputs: &[u64]) -> Result<Vec<u64>, OpError> {
        Ok(vec![inputs.iter().sum::<u64>() + 1])
    }
}

type Graph = Vec<Arc<Vertex<Numbers>>>;

fn digest(number: usize) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

fn vertex(
    number: usize,
    inputs: impl Iterator<Item = usize>,
    op: &Arc<Add>,
) -> Arc<Vertex<Numbers>> {
    let edge = |number| Edge {
        vertex: digest(number),
        index: 0,
    };
    Arc::new(Vertex {
        digest: digest(number),
        name: format!("[{number}] add"),
        inputs: inputs.map(edge).collect(),
        op: op.clone(),
        options: VertexOptions::default(),
    })
}

/// Each takes the one before.
fn chain(size: usize) -> Graph {
    let op = Arc::new(Add);
    let vertices = (0..size).map(|number| vertex(number, number.checked_sub(1).into_iter(), &op));
    vertices.collect()
}

/// All but the last take the first, and the last takes all of them.
fn fan(size: usize) -> Graph {
    let op = Arc::new(Add);
    let all = 1..size - 1;
    let mut vertices = vec![vertex(0, 0..0, &op)];
    vertices.extend(all.clone().map(|number| vertex(number, 0..1, &op)));
    vertices.push(vertex(size - 1, all, &op));
    vertices
}

async fn build(solver: &Solver<Numbers>, graph: &Graph) {
    let job = solver.job((), Arc::new(Discard));
    let last = graph.last().unwrap();
    let edge = Edge {
        vertex: last.digest.clone(),
        index: 0,
    };
    job.build(graph.clone(), edge).await.unwrap();
    drop(job);
    // Until the job is forgotten: that is a part of what it costs.
    while solver.load().await.0 > 0 {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What this process has used of processors, from `/proc/self/stat` (hundredths of a second).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A new solver, and what is gone when all of it is: its task ends while nobody waits for it.
fn new(tokio: &Runtime) -> (Solver<Numbers>, Weak<MemoryKeyStore>) {
    let keys = Arc::new(MemoryKeyStore::default());
    let gone = Arc::downgrade(&keys);
    let config = SolverConfig {
        keys,
        results: Arc::new(MemoryResults::default()),
    };
    (tokio.block_on(async { Solver::new(config) }), gone)
}

/// Prints what a vertex takes at most while it is built and what its keys take afterwards, and
/// the processor time of both threads for it, which others on the machine lengthen less than they
/// do the time that passes.
fn costs(tokio: &Runtime, name: &str, shape: fn(usize) -> Graph) {
    for size in SIZES {
        let graph = shape(size);
        for cached in [false, true] {
            let (kept, _) = new(tokio);
            tokio.block_on(build(&kept, &graph));
            let rounds = 200_000 / size;
            let mut used = Duration::ZERO;
            let (mut peak, mut stays) = (0, 0);
            for _ in 0..rounds {
                let (solver, gone) = match cached {
                    true => (kept.clone(), Weak::new()),
                    false => new(tokio),
                };
                let (before, begun) = (MEMORY.current_usage(), processor_time());
                MEMORY.reset_peak_usage();
                tokio.block_on(build(&solver, &graph));
                used += processor_time() - begun;
                peak = MEMORY.peak_usage().saturating_sub(before) / size;
                stays = MEMORY.current_usage().saturating_sub(before) / size;
                drop(solver);
                while gone.strong_count() > 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let state = if cached { "cached" } else { "uncached" };
            let micros = used.as_secs_f64() * 1e6 / (rounds * size) as f64;
            println!(
                "{name}/{state}/{size}: {micros:.1} us of processor time and {peak} bytes per \
                 vertex, {stays} of them stay as keys"
            );
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    // Not when single times are asked for by name.
    if !std::env::args().skip(1).any(|arg| !arg.starts_with('-')) {
        costs(&tokio, "chain", chain);
        costs(&tokio, "fan", fan);
    }
    for (name, shape) in [("chain", chain as fn(usize) -> Graph), ("fan", fan)] {
        let mut group = criterion.benchmark_group(name);
        for size in SIZES {
            let graph = shape(size);
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new("uncached", size), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut total = Duration::ZERO;
                    for _ in 0..rounds {
                        tokio.block_on(async {
                            let solver = Solver::new(SolverConfig::in_memory());
                            let begun = Instant::now();
                            build(&solver, &graph).await;
                            total += begun.elapsed();
                        });
                    }
                    total
                });
            });
            let solver = tokio.block_on(async { Solver::new(SolverConfig::in_memory()) });
            tokio.block_on(build(&solver, &graph));
            group.bench_function(BenchmarkId::new("cached", size), |bencher| {
                bencher.iter_custom(|rounds| {
                    let begun = Instant::now();
                    for _ in 0..rounds {
                        tokio.block_on(build(&solver, &graph));
                    }
                    begun.elapsed()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
