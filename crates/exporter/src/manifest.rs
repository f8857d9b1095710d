//! An image made of a result: layers, configurations, manifests and an index in the content
//! store.

use std::collections::BTreeMap;

use cooper_cache::{ImmutableRef, Layer};
use cooper_content::Digest;
use cooper_layer::Filler;
use futures::FutureExt;
use futures::future::try_join_all;

use crate::annotations::{Annotations, Parts};
use crate::attrs::ImageOptions;
use crate::config::{self, Draft, LayerNote};
use crate::platforms::{self, Platform};
use crate::wire::{self, Described, Index, Manifest, Types};
use crate::{ExportContext, ExportError, ExportInput, Response};

/// An image whose own texts are in the content store. Its layers may still lie elsewhere.
pub(crate) struct Image {
    /// Of the index, or of the only manifest.
    pub(crate) root: Described,
    /// The index, when there is one.
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) parts: Vec<Part>,
}

/// One platform's image.
pub(crate) struct Part {
    pub(crate) manifest: Described,
    pub(crate) bytes: Vec<u8>,
    pub(crate) config: Described,
    pub(crate) layers: Vec<(Described, Layer)>,
}

impl Image {
    /// What the client is told of it.
    pub(crate) fn response(&self) -> Response {
        let mut response = Response::new();
        let mut put = |key: &str, value: String| response.insert(key.to_owned(), value);
        put("containerimage.digest", self.root.digest.to_string());
        if let (None, [only]) = (&self.index, &self.parts[..]) {
            put(
                "containerimage.config.digest",
                only.config.digest.to_string(),
            );
        }
        use base64::Engine as _;
        let descriptor = wire::compact(&self.root);
        let descriptor = base64::prelude::BASE64_STANDARD.encode(descriptor);
        put("containerimage.descriptor", descriptor);
        response
    }

    /// The part that this machine runs, the one of its very variant first.
    pub(crate) fn for_host(&self) -> Option<&Part> {
        let host = cooper_llb::platform::host();
        let runs = |part: &&Part| {
            let spec = part.manifest.platform.as_ref();
            spec.is_none_or(|spec| {
                let of = platforms::from_spec(spec.clone());
                of.os == host.os && of.architecture == host.architecture
            })
        };
        let other = |part: &&Part| {
            let spec = part.manifest.platform.as_ref();
            spec.is_some_and(|spec| platforms::from_spec(spec.clone()).variant != host.variant)
        };
        self.parts.iter().filter(runs).min_by_key(other)
    }

    /// The digests of all blobs of it, in no order that means anything.
    pub(crate) fn blobs(&self) -> Vec<Digest> {
        let mut blobs = vec![self.root.digest.clone()];
        for part in &self.parts {
            blobs.extend([part.manifest.digest.clone(), part.config.digest.clone()]);
            blobs.extend(part.layers.iter().map(|(layer, _)| layer.digest.clone()));
        }
        blobs.sort_by(|a, b| a.digest().cmp(b.digest()));
        blobs.dedup();
        blobs
    }

    /// Which blobs each blob of it needs.
    pub(crate) fn references(&self) -> Vec<(Digest, Vec<Digest>)> {
        let mut all = Vec::new();
        if self.index.is_some() {
            let parts = self.parts.iter().map(|part| part.manifest.digest.clone());
            all.push((self.root.digest.clone(), parts.collect()));
        }
        for part in &self.parts {
            let layers = part.layers.iter().map(|(layer, _)| layer.digest.clone());
            let needed = std::iter::once(part.config.digest.clone()).chain(layers);
            all.push((part.manifest.digest.clone(), needed.collect()));
        }
        all
    }

