//! The exporters `oci` and `docker`: an image as a tar that goes to the client.
//!
//! Both are OCI image layouts; Docker's variant has the `manifest.json` that `docker load` has
//! read since before there were layouts.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use cooper_content::{Blob, BlobReader, Digest};
use cooper_registry::Reference;
use cooper_session::content::{EXPORT, Store};
use serde::Serialize;
use sha2::Digest as _;
use tar::{EntryType, Header};

use crate::attrs::{Attrs, ImageOptions, parse_flag};
use crate::image::add_metadata;
use crate::manifest::{self, Image};
use crate::stream;
use crate::wire::{self, Described, Index};
use crate::{ExportContext, ExportError, ExportInput, Exporter, Response, config};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Oci,
    Docker,
}

/// Sends an image as a tar.
#[derive(Debug)]
pub(crate) struct ArchiveExporter {
    variant: Variant,
    options: ImageOptions,
    index: usize,
    /// One tar, or else the blobs alone into a layout that the client keeps.
    tar: bool,
    metadata: Attrs,
}

impl ArchiveExporter {
    pub(crate) fn new(
        variant: Variant,
        mut attrs: Attrs,
        index: usize,
    ) -> Result<Self, ExportError> {
        let options = ImageOptions::take(&mut attrs)?;
        let tar = match attrs.remove("tar") {
            Some(value) => parse_flag("tar", &value)?,
            None => true,
        };
        Ok(Self {
            variant,
            options,
            index,
            tar,
            metadata: attrs,
        })
    }
}

#[async_trait]
impl Exporter for ArchiveExporter {
    fn name(&self) -> &'static str {
        match self.variant {
            Variant::Oci => "exporting to oci image format",
            Variant::Docker => "exporting to docker image format",
        }
    }

    fn kind(&self) -> &'static str {
        match self.variant {
            Variant::Oci => "oci",
            Variant::Docker => "docker",
        }
    }

    async fn export(
        &self,
        mut input: ExportInput,
        cx: &ExportContext,
    ) -> Result<Response, ExportError> {
        if self.variant == Variant::Docker && !input.references.is_empty() {
            return Err(ExportError::result(
                "docker exporter does not currently support exporting manifest lists",
            ));
        }
        add_metadata(&mut input, &self.metadata);
        let mut image = manifest::commit(&input, &self.options, cx).await?;
        let created = match self.options.epoch.resolve(&input.metadata, None)? {
            Some(epoch) => config::rfc3339(epoch),
            None => config::rfc3339_seconds(SystemTime::now()),
        };
        let annotations = &mut image.root.annotations;
        annotations
            .entry("org.opencontainers.image.created".into())
            .or_insert(created);
        let mut response = image.response();
        let wanted = match (self.options.name.as_str(), input.metadata.get("image.name")) {
            ("*", Some(name)) => String::from_utf8_lossy(name).into_owned(),
            (name, _) => name.to_owned(),
        };
        let names = normalize(&wanted)?;
        if !names.is_empty() {
            let names: Vec<_> = names.iter().map(Reference::to_string).collect();
            response.insert("image.name".into(), names.join(","));
        }
        image.fetch_layers(cx).await?;
        if !self.tar {
            send_layout(&image, cx).await?;
            return Ok(response);
        }
        let archive = self.archive(&image, &names, cx).await?;
        let _status = cx.progress.status("sending tarball", "");
        stream::send(cx, self.index, &response, move |out| archive.write(out)).await?;
        Ok(response)
    }
}

/// Writes the blobs of `image` into the layout that the client keeps, what names others after
/// what it names. The client writes the layout's index: it is told all that belongs there.
async fn send_layout(image: &Image, cx: &ExportContext) -> Result<(), ExportError> {
    let session = stream::session(cx).await?;
    let store = Store::new(&session, EXPORT).map_err(ExportError::session)?;
    let content = cx.cache.content();
    for digest in image.blobs_by_need() {
        let failed = ExportError::content(format!("open {digest} to send it"));
        let blob: Arc<dyn Blob> = Arc::from(content.open(&digest).await.map_err(failed)?);
        let size = blob.size();
        let _status = cx.progress.status(&format!("sending {digest}"), "");
        let write = move |out: &mut dyn Write| {
            let copied = io::copy(&mut BlobReader::new(blob), out);
            copied.map_err(ExportError::io("send", "the blob"))?;
            Ok(())
        };
        stream::send_blob(&store, &digest, size, write).await?;
    }
    Ok(())
}

