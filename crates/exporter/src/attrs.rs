//! Reading the attributes of an exporter, with the meaning that BuildKit gives them.

use std::collections::BTreeMap;

use cooper_layer::{Compression, CompressionOptions};
use time::OffsetDateTime;

use crate::ExportError;
use crate::annotations::Annotations;
use crate::platforms::Platform;

/// The attributes of an exporter, by key.
pub type Attrs = BTreeMap<String, String>;

/// True or false in the spellings of Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(key: &str, value: &str) -> Result<bool, ExportError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ExportError::NotBool {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
    }
}

/// The same; a key without a value means true.
pub(crate) fn parse_flag(key: &str, value: &str) -> Result<bool, ExportError> {
    if value.is_empty() {
        return Ok(true);
    }
    parse_bool(key, value)
}

/// The time that nothing in the result is newer than.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// `Some(None)` when the exporter was told that there is none.
    given: Option<Option<OffsetDateTime>>,
}

impl Epoch {
    /// Takes the attribute out of `attrs`.
    pub(crate) fn take(attrs: &mut Attrs) -> Result<Self, ExportError> {
        let given = match attrs.remove("source-date-epoch") {
            Some(value) => Some(parse_epoch(&value)?),
            None => None,
        };
        Ok(Self { given })
    }

    /// The attribute's time, else the one that the frontend gave for this platform or for all.
    pub(crate) fn resolve(
        &self,
        metadata: &BTreeMap<String, Vec<u8>>,
        platform: Option<&Platform>,
    ) -> Result<Option<OffsetDateTime>, ExportError> {
        if let Some(given) = self.given {
            return Ok(given);
        }
        match crate::platforms::for_platform(metadata, "source.date.epoch", platform) {
            Some(value) => parse_epoch(&String::from_utf8_lossy(value)),
            None => Ok(None),
        }
    }
}

fn parse_epoch(value: &str) -> Result<Option<OffsetDateTime>, ExportError> {
    if value.is_empty() {
        return Ok(None);
    }
    let time = value.parse().ok().and_then(|seconds: i64| {
        let time = OffsetDateTime::from_unix_timestamp(seconds);
        time.ok()
    });
    time.map(Some).ok_or_else(|| ExportError::Epoch {
        value: value.to_owned(),
    })
}

/// How an image is put together: the attributes that the exporters of images share.
#[derive(Clone, Debug)]
pub(crate) struct ImageOptions {
    /// Names, comma separated; `*` takes the frontend's.
    pub(crate) name: String,
    /// OCI's media types, or Docker's. BuildKit's default since v0.31 is OCI's for all kinds.
    pub(crate) oci_types: bool,
    pub(crate) compression: CompressionOptions,
    /// Keep the media types that say that a layer must not be pushed.
    pub(crate) keep_nondistributable: bool,
    pub(crate) epoch: Epoch,
    /// Files of new layers are not newer than the epoch either.
    pub(crate) rewrite_times: bool,
    pub(crate) annotations: Annotations,
}

impl ImageOptions {
    /// Takes what it knows out of `attrs`.
    pub(crate) fn take(attrs: &mut Attrs) -> Result<Self, ExportError> {
        let annotations = Annotations::take(attrs)?;
        let epoch = Epoch::take(attrs)?;
        let mut flag = |key: &str, default: bool| match attrs.remove(key) {
            Some(value) => parse_flag(key, &value),
            None => Ok(default),
        };
        let oci_types = flag("oci-mediatypes", true)?;
        let force = flag("force-compression", false)?;
        let rewrite_times = flag("rewrite-timestamp", false)?;
        // These speak of attestations and of the withdrawn build information.
        for ignored in [
            "attestation-inline",
            "oci-artifact",
            "buildinfo",
            "buildinfo-attrs",
        ] {
            flag(ignored, false)?;
        }
        let keep_nondistributable = match attrs.remove("prefer-nondist-layers") {
            Some(value) => parse_bool("prefer-nondist-layers", &value)?,
            None => false,
        };
        Ok(Self {
            name: attrs.remove("name").unwrap_or_default(),
            oci_types,
            compression: CompressionOptions {
                force,
                ..compression(attrs)?
            },
            keep_nondistributable,
            epoch,
            rewrite_times,
            annotations,
        })
    }
}

fn compression(attrs: &mut Attrs) -> Result<CompressionOptions, ExportError> {
    let level = match attrs.remove("compression-level") {
        Some(value) => Some(value.parse().map_err(|_| ExportError::NotInteger {
            key: "compression-level".into(),
            value,
        })?),
        None => None,
    };
    let kind = match attrs.remove("compression") {
        Some(name) => match Compression::parse(&name) {
            Some(kind) => kind,
            None => return Err(ExportError::Compression { kind: name }),
        },
        None => Compression::default(),
    };
    Ok(CompressionOptions {
        kind,
        level,
        force: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(list: &[(&str, &str)]) -> Attrs {
        list.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_flag_has_gos_spellings_and_nothing_is_true() {
        for (value, expected) in [("", true), ("1", true), ("T", true), ("False", false)] {
            assert_eq!(parse_flag("push", value).unwrap(), expected, "{value}");
        }
        let error = parse_flag("push", "yes").unwrap_err().to_string();
        assert_eq!(
            error,
            "non-bool value specified for push: strconv.ParseBool: parsing \"yes\": invalid syntax"
        );
    }

    #[test]
    fn what_is_known_is_taken_and_the_rest_stays() {
        let mut given = attrs(&[
            ("name", "a,b"),
            ("oci-mediatypes", "false"),
            ("compression", "zstd"),
            ("compression-level", "9"),
            ("force-compression", ""),
            ("annotation.x", "y"),
            ("rewrite-timestamp", "true"),
            ("buildinfo", "true"),
            ("push", "true"),
        ]);
        let options = ImageOptions::take(&mut given).unwrap();
        assert_eq!(given, attrs(&[("push", "true")]));
        assert_eq!((options.name.as_str(), options.oci_types), ("a,b", false));
        let expected = CompressionOptions {
            kind: Compression::Zstd,
            level: Some(9),
            force: true,
        };
        assert_eq!(options.compression, expected);
        assert!(options.rewrite_times);
        let defaults = ImageOptions::take(&mut Attrs::new()).unwrap();
        assert!(defaults.oci_types);
        assert_eq!(defaults.compression, CompressionOptions::default());
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for (key, value, message) in [
            (
                "compression",
                "estargz",
                "unsupported compression type estargz",
            ),
            (
                "compression-level",
                "x",
                "non-integer value x specified for compression-level",
            ),
            ("source-date-epoch", "x", "invalid SOURCE_DATE_EPOCH: \"x\""),
        ] {
            let error = ImageOptions::take(&mut attrs(&[(key, value)])).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn the_attribute_is_stronger_than_the_frontends_time() {
        let metadata = BTreeMap::from([("source.date.epoch".to_owned(), b"7".to_vec())]);
        let seconds = |list| {
            let epoch = Epoch::take(&mut attrs(list)).unwrap();
            let time = epoch.resolve(&metadata, None).unwrap();
            time.map(OffsetDateTime::unix_timestamp)
        };
        assert_eq!(seconds(&[]), Some(7));
        assert_eq!(seconds(&[("source-date-epoch", "5")]), Some(5));
        assert_eq!(seconds(&[("source-date-epoch", "")]), None);
    }
}
