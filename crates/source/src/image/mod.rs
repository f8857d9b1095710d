//! `docker-image://` and `oci-layout://`: images in registries, and in layouts of the client's.
//!
//! The keys are BuildKit's (`source/containerimage/pull.go`): first one of the manifest's digest
//! and the platform, then the chain of the layers, by which equal images meet.

mod config;
mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod layout;
mod manifest;
mod matching;

use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{CacheManager, ImmutableRef, Layer, RecordOptions, RecordType};
use cooper_content::{Digest, PlaintextKind, digest_noted};
use cooper_llb::gojson::Object;
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_registry::Reference;
use tokio::sync::OnceCell;

pub use config::ResolvedConfig;
pub use fetch::fetchers;
pub use layout::Layout;
pub use manifest::{ImageResolver, ResolveMode, Resolved};
pub use matching::best as best_platform;

use crate::{CacheKey, Facts, Identifier, Instance, Source, SourceContext, SourceError};

const RESOLVE_MODE: &str = "image.resolvemode";
const RECORD_TYPE: &str = "image.recordtype";
const LAYER_LIMIT: &str = "image.layerlimit";
const CHECKSUM: &str = "image.checksum";
const LAYOUT_SESSION: &str = "oci.session";
const LAYOUT_STORE: &str = "oci.store";
const LAYOUT_LIMIT: &str = "oci.layerlimit";

/// The scheme of images in registries.
pub const IMAGE: &str = "docker-image";
/// The scheme of images in layouts.
pub const OCI_LAYOUT: &str = "oci-layout";

/// Images in registries.
#[derive(Clone)]
pub struct ImageSource {
    cache: CacheManager,
    resolver: ImageResolver,
}

impl ImageSource {
    /// Keeps layers in `cache`, finds images through `resolver`.
    pub fn new(cache: CacheManager, resolver: ImageResolver) -> Self {
        Self { cache, resolver }
    }
}

impl Source for ImageSource {
    fn schemes(&self) -> &'static [&'static str] {
        &[IMAGE, OCI_LAYOUT]
    }

    fn open(&self, id: Identifier) -> Result<Arc<dyn Instance>, SourceError> {
        let reference = SourceError::reference(&id.reference)?;
        let mode = match id.attr(RESOLVE_MODE) {
            Some(mode) => ResolveMode::parse(mode).map_err(|e| id.invalid(RESOLVE_MODE, e))?,
            None => ResolveMode::Default,
        };
        if id.scheme == OCI_LAYOUT {
            let resolver = self.resolver.in_layout(layout(&id));
            if reference.digest().is_none() {
                return Err(SourceError::NoDigest {
                    reference: id.reference,
                });
            }
            return Ok(Arc::new(Image {
                cache: self.cache.clone(),
                resolver,
                reference,
                mode: ResolveMode::Default,
                layer_limit: layer_limit(&id, LAYOUT_LIMIT)?,
                checksum: None,
                record_type: RecordType::Regular,
                platform: id.platform,
                found: OnceCell::new(),
            }));
        }
        let layer_limit = layer_limit(&id, LAYER_LIMIT)?;
        let checksum = match id.attr(CHECKSUM).map(str::parse::<Digest>) {
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => return Err(id.invalid(CHECKSUM, error)),
            None => None,
        };
        let record_type = match id.attr(RECORD_TYPE) {
            None | Some("regular") => RecordType::Regular,
            Some("internal") => RecordType::Internal,
            Some("frontend") => RecordType::Frontend,
            Some(_) => return Err(id.invalid(RECORD_TYPE, "unknown record type")),
        };
        Ok(Arc::new(Image {
            cache: self.cache.clone(),
            resolver: self.resolver.clone(),
            reference,
            mode,
            layer_limit,
            checksum,
            record_type,
            platform: id.platform,
            found: OnceCell::new(),
        }))
    }
}

/// The layout that an identifier names.
pub fn layout(id: &Identifier) -> Layout {
    let text = |name: &str| id.attr(name).unwrap_or_default().to_owned();
    Layout {
        session: text(LAYOUT_SESSION),
        store: text(LAYOUT_STORE),
    }
}

fn layer_limit(id: &Identifier, name: &str) -> Result<Option<usize>, SourceError> {
    match id.attr(name).map(str::parse::<usize>) {
        Some(Ok(limit)) if limit > 0 => Ok(Some(limit)),
        Some(Ok(_)) => Err(id.invalid(name, "invalid layer limit")),
        Some(Err(error)) => Err(id.invalid(name, error)),
        None => Ok(None),
    }
}

