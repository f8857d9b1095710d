//! The worker that does everything through a containerd.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cooper_executor_containerd::{
    Containerd, ContainerdConfig, ContainerdContentStore, ContainerdExecutor, ContainerdImageStore,
    ContainerdSnapshotter, RuncOptions, Runtime, RuntimeOptions,
};
use cooper_worker::inventory;
use cooper_worker::{
    Context, Parts, Storage, Worker, WorkerError, WorkerInitializer, WorkerSettings, WorkersFuture,
    label, worker_id,
};

use crate::workers::network::Networks;

pub(crate) const NAME: &str = "containerd";

/// Names of [`WorkerSettings::extra`].
pub(crate) mod extra {
    pub(crate) const ADDRESS: &str = "address";
    pub(crate) const NAMESPACE: &str = "namespace";
    pub(crate) const RUNTIME_NAME: &str = "runtime.name";
    pub(crate) const RUNTIME_PATH: &str = "runtime.path";
    /// TOML.
    pub(crate) const RUNTIME_OPTIONS: &str = "runtime.options";
}

/// BuildKit's defaults (`cmd/buildkitd/main_containerd_worker.go`).
const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "buildkit";
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// How long containerd may take to answer at start.
const ANSWER: Duration = Duration::from_secs(60);

inventory::submit! { WorkerInitializer { name: NAME, priority: 1, init } }

fn init(cx: &Context) -> WorkersFuture<'_> {
    Box::pin(async move {
        let Some(settings) = cx.settings(NAME) else {
            return Ok(Vec::new());
        };
        let address = address(settings);
        // One that nobody asked for is not missed on a machine without containerd.
        if !settings.required && !address.exists() {
            tracing::debug!(address = %address.display(), "skipping the containerd worker: no socket");
            return Ok(Vec::new());
        }
        let failed = |source: Box<dyn Error + Send + Sync>| WorkerError::Init {
            name: NAME.to_owned(),
            source,
        };
        let connected = connect(&address, settings).await;
        let containerd = match connected {
            Ok(containerd) => containerd,
            Err(error) if settings.required => return Err(failed(error)),
            Err(error) => {
                tracing::warn!(%error, "skipping the containerd worker");
                return Ok(Vec::new());
            }
        };
        let dir = cx.root.join(NAME);
        std::fs::create_dir_all(&dir).map_err(|error| failed(error.into()))?;
        let networks = Networks::open(NAME, settings, &dir.join("executor"))?;
        let owner = worker_id(&dir)?;
        let storage = storage(&containerd, &owner, settings).await;
        let storage = storage.map_err(failed)?;
        let config = ContainerdConfig {
            runtime: runtime(settings).map_err(failed)?,
            dns: cx.dns.clone(),
            network: networks.mode,
            networks: networks.pool.into(),
            cgroup_parent: settings.default_cgroup_parent.clone(),
            apparmor_profile: settings.apparmor_profile.clone(),
            ..ContainerdConfig::new(dir.join("executor"))
        };
        let executor = ContainerdExecutor::open(containerd.clone(), config).await;
        let executor = executor.map_err(|error| failed(error.into()))?;
        let uuid = containerd.uuid().await;
        let labels = BTreeMap::from([
            (
                label::CONTAINERD_UUID.to_owned(),
                uuid.map_err(|error| failed(error.into()))?,
            ),
            (
                label::CONTAINERD_NAMESPACE.to_owned(),
                containerd.namespace().to_owned(),
            ),
        ]);
        let parts = Parts {
            name: NAME,
            executor: Arc::new(executor),
            executor_name: "containerd",
            network: networks.name.to_owned(),
            storage: Some(storage),
            labels,
            settings: settings.clone(),
        };
        Ok(vec![Box::pin(Worker::open(cx, parts)).await?])
    })
}

fn text<'a>(settings: &'a WorkerSettings, name: &str, default: &'a str) -> &'a str {
    match settings.extra.get(name).map(String::as_str) {
        None | Some("") => default,
        Some(text) => text,
    }
}

/// The socket; `unix://` before it says nothing more.
fn address(settings: &WorkerSettings) -> PathBuf {
    let text = text(settings, extra::ADDRESS, DEFAULT_ADDRESS);
    text.strip_prefix("unix://").unwrap_or(text).into()
}

async fn connect(
    address: &Path,
    settings: &WorkerSettings,
) -> Result<Containerd, Box<dyn Error + Send + Sync>> {
    let namespace = text(settings, extra::NAMESPACE, DEFAULT_NAMESPACE);
    let containerd = Containerd::new(address, namespace)?;
    let version = tokio::time::timeout(ANSWER, containerd.version()).await;
    let version = version.map_err(|_| format!("{} does not answer", address.display()))??;
    tracing::info!(address = %address.display(), version = version.version, "found containerd");
    Ok(containerd)
}

async fn storage(
    containerd: &Containerd,
    owner: &str,
    settings: &WorkerSettings,
) -> Result<Storage, Box<dyn Error + Send + Sync>> {
    let name = match settings.snapshotter.as_str() {
        "" | "auto" => DEFAULT_SNAPSHOTTER,
        name => name,
    };
    let snapshotter = ContainerdSnapshotter::open(containerd.clone(), name, owner).await?;
    let content = ContainerdContentStore::open(containerd.clone(), owner).await?;
    content.clear_ingests().await?;
    let images = ContainerdImageStore::new(containerd.clone(), content.clone(), name);
    Ok(Storage {
        snapshotter: Arc::new(snapshotter),
        content: Arc::new(content),
        images: Some(Arc::new(images)),
    })
}

fn runtime(settings: &WorkerSettings) -> Result<Runtime, Box<dyn Error + Send + Sync>> {
    let default = Runtime::default();
    let name = text(settings, extra::RUNTIME_NAME, &default.name).to_owned();
    let options = match settings.extra.get(extra::RUNTIME_OPTIONS) {
        Some(options) if Runtime::is_runc(&name) => {
            Some(toml::from_str::<RuncOptions>(options)?.encode())
        }
        Some(options) => Some(toml::from_str::<RuntimeOptions>(options)?.encode()),
        None => None,
    };
    Ok(Runtime {
        name,
        path: text(settings, extra::RUNTIME_PATH, "").to_owned(),
        options,
    })
}
