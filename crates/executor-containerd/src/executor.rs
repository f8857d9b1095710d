//! The executor.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cooper_executor::{
    Bundle, Common, ContainerSpec, ExecError, Executor, Group, Machine, Process, Running,
    check_root, container_id, find_user, make_cwd, oci_spec,
};
use cooper_sys::Root;
use oci_spec::runtime::Spec;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::container::{self, Handle};
use crate::left::{self, Left};
use crate::stdio::Stdio;
use crate::{Containerd, ContainerdConfig};

/// Runs containers through containerd.
///
/// Dropping it kills its containers; [`Executor::close`] waits until they are gone.
#[derive(Debug)]
pub struct ContainerdExecutor {
    shared: Arc<Shared>,
}

/// What its containers need of the executor.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) containerd: Containerd,
    pub(crate) config: ContainerdConfig,
    /// The root, as it is written in labels.
    pub(crate) owner: String,
    bundles: PathBuf,
    machine: Machine,
    pub(crate) left: Left,
    /// The owners of containers.
    pub(crate) tracker: TaskTracker,
    /// No more containers, and those that are there have to go.
    pub(crate) closing: CancellationToken,
}

/// A container that is put together on this side.
pub(crate) struct Prepared {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) root: PathBuf,
    pub(crate) config: Spec,
    pub(crate) group: Group,
    /// The same for containerd.
    pub(crate) spec: Vec<u8>,
    pub(crate) stdio: Stdio,
}

impl ContainerdExecutor {
    /// Connects, and removes what an earlier process left in the root: containers that still
    /// run are killed.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn open(containerd: Containerd, config: ContainerdConfig) -> Result<Self, ExecError> {
        let asked = containerd.clone();
        let root = config.root.clone();
        let made = blocking(move || {
            let make =
                |dir: &Path| std::fs::create_dir_all(dir).map_err(ExecError::io("make", dir));
            make(&root)?;
            let root = root
                .canonicalize()
                .map_err(ExecError::io("resolve", &root))?;
            let bundles = root.join("containers");
            make(&bundles)?;
            Ok((root, bundles, Machine::detect()?))
        });
        let (root, bundles, machine) = made.await?;
        // Its FIFOs' paths are text for containerd.
        let owner = root.to_str().map(str::to_owned);
        let owner = owner.ok_or_else(|| {
            ExecError::io("name", &root)(std::io::ErrorKind::InvalidFilename.into())
        })?;
        let mut ids = left::sweep(&asked, &owner).await?;
        let (dir, hierarchies) = (bundles.clone(), machine.hierarchies().clone());
        let ids = blocking(move || {
            left::sweep_bundles(&dir, &hierarchies, &mut ids);
            Ok(ids)
        })
        .await?;
        let closing = CancellationToken::new();
        let tracker = TaskTracker::new();
        if !ids.is_empty() {
            let late = left::sweep_late(asked, config.runtime.clone(), ids);
            tracker.spawn(closing.clone().run_until_cancelled_owned(late));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                containerd,
                config,
                owner,
                bundles,
                machine,
                left: Left::default(),
                tracker,
                closing,
            }),
        })
    }
}

impl Drop for ContainerdExecutor {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

#[async_trait]
impl Executor for ContainerdExecutor {
    async fn start(
        &self,
        container: ContainerSpec,
        init: Process,
    ) -> Result<Arc<dyn Running>, ExecError> {
        let shared = &self.shared;
        // Before the look at `closing`: who closes then waits for this one, too.
        let token = shared.tracker.token();
        if shared.closing.is_cancelled() {
            return Err(ExecError::Closed);
        }
        let kill = shared.closing.child_token();
        let (told, started) = oneshot::channel();
        shared.tracker.spawn(container::own(
            shared.clone(),
            container,
            init,
            kill.clone(),
            told,
        ));
        drop(token);
        // Whoever does not wait for the start does not want it.
        let unwanted = kill.drop_guard();
        let container = started.await.map_err(|_| ExecError::Closed)??;
        unwanted.disarm();
        Ok(Arc::new(Handle::new(container)))
    }

    async fn close(&self) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.tracker.close();
        shared.tracker.wait().await;
        shared.left.remove().await;
        shared.config.networks.close().await;
    }
}

impl Shared {
    /// Puts the container together. Blocks; when what it returns is dropped, nothing stays.
    pub(crate) fn prepare(
        &self,
        spec: &ContainerSpec,
        mut process: Process,
        network_namespace: Option<PathBuf>,
    ) -> Result<Prepared, ExecError> {
        let id = match &spec.id {
            Some(id) => container_id(id)?.to_owned(),
            None => uuid::Uuid::new_v4().simple().to_string(),
        };
        let mut bundle = Bundle::new(&self.bundles, &id)?;
        let root_dir = bundle.mount_root(&id, &spec.root)?;
        let root = Root::open(&root_dir).map_err(ExecError::io("open", &root_dir))?;
        check_root(&root)?;
        bundle.note_stubs(&root, &spec.mounts, spec.remove_mount_stubs);
        let user = find_user(&root, &process.user)?;
        let config = &self.config;
        let common = Common {
            dns: &config.dns,
            network: config.network,
            cgroup_parent: &config.cgroup_parent,
            apparmor_profile: &config.apparmor_profile,
            oom_score_adj: config.oom_score_adj,
            no_process_sandbox: false,
        };
        let mut context = self
            .machine
            .context(&id, &root_dir, spec, &bundle, common)?;
        context.mounts = bundle.attach(&spec.mounts)?;
        if let Some(path) = network_namespace {
            context.host_network = false;
            context.network_namespace = Some(path);
        }
        make_cwd(&root, Path::new(&process.cwd), &user)?;
        let config = oci_spec(spec, &process, &user, &context)?;
        let path = context.cgroup(spec);
        // Before there is a group: it is found by this after a crash.
        bundle.write(left::CGROUP, &path)?;
        let text = serde_json::to_vec(&config).map_err(|error| {
            let path = bundle.dir().join("config.json");
            ExecError::io("encode", path)(error.into())
        })?;
        let stdio = Stdio::make(bundle.dir(), "init", &mut process)?;
        Ok(Prepared {
            id,
            root: root_dir,
            config,
            group: Group::new(self.machine.hierarchies().clone(), &path),
            spec: text,
            stdio,
            bundle,
        })
    }
}

/// Runs what blocks on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ExecError::Runtime {
            message: format!("prepare a container: {error}"),
        }),
    }
}
