//! What was seen of a build as a trace: spans in the JSON that BuildKit keeps them in, one object
//! behind another, each a `SpanStub` of OpenTelemetry's Go library (`docker buildx history trace`
//! reads them).
//!
//! The build is the root, each of its steps a child of that, linked to those whose results it takes,
//! and each part of a step's work a child of the step. A step that was shown twice is one span.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cooper_content::Digest;
use cooper_progress::{Event, Vertex, VertexStatus};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Record;

/// Spans of one build at most; the root says how many more there were.
const MOST_SPANS: usize = 20_000;
/// `SpanKind`s.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
/// Codes of a span's status.
const UNSET: u8 = 0;
const ERROR: u8 = 1;

/// The spans of a build; `None` when it had no steps.
pub(crate) fn write(record: &Record, seen: &[Arc<Event>]) -> Option<Vec<u8>> {
    let began = time(record.created_at)?;
    let ended = time(record.completed_at)?;
    let (steps, parts) = collect(seen);
    if steps.is_empty() {
        return None;
    }
    let name = format!("{}\n{}", record.r#ref, rfc3339(began));
    let trace = Trace {
        id: hex(&name, 32),
        ended,
    };
    let root = trace.span_id(&[]);
    let all = steps.len() + parts.len();
    let mut spans = vec![trace.root(record, began, &root, steps.len(), all)];
    let steps_then_parts = steps
        .iter()
        .map(|step| trace.step(step, &root))
        .chain(parts.iter().map(|part| trace.part(part)));
    spans.extend(steps_then_parts.take(MOST_SPANS));
    let mut bytes = Vec::new();
    for span in spans {
        serde_json::to_writer(&mut bytes, &span).ok()?;
        bytes.push(b'\n');
    }
    Some(bytes)
}

/// The steps that began and the parts of their work, each as it was seen last, with its first begin.
fn collect(seen: &[Arc<Event>]) -> (Vec<Vertex>, Vec<VertexStatus>) {
    let mut steps: Vec<Vertex> = Vec::new();
    let mut parts: Vec<VertexStatus> = Vec::new();
    let (mut step_at, mut part_at) = (HashMap::new(), HashMap::new());
    for event in seen {
        match &**event {
            Event::Vertex(vertex) if vertex.started.is_some() => {
                let at = *step_at.entry(&vertex.digest).or_insert(steps.len());
                match steps.get_mut(at) {
                    Some(known) => {
                        let started = known.started;
                        let cached = known.cached;
                        *known = vertex.clone();
                        known.started = started;
                        known.cached |= cached;
                    }
                    None => steps.push(vertex.clone()),
                }
            }
            Event::Status(status) if status.started.is_some() => {
                let key = (&status.vertex, &status.id);
                let at = *part_at.entry(key).or_insert(parts.len());
                match parts.get_mut(at) {
                    Some(known) => {
                        let started = known.started;
                        *known = status.clone();
                        known.started = started;
                    }
                    None => parts.push(status.clone()),
                }
            }
            _ => {}
        }
    }
    (steps, parts)
}

/// One build's spans.
struct Trace {
    id: String,
    /// When the build ended, and with it all that had no end of its own.
    ended: SystemTime,
}

impl Trace {
    fn span_id(&self, words: &[&str]) -> String {
        hex(&format!("{}\n{}", self.id, words.join("\n")), 16)
    }

    fn step_id(&self, digest: &Digest) -> String {
        self.span_id(&[digest.as_ref()])
    }

    fn context(&self, span: &str) -> Value {
        json!({
            "TraceID": self.id,
            "SpanID": span,
            "TraceFlags": "01",
            "TraceState": "",
            "Remote": false,
        })
    }

    fn root(
        &self,
        record: &Record,
        began: SystemTime,
        id: &str,
        steps: usize,
        all: usize,
    ) -> Value {
        let mut attributes = vec![
            text("build.ref", &record.r#ref),
            text("build.frontend", &record.frontend),
        ];
        if let Some(more) = all.checked_sub(MOST_SPANS).filter(|more| *more > 0) {
            attributes.push(number("build.spans_left_out", more));
        }
        let none = Self {
            id: "0".repeat(32),
            ended: self.ended,
        };
        self.span(Span {
            name: "moby.buildkit.v1.Control/Solve",
            kind: SERVER,
            id,
            parent: none.context(&"0".repeat(16)),
            times: (began, self.ended),
            error: record.error.as_ref().map_or("", |error| &error.message),
            attributes,
            links: Value::Null,
            children: steps,
        })
    }

    fn step(&self, step: &Vertex, root: &str) -> Value {
        let link = |digest: &Digest| {
            json!({
                "SpanContext": self.context(&self.step_id(digest)),
                "Attributes": null,
                "DroppedAttributeCount": 0,
            })
        };
        self.span(Span {
            name: &step.name,
            kind: INTERNAL,
            id: &self.step_id(&step.digest),
            parent: self.context(root),
            times: self.times(step.started, step.completed),
            error: &step.error,
            attributes: vec![
                text("vertex", step.digest.as_ref()),
                json!({"Key": "cached", "Value": {"Type": "BOOL", "Value": step.cached}}),
            ],
            links: step.inputs.iter().map(link).collect(),
            children: 0,
        })
    }

    fn part(&self, part: &VertexStatus) -> Value {
        let name = if part.name.is_empty() {
            &part.id
        } else {
            &part.name
        };
        self.span(Span {
            name,
            kind: INTERNAL,
            id: &self.span_id(&[part.vertex.as_ref(), &part.id]),
            parent: self.context(&self.step_id(&part.vertex)),
            times: self.times(part.started, part.completed),
            error: "",
            attributes: vec![
                text("vertex", part.vertex.as_ref()),
                text("id", &part.id),
                number("current", part.current),
                number("total", part.total),
            ],
            links: Value::Null,
            children: 0,
        })
    }

    fn times(
        &self,
        started: Option<SystemTime>,
        completed: Option<SystemTime>,
    ) -> (SystemTime, SystemTime) {
        let started = started.unwrap_or(self.ended);
        // The clock may have been set meanwhile.
        (started, completed.unwrap_or(self.ended).max(started))
    }

    fn span(&self, span: Span<'_>) -> Value {
        let code = if span.error.is_empty() { UNSET } else { ERROR };
        json!({
            "Name": span.name,
            "SpanContext": self.context(span.id),
            "Parent": span.parent,
            "SpanKind": span.kind,
            "StartTime": rfc3339(span.times.0),
            "EndTime": rfc3339(span.times.1),
            "Attributes": span.attributes,
            "Events": null,
            "Links": span.links,
            "Status": {"Code": code, "Description": span.error},
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": span.children,
            "Resource": [text("service.name", "cooperd")],
            "InstrumentationLibrary": {
                "Name": "cooper",
                "Version": env!("CARGO_PKG_VERSION"),
                "SchemaURL": "",
            },
        })
    }
}

struct Span<'a> {
    name: &'a str,
    kind: u8,
    id: &'a str,
    parent: Value,
    times: (SystemTime, SystemTime),
    /// Empty when there is none.
    error: &'a str,
    attributes: Vec<Value>,
    links: Value,
    children: usize,
}

fn text(key: &str, value: &str) -> Value {
    json!({"Key": key, "Value": {"Type": "STRING", "Value": value}})
}

fn number(key: &str, value: impl TryInto<i64>) -> Value {
    let value = value.try_into().unwrap_or(i64::MAX);
    json!({"Key": key, "Value": {"Type": "INT64", "Value": value}})
}

/// That many digits that hang on the text alone.
fn hex(text: &str, digits: usize) -> String {
    let digest = cooper_content::digest_of(text.as_bytes());
    digest.digest()[..digits].to_owned()
}

fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    let time = time?;
    let nanos = u32::try_from(time.nanos).ok()?;
    let since = Duration::new(u64::try_from(time.seconds).ok()?, nanos);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_content::digest_of;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn vertex(name: &str, inputs: &[&str], times: (u64, u64), error: &str) -> Arc<Event> {
        Arc::new(Event::Vertex(Vertex {
            digest: digest_of(name.as_bytes()),
            inputs: inputs
                .iter()
                .map(|name| digest_of(name.as_bytes()))
                .collect(),
            name: name.into(),
            cached: false,
            started: Some(at(times.0)),
            completed: Some(at(times.1)).filter(|_| times.1 > 0),
            error: error.into(),
            progress_group: None,
        }))
    }

    fn spans(record: &Record, seen: &[Arc<Event>]) -> Vec<Value> {
        let bytes = write(record, seen).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn a_build_its_steps_and_their_parts_are_spans() {
        let record = Record {
            r#ref: "x".into(),
            created_at: Some(at(10).into()),
            completed_at: Some(at(20).into()),
            ..Record::default()
        };
        let part = |completed: Option<u64>| {
            Arc::new(Event::Status(VertexStatus {
                id: "layer".into(),
                vertex: digest_of(b"a"),
                name: String::new(),
                current: 5,
                total: 7,
                timestamp: at(12),
                started: Some(at(if completed.is_some() { 13 } else { 12 })),
                completed: completed.map(at),
            }))
        };
        let seen = [
            vertex("a", &[], (11, 0), ""),
            part(None),
            part(Some(14)),
            vertex("a", &[], (12, 15), ""),
            vertex("b", &["a"], (15, 16), "failed"),
            vertex("c", &[], (17, 0), ""),
        ];
        let spans = spans(&record, &seen);
        let names: Vec<_> = spans
            .iter()
            .map(|span| span["Name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["moby.buildkit.v1.Control/Solve", "a", "b", "c", "layer"]
        );
        let times = |span: &Value| (span["StartTime"].clone(), span["EndTime"].clone());
        let second = |second| Value::from(format!("1970-01-01T00:00:{second}Z"));
        for (span, (start, end)) in
            spans
                .iter()
                .zip([(10, 20), (11, 15), (15, 16), (17, 20), (12, 14)])
        {
            assert_eq!(times(span), (second(start), second(end)), "{span}");
            assert_eq!(
                span["SpanContext"]["TraceID"],
                spans[0]["SpanContext"]["TraceID"]
            );
            assert_eq!(span["SpanContext"]["SpanID"].as_str().unwrap().len(), 16);
        }
        let id = |index: usize| &spans[index]["SpanContext"]["SpanID"];
        assert_eq!(&spans[1]["Parent"]["SpanID"], id(0));
        assert_eq!(&spans[2]["Links"][0]["SpanContext"]["SpanID"], id(1));
        assert_eq!(
            spans[2]["Status"],
            json!({"Code": 1, "Description": "failed"})
        );
        assert_eq!(&spans[4]["Parent"]["SpanID"], id(1));
        assert_eq!(spans[0]["Parent"]["SpanID"], "0".repeat(16));
        assert!(write(&record, &[]).is_none());
    }

    #[test]
    fn more_spans_than_that_are_counted() {
        let record = Record {
            created_at: Some(at(10).into()),
            completed_at: Some(at(20).into()),
            ..Record::default()
        };
        let seen: Vec<_> = (0..MOST_SPANS + 3)
            .map(|number| vertex(&number.to_string(), &[], (1, 2), ""))
            .collect();
        let spans = spans(&record, &seen);
        assert_eq!(spans.len(), MOST_SPANS + 1);
        let left = &spans[0]["Attributes"][2];
        assert_eq!(
            (&left["Key"], &left["Value"]["Value"]),
            (&json!("build.spans_left_out"), &json!(3))
        );
    }
}
