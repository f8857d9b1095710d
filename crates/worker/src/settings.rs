//! What initialisers are told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cooper_executor::DnsConfig;
use cooper_executor::cni::CniConfig;
use cooper_registry::HostConfig;

use crate::{GcPolicy, StoredPlaintexts};

/// What initialisers are told: where the daemon keeps its files, and what it was configured
/// with.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The daemon's root folder; each worker takes a folder in it.
    pub root: PathBuf,
    /// Registries by domain.
    pub registries: BTreeMap<String, HostConfig>,
    /// How steps look names up.
    pub dns: DnsConfig,
    /// The settings of each worker that is not switched off, by the name of its initialiser.
    pub workers: BTreeMap<String, WorkerSettings>,
    /// Who is told what digests in cache keys are computed from; usually nobody.
    pub plaintexts: Option<Arc<StoredPlaintexts>>,
}

impl Context {
    /// The settings of the worker `name`; `None` when it is switched off.
    pub fn settings(&self, name: &str) -> Option<&WorkerSettings> {
        self.workers.get(name)
    }
}

/// The settings of one worker, with the meaning that they have in `[worker.…]` of
/// buildkitd.toml.
#[derive(Clone, Debug, Default)]
pub struct WorkerSettings {
    /// Whether it was switched on by name: then not being able to work is an error. Else the
    /// worker is made if it can be.
    pub required: bool,
    /// Labels besides the worker's own.
    pub labels: BTreeMap<String, String>,
    /// Platforms instead of those that the machine shows (`linux/amd64`).
    pub platforms: Vec<String>,
    /// `auto`, `overlayfs`, `native` or one that the kind of worker knows; empty means `auto`.
    pub snapshotter: String,
    /// The runtime's program, a name or a path; empty means the usual one.
    pub binary: String,
    /// How many operations are carried out at once; 0 is no bound.
    pub max_parallelism: usize,
    /// `auto`, `host`, `none`, `cni` or `bridge`; empty means `auto`.
    pub network_mode: String,
    /// How the network is made for `cni` and `bridge`.
    pub cni: CniConfig,
    /// The parent of the steps' control groups.
    pub default_cgroup_parent: String,
    /// The AppArmor profile of steps.
    pub apparmor_profile: String,
    /// Whether steps share the daemon's process namespace, for ordinary users where they may
    /// not have one of their own.
    pub no_process_sandbox: bool,
    /// What is pruned by itself, one policy after the other; none prunes nothing.
    pub gc: Vec<GcPolicy>,
    /// Bytes that one step may write at most; 0 is no bound.
    pub most_of_step: u64,
    /// What only this kind of worker knows.
    pub extra: BTreeMap<String, String>,
}
