//! Containers of a client that builds by itself: made of references, not of a graph, and kept
//! until they are released or the build ends (`frontend/gateway/container` in BuildKit).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cooper_cache::LocalRef;
use cooper_executor::{ContainerSpec, HostIp, NetworkMode, Process, Running, SecurityMode};
use cooper_frontend::{FrontendError, Reference};
use cooper_llb::Entitlements;
use cooper_mount::{Prepare, Prepared};
use cooper_ops::OpsError;
use cooper_progress::VertexProgress;
use cooper_proto::gateway as api;
use cooper_proto::pb;
use cooper_snapshot::MountedDir;
use tokio_util::sync::CancellationToken;

use crate::EngineError;
use crate::build::Build;
use crate::process::SIGKILL;

/// The containers of one build by the names that its client gave them.
#[derive(Default)]
pub(crate) struct Containers(Mutex<HashMap<String, Arc<Container>>>);

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn add(&self, id: &str, container: Container) -> Result<(), EngineError> {
        use std::collections::hash_map::Entry;
        match self.lock().entry(id.to_owned()) {
            Entry::Occupied(_) => Err(EngineError::ContainerExists { id: id.to_owned() }),
            Entry::Vacant(place) => {
                place.insert(Arc::new(container));
                Ok(())
            }
        }
    }

    /// Ends a container and waits until nothing of it is mounted.
    pub(crate) async fn release(&self, id: &str) -> Result<(), EngineError> {
        let container = self.lock().remove(id);
        let container = container.ok_or_else(|| EngineError::NoContainer { id: id.to_owned() })?;
        container.end().await;
        Ok(())
    }

    /// [`release`](Self::release) of all that are left.
    pub(crate) async fn release_all(&self) {
        let left: Vec<_> = self.lock().drain().map(|(_, left)| left).collect();
        for container in left {
            container.end().await;
        }
    }
}

/// One container. Its first process makes it run; the others run in it.
pub(crate) struct Container {
    // Goes before what it has mounted.
    init: tokio::sync::Mutex<Init>,
    prepared: Prepared,
    spec: ContainerSpec,
    os: String,
    entitlements: Entitlements,
    mounts_dir: PathBuf,
    released: CancellationToken,
}

enum Init {
    /// No process was started.
    New,
    Running(Arc<dyn Running>),
}

/// What a container is made of: each mount with the reference that it shows.
pub(crate) struct NewContainer {
    pub(crate) mounts: Vec<(pb::Mount, Option<Arc<dyn Reference>>)>,
    pub(crate) request: api::NewContainerRequest,
}

impl Container {
    /// Prepares the mounts. Nothing runs yet.
    ///
    /// # Cancel safety
    /// When the future is dropped everything is given back.
    pub(crate) async fn new(build: &Build, new: NewContainer) -> Result<Self, EngineError> {
        let NewContainer { mounts, request } = new;
        let mut inputs = Vec::new();
        let mut described = Vec::new();
        for (mut mount, reference) in mounts {
            mount.input = -1;
            if let Some(local) = local(build, reference).await? {
                inputs.push(Some(local));
                mount.input = i64::try_from(inputs.len() - 1).unwrap_or(-1);
            }
            described.push(mount);
        }
        let prepare = Prepare {
            mounts: &described,
            inputs: &inputs,
            cwd: "/",
            description: &format!("container {}", request.container_id),
            sessions: &build.sessions,
            progress: None,
        };
        let prepared = build.env.mounts.prepare(prepare).await;
        let prepared = prepared.map_err(|error| OpsError::from(error).into_engine())?;
        let network = match request.network() {
            pb::NetMode::Unset => NetworkMode::Default,
            pb::NetMode::Host => NetworkMode::Host,
            pb::NetMode::None => NetworkMode::None,
        };
        let spec = ContainerSpec {
            root: prepared.root.clone(),
            root_read_only: prepared.root_read_only,
            mounts: prepared.mounts.clone(),
            hostname: request.hostname,
            extra_hosts: hosts(&request.extra_hosts)?,
            network,
            ..ContainerSpec::default()
        };
        let os = request.platform.map(|platform| platform.os);
        Ok(Self {
            init: tokio::sync::Mutex::new(Init::New),
            prepared,
            spec,
            os: os.unwrap_or_else(|| build.env.platform.os.clone()),
            entitlements: build.entitlements,
            mounts_dir: build.env.cache.mounts_dir().to_owned(),
            released: build.ended.child_token(),
        })
    }

