//! From a reference to a manifest and its configuration, through the content store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cooper_cache::Layer;
use cooper_content::{ContentStore, Descriptor, Digest, Fetch as _};
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_registry::{Reference, Registry};
use cooper_session::Group;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use oci_spec::image::{ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::{Layout, matching};
use crate::SourceError;

/// The largest manifest, index or configuration in bytes: what registries take (distribution's
/// limit is 4 MiB), doubled.
pub(super) const MAX_SIZE: u64 = 8 << 20;
/// The most layers that an image may have. The kernel's and Docker's limits are far below.
pub(super) const MAX_LAYERS: usize = 4096;

/// How eagerly an image is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// As the builder likes it: here, in the registry.
    #[default]
    Default,
    /// In the registry.
    Pull,
    /// In the builder's own image store if it has one, else in the registry.
    Local,
}

impl ResolveMode {
    /// Reads BuildKit's names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::Pull),
            "local" => Ok(Self::Local),
            _ => Err(format!("invalid resolvemode: {name}")),
        }
    }
}

/// What a reference stands for.
#[derive(Debug)]
pub struct Resolved {
    /// The reference with the digest of [`root`](Self::root).
    pub reference: Reference,
    /// The manifest, or the index that it was found in.
    pub root: Descriptor,
    /// The manifest.
    pub manifest: Descriptor,
    /// The configuration, as it is stored.
    pub config: Bytes,
    /// The layers, base first, each with the reference that it can be fetched from.
    pub layers: Vec<Layer>,
}

type Answer = Result<Arc<Resolved>, SourceError>;
type Flight = Shared<BoxFuture<'static, Answer>>;

/// Finds images. A clone is the same.
#[derive(Clone)]
pub struct ImageResolver {
    registry: Registry,
    content: Arc<dyn ContentStore>,
    /// Where images are looked for instead of a registry.
    layout: Option<Layout>,
    /// What is being asked for now: by reference, platform and sessions. Weak, so that a
    /// request ends when nobody waits for it any more.
    flights: Arc<Mutex<HashMap<String, WeakShared<BoxFuture<'static, Answer>>>>>,
}

impl ImageResolver {
    /// Asks `registry`, keeps manifests and configurations in `content`.
    pub fn new(registry: Registry, content: Arc<dyn ContentStore>) -> Self {
        Self {
            registry,
            content,
            layout: None,
            flights: Arc::default(),
        }
    }

    /// The same, for images that lie in `layout`: their names are nothing but names, and each
    /// has a digest.
    pub fn in_layout(&self, layout: Layout) -> Self {
        Self {
            layout: Some(layout),
            ..self.clone()
        }
    }

