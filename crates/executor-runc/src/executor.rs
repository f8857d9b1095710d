//! The executor.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cooper_executor::cni::Namespace;
use cooper_executor::{
    Bundle, Common, ContainerSpec, Ended, ExecError, Executor, Group, Machine, Process, Running,
    check_root, container_id, find_user, is_of_systemd, make_cwd, oci_spec,
};
use cooper_sys::Root;
use cooper_sys::cgroup::Hierarchies;
use oci_spec::runtime::Spec;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug_span};

use crate::RuncConfig;
use crate::builtin::{self, BuiltIn, Place};
use crate::container::{self, Container, Handle};
use crate::runtime::{Binary, Runtime, failed};
use crate::spawn::{self, Spawned};
use crate::stdio::{Ends, Stdio};
use crate::sweep;
use crate::up::Up;

/// The name of a container's group in a group of ours.
const INNER: &str = "container";

/// Runs containers through an OCI runtime.
///
/// Dropping it kills its containers; [`Executor::close`] waits until they are gone.
#[derive(Debug)]
pub struct RuncExecutor {
    shared: Arc<Shared>,
}

/// What its containers need of the executor.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RuncConfig,
    bundles: PathBuf,
    machine: Machine,
    pub(crate) runtime: Runtime,
    /// The owners of containers.
    tracker: TaskTracker,
    /// No more containers, and those that are there have to go.
    pub(crate) closing: CancellationToken,
}

impl RuncExecutor {
    /// Finds the runtime, and removes what an earlier process left in the root: containers
    /// that still run are killed. Blocks.
    pub fn new(config: RuncConfig) -> Result<Self, ExecError> {
        let make = |dir: &Path| std::fs::create_dir_all(dir).map_err(ExecError::io("make", dir));
        make(&config.root)?;
        let root = config.root.canonicalize();
        let root = root.map_err(ExecError::io("resolve", &config.root))?;
        let (bundles, state) = (root.join("containers"), root.join("state"));
        make(&bundles)?;
        make(&state)?;
        let machine = Machine::detect()?;
        if let Err(error) = machine.hierarchies().make_room(&config.cgroup_parent) {
            tracing::warn!(%error, "steps cannot be limited: no room below the own control group");
        }
        let all = Arc::new(machine.hierarchies().of_machine());
        sweep::sweep(&bundles, &state, &all);
        let runtime = find(&config, &bundles, state, machine.hierarchies())?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                bundles,
                machine,
                runtime,
                tracker: TaskTracker::new(),
                closing: CancellationToken::new(),
            }),
        })
    }
}

