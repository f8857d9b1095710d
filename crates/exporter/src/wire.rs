//! Manifests and descriptors as they are written: the fields in the order of OCI's Go types,
//! the texts as Go's `encoding/json` makes them, so that equal images have equal digests.

use std::collections::BTreeMap;

use cooper_content::{Descriptor, Digest};
use serde::Serialize;

use crate::platforms::Spec;

/// A descriptor (OCI image spec, "Descriptor").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Described {
    #[serde(rename = "mediaType")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) urls: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Spec>,
}

impl Described {
    /// Of `bytes`.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: cooper_content::digest_of(bytes),
            size: bytes.len() as u64,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Without annotations and platform, for those who only move the blob.
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.as_str().into(),
            self.size,
            self.digest.clone(),
        )
    }
}

/// An image manifest.
#[derive(Serialize)]
pub(crate) struct Manifest {
    #[serde(rename = "schemaVersion")]
    pub(crate) schema_version: u8,
    #[serde(rename = "mediaType")]
    pub(crate) media_type: &'static str,
    pub(crate) config: Described,
    pub(crate) layers: Vec<Described>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An image index. The one of a layout has no media type in BuildKit's archives.
#[derive(Serialize)]
pub(crate) struct Index {
    #[serde(rename = "schemaVersion")]
    pub(crate) schema_version: u8,
    #[serde(rename = "mediaType", skip_serializing_if = "str::is_empty")]
    pub(crate) media_type: &'static str,
    pub(crate) manifests: Vec<Described>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The media types of an image's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Types {
    oci: bool,
}

impl Types {
    pub(crate) fn new(oci: bool) -> Self {
        Self { oci }
    }

    pub(crate) fn is_oci(self) -> bool {
        self.oci
    }

    pub(crate) fn manifest(self) -> &'static str {
        match self.oci {
            true => "application/vnd.oci.image.manifest.v1+json",
            false => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(crate) fn config(self) -> &'static str {
        match self.oci {
            true => "application/vnd.oci.image.config.v1+json",
            false => "application/vnd.docker.container.image.v1+json",
        }
    }

    pub(crate) fn index(self) -> &'static str {
        match self.oci {
            true => "application/vnd.oci.image.index.v1+json",
            false => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// The media type of a layer in these types. Layers that must not be distributed become
    /// ordinary ones unless `keep_nondistributable` says otherwise.
    pub(crate) fn layer(self, media_type: &str, keep_nondistributable: bool) -> String {
        const DOCKER: &str = "application/vnd.docker.image.rootfs.";
        const OCI: &str = "application/vnd.oci.image.layer.";
        let plain = |rest: &str| match rest {
            "diff.tar" | "v1.tar" => Some(""),
            "diff.tar.gzip" | "v1.tar+gzip" => Some("gzip"),
            "diff.tar.zstd" | "v1.tar+zstd" => Some("zstd"),
            _ => None,
        };
        let known = media_type
            .strip_prefix(DOCKER)
            .or_else(|| media_type.strip_prefix(OCI));
        let Some(rest) = known else {
            return media_type.to_owned();
        };
        let foreign = rest
            .strip_prefix("foreign.")
            .or_else(|| rest.strip_prefix("nondistributable."));
        let Some(compression) = plain(foreign.unwrap_or(rest)) else {
            return media_type.to_owned();
        };
        let foreign = foreign.is_some() && keep_nondistributable;
        let join = |base: &str, mark: char| match compression {
            "" => base.to_owned(),
            kind => format!("{base}{mark}{kind}"),
        };
        match (self.oci, foreign) {
            (true, false) => join(&format!("{OCI}v1.tar"), '+'),
            (true, true) => join(&format!("{OCI}nondistributable.v1.tar"), '+'),
            (false, false) => join(&format!("{DOCKER}diff.tar"), '.'),
            (false, true) => join(&format!("{DOCKER}foreign.diff.tar"), '.'),
        }
    }
}

/// Whether a layer's media type says that registries do not take it.
pub(crate) fn is_nondistributable(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// JSON on one line, as Go's `json.Marshal` writes it.
pub(crate) fn compact(value: &impl Serialize) -> String {
    escape(&serde_json::to_string(value).expect("texts, numbers and maps of texts serialise"))
}

/// JSON with an indent of two spaces, as Go's `json.MarshalIndent` writes it.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    escape(
        &serde_json::to_string_pretty(value).expect("texts, numbers and maps of texts serialise"),
    )
}

/// Go escapes what HTML could take for markup. Outside of texts none of it stands in JSON.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_convert_both_ways() {
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
        let (to_oci, to_docker) = (Types::new(true), Types::new(false));
        for media_type in [docker, oci] {
            assert_eq!(to_oci.layer(media_type, false), oci);
            assert_eq!(to_docker.layer(media_type, false), docker);
        }
        let tar = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(
            to_docker.layer(tar, false),
            "application/vnd.docker.image.rootfs.diff.tar"
        );
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(to_oci.layer(foreign, false), oci);
        let kept = to_oci.layer(foreign, true);
        assert_eq!(
            kept,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        );
        assert!(is_nondistributable(&kept) && is_nondistributable(foreign));
        assert_eq!(to_docker.layer(&kept, true), foreign);
        assert_eq!(to_oci.layer("text/plain", false), "text/plain");
    }

    #[test]
    fn a_manifest_is_written_as_go_does() {
        let mut config = Described::of("application/vnd.oci.image.config.v1+json", b"{}");
        config.annotations.insert("a".into(), "<b>".into());
        let manifest = Manifest {
            schema_version: 2,
            media_type: Types::new(true).manifest(),
            config,
            layers: Vec::new(),
            annotations: BTreeMap::new(),
        };
        assert_eq!(
            pretty(&manifest),
            "{\n  \"schemaVersion\": 2,\n  \
             \"mediaType\": \"application/vnd.oci.image.manifest.v1+json\",\n  \"config\": {\n    \
             \"mediaType\": \"application/vnd.oci.image.config.v1+json\",\n    \"digest\": \
             \"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\n    \
             \"size\": 2,\n    \"annotations\": {\n      \"a\": \"\\u003cb\\u003e\"\n    }\n  },\n  \
             \"layers\": []\n}"
        );
    }
}
