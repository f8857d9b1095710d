//! `--name=value` before an instruction's arguments.

use std::collections::BTreeMap;

use crate::{ParseError, suggest};

/// What values a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`; `true` when there is no value.
    Bool,
    /// One value.
    Text,
    /// Any number of values.
    List,
}

/// The flags of one instruction.
pub(super) struct Flags {
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    pub(super) fn parse(
        args: &[String],
        known: &[(&'static str, Kind)],
    ) -> Result<Self, ParseError> {
        let mut values: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for arg in args {
            if arg == "--" {
                break;
            }
            let Some(text) = arg.strip_prefix("--") else {
                return Err(ParseError::new(format!("arg should start with -- : {arg}")));
            };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            let Some(&(name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(ParseError::new(suggest::with_suggestion(
                    format!("unknown flag: --{name}"),
                    name,
                    known.iter().map(|(known, _)| *known),
                    true,
                )));
            };
            if values.contains_key(name) && kind != Kind::List {
                return Err(ParseError::new(format!(
                    "duplicate flag specified: --{name}"
                )));
            }
            let value = match (kind, value) {
                (Kind::Bool, None) => "true".to_owned(),
                (Kind::Bool, Some(value)) if !value.is_empty() => {
                    let lower = value.to_lowercase();
                    if lower != "true" && lower != "false" {
                        return Err(ParseError::new(format!(
                            "expecting boolean value for flag --{name}, not: {value}"
                        )));
                    }
                    lower
                }
                (Kind::Text | Kind::List, Some(value)) => value.to_owned(),
                (Kind::Bool, Some(_)) | (Kind::Text | Kind::List, None) => {
                    return Err(ParseError::new(format!(
                        "missing a value on flag: --{name}"
                    )));
                }
            };
            values.entry(name).or_default().push(value);
        }
        Ok(Self { values })
    }

    /// The value of a flag, empty when it is not given.
    pub(super) fn text(&mut self, name: &str) -> String {
        self.list(name).pop().unwrap_or_default()
    }

    pub(super) fn list(&mut self, name: &str) -> Vec<String> {
        self.values.remove(name).unwrap_or_default()
    }

    pub(super) fn optional_bool(&mut self, name: &str) -> Option<bool> {
        self.list(name).pop().map(|value| value == "true")
    }

    pub(super) fn bool(&mut self, name: &str) -> bool {
        self.optional_bool(name).unwrap_or(false)
    }
}
