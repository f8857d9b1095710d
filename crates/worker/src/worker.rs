//! A worker, and how it is put together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cooper_cache::{CacheConfig, CacheLimits, CacheManager, Collector};
use cooper_content::{ContentStore, FsContentStore, ImageStore, Plaintexts};
use cooper_executor::Executor;
use cooper_llb::platform;
use cooper_mount::MountManager;
use cooper_ops::{Build, Env};
use cooper_progress::Limits;
use cooper_proto::pb;
use cooper_registry::Registry;
use cooper_snapshot::{Kind, Snapshotter};
use cooper_solver::{Solver, SolverConfig};
use cooper_source::{
    GitSource, HttpSource, ImageResolver, ImageSource, LocalSource, Source, SourceRegistry,
};
use cooper_store::{Opened, Store};
use tokio::sync::Semaphore;

use crate::{
    CachedResults, Context, Filter, GcPolicy, StoredKeys, WorkerError, WorkerSettings, gc,
    host_platforms, id, label,
};

/// What a kind of worker brings: the rest is the same for all.
pub struct Parts {
    /// The folder below the daemon's root: `runc`.
    pub name: &'static str,
    /// Runs the processes of steps.
    pub executor: Arc<dyn Executor>,
    /// What it is called in labels: `oci`.
    pub executor_name: &'static str,
    /// How steps reach the network, for labels: `host`.
    pub network: String,
    /// Where it keeps its files, if not in folders of its own.
    pub storage: Option<Storage>,
    /// Labels that only this kind of worker has.
    pub labels: BTreeMap<String, String>,
    /// Its settings.
    pub settings: WorkerSettings,
}

/// Where a worker keeps what it makes. What was begun there and not finished by an earlier
/// process is gone already.
pub struct Storage {
    /// The states of file systems.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// The names of images, if there is a store of them.
    pub images: Option<Arc<dyn ImageStore>>,
}

impl Storage {
    /// Folders in the worker's own.
    fn open(dir: &Path, settings: &WorkerSettings, store: &Store) -> Result<Self, WorkerError> {
        let snapshots = dir.join("snapshots");
        let kind = snapshotter_kind(&settings.snapshotter)?;
        let snapshotter = cooper_snapshot::open(kind, &snapshots, store.clone())
            .map_err(WorkerError::open("the snapshots", &snapshots))?;
        let blobs = dir.join("content");
        let content = FsContentStore::open(&blobs)
            .and_then(|content| content.clear_ingests().map(|()| content))
            .map_err(WorkerError::open("the content store", &blobs))?;
        Ok(Self {
            snapshotter,
            content: Arc::new(content),
            images: None,
        })
    }
}

/// The parts of one machine. All are public: who needs one takes it.
pub struct Worker {
    /// Made once and kept.
    pub id: String,
    /// What it is like ([`label`]).
    pub labels: BTreeMap<String, String>,
    /// The platforms that it runs, the preferred one first.
    pub platforms: Vec<pb::Platform>,
    /// What operations work with.
    pub env: Arc<Env>,
    /// The states of file systems.
    pub cache: CacheManager,
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// Registries.
    pub registry: Registry,
    /// Finds images and their configurations.
    pub images: ImageResolver,
    /// Runs processes.
    pub executor: Arc<dyn Executor>,
    /// The keys of its cache.
    pub keys: Arc<StoredKeys>,
    /// Solves graphs for all jobs.
    pub solver: Solver<Build>,
    /// The metadata.
    pub store: Store,
    /// What is pruned by itself, one policy after the other.
    pub gc: Vec<GcPolicy>,
    /// Prunes by itself as long as the worker is there.
    pub collector: Collector,
}

