//! The exporter `image`: an image in the content store, and in registries when that is asked
//! for.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use cooper_cache::Layer;
use cooper_content::ImageStore;
use cooper_layer::Filler;
use cooper_registry::{PushOptions, Reference, Registry};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt, iter};

use crate::attrs::{Attrs, ImageOptions, parse_flag};
use crate::manifest::{self, Image};
use crate::wire::{self, Described};
use crate::{ExportContext, ExportError, ExportInput, Exporter, Response};

/// Blobs that go to one registry at a time, as many as BuildKit sends.
const PARALLEL: usize = 4;

/// Makes an image and pushes it.
#[derive(Debug)]
pub(crate) struct ImageExporter {
    options: ImageOptions,
    push: bool,
    by_digest: bool,
    insecure: bool,
    /// Whether the image gets its names in a store of images, if there is one.
    store: bool,
    /// Whether it gets them with its digest as well.
    canonical: bool,
    /// Whether its layers are unpacked there as well.
    unpack: bool,
    /// Whether the store may lack layers of it.
    incomplete: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
    /// Attributes that nobody knows are metadata of the result.
    metadata: Attrs,
}

impl ImageExporter {
    pub(crate) fn new(mut attrs: Attrs) -> Result<Self, ExportError> {
        let options = ImageOptions::take(&mut attrs)?;
        let flag = |attrs: &mut Attrs, key: &str| match attrs.remove(key) {
            Some(value) => parse_flag(key, &value),
            None => Ok(false),
        };
        let push = flag(&mut attrs, "push")?;
        let by_digest = flag(&mut attrs, "push-by-digest")?;
        let insecure = flag(&mut attrs, "registry.insecure")?;
        // BuildKit's spelling.
        let dangling_empty_only = flag(&mut attrs, "danging-name-empty-only")?;
        // As with BuildKit, kept under its names unless somebody says no.
        let store = match attrs.contains_key("store") {
            true => flag(&mut attrs, "store")?,
            false => true,
        };
        let canonical = flag(&mut attrs, "name-canonical")?;
        let incomplete = flag(&mut attrs, "unsafe-internal-store-allow-incomplete")?;
        let unpack = flag(&mut attrs, "unpack")?;
        if unpack && options.rewrite_times {
            return Err(ExportError::Conflict {
                first: "rewrite-timestamp",
                second: "unpack",
            });
        }
        Ok(Self {
            options,
            push,
            by_digest,
            insecure,
            store,
            canonical,
            unpack,
            incomplete,
            dangling_prefix: attrs.remove("dangling-name-prefix").unwrap_or_default(),
            dangling_empty_only,
            metadata: attrs,
        })
    }

    /// The names of the image, comma separated.
    fn names(&self, image: &Image, metadata: &BTreeMap<String, Vec<u8>>) -> String {
        let mut names = match (self.options.name.as_str(), metadata.get("image.name")) {
            ("*", Some(name)) => String::from_utf8_lossy(name).into_owned(),
            (name, _) => name.to_owned(),
        };
        let prefix = &self.dangling_prefix;
        if !prefix.is_empty() && (names.is_empty() || !self.dangling_empty_only) {
            if !names.is_empty() {
                names.push(',');
            }
            names.push_str(&format!("{prefix}@{}", image.root.digest));
        }
        names
    }
}

impl ImageExporter {
    /// Gives the image its names in a store of images.
    async fn keep(
        &self,
        image: &Image,
        names: &str,
        images: &dyn ImageStore,
        cx: &ExportContext,
    ) -> Result<(), ExportError> {
        if !self.incomplete || self.unpack {
            image.fetch_layers(cx).await?;
        }
        let references = image.references();
        let target = image.root.descriptor();
        for name in names.split(',') {
            let mut all = vec![name.to_owned()];
            if self.canonical && !name.contains('@') {
                all.push(format!("{name}@{}", image.root.digest));
            }
            for name in all {
                let _status = cx.progress.status(&format!("naming to {name}"), "");
                images
                    .name(&name, &target, &references)
                    .await
                    .map_err(ExportError::content("name the image"))?;
            }
        }
        if self.unpack {
            self.unpack(image, names, images, cx).await?;
        }
        Ok(())
    }

    /// Unpacks the part of the image that this machine runs.
    async fn unpack(
        &self,
        image: &Image,
        names: &str,
        images: &dyn ImageStore,
        cx: &ExportContext,
    ) -> Result<(), ExportError> {
        let _status = cx.progress.status(&format!("unpacking to {names}"), "");
        let part = image.for_host().ok_or_else(|| {
            let host = cooper_llb::platform::format(&cooper_llb::platform::host());
            ExportError::result(format!("no part of the image is for {host}: cannot unpack"))
        })?;
        let layers: Vec<_> = part
            .layers
            .iter()
            .map(|(described, layer)| (described.descriptor(), layer.diff_id.clone()))
            .collect();
        images
            .unpack(&part.config.digest, &layers)
            .await
            .map_err(ExportError::content("unpack the image"))
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn name(&self) -> &'static str {
        "exporting to image"
    }

