use super::*;
use cooper_proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use prost_types::Timestamp;

const SECOND: Nanos = 1_000_000_000;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn vertex(digest: &str, name: &str, completed: Option<i64>) -> Vertex {
    Vertex {
        digest: digest.into(),
        name: name.into(),
        started: at(100),
        completed: completed.and_then(at),
        ..Vertex::default()
    }
}

fn trace(response: StatusResponse) -> Trace {
    let mut trace = Trace::default();
    trace.update(response);
    trace
}

fn texts(trace: &Trace, width: usize, height: usize, all: bool) -> Vec<String> {
    let size = Size { width, height };
    let elapsed = Duration::from_millis(2500);
    let lines = lines(trace, elapsed, 103 * SECOND, size, 6, all);
    assert!(
        lines
            .iter()
            .all(|line| measure_text_width(&line.text) < width.max(1))
    );
    assert!(
        all || lines.len() <= height.saturating_sub(1).max(1),
        "{lines:?}"
    );
    lines.into_iter().map(|line| line.text).collect()
}

fn some() -> StatusResponse {
    StatusResponse {
        vertexes: vec![
            Vertex {
                cached: true,
                ..vertex("a", "[1/2] FROM busybox", Some(100))
            },
            vertex("b", "[2/2] RUN make\tall", None),
            Vertex {
                error: "exit code: 1".into(),
                ..vertex("c", "other", Some(101))
            },
        ],
        statuses: vec![VertexStatus {
            id: "extracting".into(),
            vertex: "b".into(),
            current: 5_000_000,
            total: 20_000_000,
            started: at(101),
            timestamp: at(102),
            ..VertexStatus::default()
        }],
        logs: vec![VertexLog {
            vertex: "b".into(),
            timestamp: at(101),
            stream: 1,
            msg: b"one\n\x1b[31mtwo\x1b[0m\n10%\r20%\r30%".to_vec().into(),
        }],
        warnings: vec![VertexWarning {
            vertex: "c".into(),
            short: "be careful".into(),
            ..VertexWarning::default()
        }],
    }
}

#[test]
fn a_build_reads_as_on_buildkits_terminal() {
    let expected = "\
[+] Building 2.5s (2/3)
 => CACHED [1/2] FROM busybox                                              0.0s
 => [2/2] RUN make all                                                     3.0s
 => => # one
 => => # two
 => => # 30%
 => => extracting 5.00MB / 20.00MB [=====>              ]                  2.0s
 => ERROR other                                                            1.0s
 => WARN: be careful                                                       1.0s";
    assert_eq!(texts(&trace(some()), 80, 24, false).join("\n"), expected);
}

#[test]
fn narrow_windows_cut_lines_and_low_ones_keep_what_runs() {
    let narrow = texts(&trace(some()), 30, 24, false);
    assert_eq!(narrow[1], " => CACHED [1/2] FROM bu 0.0s");
    assert_eq!(narrow[6], " => => extracting        2.0s");
    let low = texts(&trace(some()), 80, 4, false);
    assert!(
        low[1].contains("RUN make") && low[2].contains("extracting"),
        "{low:?}"
    );
    // There is nothing to see in these, but there they are.
    for (width, height) in [(0, 0), (1, 1), (12, 2), (18, 3)] {
        texts(&trace(some()), width, height, false);
    }
}

#[test]
fn the_last_frame_is_of_all_and_says_that_it_is_the_end() {
    let many = (0..50).map(|number| vertex(&number.to_string(), "step", Some(101)));
    let trace = trace(StatusResponse {
        vertexes: many.collect(),
        ..StatusResponse::default()
    });
    let shown = texts(&trace, 80, 10, true);
    assert_eq!(shown[0], "[+] Building 2.5s (50/50) FINISHED");
    assert_eq!(shown.len(), 51);
    assert_eq!(texts(&trace, 80, 10, false).len(), 9);
}

#[test]
fn wide_characters_take_their_columns() {
    let trace = trace(StatusResponse {
        vertexes: vec![vertex("a", &"構築".repeat(30), Some(101))],
        ..StatusResponse::default()
    });
    let shown = texts(&trace, 40, 10, true);
    assert!(
        shown[1].starts_with(" => 構築") && shown[1].ends_with(" 1.0s"),
        "{shown:?}"
    );
}

#[test]
fn bars_stay_within_their_ends() {
    for (current, total) in [(0, 10), (5, 10), (10, 10), (20, 10), (-5, 10)] {
        let (_, bar) = amounts(&Status {
            id: String::new(),
            current,
            total,
            at: 0,
            started: Some(0),
            completed: None,
            updated: false,
        });
        assert_eq!(bar.len(), BAR, "{bar}");
    }
}