impl Worker {
    /// Opens what the worker keeps below `cx.root`, and puts it together around the executor.
    pub async fn open(cx: &Context, mut parts: Parts) -> Result<Self, WorkerError> {
        let dir = cx.root.join(parts.name);
        std::fs::create_dir_all(&dir).map_err(WorkerError::open("the worker's folder", &dir))?;
        let id = worker_id(&dir)?;
        let settings = &parts.settings;
        let Opened { store, dropped, .. } = open_store(&dir.join("metadata.db")).await?;
        let Storage {
            snapshotter,
            content,
            images: image_store,
        } = match parts.storage.take() {
            Some(storage) => storage,
            None => Storage::open(&dir, settings, &store)?,
        };
        let snapshotter_name = snapshotter.name().to_owned();
        let cache = CacheManager::open(CacheConfig {
            store: store.clone(),
            dropped,
            snapshotter,
            content: content.clone(),
            mounts: dir.join("mounts"),
        })
        .await
        .map_err(WorkerError::open("the cache", &dir))?;
        let plaintexts = cx
            .plaintexts
            .clone()
            .map(|plaintexts| plaintexts as Arc<dyn Plaintexts>);
        if let Some(plaintexts) = &plaintexts {
            cache.tell_plaintexts(plaintexts.clone());
        }
        // From here on who touches a blob is written down.
        let content = cache.content().clone();
        let collector = cache.collect(CacheLimits {
            policies: gc::options(&settings.gc)?,
            most_of_step: settings.most_of_step,
        });

        let registry = Registry::new(cx.registries.clone());
        let images = ImageResolver::new(registry.clone(), content.clone());
        let http = HttpSource::new(cache.clone());
        let http = http.map_err(WorkerError::open("the source of downloads", &dir))?;
        let mut sources: Vec<Arc<dyn Source>> = vec![
            Arc::new(ImageSource::new(cache.clone(), images.clone())),
            Arc::new(LocalSource::new(cache.clone())),
            Arc::new(http),
        ];
        if GitSource::is_available() {
            sources.push(Arc::new(GitSource::new(cache.clone())));
        } else {
            tracing::warn!("no git in PATH: builds cannot take files from repositories");
        }
        let platforms = platforms(settings)?;
        let env = Arc::new(Env {
            cache: cache.clone(),
            content: content.clone(),
            registry: registry.clone(),
            mounts: MountManager::new(cache.clone(), dir.join("mounts")),
            executor: parts.executor.clone(),
            images: image_store,
            sources: SourceRegistry::new(sources),
            parallelism: match settings.max_parallelism {
                0 => None,
                limit => Some(Arc::new(Semaphore::new(limit))),
            },
            platform: platforms.first().cloned().unwrap_or_else(platform::host),
            log_limits: Limits::from_env(|name| std::env::var(name).ok()),
            print_output: std::env::var_os("BUILDKIT_DEBUG_EXEC_OUTPUT")
                .is_some_and(|value| value == "1"),
        });
        let keys = StoredKeys::open(store.clone(), |id| CachedResults::is_in(&cache, id))
            .map(|keys| Arc::new(keys.telling(plaintexts)))
            .map_err(WorkerError::open("the cache keys", &dir))?;
        let gone = keys.clone();
        cache.on_removed(move |id, by| gone.removed(id.as_str(), by));
        let solver = Solver::new(SolverConfig {
            keys: keys.clone(),
            results: Arc::new(CachedResults::new(cache.clone())),
        });

        Ok(Self {
            id,
            labels: labels(&parts, &snapshotter_name),
            platforms,
            env,
            cache,
            content,
            registry,
            images,
            executor: parts.executor,
            keys,
            solver,
            store,
            gc: parts.settings.gc,
            collector,
        })
    }

    /// Kills what runs, and waits until everything that was promised is written.
    pub async fn close(&self) {
        self.executor.close().await;
        self.cache.close().await;
    }

    /// Whether `filter` matches the worker: fields `id` and `labels.NAME`.
    pub fn matches(&self, filter: &Filter) -> bool {
        filter.matches(|path| match path {
            [field] if field == "id" => Some(self.id.as_str()),
            [field, name @ ..] if field == "labels" => {
                self.labels.get(&name.join(".")).map(String::as_str)
            }
            _ => None,
        })
    }
}

/// The id of the worker that keeps its files in the folder `dir`, made when there is none.
pub fn worker_id(dir: &Path) -> Result<String, WorkerError> {
    let path = dir.join("workerid");
    id::persistent(&path).map_err(WorkerError::open("the worker's id", &path))
}

/// Opens the metadata store in the file `path`, or begins a new one with what is whole of it.
pub(crate) async fn open_store(path: &Path) -> Result<Opened, WorkerError> {
    let boot = cooper_sys::boot_id().map_err(WorkerError::open("the boot id", path))?;
    let open = {
        let path = path.to_owned();
        move || Store::open_or_rebuild(&path, &boot)
    };
    // A panic there is a failure like any other.
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened
        .map_err(WorkerError::open("the metadata", path))?
        .map_err(WorkerError::open("the metadata", path))?;
    if let Some(rebuilt) = &opened.rebuilt {
        tracing::error!(
            path = %path.display(),
            kept = %rebuilt.aside.display(),
            rows = rebuilt.rows,
            "the metadata was damaged: {}; it is kept aside, and what is whole of it was \
             brought over",
            rebuilt.detail
        );
    }
    Ok(opened)
}

fn snapshotter_kind(name: &str) -> Result<Kind, WorkerError> {
    match name {
        "" | "auto" => Ok(Kind::Auto),
        "overlayfs" => Ok(Kind::Overlay),
        "native" => Ok(Kind::Native),
        other => Err(WorkerError::Setting {
            name: "snapshotter",
            value: other.to_owned(),
            source: "auto, overlayfs and native are known".into(),
        }),
    }
}

fn platforms(settings: &WorkerSettings) -> Result<Vec<pb::Platform>, WorkerError> {
    if settings.platforms.is_empty() {
        return Ok(host_platforms());
    }
    let parse = |text: &String| {
        let parsed = platform::parse(text).map_err(|error| WorkerError::Setting {
            name: "platforms",
            value: text.clone(),
            source: error.into(),
        })?;
        Ok(platform::normalize(&parsed))
    };
    settings.platforms.iter().map(parse).collect()
}

fn labels(parts: &Parts, snapshotter: &str) -> BTreeMap<String, String> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = [
        (label::EXECUTOR, parts.executor_name),
        (label::SNAPSHOTTER, snapshotter),
        (label::HOSTNAME, hostname.trim()),
        (label::NETWORK, &parts.network),
        (label::OCI_PROCESS_MODE, "sandbox"),
        (label::APPARMOR_PROFILE, &parts.settings.apparmor_profile),
        (label::SELINUX_ENABLED, "false"),
    ];
    let own = own
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    // What the person who runs it says goes before what the worker says.
    own.chain(parts.labels.clone())
        .chain(parts.settings.labels.clone())
        .collect()
}
