//! What an executor is set up with.

use std::path::PathBuf;

use cooper_executor::cni::Networks;
use cooper_executor::{DnsConfig, NetworkMode};
use cooper_proto::containerd::{runc, runtimeoptions};
use prost::Message;

/// containerd's runtime for Linux containers.
const RUNC: &str = "io.containerd.runc.v2";

/// The set-up of a [`crate::ContainerdExecutor`].
#[derive(Clone, Debug)]
pub struct ContainerdConfig {
    /// Where the folders of containers are kept. One executor at a time uses it.
    pub root: PathBuf,
    /// What makes the containers.
    pub runtime: Runtime,
    /// What containers get as resolv.conf, as far as it is not the host's.
    pub dns: DnsConfig,
    /// The network of containers that ask for none in particular; by default the host's.
    pub network: NetworkMode,
    /// The networks of containers that ask for none in particular, instead of [`Self::network`].
    pub networks: Networks,
    /// The control group above those of containers.
    pub cgroup_parent: String,
    /// AppArmor's profile for confined containers; empty for none.
    pub apparmor_profile: String,
    /// How ready the kernel is to kill containers for want of memory.
    pub oom_score_adj: Option<i32>,
}

/// What io.containerd.runc.v2 can be told, by containerd's names (`api/types/runc/options`).
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct RuncOptions {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    /// A control group for the shims themselves.
    pub shim_cgroup: String,
    /// The owner of the pipes of processes.
    pub io_uid: u32,
    pub io_gid: u32,
    /// An OCI runtime instead of `runc`.
    pub binary_name: String,
    /// Where that keeps its state.
    pub root: String,
    pub systemd_cgroup: bool,
    pub criu_image_path: String,
    pub criu_work_path: String,
}

impl RuncOptions {
    /// In the form of [`Runtime::options`].
    pub fn encode(self) -> prost_types::Any {
        let options = runc::v1::Options {
            no_pivot_root: self.no_pivot_root,
            no_new_keyring: self.no_new_keyring,
            shim_cgroup: self.shim_cgroup,
            io_uid: self.io_uid,
            io_gid: self.io_gid,
            binary_name: self.binary_name,
            root: self.root,
            systemd_cgroup: self.systemd_cgroup,
            criu_image_path: self.criu_image_path,
            criu_work_path: self.criu_work_path,
        };
        prost_types::Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.encode_to_vec(),
        }
    }
}

/// What other runtimes can be told (`api/types/runtimeoptions`).
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct RuntimeOptions {
    pub type_url: String,
    pub config_path: String,
    pub config_body: String,
}

impl RuntimeOptions {
    /// In the form of [`Runtime::options`].
    pub fn encode(self) -> prost_types::Any {
        let options = runtimeoptions::v1::Options {
            type_url: self.type_url,
            config_path: self.config_path,
            config_body: self.config_body.into_bytes(),
        };
        prost_types::Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: options.encode_to_vec(),
        }
    }
}

/// A runtime of containerd.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Its name: `io.containerd.runc.v2`.
    pub name: String,
    /// The shim's program instead of the one that the name means; empty for that.
    pub path: String,
    /// Its options.
    pub options: Option<prost_types::Any>,
}

impl Runtime {
    /// Whether `name` is a runtime that takes [`RuncOptions`].
    pub fn is_runc(name: &str) -> bool {
        name == RUNC
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            name: RUNC.into(),
            path: String::new(),
            options: None,
        }
    }
}

impl ContainerdConfig {
    /// Defaults, with everything kept in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            runtime: Runtime::default(),
            dns: DnsConfig::default(),
            network: NetworkMode::Host,
            networks: Networks::default(),
            cgroup_parent: String::new(),
            apparmor_profile: String::new(),
            oom_score_adj: None,
        }
    }
}
