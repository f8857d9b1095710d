//! The layers of a whole chain of refs.

use std::sync::Arc;

use cooper_cache::{ImmutableRef, Layer};
use cooper_content::ContentStore;
use futures::{FutureExt, StreamExt, TryStreamExt};

use crate::{Compression, CompressionOptions, Filler, LayerError, blob, pack};

/// Layers that are made at the same time. Compression has its own bound; this one is for the
/// reading of files.
const SIDE_BY_SIDE: usize = 4;

/// What an export needs.
#[derive(Clone)]
pub struct ExportContext {
    /// The cache's own store: the blobs are in it afterwards.
    pub content: Arc<dyn ContentStore>,
    /// How new layers are compressed, and whether those that are otherwise are converted.
    pub compression: CompressionOptions,
    /// Brings what is not here.
    pub fill: Filler,
}

impl std::fmt::Debug for ExportContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportContext")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// The layers of a ref and of all that it stands on, the lowest first: one for each ref, empty
/// ones too. Those that a ref has not are made, several at a time, and noted on it.
///
/// A layer that came from a registry and was never needed here stays where it is
/// ([`Layer::sources`] says where): [`ensure_blob`] brings it. Only when a conversion is forced
/// and needed it is brought at once.
///
/// # Cancel safety
/// Layers that are whole by then stay noted.
pub async fn export(
    reference: &ImmutableRef,
    context: &ExportContext,
) -> Result<Vec<Layer>, LayerError> {
    let chain = reference.chain();
    // Boxed one by one: of a closure over the chain the compiler does not see that it is Send.
    let mut layers = Vec::with_capacity(chain.len());
    for one in &chain {
        layers.push(layer_of(one, context).boxed());
    }
    futures::stream::iter(layers)
        .buffered(SIDE_BY_SIDE)
        .try_collect()
        .await
}

/// Brings the blob of a layer into the content store, if it is not there.
///
/// # Cancel safety
/// What was fetched by then is kept and resumed.
pub async fn ensure_blob(layer: &Layer, context: &ExportContext) -> Result<(), LayerError> {
    context.fill.ensure_blob(layer).await
}

async fn layer_of(one: &ImmutableRef, context: &ExportContext) -> Result<Layer, LayerError> {
    let layer = match one.layer() {
        Some(layer) => layer,
        None => made(one, context).await?,
    };
    let options = &context.compression;
    let now = Compression::of(layer.descriptor.media_type());
    if !options.force || now == Some(options.kind) || now.is_none() {
        return Ok(layer);
    }
    context.fill.ensure_blob(&layer).await?;
    pack::convert(&context.content, &layer, options).await
}

async fn made(one: &ImmutableRef, context: &ExportContext) -> Result<Layer, LayerError> {
    let Some(source) = one.repeats() else {
        return packed(one, context).await;
    };
    // Its changes are another's: so is its layer, and its own files are not needed.
    let layer = match source.layer() {
        Some(layer) => layer,
        None => packed(&source, context).await?,
    };
    one.set_layer(layer.clone()).await?;
    Ok(layer)
}

/// Packs the changes of a ref over its parent.
async fn packed(one: &ImmutableRef, context: &ExportContext) -> Result<Layer, LayerError> {
    let name = format!("pack-{}", one.id());
    // Two exports of one ref make its layer once.
    let _turn = blob::turn(&format!("export-{name}")).await;
    if let Some(layer) = one.layer() {
        return Ok(layer);
    }
    let local = one.localize(&context.fill).await?;
    let (lower, upper) = local.diff_mounts().await?;
    let (content, options) = (&context.content, &context.compression);
    let scratch = local.mounts_folder();
    let layer = pack::pack_in(content, &name, lower, upper, options, scratch).await?;
    one.set_layer(layer.clone()).await?;
    Ok(layer)
}

#[cfg(test)]
mod tests;
