//! Media types of layers, and what they say of the compression.

use oci_spec::image::MediaType;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// By gzip.
    #[default]
    Gzip,
    /// By zstd.
    Zstd,
}

/// How layers are to be compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompressionOptions {
    /// How new layers are.
    pub kind: Compression,
    /// 0 to 9 for gzip, 0 to 22 for zstd; the default of the kind when there is none.
    pub level: Option<i32>,
    /// Whether layers that are compressed otherwise are converted.
    pub force: bool,
}

const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";

/// `(the tar's type, how it is compressed)`; `None` when it is no type of a layer, or of a
/// compression that is not known here.
fn split(media_type: &str) -> Option<(&str, Compression)> {
    let (base, compression) = if let Some(base) = media_type.strip_suffix("+gzip") {
        (base, Compression::Gzip)
    } else if let Some(base) = media_type.strip_suffix(".gzip") {
        (base, Compression::Gzip)
    } else if let Some(base) = media_type.strip_suffix("+zstd") {
        (base, Compression::Zstd)
    } else if let Some(base) = media_type.strip_suffix(".zstd") {
        (base, Compression::Zstd)
    } else {
        (media_type, Compression::Uncompressed)
    };
    let known = [DOCKER, DOCKER_FOREIGN, OCI, OCI_NONDISTRIBUTABLE].contains(&base);
    known.then_some((base, compression))
}

/// Whether it is the media type of a layer that can be unpacked.
pub fn is_layer(media_type: &MediaType) -> bool {
    split(media_type.as_ref()).is_some()
}

/// The type with the base `base` and a compression.
fn join(base: &str, compression: Compression) -> MediaType {
    let separator = if base == DOCKER || base == DOCKER_FOREIGN {
        '.'
    } else {
        '+'
    };
    let text = match compression {
        Compression::Uncompressed => base.to_owned(),
        Compression::Zstd => format!("{base}{separator}zstd"),
        Compression::Gzip => format!("{base}{separator}gzip"),
    };
    MediaType::from(text.as_str())
}

/// The OCI type of the same layer; another type stays.
pub fn oci_type(media_type: &MediaType) -> MediaType {
    change(media_type, |base| match base {
        DOCKER => OCI,
        DOCKER_FOREIGN => OCI_NONDISTRIBUTABLE,
        other => other,
    })
}

/// Docker's type of the same layer; another type stays. There is none for zstd: OCI's is kept
/// then, as BuildKit does.
pub fn docker_type(media_type: &MediaType) -> MediaType {
    if Compression::of(media_type) == Some(Compression::Zstd) {
        return media_type.clone();
    }
    change(media_type, |base| match base {
        OCI => DOCKER,
        OCI_NONDISTRIBUTABLE => DOCKER_FOREIGN,
        other => other,
    })
}

fn change(media_type: &MediaType, base: impl FnOnce(&str) -> &str) -> MediaType {
    match split(media_type.as_ref()) {
        Some((old, compression)) => join(base(old), compression),
        None => media_type.clone(),
    }
}

impl Compression {
    /// By the name that exporters' options use: `uncompressed`, `gzip`, `zstd`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "uncompressed" => Some(Self::Uncompressed),
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name that exporters' options use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// What a layer's media type says; `None` when it is no layer's.
    pub fn of(media_type: &MediaType) -> Option<Self> {
        split(media_type.as_ref()).map(|(_, compression)| compression)
    }

    /// The OCI media type of layers compressed so.
    pub fn media_type(self) -> MediaType {
        join(OCI, self)
    }

    /// The media type of a layer after it was compressed anew.
    pub(crate) fn instead_of(self, media_type: &MediaType) -> MediaType {
        match split(media_type.as_ref()) {
            Some((base, _)) => join(base, self),
            None => self.media_type(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_say_the_compression_and_are_translated() {
        use Compression::{Gzip, Uncompressed, Zstd};
        let table = [
            (MediaType::ImageLayer, Uncompressed, DOCKER),
            (
                MediaType::ImageLayerGzip,
                Gzip,
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            (
                MediaType::ImageLayerNonDistributableGzip,
                Gzip,
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ),
            (
                MediaType::ImageLayerZstd,
                Zstd,
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        ];
        for (oci, compression, docker) in table {
            assert_eq!(Compression::of(&oci), Some(compression));
            let translated = docker_type(&oci);
            assert_eq!(translated.as_ref(), docker);
            assert_eq!(Compression::of(&translated), Some(compression));
            assert_eq!(oci_type(&translated), oci);
        }
        assert!(!is_layer(&MediaType::ImageConfig));
        assert_eq!(docker_type(&MediaType::ImageConfig), MediaType::ImageConfig);
        assert_eq!(Gzip.media_type(), MediaType::ImageLayerGzip);
        assert_eq!(
            Zstd.instead_of(&MediaType::from(DOCKER)).as_ref(),
            "application/vnd.docker.image.rootfs.diff.tar.zstd"
        );
    }

    #[test]
    fn names_go_both_ways() {
        for kind in [
            Compression::Uncompressed,
            Compression::Gzip,
            Compression::Zstd,
        ] {
            assert_eq!(Compression::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(Compression::parse("estargz"), None);
    }
}
