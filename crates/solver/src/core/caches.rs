//! Caches from elsewhere, as far as the core knows them.

use std::sync::Arc;

use super::{CacheId, Command, Core, EdgeId, Task, VertexId};
use crate::caches::CacheKeys;

impl<O: Clone, E: Clone> Core<O, E> {
    /// Whether all caches of the edge's vertex are open. Those that are not are opened, and it
    /// is told when they are.
    pub(super) fn caches_open(&mut self, id: EdgeId) -> bool {
        let vertex = self.edge(id).vertex;
        let count = self.vertex(vertex).caches.len();
        let asked = std::mem::replace(&mut self.edge_mut(id).caches_asked, count);
        for place in asked..count {
            let name = self.vertex(vertex).caches[place];
            let Some(cache) = self.caches.get_mut(&name) else {
                continue;
            };
            if cache.open.is_some() {
                continue;
            }
            cache.waiting.push(id);
            if cache.task.is_none() {
                let task = self.task_number();
                self.tasks.insert(task, Task::Open(name));
                self.commands.push(Command::Open { task, cache: name });
                if let Some(cache) = self.caches.get_mut(&name) {
                    cache.task = Some(task);
                }
            }
        }
        let caches = self.vertex(vertex).caches.iter();
        let mut caches = caches.filter_map(|name| self.caches.get(name));
        caches.all(|cache| cache.open.is_some())
    }

    pub(super) fn opened(&mut self, name: CacheId, keys: Option<Arc<dyn CacheKeys>>) {
        let Some(cache) = self.caches.get_mut(&name) else {
            return;
        };
        cache.task = None;
        cache.open = Some(keys);
        for edge in std::mem::take(&mut cache.waiting) {
            self.enqueue(edge);
        }
    }

    fn open_of(&self, vertex: VertexId) -> impl Iterator<Item = (CacheId, &Arc<dyn CacheKeys>)> {
        let names = self.vertex(vertex).caches.iter();
        names.filter_map(|name| Some((*name, self.caches.get(name)?.open.as_ref()?.as_ref()?)))
    }

    /// The caches of the edge's vertex that are open and have something, in their order.
    pub(super) fn open_caches(&self, id: EdgeId) -> Vec<Arc<dyn CacheKeys>> {
        let open = self.open_of(self.edge(id).vertex);
        open.map(|(_, keys)| keys.clone()).collect()
    }

    /// Their names.
    pub(super) fn open_names(&self, id: EdgeId) -> Vec<CacheId> {
        let open = self.open_of(self.edge(id).vertex);
        open.map(|(name, _)| name).collect()
    }

    pub(super) fn open_count(&self, vertex: VertexId) -> usize {
        self.open_of(vertex).count()
    }

    /// A vertex is gone that might have been in it.
    pub(super) fn forget_cache(&mut self, name: CacheId) {
        let Some(cache) = self.caches.get_mut(&name) else {
            return;
        };
        cache.users -= 1;
        if cache.users == 0 {
            let task = cache.task;
            self.caches.remove(&name);
            if let Some(task) = task {
                self.abort(task);
            }
            self.commands.push(Command::Close { cache: name });
        }
    }
}
