//! The history from outside.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cooper_content::{ContentStore, MemoryContentStore};
use cooper_history::{Attachment, End, History, Limits, News, Record, media_type};
use cooper_progress::{Collect, Event, STDOUT, VertexProgress};
use cooper_proto::control::{Descriptor, Exporter};
use cooper_proto::rpc;
use prost::Message as _;

fn asked(name: &str) -> Record {
    Record {
        r#ref: name.into(),
        frontend: "dockerfile.v0".into(),
        frontend_attrs: BTreeMap::from([
            (
                "context".into(),
                "https://user:word@host/repo.git#main".into(),
            ),
            ("target".into(), "t".into()),
        ]),
        exporters: vec![Exporter {
            r#type: "image".into(),
            attrs: BTreeMap::from([("name".into(), "n".into())]),
        }],
        ..Record::default()
    }
}

fn seen(text: &str) -> Vec<Arc<Event>> {
    let sink = Arc::new(Collect::default());
    let digest = VertexProgress::discard().digest().clone();
    VertexProgress::new(digest, sink.clone()).log(STDOUT, Bytes::from(text.to_owned()));
    sink.take().into_iter().map(Arc::new).collect()
}

fn keep(history: &History, name: &str, end: End) {
    let mut recording = history.begin(asked(name));
    recording.end(end);
    recording.keep(seen(name), None);
}

