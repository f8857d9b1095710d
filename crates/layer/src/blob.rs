//! One writer for one ingest.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use cooper_content::{ContentError, ContentStore, Ingest};
use tokio::sync::OwnedMutexGuard;

/// Who writes which ingest, in the whole process: stores are shared by more than one of those
/// who fill them, and the second has to wait for the first instead of being refused.
static TURNS: LazyLock<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// The right to write the ingest `name`; ends with the value.
pub(crate) async fn turn(name: &str) -> OwnedMutexGuard<()> {
    let mutex = {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        match turns.get(name).and_then(Weak::upgrade) {
            Some(mutex) => mutex,
            None => {
                turns.retain(|_, mutex| mutex.strong_count() > 0);
                let mutex = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(name.to_owned(), Arc::downgrade(&mutex));
                mutex
            }
        }
    };
    mutex.lock_owned().await
}

/// An ingest with nothing in it: what an earlier attempt left may be anything.
pub(crate) async fn fresh(
    content: &Arc<dyn ContentStore>,
    name: &str,
) -> Result<Box<dyn Ingest>, ContentError> {
    let ingest = content.ingest(name).await?;
    if ingest.offset() == 0 {
        return Ok(ingest);
    }
    ingest.abort().await?;
    content.ingest(name).await
}
