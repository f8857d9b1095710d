//! What an executor does with a pool of networks.

use tokio_util::task::TaskTracker;

use super::{Namespace, NetworkPool};
use crate::{ContainerSpec, ExecError, NetworkMode};

/// The networks that an executor lends to its containers; by default there are none, and they
/// have the network that its configuration names.
#[derive(Clone, Debug, Default)]
pub struct Networks(Option<NetworkPool>);

impl From<Option<NetworkPool>> for Networks {
    fn from(pool: Option<NetworkPool>) -> Self {
        Self(pool)
    }
}

impl Networks {
    /// A network for `container`, when it asks for none in particular and there are some. What
    /// was taken is made anew beside it, on `tracker`.
    ///
    /// # Errors
    /// When none is ready and none can be made.
    pub async fn lend(
        &self,
        container: &ContainerSpec,
        tracker: &TaskTracker,
    ) -> Result<Option<Namespace>, ExecError> {
        let pool = match (&self.0, container.network) {
            (Some(pool), NetworkMode::Default) => pool,
            _ => return Ok(None),
        };
        let id = container.id.clone().unwrap_or_default();
        let namespace = pool.get().await;
        let namespace = namespace.map_err(|source| ExecError::Cni { id, source })?;
        let pool = pool.clone();
        tracker.spawn(async move {
            if let Err(error) = pool.refill().await {
                tracing::warn!(%error, "cannot make a network ready");
            }
        });
        Ok(Some(namespace))
    }

    /// Takes a network back that no container is in any more.
    pub async fn take_back(&self, namespace: Namespace) {
        if let Some(pool) = &self.0
            && let Err(error) = pool.put(namespace).await
        {
            tracing::warn!(%error, "cannot take a network down");
        }
    }

    /// Takes down those that are ready.
    pub async fn close(&self) {
        if let Some(pool) = &self.0
            && let Err(error) = pool.close().await
        {
            tracing::warn!(%error, "cannot take the networks down");
        }
    }
}
