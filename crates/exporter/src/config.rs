//! The configuration of an image: what the frontend made of it, with the layers and the history
//! that the build really has.
//!
//! The rules are those of BuildKit's `exporter/containerimage/writer.go`.

use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cooper_content::Digest;
use cooper_llb::platform;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ExportError;
use crate::wire;

/// One entry of an image's history (OCI image spec, "Image Configuration").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) created_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) comment: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

/// What a layer's state says of itself, for a history that lacks the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerNote {
    pub(crate) description: String,
    pub(crate) created: Option<String>,
}

/// A configuration on its way to be complete.
pub(crate) struct Draft<'a> {
    /// What the frontend gave, or [`empty`].
    pub(crate) config: &'a [u8],
    /// The configuration of the image that it is made from, if it is known.
    pub(crate) base: Option<&'a [u8]>,
    /// The digests of the layers' tars, base first.
    pub(crate) diff_ids: &'a [Digest],
    /// A note for each layer.
    pub(crate) notes: &'a [LayerNote],
    /// Nothing that this build made is newer than this.
    pub(crate) epoch: Option<OffsetDateTime>,
    /// A cache to be carried along.
    pub(crate) inline_cache: Option<&'a [u8]>,
}

/// The configuration of an image that no frontend said anything of.
pub(crate) fn empty() -> Vec<u8> {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let platform = platform::host();
    let mut config = serde_json::json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Env": [PATH], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": null },
    });
    if !platform.variant.is_empty() {
        config["variant"] = platform.variant.into();
    }
    config.to_string().into_bytes()
}

impl Draft<'_> {
    /// The bytes of the complete configuration.
    pub(crate) fn finish(&self) -> Result<Vec<u8>, ExportError> {
        let mut config = parse(self.config)?;
        for key in ["os", "architecture"] {
            if config
                .get(key)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                return Err(invalid(format!("missing {key}")));
            }
        }
        let mut history = normalize(history_of(&config)?, self.notes);
        let mut diff_ids = self.diff_ids.iter().map(Digest::to_string).peekable();
        let diff_ids: Value = match diff_ids.peek() {
            Some(_) => diff_ids.collect(),
            // What Go writes for a list that was never made.
            None => Value::Null,
        };
        config.insert(
            "rootfs".into(),
            serde_json::json!({ "type": "layers", "diff_ids": diff_ids }),
        );
        if let Some(epoch) = self.epoch {
            let base = match self.base {
                Some(base) => history_of(&parse(base)?)?,
                None => Vec::new(),
            };
            // The base image's own part stays as it was.
            let same = history
                .iter()
                .zip(&base)
                .take_while(|(a, b)| a == b)
                .count();
            for entry in &mut history[same..] {
                clamp(&mut entry.created, epoch)?;
            }
            if let Some(Value::String(created)) = config.get_mut("created") {
                let mut time = Some(std::mem::take(created));
                clamp(&mut time, epoch)?;
                *created = time.unwrap_or_default();
            }
        }
        if !config.contains_key("created") {
            let last = history.iter().rev().find_map(|entry| entry.created.clone());
            config.insert("created".into(), last.map_or(Value::Null, Value::String));
        }
        config.insert("history".into(), to_value(&history)?);
        if let Some(cache) = self.inline_cache {
            let cache = BASE64_STANDARD.encode(cache);
            config.insert("moby.buildkit.cache.v0".into(), cache.into());
        }
        config.remove("moby.buildkit.buildinfo.v1");
        // Go writes a map's keys in order.
        config.sort_keys();
        Ok(wire::compact(&config).into_bytes())
    }
}

fn invalid(reason: impl ToString) -> ExportError {
    ExportError::Config {
        reason: reason.to_string(),
    }
}

fn parse(text: &[u8]) -> Result<Map<String, Value>, ExportError> {
    match serde_json::from_slice(text).map_err(invalid)? {
        Value::Object(map) => Ok(map),
        _ => Err(invalid("not an object")),
    }
}

/// The digests of the layers that an image's configuration names; none of no configuration.
pub(crate) fn diff_ids(config: Option<&[u8]>) -> Result<Vec<Digest>, ExportError> {
    let Some(config) = config else {
        return Ok(Vec::new());
    };
    #[derive(Default, Deserialize)]
    struct Rootfs {
        #[serde(default)]
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        rootfs: Rootfs,
    }
    let config: Config = serde_json::from_slice(config).map_err(invalid)?;
    Ok(config.rootfs.diff_ids.unwrap_or_default())
}