    /// Finds the image `reference` for `platform`.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the request if nobody else waits for it.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &pb::Platform,
        mode: ResolveMode,
        sessions: &Group,
    ) -> Answer {
        // Without an image store of its own this builder has nowhere else to look.
        let _ = mode;
        let key = format!(
            "{reference} {:?} {} {}",
            self.layout,
            platform::format_all(platform),
            sessions.ids().join(",")
        );
        let flight = self.flight(&key, reference, platform, sessions);
        let answer = flight.await;
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| {
            flight
                .upgrade()
                .is_some_and(|flight| flight.peek().is_none())
        });
        answer
    }

    fn flight(
        &self,
        key: &str,
        reference: &Reference,
        platform: &pb::Platform,
        sessions: &Group,
    ) -> Flight {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key).and_then(WeakShared::upgrade)
            && flight.peek().is_none()
        {
            return flight;
        }
        let (this, reference) = (self.clone(), reference.clone());
        let (platform, sessions) = (platform.clone(), sessions.clone());
        let flight = async move { this.find(&reference, &platform, &sessions).await }
            .boxed()
            .shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key.to_owned(), weak);
        }
        flight
    }

    async fn find(
        &self,
        reference: &Reference,
        platform: &pb::Platform,
        sessions: &Group,
    ) -> Answer {
        let (root, bytes) = self.root(reference, sessions).await?;
        let reference = reference.clone().with_digest(root.digest());
        let (descriptor, bytes) = match Kind::of(&root, &bytes)? {
            Kind::Manifest => (root.clone(), bytes),
            Kind::Index => {
                let descriptor = choose(&root, &bytes, platform)?;
                let bytes = self.manifest(&reference, &descriptor, sessions).await?;
                if let Kind::Index = Kind::of(&descriptor, &bytes)? {
                    return Err(malformed(
                        "manifest",
                        descriptor.digest(),
                        "it is an index in an index",
                    ));
                }
                (descriptor, bytes)
            }
        };
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| malformed("manifest", descriptor.digest(), error))?;
        let config = self
            .config_blob(&reference, manifest.config(), sessions)
            .await?;
        let source = match &self.layout {
            Some(layout) => layout.source(sessions),
            None => reference.to_string(),
        };
        let layers = layers(source, &manifest, &config)?;
        Ok(Arc::new(Resolved {
            reference,
            root,
            manifest: descriptor,
            config,
            layers,
        }))
    }

    /// The manifest or index that the reference names. A digest that is in the store is not
    /// asked for again.
    pub(super) async fn root(
        &self,
        reference: &Reference,
        sessions: &Group,
    ) -> Result<(Descriptor, Bytes), SourceError> {
        if let Some(digest) = reference.digest()
            && let Ok(bytes) = self.content.read_all(&digest, MAX_SIZE).await
        {
            let media_type = detect(&digest, &bytes)?;
            let descriptor = Descriptor::new(media_type, bytes.len() as u64, digest);
            return Ok((descriptor, bytes));
        }
        if let Some(layout) = &self.layout {
            let digest = reference.digest().ok_or_else(|| SourceError::NoDigest {
                reference: reference.to_string(),
            })?;
            let found = layout.root(&digest, sessions).await?;
            self.content.write_all(&found.1).await?;
            return Ok(found);
        }
        let descriptor = self.registry.resolve(reference, sessions).await?;
        let bytes = self.manifest(reference, &descriptor, sessions).await?;
        Ok((descriptor, bytes))
    }

    async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sessions: &Group,
    ) -> Result<Bytes, SourceError> {
        if let Ok(bytes) = self.content.read_all(descriptor.digest(), MAX_SIZE).await {
            return Ok(bytes);
        }
        let bytes = match &self.layout {
            Some(layout) => {
                let (digest, size) = (descriptor.digest(), descriptor.size());
                layout.blob("manifest", digest, size, sessions).await?
            }
            None => {
                let manifest = self.registry.manifest(reference, descriptor, sessions);
                manifest.await?
            }
        };
        self.content.write_all(&bytes).await?;
        Ok(bytes)
    }

    /// The configuration, verified.
    async fn config_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sessions: &Group,
    ) -> Result<Bytes, SourceError> {
        let digest = descriptor.digest();
        if let Ok(bytes) = self.content.read_all(digest, MAX_SIZE).await {
            return Ok(bytes);
        }
        if descriptor.size() > MAX_SIZE {
            return Err(malformed("image config", digest, "it is too large"));
        }
        if let Some(layout) = &self.layout {
            let size = descriptor.size();
            let bytes = layout.blob("image config", digest, size, sessions).await?;
            self.content.write_all(&bytes).await?;
            return Ok(bytes);
        }
        let fetcher = self.registry.fetcher(reference, sessions);
        let reader = fetcher.fetch(descriptor, 0).await?;
        let mut bytes = Vec::new();
        // One more than there should be, to see that there is more.
        reader
            .take(descriptor.size() + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| malformed("image config", digest, error))?;
        if cooper_content::digest_of(&bytes) != *digest {
            return Err(malformed(
                "image config",
                digest,
                "the bytes that came have another digest",
            ));
        }
        self.content.write_all(&bytes).await?;
        Ok(bytes.into())
    }
}

pub(super) fn malformed(
    what: &'static str,
    digest: &Digest,
    reason: impl std::fmt::Display,
) -> SourceError {
    SourceError::Malformed {
        what,
        digest: digest.clone(),
        reason: reason.to_string(),
    }
}

pub(super) enum Kind {
    Manifest,
    Index,
}

impl Kind {
    pub(super) fn of(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self, SourceError> {
        let by_content = || detect(descriptor.digest(), bytes);
        match descriptor.media_type() {
            MediaType::ImageManifest => Ok(Self::Manifest),
            MediaType::ImageIndex => Ok(Self::Index),
            MediaType::Other(name) => match name.as_str() {
                DOCKER_MANIFEST => Ok(Self::Manifest),
                DOCKER_LIST => Ok(Self::Index),
                _ => match by_content()? {
                    MediaType::ImageIndex => Ok(Self::Index),
                    MediaType::Other(name) if name == DOCKER_LIST => Ok(Self::Index),
                    _ => Ok(Self::Manifest),
                },
            },
            other => Err(malformed(
                "manifest",
                descriptor.digest(),
                format!("encountered unknown type {other}; children may not be fetched"),
            )),
        }
    }
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The media type of a manifest or index that is known by its digest alone.
pub(super) fn detect(digest: &Digest, bytes: &[u8]) -> Result<MediaType, SourceError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|error| malformed("manifest", digest, error))?;
    // What could be read as either is read by nobody (CVE-2021-41190).
    if shape.manifests.is_some() && (shape.config.is_some() || shape.layers.is_some()) {
        return Err(malformed(
            "manifest",
            digest,
            "it has both layers and manifests",
        ));
    }
    if shape.fs_layers.is_some() {
        return Err(malformed(
            "manifest",
            digest,
            "schema 1 is not supported any more",
        ));
    }
    Ok(match shape.media_type {
        Some(name) => MediaType::from(name.as_str()),
        None if shape.manifests.is_some() => MediaType::ImageIndex,
        None => MediaType::ImageManifest,
    })
}

