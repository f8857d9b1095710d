//! Choosing a snapshotter.

use std::path::Path;
use std::sync::Arc;

use cooper_store::Store;

use crate::{NativeSnapshotter, OverlaySnapshotter, SnapshotError, Snapshotter};

/// Which snapshotter to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Overlayfs where it can be used, else copies.
    #[default]
    Auto,
    /// Overlayfs, or an error.
    Overlay,
    /// Copies.
    Native,
}

/// Opens the snapshots in `root/<name of the snapshotter>`.
pub fn open(kind: Kind, root: &Path, store: Store) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    let options = match kind {
        Kind::Native => None,
        Kind::Overlay => Some(OverlaySnapshotter::probe(root)?),
        Kind::Auto => OverlaySnapshotter::probe(root)
            .inspect_err(|error| {
                tracing::warn!(%error, root = %root.display(), "no overlayfs here, snapshots are copies");
            })
            .ok(),
    };
    Ok(match options {
        Some(options) => Arc::new(OverlaySnapshotter::open(
            &root.join("overlayfs"),
            store,
            options,
        )?),
        None => Arc::new(NativeSnapshotter::open(&root.join("native"), store)?),
    })
}