    /// The same, each once, and none before those that it names.
    pub(crate) fn blobs_by_need(&self) -> Vec<Digest> {
        let mut blobs: Vec<Digest> = Vec::new();
        let mut add = |digest: &Digest| {
            if !blobs.contains(digest) {
                blobs.push(digest.clone());
            }
        };
        for part in &self.parts {
            part.layers.iter().for_each(|(layer, _)| add(&layer.digest));
            add(&part.config.digest);
            add(&part.manifest.digest);
        }
        add(&self.root.digest);
        blobs
    }

    /// Fetches the layers that are not in the content store.
    pub(crate) async fn fetch_layers(&self, cx: &ExportContext) -> Result<(), ExportError> {
        let filler = filler(cx);
        let mut fetches = Vec::new();
        for (_, layer) in self.parts.iter().flat_map(|part| &part.layers) {
            fetches.push(fetch(&filler, layer).boxed());
        }
        try_join_all(fetches).await?;
        Ok(())
    }
}

/// Fetches the blob of a layer into the content store, unless it is there.
pub(crate) async fn fetch(filler: &Filler, layer: &Layer) -> Result<(), ExportError> {
    filler
        .ensure_blob(layer)
        .await
        .map_err(|source| ExportError::Fetch {
            digest: layer.descriptor.digest().to_string(),
            source: Box::new(source),
        })
}

/// What brings layers here, speaking for the vertex of the export.
pub(crate) fn filler(cx: &ExportContext) -> Filler {
    Filler::new(
        cx.cache.content().clone(),
        cx.fetch.clone(),
        cx.progress.clone(),
    )
}

/// Makes the image of `input`.
pub(crate) async fn commit(
    input: &ExportInput,
    options: &ImageOptions,
    cx: &ExportContext,
) -> Result<Image, ExportError> {
    let platforms = platforms::of(input)?;
    let annotations = options.annotations.with_metadata(&input.metadata)?;
    check_annotations(&annotations, &platforms)?;
    let multi = !input.references.is_empty();
    let oci = options.oci_types || annotations.need_oci();
    if oci != options.oci_types {
        tracing::warn!("forcibly turning on oci-mediatype mode for annotations");
    }
    let work = Work {
        input,
        options,
        cx,
        annotations,
        types: Types::new(oci),
    };
    if multi {
        return work.index(&platforms).await;
    }
    if platforms.len() > 1 {
        return Err(ExportError::result(
            "cannot export multiple platforms without multi-platform enabled",
        ));
    }
    work.single(platforms.first()).await
}

fn check_annotations(annotations: &Annotations, known: &[Platform]) -> Result<(), ExportError> {
    for platform in annotations.platforms() {
        if !known.iter().any(|known| known.id == platform) {
            return Err(ExportError::Annotation {
                reason: format!("invalid annotation: no platform {platform} found in source"),
            });
        }
    }
    Ok(())
}

struct Work<'a> {
    input: &'a ExportInput,
    options: &'a ImageOptions,
    cx: &'a ExportContext,
    annotations: Annotations,
    types: Types,
}

