//! The lines of source that an error is about.
//!
//! Daemons send typed details in `grpc-status-details-bin`: a `google.rpc.Status` whose
//! details' values are JSON.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_proto::rpc;
use prost::Message;
use serde::Deserialize;
use tonic::Status;

/// Lines of a source file that an error is about. Displays as an excerpt:
///
/// ```text
/// Dockerfile:2
/// --------------------
///    1 |     FROM busybox
///    2 | >>> RUN false
/// --------------------
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The file's name.
    pub filename: String,
    /// Its content.
    pub data: Vec<u8>,
    /// First and last lines at fault, counted from 1.
    pub ranges: Vec<(i32, i32)>,
}

/// The details of a status that are sources, the outermost last.
pub(crate) fn of(status: &Status) -> Vec<Source> {
    let Ok(all) = rpc::Status::decode(status.details()) else {
        return Vec::new();
    };
    let sources = all.details.iter();
    let sources = sources.filter(|any| any.type_url.contains("errdefs.Source"));
    sources.filter_map(|any| parse(&any.value)).collect()
}

fn parse(json: &[u8]) -> Option<Source> {
    #[derive(Deserialize)]
    struct Json {
        info: Option<Info>,
        ranges: Option<Vec<Range>>,
    }
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        filename: String,
        #[serde(default)]
        data: String,
    }
    #[derive(Deserialize)]
    struct Range {
        #[serde(default)]
        start: Position,
        #[serde(default)]
        end: Position,
    }
    #[derive(Default, Deserialize)]
    struct Position {
        #[serde(default)]
        line: i32,
    }
    let json: Json = serde_json::from_slice(json).ok()?;
    let info = json.info?;
    let ranges = json.ranges.unwrap_or_default().into_iter();
    Some(Source {
        filename: info.filename,
        data: STANDARD.decode(info.data).ok()?,
        ranges: ranges
            .map(|range| (range.start.line, range.end.line.max(range.start.line)))
            .collect(),
    })
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.data);
        let lines: Vec<&str> = text.split('\n').collect();
        let first = self.ranges.iter().map(|range| range.0).min();
        let last = self.ranges.iter().map(|range| range.1).max();
        let place = |line: Option<i32>| usize::try_from(line?).ok();
        let (Some(first), Some(last)) = (place(first), place(last)) else {
            return Ok(());
        };
        if first < 1 || first > lines.len() {
            return Ok(());
        }
        let (mut start, mut end) = (first, last.min(lines.len()));
        // Some lines around it; more around a single one.
        let wanted = if start == end { 4 } else { 2 };
        let mut added = 0;
        while added < wanted {
            if start > 1 {
                start -= 1;
                added += 1;
            }
            if end != lines.len() {
                end += 1;
                added += 1;
            }
            added += 1;
        }
        const RULE: &str = "--------------------";
        writeln!(f, "{}:{first}\n{RULE}", self.filename)?;
        for number in start..=end {
            let at = i32::try_from(number).unwrap_or(i32::MAX);
            let hit = self
                .ranges
                .iter()
                .any(|(low, high)| (*low..=*high).contains(&at));
            let mark = if hit { ">>>" } else { "   " };
            writeln!(f, " {number:3} | {mark} {}", lines[number - 1])?;
        }
        writeln!(f, "{RULE}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn source(text: &str, ranges: &[(i32, i32)]) -> String {
        Source {
            filename: "Dockerfile".into(),
            data: text.into(),
            ranges: ranges.to_vec(),
        }
        .to_string()
    }

    #[test]
    fn excerpts_are_those_of_buildkit() {
        let expected = "Dockerfile:2\n--------------------\n   1 |     FROM busybox\n   2 | >>> \
                        RUN false\n   3 |     \n--------------------\n";
        assert_eq!(source("FROM busybox\nRUN false\n", &[(2, 2)]), expected);
        let long = "1\n2\n3\n4\n5\n6\n7\n8\n9";
        let expected = "Dockerfile:5\n--------------------\n   3 |     3\n   4 |     4\n   5 | \
                        >>> 5\n   6 |     6\n   7 |     7\n--------------------\n";
        assert_eq!(source(long, &[(5, 5)]), expected);
        let expected = "Dockerfile:5\n--------------------\n   4 |     4\n   5 | >>> 5\n   6 | \
                        >>> 6\n   7 |     7\n--------------------\n";
        assert_eq!(source(long, &[(5, 6)]), expected);
        assert_eq!(source(long, &[]), "");
        assert_eq!(source(long, &[(0, 3)]), "");
        assert_eq!(source(long, &[(30, 30)]), "");
        assert!(source(long, &[(9, 40)]).contains("   9 | >>> 9"));
    }

    #[test]
    fn sources_are_found_among_the_details() {
        let json = br#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4","language":"Dockerfile"},"ranges":[{"start":{"line":1},"end":{"line":1,"character":6}}]}"#;
        let any = |url: &str, value: &[u8]| prost_types::Any {
            type_url: url.into(),
            value: value.into(),
        };
        let details = rpc::Status {
            code: 2,
            message: "failed".into(),
            details: vec![
                any("github.com/moby/buildkit/stack.Stack+json", b"{}"),
                any("github.com/moby/buildkit/errdefs.Source+json", json),
                any("github.com/moby/buildkit/errdefs.Source+json", b"not json"),
            ],
        };
        let bytes = Bytes::from(details.encode_to_vec());
        let status = Status::with_details(tonic::Code::Unknown, "failed", bytes);
        let found = of(&status);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].data, b"FROM x");
        assert_eq!(found[0].ranges, [(1, 1)]);
        assert!(of(&Status::unknown("plain")).is_empty());
    }
}
