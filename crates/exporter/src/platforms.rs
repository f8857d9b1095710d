//! Which platforms a result has, and what its metadata says of each.

use std::collections::BTreeMap;

use cooper_llb::platform::{format, host, normalize};
use cooper_proto::pb;
use serde::{Deserialize, Serialize};

use crate::{ExportError, ExportInput};

/// A platform as an image index and `refs.platforms` write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) os_version: String,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub(crate) os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

/// A platform of the result, with the id that its references and metadata have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default, rename = "ID")]
    pub(crate) id: String,
    #[serde(default, rename = "Platform")]
    pub(crate) spec: Spec,
}

#[derive(Default, Deserialize)]
struct Platforms {
    #[serde(default, rename = "Platforms")]
    platforms: Option<Vec<Platform>>,
}

/// Which platforms the references are of: JSON.
pub(crate) const KEY: &str = "refs.platforms";
/// The configuration of the image that a frontend made: JSON.
pub(crate) const CONFIG: &str = "containerimage.config";

/// The platforms that the metadata names; without any, that of the image's configuration or
/// this machine's.
pub(crate) fn parse(metadata: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Platform>, ExportError> {
    if let Some(text) = metadata.get(KEY) {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let list: Option<Platforms> = serde_json::from_slice(text).map_err(|error| {
            ExportError::result(format!(
                "failed to parse platforms passed to exporter: {error}"
            ))
        })?;
        let list = list.unwrap_or_default().platforms.unwrap_or_default();
        if list.is_empty() {
            return Err(ExportError::result(
                "invalid empty platforms index for exporter",
            ));
        }
        for platform in &list {
            let Spec {
                os, architecture, ..
            } = &platform.spec;
            if platform.id.is_empty() {
                let reason = "invalid empty platform key for exporter";
                return Err(ExportError::result(reason));
            }
            if os.is_empty() || architecture.is_empty() {
                return Err(ExportError::result(format!(
                    "invalid platform value {os}/{architecture} for exporter"
                )));
            }
        }
        return Ok(list);
    }
    let mut platform = host();
    if let Some(config) = metadata.get(CONFIG) {
        let spec: Option<Spec> =
            serde_json::from_slice(config).map_err(|error| ExportError::Config {
                reason: error.to_string(),
            })?;
        let spec =
            spec.ok_or_else(|| ExportError::result("invalid null image config for export"))?;
        match (spec.os.is_empty(), spec.architecture.is_empty()) {
            (true, true) => {}
            (false, false) => platform = from_spec(spec),
            _ => {
                return Err(ExportError::result(
                    "invalid image config: os and architecture must be specified together",
                ));
            }
        }
    }
    let platform = normalize(&platform);
    Ok(vec![Platform {
        id: format(&platform),
        spec: to_spec(platform),
    }])
}

/// The platforms of `input`, once it is known that the references fit them.
pub(crate) fn of(input: &ExportInput) -> Result<Vec<Platform>, ExportError> {
    let multi = !input.references.is_empty();
    if multi && !input.metadata.contains_key(KEY) {
        return Err(ExportError::result(
            "unable to export multiple refs, missing platforms mapping",
        ));
    }
    let platforms = parse(&input.metadata)?;
    if multi && platforms.len() != input.references.len() {
        return Err(ExportError::result(format!(
            "number of platforms does not match references {} {}",
            platforms.len(),
            input.references.len()
        )));
    }
    for platform in &platforms {
        if multi && !input.references.contains_key(&platform.id) {
            return Err(ExportError::result(format!(
                "failed to find ref for ID {}",
                platform.id
            )));
        }
    }
    Ok(platforms)
}

/// What the metadata says under `key` for this platform, or for all.
pub(crate) fn for_platform<'a>(
    metadata: &'a BTreeMap<String, Vec<u8>>,
    key: &str,
    platform: Option<&Platform>,
) -> Option<&'a [u8]> {
    let own = platform.and_then(|platform| metadata.get(&format!("{key}/{}", platform.id)));
    own.or_else(|| metadata.get(key)).map(Vec::as_slice)
}

pub(crate) fn from_spec(spec: Spec) -> pb::Platform {
    pb::Platform {
        architecture: spec.architecture,
        os: spec.os,
        variant: spec.variant,
        os_version: spec.os_version,
        os_features: spec.os_features,
    }
}

pub(crate) fn to_spec(platform: pb::Platform) -> Spec {
    Spec {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version,
        os_features: platform.os_features,
        variant: platform.variant,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(list: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        list.iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect()
    }

    const TWO: &str = r#"{"Platforms":[
        {"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}},
        {"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#;

    #[test]
    fn the_order_of_the_metadata_is_kept() {
        let platforms = parse(&metadata(&[(KEY, TWO)])).unwrap();
        let ids: Vec<_> = platforms.iter().map(|platform| &platform.id).collect();
        assert_eq!(ids, ["linux/arm64", "linux/amd64"]);
    }

    #[test]
    fn without_a_list_the_configuration_says_it_and_then_the_machine() {
        let config = r#"{"architecture":"arm64","os":"linux","variant":"v8","config":{}}"#;
        let one = parse(&metadata(&[(CONFIG, config)])).unwrap();
        assert_eq!(one[0].id, "linux/arm64");
        assert_eq!(parse(&metadata(&[])).unwrap()[0].id, format(&host()));
        for (key, value, reason) in [
            (CONFIG, "x", "invalid image config for export"),
            (CONFIG, "null", "invalid null image config for export"),
            (CONFIG, r#"{"os":"linux"}"#, "must be specified together"),
            (KEY, "null", "invalid empty platforms index for exporter"),
            (KEY, r#"{"Platforms":[{}]}"#, "invalid empty platform key"),
            (
                KEY,
                r#"{"Platforms":[{"ID":"x"}]}"#,
                "invalid platform value",
            ),
        ] {
            let error = parse(&metadata(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    #[test]
    fn references_and_platforms_fit_each_other() {
        let mut input = ExportInput::default();
        input.references.insert("linux/arm64".into(), None);
        let message = of(&input).unwrap_err().to_string();
        assert!(message.contains("missing platforms mapping"), "{message}");
        input.metadata = metadata(&[(KEY, TWO)]);
        let message = of(&input).unwrap_err().to_string();
        assert!(message.ends_with("2 1"), "{message}");
        input.references.insert("linux/riscv64".into(), None);
        let message = of(&input).unwrap_err().to_string();
        assert_eq!(message, "failed to find ref for ID linux/amd64");
        input.references.remove("linux/riscv64");
        input.references.insert("linux/amd64".into(), None);
        assert_eq!(of(&input).unwrap().len(), 2);
    }

    #[test]
    fn a_platforms_own_word_is_stronger() {
        let platform = parse(&metadata(&[(KEY, TWO)])).unwrap().remove(0);
        let metadata = metadata(&[("k", "all"), ("k/linux/arm64", "own")]);
        assert_eq!(
            for_platform(&metadata, "k", Some(&platform)),
            Some(&b"own"[..])
        );
        assert_eq!(for_platform(&metadata, "k", None), Some(&b"all"[..]));
    }
}
