//! The network of a worker's steps.

use std::path::Path;

use cooper_executor::NetworkMode;
use cooper_executor::cni::NetworkPool;
use cooper_worker::{WorkerError, WorkerSettings};

/// The network of steps that ask for none in particular.
pub(crate) struct Networks {
    pub(crate) mode: NetworkMode,
    pub(crate) pool: Option<NetworkPool>,
    /// As it is called in labels.
    pub(crate) name: &'static str,
}

impl Networks {
    /// What the settings of the worker `worker` ask for; files are kept below `dir`.
    pub(crate) fn open(
        worker: &str,
        settings: &WorkerSettings,
        dir: &Path,
    ) -> Result<Self, WorkerError> {
        let (mode, pool) = networks(settings, dir).map_err(|source| WorkerError::Init {
            name: worker.to_owned(),
            source,
        })?;
        let name = match (&pool, mode) {
            (Some(_), _) if settings.network_mode == "bridge" => "bridge",
            (Some(_), _) => "cni",
            (None, NetworkMode::None) => "none",
            (None, _) => "host",
        };
        Ok(Self { mode, pool, name })
    }
}

/// `auto` is plug-ins when they are configured, else the host's network
/// (`util/network/netproviders` in BuildKit).
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
        // An ordinary user's plug-ins would have to change the machine's network.
        "" | "auto" if cooper_sys::userns::inside() => None,
        "" | "auto" if cni.is_configured() => Some(NetworkPool::open(cni, places)?),
        "" | "auto" => None,
        other => return Err(format!("invalid network mode: {other:?}").into()),
    };
    Ok((NetworkMode::Host, pool))
}
