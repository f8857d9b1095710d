//! A file of rules over sources, in BuildKit's JSON (docs/build-repro.md there).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cooper_proto::sourcepolicy;
use serde::Deserialize;

/// The largest file, in bytes.
const MOST: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct File {
    version: i64,
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rule {
    action: String,
    selector: Option<Selector>,
    updates: Option<Update>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Selector {
    identifier: String,
    #[serde(alias = "match_type")]
    #[serde(rename = "matchType")]
    match_type: String,
    constraints: Vec<Constraint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Constraint {
    key: String,
    value: String,
    condition: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Update {
    identifier: String,
    attrs: BTreeMap<String, String>,
}

/// Reads the rules; whether the daemon knows what to do with them is for the daemon to say.
///
/// # Errors
/// The file cannot be read, is too large or says what no rule can say.
pub(crate) fn read(path: &Path) -> Result<sourcepolicy::Policy> {
    let failed = || format!("failed to read the source policy {}", path.display());
    let size = std::fs::metadata(path).with_context(failed)?.len();
    if size > MOST {
        bail!("{}: larger than {MOST} bytes", path.display());
    }
    let text = std::fs::read(path).with_context(failed)?;
    parse(&text).with_context(failed)
}

fn parse(text: &[u8]) -> Result<sourcepolicy::Policy> {
    let file: File = serde_json::from_slice(text)?;
    let rules = file.rules.into_iter().map(rule);
    Ok(sourcepolicy::Policy {
        version: file.version,
        rules: rules.collect::<Result<_>>()?,
    })
}

fn rule(rule: Rule) -> Result<sourcepolicy::Rule> {
    let selector = rule.selector.map(|selector| {
        let constraints = selector.constraints.into_iter().map(|constraint| {
            Ok(sourcepolicy::AttrConstraint {
                key: constraint.key,
                value: constraint.value,
                condition: number(&constraint.condition, &["EQUAL", "NOTEQUAL", "MATCHES"])?,
            })
        });
        anyhow::Ok(sourcepolicy::Selector {
            identifier: selector.identifier,
            match_type: number(&selector.match_type, &["WILDCARD", "EXACT", "REGEX"])?,
            constraints: constraints.collect::<Result<_>>()?,
        })
    });
    Ok(sourcepolicy::Rule {
        action: number(&rule.action, &["ALLOW", "DENY", "CONVERT"])?,
        selector: selector.transpose()?,
        updates: rule.updates.map(|update| sourcepolicy::Update {
            identifier: update.identifier,
            attrs: update.attrs,
        }),
    })
}

/// The number of a name; none is the first.
fn number(name: &str, names: &[&str]) -> Result<i32> {
    if name.is_empty() {
        return Ok(0);
    }
    let place = names.iter().position(|known| *known == name);
    let place = place.with_context(|| format!("unknown {name:?}: want one of {names:?}"))?;
    Ok(i32::try_from(place)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let text = br#"{"version": 1, "rules": [
            {"action": "CONVERT",
             "selector": {"identifier": "docker-image://docker.io/library/alpine:latest"},
             "updates": {"identifier": "docker-image://docker.io/library/alpine:3@sha256:00"}},
            {"action": "DENY", "selector": {"identifier": "https://*", "matchType": "WILDCARD",
             "constraints": [{"key": "a", "value": "b", "condition": "NOTEQUAL"}]}}
        ]}"#;
        let policy = parse(text).unwrap();
        let actions: Vec<_> = policy.rules.iter().map(|rule| rule.action).collect();
        assert_eq!((policy.version, actions), (1, vec![2, 1]));
        let updates = policy.rules[0].updates.as_ref().unwrap();
        assert!(updates.identifier.contains("alpine:3"));
        let selector = policy.rules[1].selector.as_ref().unwrap();
        assert_eq!(selector.constraints[0].condition, 1);
        assert!(parse(br#"{"rules": [{"action": "PERHAPS"}]}"#).is_err());
        assert!(parse(b"{").is_err());
    }
}