impl Drop for RuncExecutor {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

#[async_trait]
impl Executor for RuncExecutor {
    async fn start(
        &self,
        container: ContainerSpec,
        init: Process,
    ) -> Result<Arc<dyn Running>, ExecError> {
        // Before the look at `closing`: who closes then waits for this one, too.
        let token = self.shared.tracker.token();
        if self.shared.closing.is_cancelled() {
            return Err(ExecError::Closed);
        }
        let namespace = {
            let shared = &self.shared;
            shared
                .config
                .networks
                .lend(&container, &shared.tracker)
                .await?
        };
        let shared = self.shared.clone();
        let runtime = tokio::runtime::Handle::current();
        let span = tracing::Span::current();
        let started = tokio::task::spawn_blocking(move || {
            let _token = token;
            span.in_scope(|| shared.start(container, init, namespace, &runtime))
        });
        let handle = started.await.map_err(|error| ExecError::Runtime {
            message: format!("start a container: {error}"),
        })??;
        Ok(Arc::new(handle))
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
        self.shared.config.networks.close().await;
        let shared = self.shared.clone();
        let emptied = tokio::task::spawn_blocking(move || {
            if let Runtime::BuiltIn(built_in) = &shared.runtime {
                built_in.empty();
            }
        });
        if let Err(error) = emptied.await {
            tracing::warn!(%error, "cannot remove what was prepared for containers");
        }
    }
}

impl Shared {
    /// Puts the container together and starts it. Blocks; when it fails, or when the handle
    /// that it returns is dropped, nothing stays.
    fn start(
        self: Arc<Self>,
        spec: ContainerSpec,
        mut process: Process,
        namespace: Option<Namespace>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Handle, ExecError> {
        // Given back whatever happens from here on.
        let mut namespace = Lent::new(&self, namespace, runtime);
        let Place {
            id,
            mut bundle,
            prepared,
        } = debug_span!("place").in_scope(|| self.place(&spec, runtime))?;
        let mounted = debug_span!("mount root").in_scope(|| bundle.mount_root(&id, &spec.root));
        let root_dir = mounted?;
        let root = Root::open(&root_dir).map_err(ExecError::io("open", &root_dir))?;
        check_root(&root)?;
        bundle.note_stubs(&root, &spec.mounts, spec.remove_mount_stubs);
        let user = find_user(&root, &process.user)?;
        self.machine.check_user(&user)?;
        let config = &self.config;
        let common = Common {
            dns: &config.dns,
            network: config.network,
            cgroup_parent: &config.cgroup_parent,
            apparmor_profile: &config.apparmor_profile,
            oom_score_adj: config.oom_score_adj,
            no_process_sandbox: config.no_process_sandbox,
        };
        let mut context = self
            .machine
            .context(&id, &root_dir, &spec, &bundle, common)?;
        context.mounts = debug_span!("mounts").in_scope(|| bundle.attach(&spec.mounts))?;
        if let Some(namespace) = &namespace.namespace {
            context.host_network = false;
            context.network_namespace = Some(namespace.path().to_owned());
        }
        make_cwd(&root, Path::new(&process.cwd), &user)?;
        let mut config = oci_spec(&spec, &process, &user, &context)?;
        let creating = debug_span!("create").entered();
        let cgroup = context.cgroup(&spec);
        let group = Group::new(self.machine.hierarchies().clone(), &cgroup);
        let mut built_in = None;
        let (spawned, stdio, up) = match (&self.runtime, prepared) {
            (Runtime::BuiltIn(runtime), Some(mut prepared)) => {
                if let Some(resources) = config
                    .linux()
                    .as_ref()
                    .and_then(|linux| linux.resources().as_ref())
                {
                    prepared.group.limit(resources).map_err(failed)?;
                }
                built_in = Some(prepared.group.clone());
                let (stdio, ends) = Stdio::connect_later(&mut process)?;
                let ends = ends.as_ref().map(Ends::lend);
                let started = runtime.runtime().create(&config, ends, prepared);
                let spawned = Spawned::built_in(started.map_err(failed)?)?;
                let up = Up::told(spawned.pidfd());
                (spawned, stdio, up)
            }
            (Runtime::BuiltIn(_), None) => return Err(ExecError::Closed),
            (Runtime::Binary(binary), _) => {
                if !binary.keeps() {
                    self.enclose_group(&mut config, &bundle, &cgroup)?;
                }
                bundle.configure(&config)?;
                let pid_file = bundle.dir().join("pid");
                let mut command = binary.run(&id, bundle.dir(), &pid_file, is_of_systemd(&cgroup));
                let (stdio, ends) = Stdio::connect(&mut process)?;
                ends.give(&mut command);
                (spawn::spawn(command)?, stdio, Up::File(pid_file))
            }
        };
        drop(creating);
        let container = Arc::new(Container {
            id,
            group,
            dir: bundle.dir().to_owned(),
            root: root_dir,
            config,
            execs: TaskTracker::new(),
            next_exec: AtomicU64::new(0),
            up,
            runtime: spawned.pidfd(),
            built_in,
            terminal: stdio.terminal().map_or_else(OnceLock::new, Into::into),
            ended: Ended::default(),
            killed: AtomicBool::new(false),
            usage: OnceLock::new(),
            shared: self.clone(),
        });
        let namespace = namespace.take();
        let owned = container::own(container.clone(), spawned, stdio, bundle, namespace);
        let owned = owned.instrument(tracing::Span::current());
        self.tracker.spawn_on(owned, runtime);
        Ok(Handle::new(container))
    }

    /// Has the container's group made within the one that would be its own, `path`. A runtime
    /// that removes the group when the container ends leaves the outer one, and there version 2
    /// counts all that was within: the kills for want of memory, too (cgroup-v2.rst,
    /// "memory.events"), which version 1 counts in the group itself alone.
    fn enclose_group(
        &self,
        config: &mut Spec,
        bundle: &Bundle,
        path: &str,
    ) -> Result<(), ExecError> {
        let hierarchies = self.machine.hierarchies();
        // A scope of systemd is in no other.
        if !hierarchies.unified() || is_of_systemd(path) {
            return Ok(());
        }
        if let Some(linux) = config.linux_mut()
            && let Some(own) = linux.cgroups_path()
        {
            let inner = own.join(INNER);
            linux.set_cgroups_path(Some(inner));
            // The configuration does not name it any more: it is found by this after a crash.
            bundle.write(builtin::CGROUP, hierarchies.absolute(path))?;
        }
        Ok(())
    }

    /// The id, the folder and, for the built-in runtime, the control group of a container.
    fn place(
        self: &Arc<Self>,
        spec: &ContainerSpec,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Place, ExecError> {
        let id = spec.id.as_deref().map(container_id).transpose()?;
        let Runtime::BuiltIn(built_in) = &self.runtime else {
            let id = id.map_or_else(builtin::new_id, str::to_owned);
            return Ok(Place {
                bundle: Bundle::new(&self.bundles, &id)?,
                id,
                prepared: None,
            });
        };
        if id.is_some() || !spec.cgroup_parent.is_empty() {
            let id = id.map_or_else(builtin::new_id, str::to_owned);
            return built_in.make(id, spec);
        }
        let place = match built_in.take() {
            Some(place) => place,
            None => built_in.make(builtin::new_id(), spec)?,
        };
        let shared = self.clone();
        let fill = move || {
            if let Runtime::BuiltIn(built_in) = &shared.runtime {
                built_in.fill(&shared.closing);
            }
        };
        self.tracker.spawn_blocking_on(fill, runtime);
        Ok(place)
    }
}

/// A network until a container has it. Dropping it gives it back.
struct Lent<'a> {
    shared: Arc<Shared>,
    namespace: Option<Namespace>,
    runtime: &'a tokio::runtime::Handle,
}

impl<'a> Lent<'a> {
    fn new(
        shared: &Arc<Shared>,
        namespace: Option<Namespace>,
        runtime: &'a tokio::runtime::Handle,
    ) -> Self {
        Self {
            shared: shared.clone(),
            namespace,
            runtime,
        }
    }

