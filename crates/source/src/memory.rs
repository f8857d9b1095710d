//! What a build was told of its sources.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::SourceContext;

/// What one build found out: a server that was asked once is not asked again, so that all its
/// steps see the same. What is remembered is kept until the build ends.
#[derive(Clone, Default)]
pub struct Memory {
    by_name: Arc<Mutex<HashMap<String, Thing>>>,
}

type Thing = Arc<dyn Any + Send + Sync>;

impl Memory {
    fn get(&self, name: &str) -> Option<Thing> {
        let things = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        things.get(name).cloned()
    }

    fn put(&self, name: &str, thing: Thing) {
        let mut things = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        things.entry(name.to_owned()).or_insert(thing);
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl SourceContext {
    /// What one of the builds that want it knows already.
    pub(crate) fn recall<T: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<T>> {
        let known = self.memories.iter().find_map(|memory| memory.get(name))?;
        known.downcast().ok()
    }

    /// All the builds that want it know it from now on.
    pub(crate) fn remember<T: Send + Sync + 'static>(&self, name: &str, thing: &Arc<T>) {
        for memory in &self.memories {
            memory.put(name, thing.clone());
        }
    }
}
