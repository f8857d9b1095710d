//! The configuration of an image, with Docker's additions to OCI's
//! (`moby/docker-image-spec`), in the order in which Go writes it.

use std::collections::BTreeMap;

use cooper_llb::build::default_path;
use cooper_proto::pb;
use serde::{Deserialize, Deserializer, Serialize};

/// Nothing where the text says `null`.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A time as Go writes it again: without zeros at the end of the fraction.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let time = Option::<String>::deserialize(deserializer)?;
    Ok(time.map(|text| {
        let Some((seconds, rest)) = text.split_once('.') else {
            return text;
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (fraction, zone) = rest.split_at(end);
        match fraction.trim_end_matches('0') {
            "" => format!("{seconds}{zone}"),
            fraction => format!("{seconds}.{fraction}{zone}"),
        }
    }))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// A value that is an empty object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Empty {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Image {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub(crate) created: Option<String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) author: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) os: String,
    #[serde(
        rename = "os.version",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) os_version: String,
    #[serde(
        rename = "os.features",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) os_features: Vec<String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) variant: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) rootfs: RootFs,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) history: Vec<History>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) config: Config,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    /// `null` when there are none, as Go writes a list that is not there.
    pub(crate) diff_ids: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub(crate) created: Option<String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) created_by: String,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) author: String,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) comment: String,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    pub(crate) empty_layer: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Config {
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) user: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) cmd: Vec<String>,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) volumes: BTreeMap<String, Empty>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) working_dir: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) stop_signal: String,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    pub(crate) args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Health>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) on_build: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) shell: Vec<String>,
}

/// Times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Health {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub(crate) interval: i64,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub(crate) timeout: i64,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub(crate) start_period: i64,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub(crate) start_interval: i64,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub(crate) retries: i64,
}

impl Image {
    /// The configuration of the empty image.
    pub(crate) fn empty(platform: &pb::Platform) -> Self {
        let mut image = Self {
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: None,
            },
            config: Config {
                working_dir: "/".into(),
                env: vec![format!("PATH={}", default_path(&platform.os))],
                ..Config::default()
            },
            ..Self::default()
        };
        image.set_platform(platform);
        image
    }

    pub(crate) fn set_platform(&mut self, platform: &pb::Platform) {
        self.architecture.clone_from(&platform.architecture);
        self.os.clone_from(&platform.os);
        self.os_version.clone_from(&platform.os_version);
        self.os_features.clone_from(&platform.os_features);
        self.variant.clone_from(&platform.variant);
    }

    pub(crate) fn platform(&self) -> pb::Platform {
        pb::Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// Whether it has no layers at all.
    pub(crate) fn has_no_layers(&self) -> bool {
        self.rootfs.diff_ids.as_ref().is_none_or(Vec::is_empty)
            && self.history.iter().all(|history| history.empty_layer)
    }

    /// Sets a variable where it stands, or behind all others.
    pub(crate) fn set_env(&mut self, key: &str, value: &str) {
        let line = format!("{key}={value}");
        let known = self
            .config
            .env
            .iter_mut()
            .find(|line| key_value(line).0 == key);
        match known {
            Some(known) => *known = line,
            None => self.config.env.push(line),
        }
    }
}

/// The two sides of the first `=`.
pub(crate) fn key_value(line: &str) -> (&str, &str) {
    line.split_once('=').unwrap_or((line, ""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_read_is_written_in_gos_order() {
        let text = r#"{"created":"2020-01-01T00:00:00Z","author":"x","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:a"]},"history":[{"created_by":"a \u0026 b","empty_layer":true}],"config":{"User":"u","ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"Entrypoint":["e"],"Cmd":["c"],"Volumes":{"/v":{}},"WorkingDir":"/w","Labels":{"a":"b"},"StopSignal":"INT","ArgsEscaped":true,"Healthcheck":{"Test":["NONE"],"Interval":5},"OnBuild":["RUN x"],"Shell":["sh"]}}"#;
        let image: Image = serde_json::from_str(text).unwrap();
        let written = String::from_utf8(crate::json::to_vec(&image)).unwrap();
        assert_eq!(written, text);
    }

    #[test]
    fn nulls_and_strangers_are_borne() {
        let text = r#"{"architecture":"arm64","os":"linux","config":{"Cmd":null,"Env":null,"Tty":false,"Labels":null},"rootfs":{"type":"layers","diff_ids":null},"container":"x","history":null}"#;
        let image: Image = serde_json::from_str(text).unwrap();
        assert_eq!(image.config, Config::default());
        assert!(image.has_no_layers());
        for (text, expected) in [
            ("2020-01-01T00:00:00.120Z", "2020-01-01T00:00:00.12Z"),
            ("2020-01-01T00:00:00.000+02:00", "2020-01-01T00:00:00+02:00"),
            ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ] {
            let image: Image = serde_json::from_str(&format!(r#"{{"created":"{text}"}}"#)).unwrap();
            assert_eq!(image.created.unwrap(), expected);
        }
    }
}
