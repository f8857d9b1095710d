//! Many builds at once whose steps are all cached, over the real store, cache and solver, and how
//! long each call to where keys and results are kept takes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cooper_cache::{CacheConfig, CacheManager, LocalRef, RecordOptions};
use cooper_content::MemoryContentStore;
use cooper_ops::{Build, JobContext, Output};
use cooper_progress::Discard;
use cooper_session::{Group, Manager};
use cooper_snapshot::OverlaySnapshotter;
use cooper_solver::{
    CacheDep, CacheMap, CacheResult, Description, Digest, Edge, Journal, KeyEntry, KeyId, KeyStore,
    Link, Op, OpContext, OpError, ResultStore, Solver, SolverConfig, Vertex, VertexOptions,
};
use cooper_store::Store;
use cooper_worker::{CachedResults, StoredKeys};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// How long calls took.
#[derive(Default)]
struct Waits(Mutex<Vec<Duration>>);

impl Waits {
    fn note(&self, begun: Instant) {
        self.0.lock().unwrap().push(begun.elapsed());
    }

    fn time<T>(&self, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = call();
        self.note(begun);
        result
    }

    fn take(&self) -> Vec<Duration> {
        let mut waits = std::mem::take(&mut *self.0.lock().unwrap());
        waits.sort_unstable();
        waits
    }
}

/// The stored keys, each call of which is timed.
struct TimedKeys(StoredKeys, Arc<Waits>);

impl KeyStore for TimedKeys {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        self.1.time(|| self.0.links(from, link))
    }

    fn results(&self, id: &KeyId) -> Vec<CacheResult> {
        self.1.time(|| self.0.results(id))
    }

    fn add(&self, entry: KeyEntry) {
        self.1.time(|| self.0.add(entry));
    }

    fn connect(&self, id: &KeyId, links: Vec<(KeyId, Link)>) {
        self.1.time(|| self.0.connect(id, links));
    }

    fn release(&self, result: &str) {
        self.1.time(|| self.0.release(result));
    }

    fn journal(&self) -> Option<Arc<dyn Journal>> {
        self.0.journal()
    }
}

/// The results in the cache, the same.
struct TimedResults(CachedResults, Arc<Waits>);

#[async_trait]
impl ResultStore<Build> for TimedResults {
    async fn save(&self, output: &Output) -> Option<String> {
        let begun = Instant::now();
        let kept = self.0.save(output).await;
        self.1.note(begun);
        kept
    }

    async fn load(&self, id: &str) -> Option<Output> {
        let begun = Instant::now();
        let loaded = self.0.load(id).await;
        self.1.note(begun);
        loaded
    }
}

/// Makes an empty state on top of its input.
struct Step {
    cache: CacheManager,
    ran: Arc<AtomicUsize>,
}

#[async_trait]
impl Op<Build> for Step {
    async fn cache_map(&self, cx: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let vertex = cx.vertex();
        Ok(CacheMap {
            digest: vertex.digest.clone(),
            deps: vertex.inputs.iter().map(|_| CacheDep::default()).collect(),
            last: true,
        })
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        Some(Description::new("step", &vertex.name))
    }

