//! What was seen of a build as the messages that clients read.

use std::sync::Arc;
use std::time::SystemTime;

use cooper_progress::{Event, SourceRange};
use cooper_proto::{control, pb};
use prost::Message as _;

/// Logs in one message, in bytes (BuildKit's value).
const MAX_LOGS: usize = 1 << 20;
/// Events in one message: far from the largest message whatever they hold.
const MAX_EVENTS: usize = 2000;

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// Events as messages, each of a bounded size.
pub fn responses(events: &[Arc<Event>]) -> Vec<control::StatusResponse> {
    let mut all = Vec::new();
    let mut message = control::StatusResponse::default();
    let (mut logs, mut count) = (0, 0);
    for event in events {
        if let Event::Log(log) = &**event {
            logs += log.data.len();
        }
        count += 1;
        if (logs > MAX_LOGS && !message.logs.is_empty()) || count > MAX_EVENTS {
            all.push(std::mem::take(&mut message));
            count = 1;
            logs = match &**event {
                Event::Log(log) => log.data.len(),
                _ => 0,
            };
        }
        add(&mut message, event);
    }
    if message != control::StatusResponse::default() {
        all.push(message);
    }
    all
}

fn add(message: &mut control::StatusResponse, event: &Event) {
    match event.clone() {
        Event::Vertex(vertex) => message.vertexes.push(control::Vertex {
            digest: vertex.digest.to_string(),
            inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
            name: vertex.name,
            cached: vertex.cached,
            started: vertex.started.map(timestamp),
            completed: vertex.completed.map(timestamp),
            error: vertex.error,
            progress_group: vertex.progress_group.map(|group| pb::ProgressGroup {
                id: group.id,
                name: group.name,
                weak: group.weak,
            }),
        }),
        Event::Status(status) => message.statuses.push(control::VertexStatus {
            id: status.id,
            vertex: status.vertex.to_string(),
            name: status.name,
            current: status.current,
            total: status.total,
            timestamp: Some(timestamp(status.timestamp)),
            started: status.started.map(timestamp),
            completed: status.completed.map(timestamp),
        }),
        Event::Log(log) => message.logs.push(control::VertexLog {
            vertex: log.vertex.to_string(),
            timestamp: Some(timestamp(log.timestamp)),
            stream: log.stream,
            msg: log.data,
        }),
        Event::Warning(warning) => message.warnings.push(control::VertexWarning {
            vertex: warning.vertex.to_string(),
            level: warning.level,
            short: warning.short.to_vec(),
            detail: warning.detail.iter().map(|line| line.to_vec()).collect(),
            url: warning.url,
            info: warning.info.map(|info| pb::SourceInfo {
                filename: info.filename.clone(),
                data: info.data.to_vec(),
                language: info.language.clone(),
                definition: pb::Definition::decode(&*info.definition)
                    .ok()
                    .filter(|definition| !definition.def.is_empty()),
            }),
            ranges: warning.ranges.iter().map(range).collect(),
        }),
        // Later kinds of events mean nothing to the clients of today.
        _ => {}
    }
}

fn range(range: &SourceRange) -> pb::Range {
    let position = |position: cooper_progress::Position| pb::Position {
        line: position.line,
        character: position.character,
    };
    pb::Range {
        start: Some(position(range.start)),
        end: Some(position(range.end)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use cooper_progress::{Collect, STDOUT, VertexProgress};

    #[test]
    fn logs_are_cut_into_messages_and_none_is_lost() {
        let sink = std::sync::Arc::new(Collect::default());
        let digest = VertexProgress::discard().digest().clone();
        let progress = VertexProgress::new(digest, sink.clone());
        for _ in 0..5 {
            progress.log(STDOUT, Bytes::from(vec![b'x'; 400 << 10]));
        }
        let events: Vec<_> = sink.take().into_iter().map(Arc::new).collect();
        let messages = responses(&events);
        let sizes: Vec<usize> = messages
            .iter()
            .map(|message| message.logs.iter().map(|log| log.msg.len()).sum())
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), 5 * (400 << 10));
        assert!(sizes.iter().all(|size| *size <= MAX_LOGS), "{sizes:?}");
        assert_eq!(responses(&[]), []);
    }
}
