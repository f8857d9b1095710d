//! One JSON object for each piece of news: `client.SolveStatus` of BuildKit, by the names that
//! its Go type has there (client/graph.go).

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use cooper_proto::pb;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::Display;

/// Writes what comes as it comes.
pub(super) struct Raw<W>(W);

impl<W: Write> Raw<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Display for Raw<W> {
    fn update(&mut self, response: StatusResponse) {
        let mut line = status(&response).to_string();
        line.push('\n');
        // Nobody who reads it is no reason to stop the build.
        let _ = self.0.write_all(line.as_bytes());
        let _ = self.0.flush();
    }

    fn refresh(&mut self) {}
    fn done(&mut self) {}
}

fn status(response: &StatusResponse) -> Value {
    object([
        ("vertexes", list(&response.vertexes, vertex)),
        ("statuses", list(&response.statuses, part)),
        ("logs", list(&response.logs, log)),
        ("warnings", list(&response.warnings, warning)),
    ])
}

fn vertex(vertex: &Vertex) -> Value {
    let group = vertex.progress_group.as_ref().map(|group| {
        object([
            ("id", text(&group.id)),
            ("name", text(&group.name)),
            ("weak", flag(group.weak)),
        ])
    });
    object([
        ("digest", text(&vertex.digest)),
        ("inputs", list(&vertex.inputs, |input| json!(input))),
        ("name", text(&vertex.name)),
        ("started", vertex.started.as_ref().map(time)),
        ("completed", vertex.completed.as_ref().map(time)),
        ("cached", flag(vertex.cached)),
        ("error", text(&vertex.error)),
        ("progressGroup", group),
    ])
}

fn part(status: &VertexStatus) -> Value {
    object([
        ("id", Some(json!(status.id))),
        ("vertex", text(&status.vertex)),
        ("name", text(&status.name)),
        ("total", number(status.total)),
        ("current", Some(json!(status.current))),
        (
            "timestamp",
            Some(time(&status.timestamp.unwrap_or_default())),
        ),
        ("started", status.started.as_ref().map(time)),
        ("completed", status.completed.as_ref().map(time)),
    ])
}

fn log(log: &VertexLog) -> Value {
    object([
        ("vertex", text(&log.vertex)),
        ("stream", number(log.stream)),
        ("data", Some(bytes(&log.msg))),
        ("timestamp", Some(time(&log.timestamp.unwrap_or_default()))),
    ])
}

fn warning(warning: &VertexWarning) -> Value {
    object([
        ("vertex", text(&warning.vertex)),
        ("level", number(warning.level)),
        ("short", some(&warning.short)),
        ("detail", list(&warning.detail, |line| bytes(line))),
        ("url", text(&warning.url)),
        ("sourceInfo", warning.info.as_ref().map(source)),
        ("range", list(&warning.ranges, range)),
    ])
}

fn source(info: &pb::SourceInfo) -> Value {
    object([
        ("filename", text(&info.filename)),
        ("data", some(&info.data)),
        ("language", text(&info.language)),
    ])
}

fn range(range: &pb::Range) -> Value {
    let position = |position: &pb::Position| {
        object([
            ("line", number(position.line.into())),
            ("character", number(position.character.into())),
        ])
    };
    object([
        ("start", range.start.as_ref().map(position)),
        ("end", range.end.as_ref().map(position)),
    ])
}

/// The fields that there are, in this order.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter();
    let there = fields.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}

fn list<T>(items: &[T], convert: impl Fn(&T) -> Value) -> Option<Value> {
    (!items.is_empty()).then(|| items.iter().map(convert).collect())
}

fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| json!(text))
}

fn flag(flag: bool) -> Option<Value> {
    flag.then_some(Value::Bool(true))
}

fn number(number: i64) -> Option<Value> {
    (number != 0).then(|| json!(number))
}

fn bytes(bytes: &[u8]) -> Value {
    json!(STANDARD.encode(bytes))
}

fn some(content: &[u8]) -> Option<Value> {
    (!content.is_empty()).then(|| bytes(content))
}

/// As Go writes a time: RFC 3339 in UTC, without zeros at the end of a second's parts.
fn time(time: &Timestamp) -> Value {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let at =
        OffsetDateTime::from_unix_timestamp(time.seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let nanos = u32::try_from(time.nanos).unwrap_or(0);
    let at = at.replace_nanosecond(nanos).unwrap_or(at);
    json!(at.format(&Rfc3339).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_buildkit() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        let response = StatusResponse {
            vertexes: vec![Vertex {
                digest: "sha256:a".into(),
                inputs: vec!["sha256:b".into()],
                name: "[1/1] RUN <x>".into(),
                cached: true,
                started: at(1_700_000_000, 120_000_000),
                completed: at(1_700_000_001, 0),
                error: String::new(),
                progress_group: Some(pb::ProgressGroup {
                    id: "g".into(),
                    name: "group".into(),
                    weak: true,
                }),
            }],
            statuses: vec![VertexStatus {
                id: "part".into(),
                vertex: "sha256:a".into(),
                timestamp: at(1_700_000_000, 5),
                ..VertexStatus::default()
            }],
            logs: vec![VertexLog {
                vertex: "sha256:a".into(),
                timestamp: at(1_700_000_000, 0),
                stream: 2,
                msg: "hi\n".into(),
            }],
            warnings: vec![VertexWarning {
                vertex: "sha256:a".into(),
                level: 1,
                short: "careful".into(),
                ranges: vec![pb::Range {
                    start: Some(pb::Position {
                        line: 3,
                        character: 0,
                    }),
                    end: None,
                }],
                ..VertexWarning::default()
            }],
        };
        let mut out = Vec::new();
        Raw::new(&mut out).update(response);
        let expected = concat!(
            r#"{"vertexes":[{"digest":"sha256:a","inputs":["sha256:b"],"name":"[1/1] RUN <x>","#,
            r#""started":"2023-11-14T22:13:20.12Z","completed":"2023-11-14T22:13:21Z","#,
            r#""cached":true,"progressGroup":{"id":"g","name":"group","weak":true}}],"#,
            r#""statuses":[{"id":"part","vertex":"sha256:a","current":0,"#,
            r#""timestamp":"2023-11-14T22:13:20.000000005Z"}],"#,
            r#""logs":[{"vertex":"sha256:a","stream":2,"data":"aGkK","#,
            r#""timestamp":"2023-11-14T22:13:20Z"}],"#,
            r#""warnings":[{"vertex":"sha256:a","level":1,"short":"Y2FyZWZ1bA==","#,
            r#""range":[{"start":{"line":3}}]}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        Raw::new(&mut out).update(StatusResponse::default());
        assert_eq!(out, b"{}\n");
    }
}
