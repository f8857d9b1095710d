//! What a client adds to every `RUN`: mounts (`automount:<number>`), and a hook that the command
//! goes through (`hook`).

use std::collections::BTreeMap;

use cooper_dockerfile::{ParseError, parse_mount};
use cooper_frontend::FrontendError;
use serde::Deserialize;

/// What every `RUN` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    /// Values of `--mount`.
    pub(crate) mounts: Vec<String>,
    /// What the command line begins with.
    pub(crate) entrypoint: Vec<String>,
}

/// The hooks by instruction.
#[derive(Deserialize)]
struct Hooks {
    #[serde(rename = "RUN")]
    run: Option<Hook>,
}

#[derive(Deserialize)]
struct Hook {
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    mounts: Vec<HookMount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HookMount {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    source: String,
    target: String,
}

impl HookMount {
    fn value(&self) -> String {
        let fields = [
            ("type", &self.r#type),
            ("from", &self.from),
            ("source", &self.source),
            ("target", &self.target),
        ];
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        let quoted = fields.map(|(key, value)| {
            let value = value.replace('"', "\"\"");
            format!("\"{key}={value}\"")
        });
        quoted.collect::<Vec<_>>().join(",")
    }
}

impl Extra {
    pub(crate) fn parse(raw: &BTreeMap<String, String>) -> Result<Self, FrontendError> {
        let mut extra = Self::default();
        let mut automounts = Vec::new();
        for (key, value) in raw {
            if let Some(place) = key.strip_prefix("automount:") {
                automounts.push((place.parse::<u32>().unwrap_or(u32::MAX), value));
            }
        }
        automounts.sort_by_key(|(place, _)| *place);
        for (_, value) in automounts {
            check(value)?;
            extra.mounts.push(value.clone());
        }
        if let Some(text) = raw.get("hook").filter(|text| !text.trim().is_empty()) {
            let hooks: Hooks = serde_json::from_str(text).map_err(|error| {
                FrontendError::invalid(format!("failed to unmarshal hook: {error}"))
            })?;
            if let Some(hook) = hooks.run {
                let mounts = hook.mounts.iter().map(HookMount::value);
                extra.mounts.extend(mounts);
                extra.entrypoint = hook.entrypoint;
            }
        }
        Ok(extra)
    }
}

/// Refuses what cannot be mounted, before any instruction is looked at.
fn check(value: &str) -> Result<(), FrontendError> {
    let mut as_it_is = |word: &str| Ok::<_, ParseError>(word.to_owned());
    let mount = parse_mount(value, Some(&mut as_it_is)).map_err(|error| {
        FrontendError::invalid(format!("failed to parse automount {value:?}: {error}"))
    })?;
    if !mount.from.is_empty() {
        return Err(FrontendError::invalid(format!(
            "automount does not support 'from' option: {value:?}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Extra, String> {
        let options = options.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Extra::parse(&options.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn mounts_of_a_client_are_checked_and_come_in_order() {
        let cache = |number| format!("type=cache,target=/c{number}");
        let all: Vec<_> = [10, 2, 0]
            .map(|number| (format!("automount:{number}"), cache(number)))
            .to_vec();
        let all: Vec<_> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let found = parse(&all).unwrap().mounts;
        assert_eq!(found, [cache(0), cache(2), cache(10)]);
        for (value, expected) in [
            (
                "type=bind,from=builder,target=/d",
                "automount does not support 'from' option",
            ),
            ("nonsense", "failed to parse automount \"nonsense\": "),
        ] {
            let error = parse(&[("automount:0", value)]).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_hook_is_a_command_with_mounts() {
        let hook = r#"{"RUN": {"entrypoint": ["/h/e", "x"], "mounts": [
            {"from": "a:b", "target": "/h"}, {"from": "c", "source": "/s", "target": "/t,u"}]}}"#;
        let found = parse(&[("hook", hook)]).unwrap();
        assert_eq!(found.entrypoint, ["/h/e", "x"]);
        let expected = [
            r#""from=a:b","target=/h""#,
            r#""from=c","source=/s","target=/t,u""#,
        ];
        assert_eq!(found.mounts, expected);
        assert_eq!(parse(&[("hook", "{}")]).unwrap(), Extra::default());
        let error = parse(&[("hook", "{")]).unwrap_err();
        assert!(error.starts_with("failed to unmarshal hook: "), "{error}");
    }
}