    fn take(&mut self) -> Option<Namespace> {
        self.namespace.take()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(namespace) = self.namespace.take() {
            // On a thread that may block, as all of a start.
            self.runtime
                .block_on(self.shared.config.networks.take_back(namespace));
        }
    }
}

/// The runtime that the configuration names.
fn find(
    config: &RuncConfig,
    bundles: &Path,
    state: PathBuf,
    hierarchies: &Arc<Hierarchies>,
) -> Result<Runtime, ExecError> {
    let built_in = || BuiltIn::new(config, bundles, hierarchies.clone()).map(Runtime::BuiltIn);
    let named = config.binary.as_deref();
    match named.map(|name| name.to_str().unwrap_or_default()) {
        // The built-in one begins a process namespace for each container.
        None | Some("auto") if config.no_process_sandbox => {
            Binary::find(None, state).map(Runtime::Binary)
        }
        Some("builtin") => built_in().map_err(failed),
        Some("auto") => match built_in() {
            Ok(runtime) => Ok(runtime),
            Err(error) => {
                tracing::info!(%error, "the built-in runtime cannot be used");
                Binary::find(None, state).map(Runtime::Binary)
            }
        },
        Some(_) => Binary::find(config.binary.as_deref(), state).map(Runtime::Binary),
        // A machine on which nothing is installed runs steps, too.
        None => Binary::find(None, state)
            .map(Runtime::Binary)
            .or_else(|missing| match built_in() {
                Ok(runtime) => {
                    tracing::info!("{missing}: containers are made by the built-in runtime");
                    Ok(runtime)
                }
                Err(error) => {
                    tracing::info!(%error, "the built-in runtime cannot be used");
                    Err(missing)
                }
            }),
    }
}