    fn kind(&self) -> &'static str {
        "image"
    }

    async fn export(
        &self,
        mut input: ExportInput,
        cx: &ExportContext,
    ) -> Result<Response, ExportError> {
        add_metadata(&mut input, &self.metadata);
        let image = manifest::commit(&input, &self.options, cx).await?;
        let mut response = image.response();
        let names = self.names(&image, &input.metadata);
        if let Some(images) = &cx.images
            && self.store
            && !names.is_empty()
        {
            self.keep(&image, &names, &**images, cx).await?;
        }
        if self.push {
            if names.is_empty() {
                return Err(ExportError::NoName);
            }
            let registry = match self.insecure {
                true => cx.registry.insecure(),
                false => cx.registry.clone(),
            };
            for name in names.split(',') {
                let push = Push {
                    name,
                    reference: target(name, self.by_digest)?,
                    image: &image,
                    registry: &registry,
                    filler: manifest::filler(cx),
                    cx,
                };
                push.run().await?;
            }
        } else {
            let content = cx.cache.content();
            content
                .sync(&image.blobs())
                .await
                .map_err(ExportError::content("sync the image"))?;
        }
        if !names.is_empty() {
            response.insert("image.name".into(), names);
        }
        Ok(response)
    }
}

/// Attributes that the exporter does not know are metadata, stronger than the frontend's.
pub(crate) fn add_metadata(input: &mut ExportInput, attrs: &Attrs) {
    for (key, value) in attrs {
        input
            .metadata
            .insert(key.clone(), value.clone().into_bytes());
    }
}

/// Where an image named `name` goes to.
fn target(name: &str, by_digest: bool) -> Result<Reference, ExportError> {
    let parsed = Reference::parse_named(name).map_err(|source| ExportError::Name {
        name: name.to_owned(),
        source,
    })?;
    match (by_digest, parsed.tag(), parsed.digest()) {
        (true, None, None) => Ok(parsed),
        (true, ..) => Err(ExportError::TaggedByDigest {
            name: parsed.to_string(),
        }),
        (false, None, None) => parsed
            .with_tag("latest")
            .map_err(|source| ExportError::Name {
                name: name.to_owned(),
                source,
            }),
        // An image is pushed under the digest that it has.
        (false, None, Some(_)) => Ok(parsed.without_tag_and_digest()),
        (false, Some(_), _) => Ok(parsed),
    }
}

/// A few at a time, until one fails.
async fn all(pushes: Vec<BoxFuture<'_, Result<(), ExportError>>>) -> Result<(), ExportError> {
    iter(pushes).buffer_unordered(PARALLEL).try_collect().await
}

struct Push<'a> {
    name: &'a str,
    reference: Reference,
    image: &'a Image,
    registry: &'a Registry,
    filler: Filler,
    cx: &'a ExportContext,
}

