//! Containers by the built-in runtime, with what can be made before anybody asks for one: an
//! id, a bundle, and a control group with somebody in it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cooper_executor::{Bundle, ContainerSpec, ExecError, Group, SpecContext};
use cooper_oci_runtime::{Prepared, RuntimeError};
use cooper_sys::cgroup::Hierarchies;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};
use tokio_util::sync::CancellationToken;

use crate::RuncConfig;
use crate::runtime::failed;

/// The file of a bundle that names its control group.
pub(crate) const CGROUP: &str = "cgroup";

/// The most places that are kept ready.
const MOST: usize = 4;

/// The built-in runtime.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    runtime: cooper_oci_runtime::Runtime,
    hierarchies: Arc<Hierarchies>,
    bundles: PathBuf,
    parent: String,
    ready: Mutex<Vec<Place>>,
    /// Held by the one who fills.
    filling: Mutex<()>,
    wanted: usize,
}

/// Where a container can be made.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) id: String,
    // The process in the group goes before the group, which goes with the bundle.
    pub(crate) prepared: Option<Prepared>,
    pub(crate) bundle: Bundle,
}

/// An id that nobody has.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl BuiltIn {
    pub(crate) fn new(
        config: &RuncConfig,
        bundles: &Path,
        hierarchies: Arc<Hierarchies>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let runtime = match &config.helper {
            Some(helper) => cooper_oci_runtime::Runtime::with_helper(helper),
            None => cooper_oci_runtime::Runtime::of_this_program(),
        };
        let processors = std::thread::available_parallelism();
        Ok(Arc::new(Self {
            runtime: runtime?,
            hierarchies,
            bundles: bundles.to_owned(),
            parent: config.cgroup_parent.clone(),
            ready: Mutex::default(),
            filling: Mutex::default(),
            wanted: processors.map_or(1, usize::from).min(MOST),
        }))
    }

    pub(crate) fn runtime(&self) -> &cooper_oci_runtime::Runtime {
        &self.runtime
    }

    /// A place that is ready.
    pub(crate) fn take(&self) -> Option<Place> {
        self.ready().pop()
    }

    /// Makes a place for a container.
    pub(crate) fn make(&self, id: String, spec: &ContainerSpec) -> Result<Place, ExecError> {
        let mut bundle = Bundle::new(&self.bundles, &id)?;
        let context = SpecContext {
            cgroup_parent: self.parent.clone(),
            ..SpecContext::new(&id, Path::new("/"))
        };
        let path = context.cgroup(spec);
        // Before there is a group: it is found by this after a crash.
        let hierarchies = &self.hierarchies;
        bundle.write(CGROUP, hierarchies.absolute(&path))?;
        let mut group =
            cooper_oci_runtime::Group::create(hierarchies.clone(), &path).map_err(failed)?;
        bundle.own_group(Group::new(hierarchies.clone(), &path));
        if hierarchies.rule_devices() {
            group.allow(&[no_device()?]).map_err(failed)?;
        }
        let prepared = self.runtime.prepare(group).map_err(failed)?;
        Ok(Place {
            id,
            prepared: Some(prepared),
            bundle,
        })
    }

    /// Makes as many places ready as are wanted. Blocks.
    pub(crate) fn fill(&self, closing: &CancellationToken) {
        let Ok(_filling) = self.filling.try_lock() else {
            return;
        };
        while self.ready().len() < self.wanted && !closing.is_cancelled() {
            match self.make(new_id(), &ContainerSpec::default()) {
                Ok(place) => self.ready().insert(0, place),
                Err(error) => {
                    // Whoever needs one will be told.
                    tracing::debug!(%error, "cannot prepare for a container");
                    return;
                }
            }
        }
    }

    /// Removes the places that nobody has taken. Blocks.
    pub(crate) fn empty(&self) {
        let ready = std::mem::take(&mut *self.ready());
        drop(ready);
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, Vec<Place>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rule of confined containers, which nearly all are.
fn no_device() -> Result<LinuxDeviceCgroup, ExecError> {
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .typ(LinuxDeviceType::A)
        .access("rwm");
    rule.build().map_err(|error| ExecError::Runtime {
        message: error.to_string(),
    })
}