impl Work<'_> {
    async fn single(&self, platform: Option<&Platform>) -> Result<Image, ExportError> {
        let parts = self
            .annotations
            .of(platform.map(|platform| platform.id.as_str()));
        if !(parts.index.is_empty() && parts.index_descriptor.is_empty()) {
            return Err(ExportError::Annotation {
                reason: "index annotations not supported for single platform export".into(),
            });
        }
        let reference = match platform {
            Some(platform) => self.input.find(&platform.id),
            None => self.input.reference.as_ref(),
        };
        let layers = self.layers(vec![reference]).await?.pop();
        let mut part = self
            .part(platform, reference, layers.unwrap_or_default(), parts)
            .await?;
        part.manifest.platform = platform.map(|platform| platform.spec.clone());
        Ok(Image {
            root: part.manifest.clone(),
            index: None,
            parts: vec![part],
        })
    }

    async fn index(&self, platforms: &[Platform]) -> Result<Image, ExportError> {
        let references: Vec<_> = platforms
            .iter()
            .map(|platform| self.input.find(&platform.id))
            .collect();
        let layers = self.layers(references.clone()).await?;
        let mut parts = Vec::new();
        for ((platform, reference), layers) in platforms.iter().zip(references).zip(layers) {
            let annotations = self.annotations.of(Some(&platform.id));
            let mut part = self
                .part(Some(platform), reference, layers, annotations)
                .await?;
            part.manifest.platform = Some(platform.spec.clone());
            parts.push(part);
        }
        let common = self.annotations.of(None);
        let index = wire::pretty(&Index {
            schema_version: 2,
            media_type: self.types.index(),
            manifests: parts.iter().map(|part| part.manifest.clone()).collect(),
            annotations: common.index,
        })
        .into_bytes();
        let mut root = Described::of(self.types.index(), &index);
        root.annotations = common.index_descriptor;
        let what = format!("exporting manifest list {}", root.digest);
        self.write(&what, &index).await?;
        Ok(Image {
            root,
            index: Some(index),
            parts,
        })
    }

    /// The layers of several states, made at the same time.
    async fn layers(
        &self,
        references: Vec<Option<&ImmutableRef>>,
    ) -> Result<Vec<Vec<Layer>>, ExportError> {
        let _status = self.cx.progress.status("exporting layers", "");
        let context = cooper_layer::ExportContext {
            content: self.cx.cache.content().clone(),
            compression: self.options.compression,
            fill: filler(self.cx),
        };
        let mut layers = Vec::new();
        for reference in references {
            layers.push(layers_of(reference.cloned(), context.clone()).boxed());
        }
        try_join_all(layers).await
    }

    /// The layers without times after `epoch`. Those of the base image stay as they are, as
    /// far as it really is the base.
    async fn rewritten(
        &self,
        layers: Vec<Layer>,
        base: Option<&[u8]>,
        epoch: time::OffsetDateTime,
    ) -> Result<Vec<Layer>, ExportError> {
        let kept = config::diff_ids(base)?;
        let kept = layers
            .iter()
            .zip(&kept)
            .take_while(|(layer, kept)| layer.diff_id == **kept)
            .count();
        let seconds = epoch.unix_timestamp();
        let time = config::rfc3339(epoch);
        let what = format!("rewriting layers with source-date-epoch {seconds} ({time})");
        let _status = self.cx.progress.status(&what, "");
        let filler = filler(self.cx);
        let (content, options) = (self.cx.cache.content(), &self.options.compression);
        let mut rewritten = Vec::with_capacity(layers.len());
        for (place, layer) in layers.into_iter().enumerate() {
            let (filler, content) = (&filler, &content);
            rewritten.push(
                async move {
                    if place < kept {
                        return Ok(layer);
                    }
                    fetch(filler, &layer).await?;
                    cooper_layer::rewrite_times(content, &layer, options, seconds)
                        .await
                        .map_err(ExportError::layers)
                }
                .boxed(),
            );
        }
        try_join_all(rewritten).await
    }

    /// Configuration and manifest of one platform.
    async fn part(
        &self,
        platform: Option<&Platform>,
        reference: Option<&ImmutableRef>,
        layers: Vec<Layer>,
        annotations: Parts,
    ) -> Result<Part, ExportError> {
        let metadata = &self.input.metadata;
        let find = |key| platforms::for_platform(metadata, key, platform);
        let base = find("containerimage.base.config").filter(|base| !base.is_empty());
        let epoch = self.options.epoch.resolve(metadata, platform)?;
        let layers = match (self.options.rewrite_times, epoch) {
            (true, Some(epoch)) => self.rewritten(layers, base, epoch).await?,
            (true, None) => {
                tracing::warn!("rewrite-timestamp is asked for, and no SOURCE_DATE_EPOCH is there");
                layers
            }
            (false, _) => layers,
        };
        let empty = config::empty();
        let given = find(platforms::CONFIG).filter(|config| !config.is_empty());
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = Draft {
            config: given.unwrap_or(&empty),
            base,
            diff_ids: &diff_ids,
            notes: &notes(reference, layers.len()),
            epoch,
            inline_cache: find("containerimage.inlinecache"),
        }
        .finish()?;
        let described = Described::of(self.types.config(), &config);
        let layers: Vec<_> = layers
            .into_iter()
            .map(|layer| (self.describe(&layer), layer))
            .collect();
        let bytes = wire::pretty(&Manifest {
            schema_version: 2,
            media_type: self.types.manifest(),
            config: described.clone(),
            layers: layers.iter().map(|(layer, _)| layer.clone()).collect(),
            annotations: annotations.manifest,
        })
        .into_bytes();
        let mut manifest = Described::of(self.types.manifest(), &bytes);
        manifest.annotations = annotations.manifest_descriptor;
        self.write(&format!("exporting manifest {}", manifest.digest), &bytes)
            .await?;
        self.write(&format!("exporting config {}", described.digest), &config)
            .await?;
        Ok(Part {
            manifest,
            bytes,
            config: described,
            layers,
        })
    }

    /// A layer's descriptor as the manifest names it, without what only the builder needs.
    fn describe(&self, layer: &Layer) -> Described {
        let descriptor = &layer.descriptor;
        let own = |key: &str| {
            key == "containerd.io/uncompressed"
                || key == "buildkit/createdat"
                || key.starts_with("containerd.io/distribution.source.")
        };
        let annotations: BTreeMap<_, _> = match descriptor.annotations() {
            Some(annotations) if self.types.is_oci() => annotations
                .iter()
                .filter(|(key, _)| !own(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            _ => BTreeMap::new(),
        };
        let keep = self.options.keep_nondistributable;
        let media_type = self.types.layer(descriptor.media_type().as_ref(), keep);
        let foreign = wire::is_nondistributable(&media_type);
        Described {
            digest: descriptor.digest().clone(),
            size: descriptor.size(),
            urls: match descriptor.urls() {
                Some(urls) if foreign => urls.clone(),
                _ => Vec::new(),
            },
            media_type,
            annotations,
            platform: None,
        }
    }

    async fn write(&self, what: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let _status = self.cx.progress.status(what, "");
        let content = self.cx.cache.content();
        content
            .write_all(bytes)
            .await
            .map_err(ExportError::content(what))?;
        Ok(())
    }
}

async fn layers_of(
    reference: Option<ImmutableRef>,
    context: cooper_layer::ExportContext,
) -> Result<Vec<Layer>, ExportError> {
    match reference {
        Some(reference) => cooper_layer::export(&reference, &context)
            .await
            .map_err(ExportError::layers),
        None => Ok(Vec::new()),
    }
}

/// What the states say of themselves, one note for each of the topmost `count` layers.
fn notes(reference: Option<&ImmutableRef>, count: usize) -> Vec<LayerNote> {
    let chain = reference.map(ImmutableRef::chain).unwrap_or_default();
    let skip = chain.len().saturating_sub(count);
    let mut notes: Vec<_> = chain[skip..]
        .iter()
        .map(|state| {
            let description = state.description();
            LayerNote {
                description: match description.is_empty() {
                    true => "created by buildkit".into(),
                    false => description,
                },
                created: Some(config::rfc3339(state.created_at())),
            }
        })
        .collect();
    notes.resize(count, LayerNote::default());
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_platforms_that_are_there() {
        let mut attrs = BTreeMap::from([("annotation[linux/arm64].a".to_owned(), "b".to_owned())]);
        let annotations = Annotations::take(&mut attrs).unwrap();
        let known = platforms::parse(&BTreeMap::new()).unwrap();
        if known[0].id != "linux/arm64" {
            assert_eq!(
                check_annotations(&annotations, &known)
                    .unwrap_err()
                    .to_string(),
                "invalid annotation: no platform linux/arm64 found in source"
            );
        }
    }
}