    async fn execute(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpError> {
        self.ran.fetch_add(1, Ordering::Relaxed);
        let below: Option<LocalRef> = inputs.iter().flatten().find_map(|input| input.local());
        let options = RecordOptions {
            description: cx.vertex().name.clone(),
            ..RecordOptions::default()
        };
        let work = self.cache.new_mutable(below.as_ref(), options).await?;
        Ok(vec![Some(work.commit().await?)])
    }
}

type Graph = Vec<Arc<Vertex<Build>>>;

/// A store with the results of builds, and the solver over it.
pub(crate) struct Bed {
    solver: Solver<Build>,
    graphs: Vec<Graph>,
    waits: Arc<Waits>,
    ran: Arc<AtomicUsize>,
}

/// What a round of builds took.
pub(crate) struct Round {
    /// All of it.
    pub(crate) time: Duration,
    /// What the processors worked meanwhile, all together.
    pub(crate) work: Duration,
    /// The calls to where keys and results are kept, the shortest first.
    pub(crate) waits: Vec<Duration>,
}

impl Round {
    /// The time that so many of a thousand waits do not exceed.
    pub(crate) fn wait(&self, of_thousand: usize) -> Duration {
        let last = self.waits.len() - 1;
        self.waits[(self.waits.len() * of_thousand / 1000).min(last)]
    }
}

impl Bed {
    /// Opens everything in `root`, and builds `builds` graphs of `steps` steps each, no step of
    /// which is another's.
    pub(crate) async fn new(root: &Path, builds: usize, steps: usize) -> Self {
        let boot = cooper_sys::boot_id().unwrap();
        let (store, dropped) = Store::open(&root.join("metadata.db"), &boot).unwrap();
        let snapshots = root.join("snapshots");
        let options = OverlaySnapshotter::probe(&snapshots).unwrap();
        let snapshotter = OverlaySnapshotter::open(&snapshots, store.clone(), options).unwrap();
        let cache = CacheManager::open(CacheConfig {
            store: store.clone(),
            dropped,
            snapshotter: Arc::new(snapshotter),
            content: Arc::new(MemoryContentStore::default()),
            mounts: root.join("mounts"),
        });
        let cache = cache.await.unwrap();
        let waits = Arc::new(Waits::default());
        let keys = StoredKeys::open(store, |_| true).unwrap();
        let solver = Solver::new(SolverConfig {
            keys: Arc::new(TimedKeys(keys, waits.clone())),
            results: Arc::new(TimedResults(
                CachedResults::new(cache.clone()),
                waits.clone(),
            )),
        });
        let ran = Arc::new(AtomicUsize::new(0));
        let op = Arc::new(Step {
            cache,
            ran: ran.clone(),
        });
        let graphs = (0..builds).map(|build| graph(build, steps, &op)).collect();
        let bed = Self {
            solver,
            graphs,
            waits,
            ran,
        };
        for graph in &bed.graphs {
            bed.build(graph).await;
        }
        assert_eq!(bed.ran.swap(0, Ordering::Relaxed), builds * steps);
        bed
    }

    async fn build(&self, graph: &Graph) {
        let job = JobContext::new(Group::new(Manager::default(), [""; 0]));
        let job = self.solver.job(job, Arc::new(Discard));
        let vertex = graph.last().unwrap().digest.clone();
        let built = job.build(graph.clone(), Edge { vertex, index: 0 }).await;
        assert!(built.unwrap().is_some());
    }

    /// Builds all graphs again, `at_once` at the same time: nothing is carried out.
    pub(crate) async fn round(self: &Arc<Self>, at_once: bool) -> Round {
        // What was written before is written.
        while self.solver.load().await.0 > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.waits.take();
        let (begun, worked) = (Instant::now(), worked());
        if at_once {
            let mut builds = tokio::task::JoinSet::new();
            for place in 0..self.graphs.len() {
                let bed = self.clone();
                builds.spawn(async move { bed.build(&bed.graphs[place]).await });
            }
            builds.join_all().await;
        } else {
            for graph in &self.graphs {
                self.build(graph).await;
            }
        }
        let time = begun.elapsed();
        let work = self::worked() - worked;
        assert_eq!(self.ran.load(Ordering::Relaxed), 0, "all of it is cached");
        Round {
            time,
            work,
            waits: self.waits.take(),
        }
    }
}

/// The processor time of this process so far.
fn worked() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times
        .iter()
        .map(|time| Duration::from_micros(time.num_microseconds().unsigned_abs()))
        .sum()
}

fn digest(build: usize, step: usize) -> Digest {
    format!("sha256:{build:032x}{step:032x}").parse().unwrap()
}

fn graph(build: usize, steps: usize, op: &Arc<Step>) -> Graph {
    let vertex = |step: usize| {
        let below = step.checked_sub(1).into_iter();
        Arc::new(Vertex {
            digest: digest(build, step),
            name: format!("[{step}/{steps}] RUN step {step} of build {build}"),
            inputs: below
                .map(|below| Edge {
                    vertex: digest(build, below),
                    index: 0,
                })
                .collect(),
            op: op.clone(),
            options: VertexOptions::default(),
        })
    };
    (0..steps).map(vertex).collect()
}
