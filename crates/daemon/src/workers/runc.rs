//! The worker that runs steps through an OCI runtime.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_executor::NetworkMode;
use cooper_executor::cni::NetworkPool;
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_worker::inventory;
use cooper_worker::{
    Context, Parts, Worker, WorkerError, WorkerInitializer, WorkerSettings, WorkersFuture,
};

pub(crate) const NAME: &str = "runc";

inventory::submit! { WorkerInitializer { name: NAME, priority: 0, init } }

fn init(cx: &Context) -> WorkersFuture<'_> {
    Box::pin(async move {
        let Some(settings) = cx.settings(NAME).cloned() else {
            return Ok(Vec::new());
        };
        let dir = cx.root.join(NAME).join("executor");
        let (network, networks) = match networks(&settings, &dir) {
            Ok(found) => found,
            Err(error) => {
                return Err(WorkerError::Init {
                    name: NAME.to_owned(),
                    source: error,
                });
            }
        };
        let network_name = match (&networks, network) {
            (Some(_), _) if settings.network_mode == "bridge" => "bridge",
            (Some(_), _) => "cni",
            (None, NetworkMode::None) => "none",
            (None, _) => "host",
        };
        let config = RuncConfig {
            binary: Some(&settings.binary)
                .filter(|binary| !binary.is_empty())
                .map(PathBuf::from),
            dns: cx.dns.clone(),
            network,
            networks,
            cgroup_parent: settings.default_cgroup_parent.clone(),
            apparmor_profile: settings.apparmor_profile.clone(),
            ..RuncConfig::new(dir)
        };
        let executor = match RuncExecutor::new(config) {
            Ok(executor) => executor,
            Err(error) if settings.required => {
                return Err(WorkerError::Init {
                    name: NAME.to_owned(),
                    source: error.into(),
                });
            }
            Err(error) => {
                tracing::warn!(%error, "skipping the OCI worker");
                return Ok(Vec::new());
            }
        };
        let parts = Parts {
            name: NAME,
            executor: Arc::new(executor),
            executor_name: "oci",
            network: network_name.to_owned(),
            settings,
        };
        Ok(vec![Box::pin(Worker::open(cx, parts)).await?])
    })
}

/// The network of steps that ask for none in particular. `auto` is plug-ins when they are
/// configured, else the host's network (`util/network/netproviders` in BuildKit).
fn networks(
    settings: &WorkerSettings,
    dir: &Path,
) -> Result<(NetworkMode, Option<NetworkPool>), Box<dyn std::error::Error + Send + Sync>> {
    let cni = &settings.cni;
    let places = dir.join("networks");
    let pool = match settings.network_mode.as_str() {
        "none" => return Ok((NetworkMode::None, None)),
        "host" => None,
        "cni" => Some(NetworkPool::open(cni, places)?),
        "bridge" => Some(NetworkPool::bridge(cni, places)?),
        "" | "auto" if cni.is_configured() => Some(NetworkPool::open(cni, places)?),
        "" | "auto" => None,
        other => return Err(format!("invalid network mode: {other:?}").into()),
    };
    Ok((NetworkMode::Host, pool))
}