    /// When it is released or its build ends.
    pub(crate) fn released(&self) -> &CancellationToken {
        &self.released
    }

    pub(crate) fn os(&self) -> &str {
        &self.os
    }

    /// Starts a process: the first one with the container, another one in it.
    pub(crate) async fn start(
        &self,
        build: &Build,
        security: pb::SecurityMode,
        remove_mount_stubs: bool,
        process: Process,
    ) -> Result<Arc<dyn Running>, EngineError> {
        self.check(security)?;
        let mut init = self.init.lock().await;
        if let Init::Running(first) = &*init {
            let first = first.clone();
            drop(init);
            return Ok(first.exec(process).await?);
        }
        if self.released.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let spec = ContainerSpec {
            security: match security {
                pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
                pb::SecurityMode::Insecure => SecurityMode::Insecure,
            },
            remove_mount_stubs,
            ..self.spec.clone()
        };
        let running = build.env.executor.start(spec, process).await?;
        *init = Init::Running(running.clone());
        Ok(running)
    }

    /// The rights of the build go for its containers, too.
    fn check(&self, security: pb::SecurityMode) -> Result<(), EngineError> {
        let refused = |name: &str| Err(EngineError::NotAllowed { name: name.into() });
        if self.spec.network == NetworkMode::Host && !self.entitlements.network_host {
            return refused("network.host");
        }
        if security == pb::SecurityMode::Insecure && !self.entitlements.security_insecure {
            return refused("security.insecure");
        }
        Ok(())
    }

    /// Looks at the files of the mount at `index`, on a thread that may block.
    pub(crate) async fn look<T: Send + 'static>(
        self: Arc<Self>,
        index: i32,
        look: impl FnOnce(&std::path::Path) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let looked = tokio::task::spawn_blocking(move || {
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            let count = self.prepared.count();
            if place >= count {
                let message = format!("mount index {index} is out of bounds ({count} available)");
                return Err(EngineError::Invalid(message));
            }
            let missing = || EngineError::Invalid(format!("mountable {index} not found"));
            let mounts = self.prepared.view(place).ok_or_else(missing)?;
            let failed =
                |error| FrontendError::bridge("failed to mount the container's files", error);
            let dir = MountedDir::mount(&mounts, &self.mounts_dir).map_err(failed)?;
            let result = look(dir.path());
            dir.close().map_err(failed)?;
            Ok(result?)
        });
        let failed = |error| FrontendError::bridge("failed to look at a container", error);
        looked.await.map_err(failed)?
    }

    /// Ends it and waits until nothing of it is mounted.
    pub(crate) async fn end(&self) {
        self.released.cancel();
        let init = self.init.lock().await;
        if let Init::Running(first) = &*init {
            // It may have ended by itself.
            let _ = first.signal(SIGKILL).await;
            let _ = first.wait().await;
        }
    }
}

/// What a reference promises, on disk.
async fn local(
    build: &Build,
    reference: Option<Arc<dyn Reference>>,
) -> Result<Option<LocalRef>, EngineError> {
    let Some(output) = build.output(&reference).await? else {
        return Ok(None);
    };
    let progress = VertexProgress::discard();
    let local = build
        .env
        .localize(&output, &build.sessions, &progress)
        .await;
    local.map(Some).map_err(OpsError::into_engine)
}

trait IntoEngine {
    fn into_engine(self) -> EngineError;
}

impl IntoEngine for OpsError {
    fn into_engine(self) -> EngineError {
        EngineError::Frontend(FrontendError::bridge(self.to_string(), self))
    }
}

fn hosts(hosts: &[pb::HostIp]) -> Result<Vec<HostIp>, EngineError> {
    let parse = |host: &pb::HostIp| match host.ip.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(HostIp {
            host: host.host.clone(),
            ip: ip.to_string(),
        }),
        Err(_) => {
            let message = format!("failed to parse IP {}", host.ip);
            Err(EngineError::Invalid(message))
        }
    };
    hosts.iter().map(parse).collect()
}
