//! The end of a process.

use tokio::sync::watch;

use crate::{ExecError, Exit};

/// The end of a process: one owner tells it, and any number of others wait for it.
#[derive(Debug)]
pub struct Ended(watch::Sender<Option<Result<Exit, String>>>);

impl Default for Ended {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl Ended {
    /// Tells how the process ended, or in words why nobody knows: many may wait for it.
    pub fn tell(&self, how: Result<Exit, String>) {
        self.0.send_replace(Some(how));
    }

    /// Whether it has been told.
    pub fn is_told(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until it is told. Cancel safe.
    ///
    /// # Errors
    /// When nobody knows how the process ended.
    pub async fn wait(&self) -> Result<Exit, ExecError> {
        let mut receiver = self.0.subscribe();
        let told = receiver.wait_for(Option::is_some).await;
        let told = told.ok().and_then(|told| told.clone());
        match told {
            Some(Ok(exit)) => Ok(exit),
            Some(Err(message)) => Err(ExecError::Runtime { message }),
            // The sender is borrowed and thus there.
            None => Err(ExecError::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_are_told_before_and_after() {
        let ended = Ended::default();
        assert!(!ended.is_told());
        let exit = Exit {
            code: 3,
            oom: false,
        };
        let (early, ()) = tokio::join!(ended.wait(), async { ended.tell(Ok(exit)) });
        assert_eq!(early.unwrap(), exit);
        assert_eq!(ended.wait().await.unwrap(), exit);
        assert!(ended.is_told());
        let lost = Ended::default();
        lost.tell(Err("why".to_owned()));
        assert_eq!(lost.wait().await.unwrap_err().to_string(), "why");
    }
}
