//! What a vertex costs the solver, whose operation costs nothing: a chain and a fan of up to
//! 100,000 of them, uncached and all cached. Before the times it prints the processor time and the
//! memory that each takes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cooper_progress::Discard;
use cooper_solver::{
    CacheDep, CacheMap, Digest, Domain, Edge, Op, OpContext, OpError, Solver, SolverConfig, Vertex,
    VertexOptions,
};
use criterion::{BenchmarkId, Criterion, Throughput};
use peak_alloc::PeakAlloc;
use tokio::runtime::Runtime;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const SHAPES: [(&str, Shape); 2] = [("chain", chain), ("fan", fan)];

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
/// Makes a graph of so many vertices.
type Shape = fn(usize) -> Graph;

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

/// What this process has used of processors, of all its threads that there are.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    // The first number is nanoseconds on a processor.
    let nanos = threads.map(|thread| {
        let schedstat = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        let used = schedstat.split_whitespace().next().unwrap();
        used.parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanos.sum())
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).build().unwrap()
}

/// What one build of a graph took.
struct Cost {
    used: Duration,
    /// Bytes at most while it was built, and afterwards.
    peak: usize,
    stays: usize,
}

/// One build on a runtime of its own: when that is gone, so is all that the solver had, which
/// would count as the next one's else.
fn cost(graph: &Graph, cached: bool) -> Cost {
    let tokio = runtime();
    let solver = tokio.block_on(async { Solver::new(SolverConfig::in_memory()) });
    if cached {
        tokio.block_on(build(&solver, graph));
    }
    let (before, begun) = (MEMORY.current_usage(), processor_time());
    MEMORY.reset_peak_usage();
    tokio.block_on(build(&solver, graph));
    Cost {
        used: processor_time() - begun,
        peak: MEMORY.peak_usage().saturating_sub(before),
        stays: MEMORY.current_usage().saturating_sub(before),
    }
}

/// Prints what a vertex takes at most while it is built and what its keys take afterwards, and
/// the processor time of both threads for it, which others on the machine lengthen less than they
/// do the time that passes: the median of several builds and the least.
fn costs(wanted: &str) {
    for (shape, graph) in SHAPES {
        for size in SIZES {
            let graph = graph(size);
            for (state, cached) in [("uncached", false), ("cached", true)] {
                let name = format!("costs/{shape}/{state}/{size}");
                if !wanted.is_empty() && !format!("{name}/").starts_with(&format!("{wanted}/")) {
                    continue;
                }
                let rounds = (200_000 / size).clamp(5, 50);
                let mut all: Vec<_> = (0..rounds).map(|_| cost(&graph, cached)).collect();
                all.sort_by_key(|cost| cost.used);
                let micros = |cost: &Cost| cost.used.as_secs_f64() * 1e6 / size as f64;
                let most = |part: fn(&Cost) -> usize| all.iter().map(part).max().unwrap() / size;
                println!(
                    "{name}: {:.1} us of processor time (at least {:.1}) and {} bytes per vertex, \
                     {} of them stay as keys",
                    micros(&all[rounds / 2]),
                    micros(&all[0]),
                    most(|cost| cost.peak),
                    most(|cost| cost.stays),
                );
            }
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    // `costs` and what begins so are asked for by name, as the times are.
    costs(filter.as_deref().unwrap_or_default());
    let tokio = runtime();
    for (name, shape) in SHAPES {
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