struct Image {
    cache: CacheManager,
    resolver: ImageResolver,
    reference: Reference,
    mode: ResolveMode,
    layer_limit: Option<usize>,
    checksum: Option<Digest>,
    record_type: RecordType,
    platform: pb::Platform,
    found: OnceCell<Arc<Resolved>>,
}

impl Image {
    /// What the reference stands for; asked once.
    async fn resolved(&self, cx: &SourceContext) -> Result<&Arc<Resolved>, SourceError> {
        self.found
            .get_or_try_init(|| async {
                let status = cx
                    .progress
                    .status(&format!("resolve {}", self.reference), "");
                let resolver = &self.resolver;
                let found = resolver
                    .resolve(&self.reference, &self.platform, self.mode, &cx.sessions)
                    .await?;
                if let Some(expected) = &self.checksum
                    && found.root.digest() != expected
                {
                    return Err(SourceError::ImageChecksum {
                        reference: self.reference.to_string(),
                        found: Box::new(found.root.digest().clone()),
                        expected: Box::new(expected.clone()),
                    });
                }
                if let Some(limit) = self.layer_limit
                    && limit > found.layers.len()
                {
                    return Err(SourceError::LayerLimit {
                        limit,
                        count: found.layers.len(),
                    });
                }
                // The image may be found in the cache, and its layers be elsewhere by now.
                self.cache.note_sources(self.layers(&found)).await?;
                status.done();
                Ok(found)
            })
            .await
    }

    /// The layers that are wanted.
    fn layers<'a>(&self, found: &'a Resolved) -> &'a [Layer] {
        &found.layers[..self.layer_limit.unwrap_or(found.layers.len())]
    }

    fn manifest_key(&self, found: &Resolved) -> Digest {
        let platform = &self.platform;
        let text = Object::write(|object| {
            object.field("Digest", found.root.digest().as_ref());
            object.field("OS", &platform.os);
            object.field("Arch", &platform.architecture);
            object.omit_empty("Variant", &platform.variant);
            object.omit_empty("OSVersion", &platform.os_version);
            object.omit_empty("OSFeatures", &platform.os_features);
            if let Some(limit) = self.layer_limit {
                object.field("Limit", &(limit as u64));
            }
        });
        let plaintexts = self.cache.plaintexts();
        digest_noted(plaintexts, PlaintextKind::Json, text.as_bytes())
    }
}

/// The chain id of layers, by the digests of their uncompressed form (OCI image-spec,
/// config.md, "Layer ChainID"). `None` without layers.
pub(crate) fn chain_id<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Option<Digest> {
    let all = diff_ids.into_iter();
    all.fold(None, |below: Option<Digest>, diff_id| {
        Some(cooper_content::chain_id(below.as_ref(), diff_id))
    })
}

#[async_trait]
impl Instance for Image {
    async fn cache_key(&self, cx: &SourceContext, index: usize) -> Result<CacheKey, SourceError> {
        let found = self.resolved(cx).await?;
        let chain = chain_id(self.layers(found).iter().map(|layer| &layer.diff_id));
        let (key, last) = match chain {
            Some(chain) if index > 0 => (chain, true),
            chain => (self.manifest_key(found), chain.is_none()),
        };
        Ok(CacheKey {
            key: key.to_string(),
            pin: found.root.digest().to_string(),
            last,
        })
    }

    fn facts(&self) -> Option<Facts> {
        let named = self.reference.to_string();
        let name = named
            .split_once('@')
            .map_or(named.as_str(), |(name, _)| name);
        let found = self.found.get()?;
        let limit = self.layer_limit.map(|limit| limit.to_string());
        Some(Facts {
            kind: "image",
            subject: name.to_owned(),
            facts: vec![
                ("base image", name.to_owned()),
                ("platform", platform::format(&self.platform)),
                ("digest of the base image", found.root.digest().to_string()),
                ("number of layers", limit.unwrap_or_default()),
            ],
        })
    }

    async fn snapshot(&self, cx: &SourceContext) -> Result<Option<ImmutableRef>, SourceError> {
        let found = self.resolved(cx).await?;
        let mut current: Option<ImmutableRef> = None;
        for layer in self.layers(found) {
            let options = RecordOptions {
                description: format!("pulled from {}", found.reference),
                record_type: self.record_type,
                ..RecordOptions::default()
            };
            let next = self
                .cache
                .get_by_blob(current.as_ref(), layer.clone(), options)
                .await?;
            current = Some(next);
        }
        Ok(current)
    }
}

#[cfg(test)]
mod tests;