fn named(news: Option<News>) -> String {
    match news.unwrap() {
        News::Started(record) => format!("+{}", record.r#ref),
        News::Complete(record) => format!("={}", record.r#ref),
        News::Deleted(name) => format!("-{name}"),
    }
}

async fn output(history: &History, name: &str) -> Option<Vec<u8>> {
    let mut log = history.log(name).await.unwrap()?;
    let mut all = Vec::new();
    while let Some(message) = log.next().await {
        let logs = message.unwrap().logs.into_iter();
        all.extend(logs.flat_map(|log| log.msg.to_vec()));
    }
    Some(all)
}

#[tokio::test]
async fn a_build_is_listed_from_its_begin_to_its_removal() {
    let root = tempfile::tempdir().unwrap();
    let history = History::open(root.path(), Limits::default()).await.unwrap();
    let mut listening = history.listen();
    assert!(listening.running.is_empty());

    let mut recording = history.begin(asked("b"));
    let running = history.listen().running;
    assert_eq!(running[0].r#ref, "b");
    assert!(running[0].created_at.is_some() && running[0].completed_at.is_none());
    assert_eq!(
        running[0].frontend_attrs["context"],
        "https://xxxxx:xxxxx@host/repo.git#main"
    );
    assert!(history.records("").await.unwrap().is_empty());
    assert!(history.log("b").await.unwrap().is_none());
    assert!(history.pin("b", true).await.is_err());
    assert!(history.delete("b").await.is_err());
    recording.end(End {
        exporter_response: BTreeMap::from([("k".into(), "v".into())]),
        ..End::default()
    });
    // It runs no longer, and who lists waits for its record.
    assert!(history.listen().running.is_empty());
    let waiting = tokio::spawn({
        let history = history.clone();
        async move {
            history.settled("").await;
            history.records("").await.unwrap()
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    history.settled("another").await;
    recording.keep(seen("hello"), None);
    let records = waiting.await.unwrap();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(record.exporter_response["k"], "v");
    assert_eq!((record.pinned, record.generation), (false, 0));
    assert_eq!((record.error.is_none(), &record.result), (true, &None));
    let log = record.logs.as_ref().unwrap();
    assert_eq!(log.media_type, media_type::LOG);
    assert_eq!(output(&history, "b").await.unwrap(), b"hello");

    keep(&history, "a", End::default());
    history.settled("a").await;
    let names = |records: Vec<Record>| -> Vec<_> {
        records.into_iter().map(|record| record.r#ref).collect()
    };
    assert_eq!(names(history.records("").await.unwrap()), ["a", "b"]);
    assert_eq!(names(history.records("b").await.unwrap()), ["b"]);
    assert!(history.records("c").await.unwrap().is_empty());

    history.pin("a", true).await.unwrap();
    let pinned = &history.records("a").await.unwrap()[0];
    assert_eq!((pinned.pinned, pinned.generation), (true, 1));
    history.delete("b").await.unwrap();
    let digest = log.digest.parse().unwrap();
    assert!(history.content().unwrap().info(&digest).await.is_err());
    for expected in ["+b", "=b", "+a", "=a", "=a", "-b"] {
        assert_eq!(named(listening.news.next().await), expected);
    }
    let gone = history.delete("b").await.unwrap_err();
    assert_eq!(
        gone.to_string(),
        "failed to retrieve ref b: file does not exist"
    );
    drop(history);
    assert!(listening.news.next().await.is_none());
}

#[tokio::test]
async fn what_a_build_left_is_kept_with_it() {
    let root = tempfile::tempdir().unwrap();
    let history = History::open(root.path(), Limits::default()).await.unwrap();
    let images = MemoryContentStore::default();
    let config = images.write_all(b"{}").await.unwrap();
    let manifest = format!(r#"{{"config":{{"digest":"{config}"}},"layers":[]}}"#);
    let manifest = images.write_all(manifest.as_bytes()).await.unwrap();
    let error = rpc::Status {
        code: 2,
        message: "process failed".into(),
        details: vec![prost_types::Any {
            type_url: "x".into(),
            value: vec![1],
        }],
    };
    let descriptor = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: manifest.to_string(),
        size: 3,
        ..Descriptor::default()
    };
    let mut recording = history.begin(asked("x"));
    recording.end(End {
        error: Some(error.clone()),
        results: BTreeMap::from([(1, descriptor.clone())]),
        attachments: vec![Attachment {
            media_type: "application/x",
            content: b"attached".to_vec(),
        }],
        ..End::default()
    });
    recording.keep(seen("x"), Some(Arc::new(images)));
    history.settled("").await;
    let record = history.records("x").await.unwrap().remove(0);
    let content = history.content().unwrap();
    let read = async |descriptor: &Descriptor| {
        let digest = descriptor.digest.parse().unwrap();
        let bytes = content.read_all(&digest, 1000).await.unwrap();
        assert_eq!(bytes.len() as i64, descriptor.size);
        bytes
    };
    // The record says it short, the blob in full.
    let short = record.error.as_ref().unwrap();
    assert_eq!((short.code, short.message.as_str()), (2, "process failed"));
    assert!(short.details.is_empty());
    let external = record.external_error.as_ref().unwrap();
    assert_eq!(external.media_type, media_type::ERROR);
    assert_eq!(rpc::Status::decode(read(external).await).unwrap(), error);
    let result = record.result.as_ref().unwrap();
    assert_eq!(result.results[&1], descriptor);
    assert_eq!(result.result_deprecated.as_ref(), Some(&descriptor));
    assert_eq!(result.attestations[0].media_type, "application/x");
    assert_eq!(read(&result.attestations[0]).await, &b"attached"[..]);
    for text in [&manifest, &config] {
        assert!(content.info(text).await.is_ok());
    }

    // All of it is there after a start, and goes with the record.
    history.close().await;
    drop(history);
    let history = opened_again(&root).await;
    assert_eq!(history.records("x").await.unwrap(), [record]);
    assert_eq!(output(&history, "x").await.unwrap(), b"x");
    history.delete("x").await.unwrap();
    assert!(history.content().unwrap().walk().await.unwrap().is_empty());
}

/// The task of the one before may still have the file.
async fn opened_again(root: &tempfile::TempDir) -> History {
    tokio::task::yield_now().await;
    History::open(root.path(), Limits::default()).await.unwrap()
}

#[tokio::test]
async fn a_build_that_is_given_up_leaves_nothing_and_nobody_waits() {
    let root = tempfile::tempdir().unwrap();
    for history in [
        History::none(),
        History::open(root.path(), Limits::default()).await.unwrap(),
    ] {
        let recording = history.begin(asked("x"));
        assert_eq!(history.listen().running.len(), 1);
        drop(recording);
        assert!(history.listen().running.is_empty());
        let mut recording = history.begin(asked("x"));
        recording.end(End::default());
        drop(recording);
        history.settled("").await;
        assert!(history.records("").await.unwrap().is_empty());
        history.close().await;
    }
}

#[tokio::test]
async fn without_a_place_news_are_told_and_nothing_is_kept() {
    let history = History::none();
    let mut news = history.listen().news;
    keep(
        &history,
        "x",
        End {
            error: Some(rpc::Status {
                message: "why".into(),
                ..rpc::Status::default()
            }),
            ..End::default()
        },
    );
    assert_eq!(named(news.next().await), "+x");
    match news.next().await.unwrap() {
        News::Complete(record) => {
            assert_eq!(record.error.as_ref().unwrap().message, "why");
            assert!(record.completed_at.is_some() && record.logs.is_none());
        }
        other => panic!("{other:?}"),
    }
    assert!(history.records("").await.unwrap().is_empty());
    assert!(history.log("x").await.unwrap().is_none());
    assert!(history.content().is_none());
    assert!(history.pin("x", true).await.is_err());
}

#[tokio::test]
async fn a_file_that_is_damaged_is_kept_aside() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("history.db"), "no database").unwrap();
    let history = History::open(root.path(), Limits::default()).await.unwrap();
    keep(&history, "x", End::default());
    history.settled("").await;
    assert_eq!(history.records("").await.unwrap().len(), 1);
    let names = std::fs::read_dir(root.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().any(|name| name.contains("damaged")));
}
