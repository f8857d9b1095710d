#![allow(clippy::unwrap_used)]
use super::*;
use crate::Attachment;
use crate::history::{History, Recording};
use std::path::Path;

const HOUR: Duration = Duration::from_secs(3600);
const LIMITS: Limits = Limits {
    max_age: HOUR,
    max_entries: 2,
};

async fn keeper(root: &Path) -> Keeper {
    let kept = Kept::open(root).unwrap();
    let shared = Shared::for_tests();
    Keeper::open(kept, shared, LIMITS).await.unwrap()
}

/// A record whose build ended that many minutes after a day in 1970, with these blobs.
async fn put(keeper: &mut Keeper, name: &str, minutes: u64, blobs: &[&str]) {
    let mut entry = Entry::default();
    entry.record.r#ref = name.into();
    entry.record.completed_at = Some(at(minutes).into());
    for text in blobs {
        entry
            .blobs
            .push(keeper.blob(text.as_bytes()).await.unwrap());
    }
    keeper.put(&entry).await.unwrap();
}

fn at(minutes: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + 24 * HOUR + Duration::from_secs(60 * minutes)
}

fn names(keeper: &Keeper) -> Vec<String> {
    let entries = keeper.kept.all().unwrap();
    let names: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.record.r#ref)
        .collect();
    assert!(names.iter().eq(keeper.known.keys()), "{names:?}");
    names
}

async fn blobs(keeper: &Keeper) -> usize {
    let there = keeper.kept.content.walk().await.unwrap();
    assert_eq!(there.len(), keeper.blobs.len());
    there.len()
}

#[tokio::test]
async fn records_go_when_they_are_too_old_and_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path()).await;
    for (name, minutes) in [("d", 0), ("c", 10), ("b", 20), ("a", 30)] {
        put(&mut keeper, name, minutes, &[name, "all"]).await;
    }
    keeper.pin("c", true).await.unwrap();
    // All are young: many may stay.
    keeper.collect(at(60)).await;
    assert_eq!(names(&keeper).len(), 4);
    assert_eq!(blobs(&keeper).await, 5);
    // One is too old, and the pinned one does not count.
    keeper.collect(at(61)).await;
    assert_eq!(names(&keeper), ["a", "b", "c"]);
    assert_eq!(blobs(&keeper).await, 4);
    // Few may be as old as they like.
    keeper.collect(at(6000)).await;
    assert_eq!(names(&keeper), ["a", "b", "c"]);
    keeper.pin("c", false).await.unwrap();
    keeper.collect(at(6000)).await;
    assert_eq!(names(&keeper), ["a", "b"]);
    assert_eq!(blobs(&keeper).await, 3);
    // The clock went back: nothing is too old.
    put(&mut keeper, "c", 40, &[]).await;
    keeper.collect(SystemTime::UNIX_EPOCH).await;
    assert_eq!(names(&keeper).len(), 3);
}

#[tokio::test]
async fn what_takes_too_much_goes_but_for_what_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path()).await;
    let large = "x".repeat(10_000);
    put(&mut keeper, "pinned", 0, &[&format!("1{large}")]).await;
    keeper.pin("pinned", true).await.unwrap();
    put(&mut keeper, "old", 1, &[&format!("2{large}")]).await;
    put(&mut keeper, "new", 2, &[&format!("3{large}")]).await;
    assert!(keeper.bytes > 30_000 && keeper.bytes < 32_000);
    keeper.most_bytes = 25_000;
    keeper.collect(at(3)).await;
    assert_eq!(names(&keeper), ["new", "pinned"]);
    keeper.most_bytes = 5000;
    keeper.collect(at(3)).await;
    assert_eq!(names(&keeper), ["pinned"]);
    keeper.delete("pinned").await.unwrap();
    assert_eq!((keeper.bytes, blobs(&keeper).await), (0, 0));
    let again = keeper.delete("pinned").await.unwrap_err();
    assert!(matches!(again, HistoryError::NotFound { .. }), "{again}");
}

#[tokio::test]
async fn a_start_mends_what_a_death_of_the_machine_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = keeper(dir.path()).await;
    put(&mut first, "whole", 0, &["a", "both"]).await;
    put(&mut first, "hurt", 1, &["b", "both"]).await;
    // The same name again: its own blob goes, the other stays.
    put(&mut first, "again", 2, &["c", "both"]).await;
    put(&mut first, "again", 3, &["d", "both"]).await;
    assert_eq!(blobs(&first).await, 4);
    first.blob(b"nobody's").await.unwrap();
    let lost = cooper_content::digest_of(b"b");
    first.kept.content.delete(&lost).await.unwrap();
    let before = first.bytes;
    drop(first);
    let second = keeper(dir.path()).await;
    assert_eq!(names(&second), ["again", "whole"]);
    assert_eq!(blobs(&second).await, 3);
    assert!(second.bytes < before);
}

fn record(history: &History, name: &str) -> Recording {
    history.begin(Record {
        r#ref: name.into(),
        ..Record::default()
    })
}

#[tokio::test]
async fn a_disk_that_takes_no_blobs_takes_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path(), LIMITS).await.unwrap();
    // As good as a full disk: nothing can be written there, root or not.
    let ingests = dir.path().join("history/ingest");
    std::fs::remove_dir(&ingests).unwrap();
    std::fs::write(&ingests, "no folder").unwrap();
    let mut listening = history.listen();
    let mut recording = record(&history, "x");
    recording.end(End {
        error: Some(cooper_proto::rpc::Status {
            message: "why".into(),
            ..Default::default()
        }),
        attachments: vec![Attachment {
            media_type: "x/y",
            content: b"z".to_vec(),
        }],
        ..End::default()
    });
    recording.keep(Vec::new(), None);
    history.settled("x").await;
    let records = history.records("x").await.unwrap();
    assert_eq!(records[0].error.as_ref().unwrap().message, "why");
    assert_eq!(
        (&records[0].logs, &records[0].external_error),
        (&None, &None)
    );
    assert!(
        history
            .log("x")
            .await
            .unwrap()
            .unwrap()
            .next()
            .await
            .is_none()
    );
    assert!(matches!(
        listening.news.next().await,
        Some(News::Started(_))
    ));
    assert!(matches!(
        listening.news.next().await,
        Some(News::Complete(_))
    ));
}
