//! What an executor is set up with.

use std::path::PathBuf;

use cooper_executor::cni::Networks;
use cooper_executor::{DnsConfig, NetworkMode};

/// The set-up of a [`crate::RuncExecutor`].
#[derive(Clone, Debug)]
pub struct RuncConfig {
    /// The runtime, a path or a name to look up; with none, `buildkit-runc`, then `runc`, and
    /// where neither is installed the built-in one. `builtin` is the built-in one; `auto` is that
    /// if the kernel and the user's privileges suffice for it, and otherwise `buildkit-runc` or
    /// `runc`.
    pub binary: Option<PathBuf>,
    /// The program that the built-in runtime runs as its helper; with none this program itself,
    /// whose main then begins with [`crate::enter_if_asked`].
    pub helper: Option<PathBuf>,
    /// Where bundles and the runtime's state are kept. One executor at a time uses it.
    pub root: PathBuf,
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
    /// Whether containers share this process's process namespace: where an ordinary user's may
    /// not have one of their own with a `/proc`. They can then signal this process and what it
    /// started. The built-in runtime does not do that.
    pub no_process_sandbox: bool,
}

impl RuncConfig {
    /// Defaults, with everything kept in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            binary: None,
            helper: None,
            root: root.into(),
            dns: DnsConfig::default(),
            network: NetworkMode::Host,
            networks: Networks::default(),
            cgroup_parent: String::new(),
            apparmor_profile: String::new(),
            oom_score_adj: None,
            no_process_sandbox: false,
        }
    }
}
