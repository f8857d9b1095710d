//! What one step has written, and how much that may be.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::core::Shared;
use crate::{CacheError, MutableRef, RefId};

/// What one step writes to, to be watched while somebody else has it.
#[derive(Clone)]
pub struct Written {
    shared: Option<Arc<Shared>>,
    ids: Vec<RefId>,
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Written").field(&self.ids).finish()
    }
}

impl Written {
    /// What is written to `refs`, those of one step.
    pub fn to<'a>(refs: impl IntoIterator<Item = &'a MutableRef>) -> Self {
        let mut written = Self {
            shared: None,
            ids: Vec::new(),
        };
        for one in refs {
            written.shared.get_or_insert_with(|| one.shared().clone());
            written.ids.push(one.id().clone());
        }
        written
    }

    /// Resolves when it is more than one step may write ([`crate::CacheLimits`]): never without
    /// such a limit. It is looked at some times each second, so a step that is fast may be done
    /// before: [`Written::check`] looks then.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn outgrown(&self) -> CacheError {
        let Some(core) = &self.shared else {
            return std::future::pending().await;
        };
        loop {
            let told = core.sampled.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Err(error) = self.check_known() {
                return error;
            }
            told.await;
        }
    }

    /// Looks whether it is more than one step may write.
    ///
    /// # Errors
    /// [`CacheError::Outgrown`].
    ///
    /// # Cancel safety
    /// Nothing is changed but what is known of sizes.
    pub async fn check(&self) -> Result<(), CacheError> {
        let Some(core) = &self.shared else {
            return Ok(());
        };
        // Measuring costs something: not where nobody asks for it.
        if core.most_of_step.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        for id in &self.ids {
            core.measure(id).await?;
        }
        self.check_known()
    }

    fn check_known(&self) -> Result<(), CacheError> {
        let Some(core) = &self.shared else {
            return Ok(());
        };
        let most = core.most_of_step.load(Ordering::Relaxed);
        let state = core.state();
        let size = |id: &RefId| state.get(id).and_then(|entry| entry.uses.size).unwrap_or(0);
        let written = self.ids.iter().map(|id| {
            // A copy begins with what was copied.
            let copied = match core.snapshotter.copies() {
                true => state.get(id).and_then(|entry| entry.record.parent.as_ref()),
                false => None,
            };
            size(id).saturating_sub(copied.map_or(0, size))
        });
        let written: u64 = written.sum();
        if most > 0 && written > most {
            return Err(CacheError::Outgrown { written, most });
        }
        Ok(())
    }
}
