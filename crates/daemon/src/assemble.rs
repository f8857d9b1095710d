//! Everything put together.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cooper_control::{GatewayOverStdio, Version};
use cooper_engine::{Engine, EngineConfig, ImageFrontends};
use cooper_executor::DnsConfig;
use cooper_executor::cni::CniConfig;
use cooper_frontend::Frontend;
use cooper_frontend_dockerfile::DockerfileFrontend;
use cooper_history::History;
use cooper_llb::Entitlements;
use cooper_registry::{HostConfig, KeyPair};
use cooper_session::Manager;
use cooper_solver::error_chain;
use cooper_sys::FileLock;
use cooper_worker::{Context, Controller, StoredPlaintexts, WorkerSettings};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::config::{Disk, RegistryConfig, WorkerConfig, policies};
use crate::debug::CacheDebug;
use crate::{Config, DaemonError, workers};

/// How long calls may take to tell their clients that the daemon stops.
const GRACE: Duration = Duration::from_secs(1);
/// What cache keys are made of, in the root (BuildKit's name).
const PLAINTEXTS: &str = "cache-debug.db";
/// How frontends that are images are named in the configuration.
const GATEWAY: &str = "gateway.v0";
/// The name of the built-in frontend in the configuration.
const DOCKERFILE: &str = "dockerfile.v0";

/// A daemon that is ready to serve. It alone works on its root.
pub struct Daemon {
    engine: Arc<Engine>,
    plaintexts: Option<Arc<StoredPlaintexts>>,
    // Last: released when everything else is gone.
    lock: FileLock,
}

/// The daemon's version.
pub(crate) fn version() -> Version {
    let revision = option_env!("COOPER_REVISION");
    Version {
        revision: revision.unwrap_or("unknown").to_owned(),
        ..Version::default()
    }
}

impl Daemon {
    /// Opens what is kept in the root and makes the workers.
    ///
    /// # Errors
    /// Another daemon works on the root, the root cannot be used, or there is no worker.
    pub async fn assemble(config: &Config) -> Result<Self, DaemonError> {
        for name in config.without_effect() {
            tracing::warn!("the setting {name} has no effect");
        }
        let root = absolute(&config.root)?;
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root);
        made.map_err(|source| DaemonError::Root {
            path: root.clone(),
            source,
        })?;
        let path = root.join("buildkitd.lock");
        let lock = FileLock::try_exclusive(&path);
        let lock = lock.map_err(|source| DaemonError::Locked { path, source })?;
        let plaintexts = match config.save_cache_debug {
            true => Some(StoredPlaintexts::open(&root.join(PLAINTEXTS)).await?),
            false => None,
        };
        let history = match config.history.limits() {
            // It is no reason not to build: the disk may be full, and builds may make room.
            Some(limits) => History::open(&root, limits).await.unwrap_or_else(|error| {
                let error = error_chain(&error);
                let root = root.display();
                tracing::error!(%root, error, "builds are not recorded: their history cannot be opened");
                History::none()
            }),
            None => History::none(),
        };
        let mut cx = context(config, root);
        cx.plaintexts = plaintexts.map(Arc::new);
        let controller = Box::pin(Controller::start(&cx)).await?;
        let engine = Engine::new(EngineConfig {
            workers: controller,
            sessions: Manager::new(),
            frontends: frontends(config),
            images: image_frontends(config),
            entitlements: supported(&config.insecure_entitlements)?,
            history,
            describe: cooper_control::describe,
        });
        Ok(Self {
            engine: Arc::new(engine),
            plaintexts: cx.plaintexts,
            lock,
        })
    }

    /// What the debug handlers show of it ([`crate::debug::serve`]).
    pub fn cache_debug(&self) -> CacheDebug {
        let workers = self.engine.workers().list(&[]);
        CacheDebug {
            plaintexts: self.plaintexts.clone(),
            keys: workers.iter().map(|worker| worker.keys.clone()).collect(),
        }
    }

    /// Serves the API on `connections` until they end or `stop` is cancelled. Then builds are
    /// given up, and calls get a second to tell their clients.
    ///
    /// # Cancel safety
    /// Dropping the future gives up what clients wait for.
    pub async fn serve<I, S>(
        &self,
        connections: S,
        stop: CancellationToken,
    ) -> Result<(), DaemonError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Stream<Item = io::Result<I>>,
    {
        let overdue = async {
            stop.cancelled().await;
            self.engine.cancel();
            tokio::time::sleep(GRACE).await;
        };
        let served =
            cooper_control::serve(self.engine.clone(), version(), connections, stop.clone());
        tokio::select! {
            served = served => served.map_err(|error| DaemonError::Serve { source: error.into() }),
            // The calls are dropped with the other branch.
            () = overdue => Ok(()),
        }
    }

    /// Kills what runs, and waits until everything that was promised is written.
    pub async fn close(self) {
        self.engine.close().await;
        if let Some(plaintexts) = &self.plaintexts {
            plaintexts.close().await;
        }
        drop(self.lock);
    }
}

