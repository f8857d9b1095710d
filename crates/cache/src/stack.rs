//! Refs that make the changes of another one again on top of a parent of their own: what merges
//! and differences are made of. Nothing is read or written before somebody wants their files.

use crate::record::{Record, Stage};
use crate::state::State;
use crate::{CacheError, CacheManager, ImmutableRef, Layer, RecordOptions, RefId};

/// What the index of such a ref begins with; its parent and whose changes it has follow.
const INDEX: &str = "changes:";

impl CacheManager {
    /// The ref with the changes of `over`, without what that stands on, on top of `parent`: one
    /// that is known, or a new lazy one. It is no copy: when its files are wanted those of
    /// `over` get further names, and both have one layer.
    ///
    /// Of a ref that came as a layer, only that tells the changes: then it is
    /// [`CacheManager::get_by_blob`].
    ///
    /// # Cancel safety
    /// A new record that nobody got a handle of is removed.
    pub async fn stack(
        &self,
        parent: Option<&ImmutableRef>,
        over: &ImmutableRef,
        options: RecordOptions,
    ) -> Result<ImmutableRef, CacheError> {
        let (source, layer) = match over.read(|entry| changes(over.id(), &entry.record)) {
            From::Layer(Some(layer)) => return self.get_by_blob(parent, layer, options).await,
            From::Layer(None) => {
                let id = over.id().clone();
                return Err(CacheError::NoLayer { id });
            }
            From::Files(source, layer) => (source, layer),
        };
        let alone = over.read(|entry| entry.record.parent.is_none());
        if parent.is_none() && alone {
            return Ok(over.clone());
        }
        if let Some(parent) = parent {
            self.check_depth(parent)?;
        }
        let below = parent.map(|parent| parent.id().clone());
        let index = match &below {
            Some(below) => format!("{INDEX}{below}:{source}"),
            None => format!("{INDEX}{source}"),
        };
        let pinned = {
            let mut state = self.shared.state();
            let known = known(&state, &index, below.as_ref(), layer.as_ref());
            if let Some(id) = known
                && let Some(live) = self.shared.pin(&mut state, &id)
            {
                (live, Ok(None))
            } else {
                let mut record = Record::new(below, Stage::Lazy, options);
                record.retain = false;
                record.layer = layer;
                record.repeats = Some(source);
                record.indexes.push(index);
                self.insert_lazy(&mut state, record)
            }
        };
        self.found(pinned).await
    }
}

impl ImmutableRef {
    /// The ref whose changes this one makes again.
    pub fn repeats(&self) -> Option<Self> {
        let mut state = self.shared().state();
        let source = state.get(self.id())?.record.repeats.clone()?;
        let live = self.shared().pin(&mut state, &source)?;
        Some(Self { live })
    }
}

/// Where the changes of a ref over its parent are.
enum From {
    /// In a layer alone. What was unpacked of it shows no longer what of it made no difference.
    Layer(Option<Layer>),
    /// In the files of this ref, which were made here, with their layer if there is one.
    Files(RefId, Option<Layer>),
}

fn changes(id: &RefId, record: &Record) -> From {
    let layer = record.layer.clone();
    match &record.repeats {
        Some(source) => From::Files(source.clone(), layer),
        None if record.state == Stage::Lazy || (layer.is_some() && !record.packed) => {
            From::Layer(layer)
        }
        None => From::Files(id.clone(), layer),
    }
}

/// A ref that has these changes there.
fn known(
    state: &State,
    index: &str,
    below: Option<&RefId>,
    layer: Option<&Layer>,
) -> Option<RefId> {
    let by_blob = || {
        let (_, blobs) = state.chains_on(below, layer?)?;
        state.by_blob_chain(&blobs)
    };
    state.search(index).into_iter().next().or_else(by_blob)
}
