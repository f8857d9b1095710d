//! Questions about a Dockerfile instead of a build (`frontend/subrequests`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_dockerfile::{Program, Span};
use cooper_frontend::{FrontendError, FrontendResult};
use cooper_proto::pb;
use serde::Serialize;

use crate::json;
use crate::lint::LintWarning;
use crate::source::{Source, ranges};

pub(crate) const DESCRIBE: &str = "frontend.subrequests.describe";
pub(crate) const OUTLINE: &str = "frontend.outline";
pub(crate) const TARGETS: &str = "frontend.targets";
pub(crate) const LINT: &str = "frontend.lint";

const VERSION: &str = "1.0.0";

/// A place, as Go writes its protobuf type.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Location {
    #[serde(rename = "sourceIndex", skip_serializing_if = "is_zero")]
    source_index: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<JsonRange>,
}

#[derive(Clone, Debug, Serialize)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Clone, Debug, Serialize)]
struct JsonPosition {
    #[serde(skip_serializing_if = "is_zero")]
    line: i32,
    #[serde(skip_serializing_if = "is_zero")]
    character: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

impl Location {
    pub(crate) fn of(span: Span) -> Self {
        Self::at(&ranges(span))
    }

    fn at(ranges: &[pb::Range]) -> Self {
        let position = |position: Option<pb::Position>| {
            let position = position.unwrap_or_default();
            JsonPosition {
                line: position.line,
                character: position.character,
            }
        };
        let ranges = ranges.iter().map(|range| JsonRange {
            start: position(range.start),
            end: position(range.end),
        });
        Self {
            source_index: 0,
            ranges: ranges.collect(),
        }
    }
}

/// A result of texts.
pub(crate) fn answer(json: &impl Serialize, text: String) -> FrontendResult {
    FrontendResult {
        metadata: BTreeMap::from([
            ("result.json".to_owned(), json::to_vec_pretty(json)),
            ("result.txt".to_owned(), text.into_bytes()),
            ("version".to_owned(), VERSION.into()),
        ]),
        ..FrontendResult::default()
    }
}

#[derive(Serialize)]
struct Described {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    opts: &'static [Named],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    metadata: &'static [Named],
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
}

const fn named(name: &'static str) -> Named {
    Named {
        name,
        description: "",
    }
}

/// Which questions are answered.
pub(crate) fn describe() -> FrontendResult {
    const TEXTS: &[Named] = &[named("result.json"), named("result.txt")];
    const CHECKED: &[Named] = &[
        named("result.json"),
        named("result.txt"),
        named("result.statuscode"),
    ];
    const OPTS: &[Named] = &[Named {
        name: "target",
        description: "Target build stage",
    }];
    let request = |name, description, opts, metadata| Described {
        name,
        version: VERSION,
        r#type: "rpc",
        description,
        opts,
        metadata,
    };
    let all = [
        request(LINT, "Lint a Dockerfile", &[][..], CHECKED),
        request(
            OUTLINE,
            "List all parameters current build target supports",
            OPTS,
            TEXTS,
        ),
        request(
            TARGETS,
            "List all targets current build supports",
            &[],
            TEXTS,
        ),
        request(DESCRIBE, "List available subrequest types", &[], TEXTS),
    ];
    let rows: Vec<_> = all
        .iter()
        .map(|request| {
            vec![
                request.name.to_owned(),
                request.version.to_owned(),
                request.description.to_owned(),
            ]
        })
        .collect();
    let text = table(&["NAME", "VERSION", "DESCRIPTION"], &rows);
    answer(&all, text)
}

#[derive(Serialize)]
struct Targets {
    targets: Vec<Target>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    location: Location,
}

/// The stages.
pub(crate) fn targets(source: &Source, program: &Program) -> FrontendResult {
    let last = program.stages.len().saturating_sub(1);
    let stages = program.stages.iter().enumerate();
    let targets: Vec<_> = stages
        .map(|(i, stage)| Target {
            name: stage.name.clone(),
            default: i == last,
            description: stage.description.clone(),
            base: stage.base.clone(),
            platform: stage.platform.clone(),
            location: Location::of(stage.span),
        })
        .collect();
    let rows: Vec<_> = targets
        .iter()
        .filter(|target| !target.name.is_empty() || target.default)
        .map(|target| {
            let name = match (target.name.as_str(), target.default) {
                ("", _) => "(default)".to_owned(),
                (name, true) => format!("{name} (default)"),
                (name, false) => name.to_owned(),
            };
            vec![name, target.description.clone()]
        })
        .collect();
    let text = table(&["TARGET", "DESCRIPTION"], &rows);
    let sources = vec![STANDARD.encode(source.text())];
    answer(&Targets { targets, sources }, text)
}

#[derive(Serialize)]
struct LintResults {
    warnings: Vec<JsonWarning>,
    sources: Vec<JsonSource>,
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<JsonError>,
}

#[derive(Serialize)]
struct JsonWarning {
    #[serde(rename = "ruleName")]
    rule: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'static str,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct JsonSource {
    filename: String,
    data: String,
    language: String,
}

#[derive(Serialize)]
struct JsonError {
    message: String,
    location: Location,
}

/// What the checks found, and the error that the build would fail with.
pub(crate) fn lint(
    source: &Source,
    warnings: &[LintWarning],
    error: Option<&FrontendError>,
) -> FrontendResult {
    let info = &source.map.info;
    let results = LintResults {
        warnings: warnings
            .iter()
            .map(|warning| JsonWarning {
                rule: warning.rule.name,
                description: warning.rule.description,
                url: warning.rule.url,
                detail: warning.message.clone(),
                location: Location::of(warning.span),
            })
            .collect(),
        sources: vec![JsonSource {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: STANDARD.encode(&info.data),
        }],
        error: error.map(|error| JsonError {
            message: message(error),
            location: Location::at(error.location().map_or(&[], |found| &found.ranges)),
        }),
    };
    let mut text = String::new();
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        text.push_str(&format!("WARNING: {}", warning.rule.name));
        if !warning.rule.url.is_empty() {
            text.push_str(&format!(" - {}", warning.rule.url));
        }
        text.push_str(&format!(
            "\n{}\n{}",
            warning.message,
            excerpt(source, warning.span)
        ));
    }
    if let Some(error) = &results.error {
        text.push_str(&format!("{}\n", error.message));
    }
    let failed = !warnings.is_empty() || error.is_some();
    let mut result = answer(&results, text);
    let status = if failed { "1" } else { "0" };
    let metadata = &mut result.metadata;
    metadata.insert("result.statuscode".into(), status.into());
    result
}

fn message(error: &FrontendError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// The lines of a place with two on each side.
fn excerpt(source: &Source, span: Span) -> String {
    const PADDING: u32 = 2;
    let data = String::from_utf8_lossy(source.text());
    let mut out = format!(
        "{}:{}\n--------------------\n",
        source.map.info.filename, span.start
    );
    for (number, line) in (1_u32..).zip(data.lines()) {
        if number + PADDING >= span.start && number <= span.end + PADDING {
            let mark = if (span.start..=span.end).contains(&number) {
                ">>>"
            } else {
                "   "
            };
            out.push_str(&format!("{number:4} | {mark} {line}\n"));
        }
    }
    out + "--------------------\n\n"
}

/// Columns three spaces apart.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head = head.iter().map(|title| (*title).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().cloned()).collect();
    let mut widths = Vec::new();
    for row in &all {
        for (i, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(i) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