/// The manifest of an index for a platform.
pub(super) fn choose(
    root: &Descriptor,
    bytes: &[u8],
    wanted: &pb::Platform,
) -> Result<Descriptor, SourceError> {
    let index: ImageIndex =
        serde_json::from_slice(bytes).map_err(|error| malformed("index", root.digest(), error))?;
    let platforms: Vec<_> = index
        .manifests()
        .iter()
        .map(|manifest| {
            manifest.platform().as_ref().map(|platform| pb::Platform {
                architecture: platform.architecture().to_string(),
                os: platform.os().to_string(),
                variant: platform.variant().clone().unwrap_or_default(),
                os_version: platform.os_version().clone().unwrap_or_default(),
                os_features: platform.os_features().clone().unwrap_or_default(),
            })
        })
        .collect();
    let place = matching::best(wanted, platforms.iter().map(Option::as_ref)).ok_or_else(|| {
        SourceError::NoPlatform {
            digest: root.digest().clone(),
            platform: platform::format(wanted),
        }
    })?;
    Ok(index.manifests()[place].clone())
}

/// The layers with what is known of them.
pub(super) fn layers(
    source: String,
    manifest: &ImageManifest,
    config: &[u8],
) -> Result<Vec<Layer>, SourceError> {
    let digest = manifest.config().digest();
    // Only what is needed of it: configurations in the wild lack what the specification wants.
    #[derive(Default, Deserialize)]
    struct Rootfs {
        /// Go writes `null` for a list of nothing.
        #[serde(default)]
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        rootfs: Rootfs,
    }
    let config: Config =
        serde_json::from_slice(config).map_err(|error| malformed("image config", digest, error))?;
    let diff_ids = config.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers().len() {
        return Err(malformed(
            "manifest",
            digest,
            format!(
                "mismatched image rootfs and manifest layers: {} and {}",
                diff_ids.len(),
                manifest.layers().len()
            ),
        ));
    }
    if diff_ids.len() > MAX_LAYERS {
        return Err(malformed("manifest", digest, "it has too many layers"));
    }
    let layer = |(diff_id, descriptor): (Digest, &Descriptor)| Layer {
        descriptor: descriptor.clone(),
        diff_id,
        sources: vec![source.clone()],
    };
    Ok(diff_ids
        .into_iter()
        .zip(manifest.layers())
        .map(layer)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_content::digest_of;

    fn detected(text: &str) -> Result<MediaType, SourceError> {
        detect(&digest_of(text.as_bytes()), text.as_bytes())
    }

    #[test]
    fn manifests_are_told_from_indexes_by_what_is_in_them() {
        let docker = format!(r#"{{"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
        assert_eq!(detected(&docker).unwrap().to_string(), DOCKER_LIST);
        let table = [
            (r#"{"manifests":[]}"#, MediaType::ImageIndex),
            (r#"{"config":{},"layers":[]}"#, MediaType::ImageManifest),
        ];
        for (text, expected) in table {
            assert_eq!(detected(text).unwrap(), expected);
        }
        for text in [
            r#"{"manifests":[],"layers":[]}"#,
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "[",
        ] {
            assert!(detected(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_index_without_the_platform_says_so() {
        let digest = digest_of(b"image");
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{DOCKER_MANIFEST}","size":1,
            "digest":"{digest}","platform":{{"os":"linux","architecture":"arm64"}}}}]}}"#
        );
        let root = Descriptor::new(MediaType::ImageIndex, 1, digest_of(index.as_bytes()));
        let wanted = |name| platform::parse(name).unwrap();
        let found = choose(&root, index.as_bytes(), &wanted("linux/arm64")).unwrap();
        assert_eq!(*found.digest(), digest);
        let error = choose(&root, index.as_bytes(), &wanted("linux/amd64")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "no match for platform in manifest {}: not found",
                root.digest()
            )
        );
        assert!(error.is_not_found());
    }
}