fn history_of(config: &Map<String, Value>) -> Result<Vec<History>, ExportError> {
    let history = config.get("history").cloned().unwrap_or(Value::Null);
    let history: Option<Vec<History>> = serde_json::from_value(history).map_err(invalid)?;
    Ok(history.unwrap_or_default())
}

fn to_value(history: &[History]) -> Result<Value, ExportError> {
    if history.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::to_value(history).map_err(invalid)
}

/// Makes a history that has one entry for each layer, and a time for each entry.
fn normalize(mut history: Vec<History>, notes: &[LayerNote]) -> Vec<History> {
    let named = history.iter().filter(|entry| !entry.empty_layer).count();
    if named > notes.len() {
        // A configuration that names layers which are not there: say that those have none.
        tracing::warn!("invalid image config with unaccounted layers");
        let over = history.iter_mut().filter(|entry| !entry.empty_layer);
        for entry in over.skip(notes.len()) {
            entry.empty_layer = true;
        }
    }
    for note in notes.iter().skip(named) {
        history.push(History {
            created: note.created.clone(),
            created_by: note.description.clone(),
            comment: "buildkit.exporter.image.v0".into(),
            ..History::default()
        });
    }
    let layers = history.iter_mut().filter(|entry| !entry.empty_layer);
    for (entry, note) in layers.zip(notes) {
        if entry.created.is_none() {
            entry.created = note.created.clone();
        }
    }
    fill_times(&mut history);
    history
}

/// An entry without a time gets that of the first new layer: the first entry with a time after
/// one without. Later ones get that of the layer before them. Without a new layer it is the
/// last time there is.
fn fill_times(history: &mut [History]) {
    let first_without = history.iter().position(|entry| entry.created.is_none());
    let Some(first_without) = first_without else {
        return;
    };
    let time = |entries: &[History]| entries.iter().find_map(|entry| entry.created.clone());
    let after = time(&history[first_without..]);
    let before = history[..first_without]
        .iter()
        .rev()
        .find_map(|entry| entry.created.clone());
    let mut created = after.or(before);
    for entry in &mut history[first_without..] {
        match &entry.created {
            Some(own) => created = Some(own.clone()),
            None => entry.created.clone_from(&created),
        }
    }
}

fn clamp(created: &mut Option<String>, epoch: OffsetDateTime) -> Result<(), ExportError> {
    if let Some(text) = created {
        let time = OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| invalid(format!("creation time {text:?} cannot be read")))?;
        if time <= epoch {
            return Ok(());
        }
    }
    *created = Some(rfc3339(epoch));
    Ok(())
}

/// A time as Go's `time.RFC3339Nano` writes it in UTC.
pub(crate) fn rfc3339(time: impl Into<OffsetDateTime>) -> String {
    let time: OffsetDateTime = time.into();
    time.to_offset(time::UtcOffset::UTC)
        .format(&Rfc3339)
        .expect("a time since the epoch has a year of four digits")
}