impl ArchiveExporter {
    /// The files of the tar, by name: that is their order in it.
    async fn archive(
        &self,
        image: &Image,
        names: &[Reference],
        cx: &ExportContext,
    ) -> Result<Archive, ExportError> {
        let mut files = BTreeMap::new();
        let mut add = |name: &str, mode, text: String| {
            let content = FileContent::Text(text.into_bytes());
            files.insert(name.to_owned(), (mode, content));
        };
        add(
            "oci-layout",
            0o444,
            r#"{"imageLayoutVersion":"1.0.0"}"#.into(),
        );
        let index = Index {
            schema_version: 2,
            media_type: "",
            manifests: named(&image.root, names),
            annotations: BTreeMap::new(),
        };
        add("index.json", 0o644, wire::compact(&index));
        if self.variant == Variant::Docker {
            add("manifest.json", 0o644, docker_manifest(image, names));
        }
        let content = cx.cache.content();
        for digest in image.blobs() {
            let blob = content
                .open(&digest)
                .await
                .map_err(ExportError::content(format!("open {digest} to send it")))?;
            let name = blob_path(&digest);
            files.insert(name, (0o444, FileContent::Blob(digest, Arc::from(blob))));
        }
        Ok(Archive { files })
    }
}

fn normalize(names: &str) -> Result<Vec<Reference>, ExportError> {
    let names = names.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| {
            Reference::parse(name).map_err(|source| ExportError::Name {
                name: name.to_owned(),
                source,
            })
        })
        .collect()
}

