//! Annotations that the client or the frontend wants on parts of an image.
//!
//! The keys are BuildKit's: `annotation[-TYPE][\[PLATFORM\]].KEY`, where the type is `manifest`
//! (the default), `index`, `manifest-descriptor` or `index-descriptor`.

use std::collections::BTreeMap;

use cooper_llb::platform;

use crate::ExportError;
use crate::attrs::Attrs;

/// Annotations by key.
pub(crate) type Map = BTreeMap<String, String>;

/// The annotations of the parts of an image, for all platforms (`""`) and for single ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Annotations {
    parts: BTreeMap<String, Parts>,
}

/// The annotations of one platform's parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) index: Map,
    pub(crate) index_descriptor: Map,
    pub(crate) manifest: Map,
    pub(crate) manifest_descriptor: Map,
}

impl Annotations {
    /// Takes the annotations out of an exporter's attributes.
    pub(crate) fn take(attrs: &mut Attrs) -> Result<Self, ExportError> {
        let mut annotations = Self::default();
        let mut rest = Attrs::new();
        for (key, value) in std::mem::take(attrs) {
            if !annotations.add(&key, &value)? {
                rest.insert(key, value);
            }
        }
        *attrs = rest;
        Ok(annotations)
    }

    /// With those that stand in a result's metadata; those that are here already are stronger.
    pub(crate) fn with_metadata(
        &self,
        metadata: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, ExportError> {
        let mut merged = Self::default();
        for (key, value) in metadata {
            merged.add(key, &String::from_utf8_lossy(value))?;
        }
        for (platform, parts) in &self.parts {
            let own = merged.parts.entry(platform.clone()).or_default();
            own.index.extend(parts.index.clone());
            own.index_descriptor.extend(parts.index_descriptor.clone());
            own.manifest.extend(parts.manifest.clone());
            own.manifest_descriptor
                .extend(parts.manifest_descriptor.clone());
        }
        Ok(merged)
    }

    /// The single platforms that have annotations of their own.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = &str> {
        self.parts
            .keys()
            .map(String::as_str)
            .filter(|platform| !platform.is_empty())
    }

    /// Whether there are some that Docker's formats have no place for.
    pub(crate) fn need_oci(&self) -> bool {
        self.parts.values().any(|parts| {
            !(parts.index.is_empty()
                && parts.index_descriptor.is_empty()
                && parts.manifest_descriptor.is_empty())
        })
    }

    /// The annotations for one platform, or for what has none of its own. An index has all.
    pub(crate) fn of(&self, platform: Option<&str>) -> Parts {
        let mut found = Parts::default();
        for parts in self.parts.values() {
            found.index.extend(parts.index.clone());
            found
                .index_descriptor
                .extend(parts.index_descriptor.clone());
        }
        for parts in [Some(""), platform]
            .into_iter()
            .flatten()
            .filter_map(|platform| self.parts.get(platform))
        {
            found.manifest.extend(parts.manifest.clone());
            found
                .manifest_descriptor
                .extend(parts.manifest_descriptor.clone());
        }
        found
    }

    /// Whether `key` was an annotation.
    fn add(&mut self, key: &str, value: &str) -> Result<bool, ExportError> {
        let Some(rest) = key.strip_prefix("annotation") else {
            return Ok(false);
        };
        if !rest.starts_with(['-', '.', '[']) {
            return Ok(false);
        }
        let parsed = split(rest).ok_or_else(|| ExportError::Annotation {
            reason: format!("could not fully parse annotation {key}"),
        })?;
        let platform = match parsed.platform {
            "" => String::new(),
            name => {
                let platform = platform::parse(name).map_err(|error| ExportError::Annotation {
                    reason: error.to_string(),
                })?;
                platform::format(&platform)
            }
        };
        let parts = self.parts.entry(platform).or_default();
        let map = match parsed.kind {
            "" | "manifest" => &mut parts.manifest,
            "manifest-descriptor" => &mut parts.manifest_descriptor,
            "index" => &mut parts.index,
            "index-descriptor" => &mut parts.index_descriptor,
            kind => {
                return Err(ExportError::Annotation {
                    reason: format!("unrecognized annotation type {kind}"),
                });
            }
        };
        map.insert(parsed.key.to_owned(), value.to_owned());
        Ok(true)
    }
}

struct Key<'a> {
    kind: &'a str,
    platform: &'a str,
    key: &'a str,
}

/// `[-TYPE][\[PLATFORM\]].KEY`
fn split(text: &str) -> Option<Key<'_>> {
    let (kind, text) = match text.strip_prefix('-') {
        Some(rest) => rest.split_at(rest.find(['[', '.'])?),
        None => ("", text),
    };
    let (platform, text) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", text),
    };
    let key = text.strip_prefix('.')?;
    let word = |c: char| c.is_ascii_lowercase() || c == '-';
    let part = |c: char| c.is_ascii_alphanumeric() || "_/-".contains(c);
    let fits = kind.chars().all(word)
        && platform.chars().all(part)
        && !key.is_empty()
        && !key.contains(char::is_whitespace);
    fits.then_some(Key {
        kind,
        platform,
        key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &[(&str, &str)]) -> Result<Annotations, ExportError> {
        let mut attrs: Attrs = list
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Annotations::take(&mut attrs)
    }

    #[test]
    fn keys_name_part_and_platform() {
        let all = parse(&[
            ("annotation.a", "1"),
            ("annotation-manifest.b.c", "2"),
            ("annotation-index.d", "3"),
            ("annotation-index-descriptor.e", "4"),
            ("annotation-manifest-descriptor[linux/arm64].f", "5"),
            ("annotation[linux/arm64].a", "6"),
            ("annotations", "no"),
        ])
        .unwrap();
        let (common, arm) = (all.of(None), all.of(Some("linux/arm64")));
        assert_eq!(common.manifest["a"], "1");
        assert_eq!(common.manifest["b.c"], "2");
        assert_eq!(arm.manifest["a"], "6");
        assert_eq!(arm.manifest["b.c"], "2");
        assert_eq!((&*arm.index["d"], &*arm.index_descriptor["e"]), ("3", "4"));
        assert_eq!(arm.manifest_descriptor["f"], "5");
        assert!(common.manifest_descriptor.is_empty());
        assert!(all.need_oci());
        assert_eq!(all.platforms().collect::<Vec<_>>(), ["linux/arm64"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for (key, message) in [
            (
                "annotation.",
                "could not fully parse annotation annotation.",
            ),
            ("annotation-x.y", "unrecognized annotation type x"),
            (
                "annotation[linux/amd64.x",
                "could not fully parse annotation annotation[linux/amd64.x",
            ),
        ] {
            assert_eq!(parse(&[(key, "v")]).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn attributes_are_stronger_than_metadata() {
        let attrs = parse(&[("annotation.a", "attr")]).unwrap();
        let metadata = BTreeMap::from([
            ("annotation.a".to_owned(), b"meta".to_vec()),
            ("annotation.b".to_owned(), b"meta".to_vec()),
        ]);
        let merged = attrs.with_metadata(&metadata).unwrap().of(None);
        assert_eq!(merged.manifest["a"], "attr");
        assert_eq!(merged.manifest["b"], "meta");
    }
}