/// Whether nobody switched a frontend off.
fn is_on(config: &Config, name: &str) -> bool {
    let settings = config.frontend.get(name);
    settings.is_none_or(|settings| settings.enabled != Some(false))
}

/// The built-in frontends that are not switched off.
fn frontends(config: &Config) -> Vec<Arc<dyn Frontend>> {
    let all: [(&str, Arc<dyn Frontend>); 1] = [(DOCKERFILE, Arc::new(DockerfileFrontend))];
    let on = all.into_iter().filter(|(name, _)| is_on(config, name));
    on.map(|(_, frontend)| frontend).collect()
}

/// How frontends are run that are images, if they are not switched off.
fn image_frontends(config: &Config) -> Option<ImageFrontends> {
    let settings = config.frontend.get(GATEWAY);
    let allowed = settings.map(|settings| settings.allowed_repositories.clone());
    is_on(config, GATEWAY).then(|| ImageFrontends {
        server: Arc::new(GatewayOverStdio::new(version())),
        allowed: allowed.unwrap_or_default(),
    })
}

/// The rights that clients may give to their builds.
fn supported(names: &[String]) -> Result<Entitlements, DaemonError> {
    let mut supported = Entitlements::default();
    for name in names {
        match name.as_str() {
            "network.host" => supported.network_host = true,
            "security.insecure" => supported.security_insecure = true,
            "device" => supported.device = true,
            other => {
                return Err(DaemonError::Entitlement {
                    name: other.to_owned(),
                });
            }
        }
    }
    Ok(supported)
}

fn absolute(root: &std::path::Path) -> Result<PathBuf, DaemonError> {
    std::path::absolute(root).map_err(|source| DaemonError::Root {
        path: root.to_owned(),
        source,
    })
}

fn context(config: &Config, root: PathBuf) -> Context {
    let disk = Disk::of(&root);
    let registries = config.registry.iter();
    let mut cx = Context {
        root,
        registries: registries
            .map(|(domain, registry)| (domain.clone(), host(registry)))
            .collect(),
        dns: DnsConfig {
            nameservers: config.dns.nameservers.clone(),
            options: config.dns.options.clone(),
            search_domains: config.dns.search_domains.clone(),
        },
        workers: Default::default(),
        plaintexts: None,
    };
    if config.worker.oci.enabled != Some(false) {
        let settings = settings(&config.worker.oci, disk);
        cx.workers.insert(workers::runc::NAME.to_owned(), settings);
    }
    let containerd = &config.worker.containerd;
    if containerd.enabled != Some(false) {
        let mut settings = settings(containerd, disk);
        settings.extra = extra(containerd);
        let name = workers::containerd::NAME.to_owned();
        cx.workers.insert(name, settings);
    }
    cx
}

/// What only the containerd worker knows.
fn extra(config: &WorkerConfig) -> BTreeMap<String, String> {
    use workers::containerd::extra;
    let runtime = &config.runtime;
    let mut all = BTreeMap::from([
        (extra::ADDRESS.to_owned(), config.address.clone()),
        (extra::NAMESPACE.to_owned(), config.namespace.clone()),
        (extra::RUNTIME_NAME.to_owned(), runtime.name.clone()),
        (extra::RUNTIME_PATH.to_owned(), runtime.path.clone()),
    ]);
    if !runtime.options.is_empty() {
        let options = runtime.options.to_string();
        all.insert(extra::RUNTIME_OPTIONS.to_owned(), options);
    }
    all
}

fn host(config: &RegistryConfig) -> HostConfig {
    let keypairs = config.keypair.iter();
    HostConfig {
        mirrors: config.mirrors.clone(),
        http: config.http,
        insecure: config.insecure,
        ca: config.ca.clone(),
        keypairs: keypairs
            .map(|pair| KeyPair {
                cert: pair.cert.clone(),
                key: pair.key.clone(),
            })
            .collect(),
        tls_dirs: config.tlsconfigdir.clone(),
    }
}

fn settings(config: &WorkerConfig, disk: Disk) -> WorkerSettings {
    WorkerSettings {
        required: config.enabled == Some(true),
        labels: config.labels.clone(),
        platforms: config.platforms.clone(),
        snapshotter: config.snapshotter.clone(),
        binary: config.binary.clone(),
        max_parallelism: usize::try_from(config.max_parallelism).unwrap_or_default(),
        network_mode: config.network_mode.clone(),
        cni: CniConfig {
            config_path: config.cni_config_path.clone(),
            binary_path: config.cni_binary_path.clone(),
            pool_size: usize::try_from(config.cni_pool_size).unwrap_or_default(),
            bridge_name: config.bridge_name.clone(),
            bridge_subnet: config.bridge_subnet.clone(),
        },
        default_cgroup_parent: config.default_cgroup_parent.clone(),
        apparmor_profile: config.apparmor_profile.clone(),
        no_process_sandbox: config.no_process_sandbox,
        gc: policies(config, disk),
        most_of_step: disk.bytes(config.max_step_bytes),
        extra: Default::default(),
    }
}
