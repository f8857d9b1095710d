//! The worker that runs steps through an OCI runtime.

use std::path::PathBuf;
use std::sync::Arc;

use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_worker::inventory;
use cooper_worker::{Context, Parts, Worker, WorkerError, WorkerInitializer, WorkersFuture};

use crate::workers::network::Networks;

pub(crate) const NAME: &str = "runc";

inventory::submit! { WorkerInitializer { name: NAME, priority: 0, init } }

fn init(cx: &Context) -> WorkersFuture<'_> {
    Box::pin(async move {
        let Some(settings) = cx.settings(NAME).cloned() else {
            return Ok(Vec::new());
        };
        let dir = cx.root.join(NAME).join("executor");
        let networks = Networks::open(NAME, &settings, &dir)?;
        let config = RuncConfig {
            binary: Some(&settings.binary)
                .filter(|binary| !binary.is_empty())
                .map(PathBuf::from),
            dns: cx.dns.clone(),
            network: networks.mode,
            networks: networks.pool.into(),
            cgroup_parent: settings.default_cgroup_parent.clone(),
            apparmor_profile: settings.apparmor_profile.clone(),
            no_process_sandbox: settings.no_process_sandbox,
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
            network: networks.name.to_owned(),
            storage: None,
            labels: Default::default(),
            settings,
        };
        Ok(vec![Box::pin(Worker::open(cx, parts)).await?])
    })
}