/// The image once for each name, with the name in the annotations that containerd and OCI have
/// for it.
fn named(root: &Described, names: &[Reference]) -> Vec<Described> {
    if names.is_empty() {
        return vec![root.clone()];
    }
    let one = |name: &Reference| {
        let mut described = root.clone();
        // What OCI calls the name of a reference is the tag or the digest alone.
        let short = match (name.tag(), name.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => name.to_string(),
        };
        for (key, value) in [
            ("io.containerd.image.name", name.to_string()),
            ("org.opencontainers.image.ref.name", short),
        ] {
            described.annotations.insert(key.into(), value);
        }
        described
    };
    names.iter().map(one).collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    /// Go writes `null` for no names.
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_manifest(image: &Image, names: &[Reference]) -> String {
    let tags: Vec<_> = names.iter().map(Reference::familiar).collect();
    let images: Vec<_> = image
        .parts
        .iter()
        .map(|part| DockerImage {
            config: blob_path(&part.config.digest),
            repo_tags: Some(tags.clone()).filter(|tags| !tags.is_empty()),
            layers: part
                .layers
                .iter()
                .map(|(layer, _)| blob_path(&layer.digest))
                .collect(),
        })
        .collect();
    wire::compact(&images)
}

enum FileContent {
    Text(Vec<u8>),
    Blob(Digest, Arc<dyn Blob>),
}

struct Archive {
    /// Mode and content by name.
    files: BTreeMap<String, (u32, FileContent)>,
}

impl Archive {
    /// Writes the tar: nothing in it but the image, so that equal images give equal tars.
    fn write(self, out: &mut dyn Write) -> Result<(), ExportError> {
        let mut tar = tar::Builder::new(out);
        for folder in ["blobs/", "blobs/sha256/"] {
            let header = header(EntryType::Directory, 0o755, 0);
            append(&mut tar, header, folder, io::empty())
                .map_err(ExportError::io("send", folder))?;
        }
        for (name, (mode, content)) in self.files {
            let failed = ExportError::io("send", &name);
            let file = |size| header(EntryType::Regular, mode, size);
            match content {
                FileContent::Text(text) => {
                    append(&mut tar, file(text.len() as u64), &name, &*text).map_err(failed)?;
                }
                FileContent::Blob(digest, blob) => {
                    let header = file(blob.size());
                    let mut reader = Verify {
                        inner: BlobReader::new(blob),
                        hash: sha2::Sha256::new(),
                    };
                    append(&mut tar, header, &name, &mut reader).map_err(failed)?;
                    let found = cooper_content::digest_from(reader.hash.finalize().as_slice());
                    if found != digest {
                        return Err(ExportError::result(format!(
                            "unexpected digest {found} copied, expected {digest}"
                        )));
                    }
                }
            }
        }
        let finish = |error| ExportError::io("send", "the end of the archive")(error);
        tar.into_inner().map_err(finish)?;
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(
    tar: &mut tar::Builder<&mut dyn Write>,
    mut header: Header,
    name: &str,
    content: impl Read,
) -> io::Result<()> {
    tar.append_data(&mut header, name, content)
}

/// What is read is hashed: a blob that rotted on disk must not leave as an image.
struct Verify<R> {
    inner: R,
    hash: sha2::Sha256,
}

impl<R: Read> Read for Verify<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Part;
    use cooper_content::{ContentStore, MemoryContentStore};

    fn image(config: &[u8], manifest: &[u8]) -> Image {
        let described = Described::of("manifest", manifest);
        Image {
            root: described.clone(),
            index: None,
            parts: vec![Part {
                manifest: described,
                bytes: manifest.to_vec(),
                config: Described::of("config", config),
                layers: Vec::new(),
            }],
        }
    }

    #[test]
    fn names_become_annotations_and_tags() {
        let names = normalize("alpine,localhost:5000/x:1").unwrap();
        let image = image(b"c", b"m");
        let described = named(&image.root, &names);
        let annotation = |index: usize, key: &str| described[index].annotations[key].clone();
        assert_eq!(
            annotation(0, "io.containerd.image.name"),
            "docker.io/library/alpine:latest"
        );
        assert_eq!(annotation(1, "org.opencontainers.image.ref.name"), "1");
        let text = docker_manifest(&image, &names);
        assert!(
            text.contains(r#""RepoTags":["alpine:latest","localhost:5000/x:1"],"Layers":[]"#),
            "{text}"
        );
        assert!(docker_manifest(&image, &[]).contains(r#""RepoTags":null"#));
        assert_eq!(normalize("").unwrap(), []);
        assert!(normalize("A").is_err());
    }

    #[tokio::test]
    async fn an_archive_is_in_order_and_equal_each_time() {
        let store = MemoryContentStore::default();
        let digest = store.write_all(b"blob").await.unwrap();
        let write = async || {
            let blob: Arc<dyn Blob> = Arc::from(store.open(&digest).await.unwrap());
            let files = BTreeMap::from([
                (
                    blob_path(&digest),
                    (0o444, FileContent::Blob(digest.clone(), blob)),
                ),
                (
                    "oci-layout".into(),
                    (0o444, FileContent::Text(b"{}".to_vec())),
                ),
                (
                    "index.json".into(),
                    (0o644, FileContent::Text(b"[]".to_vec())),
                ),
            ]);
            let mut out = Vec::new();
            Archive { files }.write(&mut out).unwrap();
            out
        };
        let bytes = write().await;
        assert_eq!(bytes, write().await);
        let mut archive = tar::Archive::new(&*bytes);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        let blob = blob_path(&digest);
        assert_eq!(
            names,
            ["blobs/", "blobs/sha256/", &blob, "index.json", "oci-layout"]
        );
    }

    #[tokio::test]
    async fn a_blob_that_rotted_does_not_leave() {
        let store = MemoryContentStore::default();
        let digest = store.write_all(b"rotten").await.unwrap();
        let blob: Arc<dyn Blob> = Arc::from(store.open(&digest).await.unwrap());
        let claimed = cooper_content::digest_of(b"sound");
        let files = BTreeMap::from([("x".into(), (0o444, FileContent::Blob(claimed, blob)))]);
        let error = Archive { files }.write(&mut Vec::new()).unwrap_err();
        assert!(
            error.to_string().starts_with("unexpected digest"),
            "{error}"
        );
    }

    #[test]
    fn a_layout_needs_no_tar() {
        let attrs = |value: &str| Attrs::from([("tar".to_owned(), value.to_owned())]);
        let tar = |value| ArchiveExporter::new(Variant::Oci, attrs(value), 0).map(|made| made.tar);
        assert!(tar("true").unwrap() && tar("").unwrap());
        assert!(!tar("false").unwrap());
        let error = tar("no").unwrap_err().to_string();
        assert!(
            error.starts_with("non-bool value specified for tar"),
            "{error}"
        );
    }

    #[test]
    fn blobs_are_sent_before_what_names_them() {
        let layer = Described::of("layer", b"l");
        let mut image = image(b"c", b"m");
        let blob = cooper_cache::Layer {
            descriptor: layer.descriptor(),
            diff_id: layer.digest.clone(),
            sources: Vec::new(),
        };
        for _ in 0..2 {
            image.parts[0].layers.push((layer.clone(), blob.clone()));
        }
        image.root = Described::of("index", b"i");
        let order: Vec<_> = [&b"l"[..], b"c", b"m", b"i"]
            .into_iter()
            .map(cooper_content::digest_of)
            .collect();
        assert_eq!(image.blobs_by_need(), order);
    }
}