/// The same, of a time without fractions.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    rfc3339(time.replace_nanosecond(0).unwrap_or(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(description: &str, created: &str) -> LayerNote {
        LayerNote {
            description: description.into(),
            created: Some(created.into()),
        }
    }

    fn entry(created: Option<&str>, by: &str, empty_layer: bool) -> History {
        History {
            created: created.map(str::to_owned),
            created_by: by.into(),
            empty_layer,
            ..History::default()
        }
    }

    fn finish(config: &str, notes: &[LayerNote], epoch: Option<i64>) -> Value {
        let diff_ids = vec![cooper_content::digest_of(b"layer"); notes.len()];
        let draft = Draft {
            config: config.as_bytes(),
            base: None,
            diff_ids: &diff_ids,
            notes,
            epoch: epoch.map(|seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap()),
            inline_cache: None,
        };
        serde_json::from_slice(&draft.finish().unwrap()).unwrap()
    }

    const PLATFORM: &str = r#""os":"linux","architecture":"amd64""#;

    #[test]
    fn layers_that_the_history_lacks_are_added() {
        let notes = [
            note("base", "2020-01-01T00:00:00Z"),
            note("RUN x", "2021-01-01T00:00:00Z"),
        ];
        let history = normalize(
            vec![entry(Some("2019-01-01T00:00:00Z"), "from", false)],
            &notes,
        );
        assert_eq!(history.len(), 2);
        assert_eq!(history[0].created_by, "from");
        assert_eq!(history[1].created_by, "RUN x");
        assert_eq!(history[1].comment, "buildkit.exporter.image.v0");
    }

    #[test]
    fn entries_of_layers_that_are_not_there_become_empty() {
        let history = normalize(
            vec![entry(None, "a", false), entry(None, "b", false)],
            &[note("", "2020-01-01T00:00:00Z")],
        );
        let empty: Vec<_> = history.iter().map(|entry| entry.empty_layer).collect();
        assert_eq!(empty, [false, true]);
    }

    #[test]
    fn times_come_from_the_first_new_layer_and_then_from_the_one_before() {
        let old = "2019-01-01T00:00:00Z";
        let (first, second) = ("2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z");
        let history = normalize(
            vec![
                entry(Some(old), "base", false),
                entry(None, "ENV", true),
                entry(None, "RUN 1", false),
                entry(None, "ENV", true),
                entry(None, "RUN 2", false),
                entry(None, "CMD", true),
            ],
            &[note("", old), note("", first), note("", second)],
        );
        let times: Vec<_> = history
            .iter()
            .map(|entry| entry.created.as_deref().unwrap())
            .collect();
        assert_eq!(times, [old, first, first, first, second, second]);
        let only_old = normalize(
            vec![entry(Some(old), "base", false), entry(None, "ENV", true)],
            &[note("", old)],
        );
        assert_eq!(only_old[1].created.as_deref(), Some(old));
    }

    #[test]
    fn the_configuration_is_complete_and_in_order() {
        let config = format!(
            r#"{{{PLATFORM},"config":{{"Cmd":["a && b"]}},"moby.buildkit.buildinfo.v1":"x"}}"#
        );
        let notes = [note("RUN x", "2021-01-01T00:00:00.5Z")];
        let value = finish(&config, &notes, None);
        assert_eq!(value["created"], "2021-01-01T00:00:00.5Z");
        assert_eq!(value["rootfs"]["type"], "layers");
        assert_eq!(value["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
        let keys: Vec<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "architecture",
                "config",
                "created",
                "history",
                "os",
                "rootfs"
            ]
        );
        let draft = Draft {
            config: config.as_bytes(),
            base: None,
            diff_ids: &[],
            notes: &[],
            epoch: None,
            inline_cache: None,
        };
        let text = String::from_utf8(draft.finish().unwrap()).unwrap();
        assert!(text.contains(r"a \u0026\u0026 b"), "{text}");
        assert!(text.contains(r#""diff_ids":null"#), "{text}");
    }

    #[test]
    fn nothing_is_newer_than_the_epoch() {
        let config = format!(
            r#"{{{PLATFORM},"created":"2030-01-01T00:00:00Z",
                "history":[{{"created":"1969-01-01T00:00:00Z"}},{{"empty_layer":true}}]}}"#
        );
        let notes = [note("", "2021-01-01T00:00:00Z")];
        let value = finish(&config, &notes, Some(0));
        assert_eq!(value["created"], "1970-01-01T00:00:00Z");
        assert_eq!(value["history"][0]["created"], "1969-01-01T00:00:00Z");
        let value = finish(&format!("{{{PLATFORM}}}"), &notes, Some(0));
        assert_eq!(value["history"][0]["created"], "1970-01-01T00:00:00Z");
        assert_eq!(value["created"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for (config, part) in [
            ("null", "not an object"),
            ("{", "EOF"),
            (r#"{"os":"linux"}"#, "missing architecture"),
            (r#"{"architecture":"amd64"}"#, "missing os"),
        ] {
            let draft = Draft {
                config: config.as_bytes(),
                base: None,
                diff_ids: &[],
                notes: &[],
                epoch: None,
                inline_cache: None,
            };
            let message = draft.finish().unwrap_err().to_string();
            assert!(
                message.starts_with("invalid image config for export: ") && message.contains(part),
                "{message}"
            );
        }
        serde_json::from_slice::<Value>(&empty()).unwrap();
    }
}