impl Push<'_> {
    async fn run(&self) -> Result<(), ExportError> {
        self.blobs().await?;
        self.manifests().await
    }

    async fn blobs(&self) -> Result<(), ExportError> {
        let _status = self.cx.progress.status("pushing layers", "");
        let mut seen = BTreeSet::new();
        let mut blobs = Vec::new();
        for part in &self.image.parts {
            let layers = part.layers.iter();
            let layers = layers.map(|(described, layer)| (described, Some(layer)));
            for (described, layer) in layers.chain([(&part.config, None)]) {
                let digest = described.digest.to_string();
                if !wire::is_nondistributable(&described.media_type) && seen.insert(digest) {
                    blobs.push((described, layer));
                }
            }
        }
        let pushes: Vec<_> = blobs
            .into_iter()
            .map(|(described, layer)| self.blob(described, layer).boxed())
            .collect();
        all(pushes).await
    }

    async fn blob(&self, described: &Described, layer: Option<&Layer>) -> Result<(), ExportError> {
        let content = self.cx.cache.content();
        let mount_from: Vec<_> = layer
            .into_iter()
            .flat_map(|layer| &layer.sources)
            .filter_map(|source| Reference::parse(source).ok())
            .collect();
        if let Some(layer) = layer
            && content.info(&described.digest).await.is_err()
        {
            if self.has_or_lends(described, &mount_from).await? {
                return Ok(());
            }
            manifest::fetch(&self.filler, layer).await?;
        }
        let options = PushOptions {
            mount_from,
            progress: None,
        };
        let descriptor = described.descriptor();
        let sessions = &self.cx.sessions;
        self.registry
            .push_blob(&self.reference, &descriptor, &**content, sessions, &options)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(())
    }

    /// Whether a layer that is not here need not come here: the registry has it, or another of
    /// its repositories does.
    async fn has_or_lends(
        &self,
        described: &Described,
        mount_from: &[Reference],
    ) -> Result<bool, ExportError> {
        let (digest, sessions) = (&described.digest, &self.cx.sessions);
        let has = self.registry.has_blob(&self.reference, digest, sessions);
        if has.await.map_err(|source| self.failed(source))? {
            return Ok(true);
        }
        for from in mount_from {
            let mount = self
                .registry
                .mount_blob(&self.reference, digest, from, sessions);
            if mount.await.map_err(|source| self.failed(source))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Manifests before the index that names them, and the tag last.
    async fn manifests(&self) -> Result<(), ExportError> {
        let image = self.image;
        let full = match self.reference.tag() {
            Some(_) => self.reference.clone().with_digest(&image.root.digest),
            None => self.reference.clone(),
        };
        let what = format!("pushing manifest for {full}");
        let _status = self.cx.progress.status(&what, "");
        let untagged = self.reference.clone().without_tag_and_digest();
        let (below, top) = match &image.index {
            Some(index) => (&image.parts[..], Some(index)),
            None => (&[][..], image.parts.first().map(|part| &part.bytes)),
        };
        let pushes: Vec<_> = below
            .iter()
            .map(|part| {
                self.manifest(&untagged, &part.manifest, &part.bytes)
                    .boxed()
            })
            .collect();
        all(pushes).await?;
        match top {
            Some(top) => self.manifest(&self.reference, &image.root, top).await,
            None => Ok(()),
        }
    }

    async fn manifest(
        &self,
        reference: &Reference,
        described: &Described,
        bytes: &[u8],
    ) -> Result<(), ExportError> {
        let media_type = described.media_type.as_str().into();
        let bytes = Bytes::copy_from_slice(bytes);
        self.registry
            .push_manifest(reference, bytes, &media_type, &self.cx.sessions)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(())
    }

    fn failed(&self, source: cooper_registry::RegistryError) -> ExportError {
        ExportError::Push {
            name: self.name.to_owned(),
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(list: &[(&str, &str)]) -> Result<ImageExporter, ExportError> {
        let attrs = list.iter();
        ImageExporter::new(
            attrs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    fn image() -> Image {
        Image {
            root: Described::of("x", b"x"),
            index: None,
            parts: Vec::new(),
        }
    }

    #[test]
    fn attributes_are_flags_names_and_metadata() {
        let exporter = exporter(&[
            ("push", ""),
            ("registry.insecure", "true"),
            ("store", "true"),
            ("containerimage.config", "{}"),
        ])
        .unwrap();
        assert!(exporter.push && exporter.insecure && !exporter.by_digest);
        assert_eq!(exporter.metadata.len(), 1);
        let mut input = ExportInput::default();
        add_metadata(&mut input, &exporter.metadata);
        assert_eq!(input.metadata["containerimage.config"], b"{}");
    }

    #[test]
    fn what_cannot_go_together_is_refused() {
        let both = [("unpack", "true"), ("rewrite-timestamp", "true")];
        let error = exporter(&both).unwrap_err().to_string();
        assert_eq!(
            error,
            "exporter option \"rewrite-timestamp\" conflicts with \"unpack\""
        );
        for key in ["push", "store", "name-canonical", "danging-name-empty-only"] {
            let error = exporter(&[(key, "x")]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("non-bool value specified for {key}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_name_comes_from_the_attribute_the_frontend_or_the_digest() {
        let metadata = BTreeMap::from([("image.name".to_owned(), b"theirs".to_vec())]);
        let dangling = format!("none@{}", cooper_content::digest_of(b"x"));
        for (attrs, expected) in [
            (&[("name", "a,b")][..], "a,b".to_owned()),
            (&[("name", "*")], "theirs".to_owned()),
            (&[], String::new()),
            (&[("dangling-name-prefix", "none")], dangling.clone()),
            (
                &[("name", "a"), ("dangling-name-prefix", "none")],
                format!("a,{dangling}"),
            ),
            (
                &[
                    ("name", "a"),
                    ("dangling-name-prefix", "none"),
                    ("danging-name-empty-only", "true"),
                ],
                "a".to_owned(),
            ),
        ] {
            let exporter = exporter(attrs).unwrap();
            assert_eq!(exporter.names(&image(), &metadata), expected, "{attrs:?}");
        }
    }

    #[test]
    fn a_push_goes_to_a_tag_or_to_the_digest() {
        let digest = cooper_content::digest_of(b"x");
        let by_digest = format!("localhost/x@{digest}");
        for (name, flag, expected) in [
            ("alpine", false, "docker.io/library/alpine:latest"),
            ("localhost:5000/a/b:1", false, "localhost:5000/a/b:1"),
            ("localhost:5000/a/b", true, "localhost:5000/a/b"),
            (by_digest.as_str(), false, "localhost/x"),
        ] {
            assert_eq!(target(name, flag).unwrap().to_string(), expected);
        }
        assert_eq!(
            target("localhost:5000/a/b:1", true)
                .unwrap_err()
                .to_string(),
            "can't push tagged ref localhost:5000/a/b:1 by digest"
        );
        let error = target("Upper", false).unwrap_err().to_string();
        assert_eq!(error, "failed to parse Upper");
    }
}
