//! Tests of the store on disk.

use super::*;
use crate::Table;

const T: Table<u64> = Table::new("t");

fn open(dir: &Path, boot: &str) -> (Store, Vec<Dropped>) {
    Store::open(&dir.join("store.db"), boot).unwrap()
}

#[tokio::test]
async fn what_is_written_is_read_scanned_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "boot");
    for (key, value) in [("a/1", 1), ("a/2", 2), ("b/1", 3)] {
        store
            .write(move |tx| tx.put(&T, key, &value))
            .await
            .unwrap();
    }
    let scan = store.read(|tx| tx.scan(&T, "a/")).unwrap();
    assert_eq!(scan, [("a/1".into(), 1), ("a/2".into(), 2)]);
    assert!(store.write(|tx| tx.delete(&T, "a/1")).await.unwrap());
    drop(store);
    let (store, dropped) = open(dir.path(), "boot");
    assert_eq!(dropped, []);
    assert!(!store.read(|tx| tx.has(&T, "a/1")).unwrap());
    assert_eq!(store.read(|tx| tx.get(&T, "b/1")).unwrap(), Some(3));
}

#[tokio::test]
async fn space_is_set_aside_for_what_has_to_be_written_on_a_full_disk() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "boot");
    store.write(|tx| tx.put(&T, "x", &1)).await.unwrap();
    let taken = |name: &str| {
        let metadata = dir.path().join(name).metadata().unwrap();
        (metadata.blocks() * 512, metadata.len())
    };
    // More than they are long: what the kernel can give beyond the end is theirs.
    for _ in 0..2 {
        let (space, length) = taken("store.db-wal");
        assert!(space >= LOG_KEPT && length < LOG_KEPT, "{space} {length}");
        let (space, length) = taken("store.db");
        assert!(
            space >= length + crate::log::DATABASE_AHEAD,
            "{space} {length}"
        );
        store.checkpoint("boot", |_| Ok(())).await.unwrap();
    }
}

#[tokio::test]
async fn a_transaction_that_fails_or_panics_leaves_nothing() {
    let store = Store::in_memory().unwrap();
    let failed = store.write(|tx| {
        tx.put(&T, "x", &1)?;
        Err::<(), _>(StoreError::Closed)
    });
    assert!(failed.await.is_err());
    let panicked = store.write(|tx| -> Result<(), StoreError> {
        tx.put(&T, "x", &1)?;
        panic!("on purpose")
    });
    assert!(matches!(panicked.await, Err(StoreError::Panic(text)) if text == "on purpose"));
    assert_eq!(store.read(|tx| tx.get(&T, "x")).unwrap(), None);
    store.write(|tx| tx.put(&T, "x", &2)).await.unwrap();
}

#[tokio::test]
async fn after_another_boot_only_what_was_checkpointed_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "one");
    store.write(|tx| tx.put(&T, "safe", &1)).await.unwrap();
    store.checkpoint("one", |_| Ok(())).await.unwrap();
    store.write(|tx| tx.put(&T, "lost", &2)).await.unwrap();
    drop(store);
    let (store, dropped) = open(dir.path(), "two");
    assert_eq!(
        dropped,
        [Dropped {
            table: "t".into(),
            key: "lost".into()
        }]
    );
    assert_eq!(store.read(|tx| tx.get(&T, "safe")).unwrap(), Some(1));
    // The same boot again: nothing more is dropped, nor what came since. It is told again
    // until what follows from it can be durable.
    store.write(|tx| tx.put(&T, "new", &3)).await.unwrap();
    drop(store);
    let (store, again) = open(dir.path(), "two");
    assert_eq!(again, dropped);
    store.flush().await.unwrap();
    drop(store);
    let (store, dropped) = open(dir.path(), "two");
    assert_eq!(dropped, []);
    assert_eq!(store.read(|tx| tx.get(&T, "new")).unwrap(), Some(3));
}

#[tokio::test]
async fn what_is_written_again_is_as_durable_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "one");
    for key in ["same", "changed", "gone"] {
        store.write(move |tx| tx.put(&T, key, &1)).await.unwrap();
    }
    store.checkpoint("one", |_| Ok(())).await.unwrap();
    store.write(|tx| tx.put(&T, "same", &1)).await.unwrap();
    for value in [2, 3] {
        for key in ["changed", "gone"] {
            let write = store.write(move |tx| tx.put(&T, key, &value));
            write.await.unwrap();
        }
    }
    store.write(|tx| tx.delete(&T, "gone")).await.unwrap();
    drop(store);
    let (store, dropped) = open(dir.path(), "two");
    assert_eq!(dropped, []);
    let rows = store.read(|tx| tx.scan(&T, "")).unwrap();
    assert_eq!(rows, [("changed".into(), 1), ("same".into(), 1)]);
}

/// What is done to a store.
#[derive(Clone, Debug)]
enum Act {
    Put(u8, u64),
    Delete(u8),
    Checkpoint,
    /// A checkpoint during which something is written.
    Meanwhile(u8, u64),
    /// The process ends.
    Again,
    /// The machine dies.
    Boot,
}

fn act() -> impl proptest::strategy::Strategy<Value = Act> {
    use proptest::prelude::*;
    let row = || (0..4u8, 0..3u64);
    prop_oneof![
        6 => row().prop_map(|(key, value)| Act::Put(key, value)),
        2 => (0..4u8).prop_map(Act::Delete),
        2 => Just(Act::Checkpoint),
        1 => row().prop_map(|(key, value)| Act::Meanwhile(key, value)),
        1 => Just(Act::Again),
        1 => Just(Act::Boot),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    /// After the death of the machine the rows are those of the last checkpoint, without
    /// those that were removed since.
    #[test]
    fn the_machine_forgets_what_no_checkpoint_saw(
        acts in proptest::collection::vec(act(), 1..40)
    ) {
        use std::collections::BTreeMap;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (mut now, mut safe) = (BTreeMap::new(), BTreeMap::new());
        let mut boots = 0;
        let mut store = open(dir.path(), "0").0;
        for act in acts {
            match act {
                Act::Put(key, value) => {
                    let write = store.write(move |tx| tx.put(&T, &key.to_string(), &value));
                    runtime.block_on(write).unwrap();
                    now.insert(key.to_string(), value);
                }
                Act::Delete(key) => {
                    let write = store.write(move |tx| tx.delete(&T, &key.to_string()));
                    runtime.block_on(write).unwrap();
                    now.remove(&key.to_string());
                    safe.remove(&key.to_string());
                }
                Act::Checkpoint => {
                    let boot = boots.to_string();
                    runtime.block_on(store.checkpoint(&boot, |_| Ok(()))).unwrap();
                    safe = now.clone();
                }
                Act::Meanwhile(key, value) => {
                    let (boot, writer) = (boots.to_string(), store.clone());
                    let meanwhile = move |_| {
                        let put = move |tx: &mut Write<'_>| tx.put(&T, &key.to_string(), &value);
                        writer.submit(put).map(drop).map_err(std::io::Error::other)
                    };
                    runtime.block_on(store.checkpoint(&boot, meanwhile)).unwrap();
                    safe = now.clone();
                    now.insert(key.to_string(), value);
                }
                Act::Again => {
                    drop(store);
                    store = open(dir.path(), &boots.to_string()).0;
                }
                Act::Boot => {
                    drop(store);
                    boots += 1;
                    let (opened, dropped) = open(dir.path(), &boots.to_string());
                    store = opened;
                    for key in now.keys().filter(|key| !safe.contains_key(*key)) {
                        proptest::prop_assert!(dropped.iter().any(|row| row.key == *key));
                    }
                    now = safe.clone();
                }
            }
            let rows = store.read(|tx| tx.scan(&T, "")).unwrap();
            proptest::prop_assert_eq!(rows, now.clone().into_iter().collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn a_flush_moves_no_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "one");
    store.write(|tx| tx.put(&T, "safe", &1)).await.unwrap();
    let mark = store.checkpoint("one", |_| Ok(())).await.unwrap();
    store.write(|tx| tx.put(&T, "lost", &1)).await.unwrap();
    store.write(|tx| tx.delete(&T, "safe")).await.unwrap();
    store.flush().await.unwrap();
    drop(store);
    let (store, dropped) = open(dir.path(), "two");
    assert_eq!(dropped.len(), 1, "above {mark}");
    assert!(!store.read(|tx| tx.has(&T, "safe")).unwrap());
}

#[tokio::test]
async fn writers_go_on_during_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "one");
    store.write(|tx| tx.put(&T, "safe", &1)).await.unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let checkpoint = store.checkpoint("one", move |_| wait.recv().map_err(std::io::Error::other));
    let writer = async {
        store.write(|tx| tx.put(&T, "late", &1)).await.unwrap();
        go.send(()).unwrap();
    };
    let (mark, ()) = tokio::join!(checkpoint, writer);
    mark.unwrap();
    drop(store);
    let (_, dropped) = open(dir.path(), "two");
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0].key, "late");
}

#[tokio::test]
async fn a_checkpoint_whose_sync_fails_moves_no_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "one");
    store.write(|tx| tx.put(&T, "lost", &1)).await.unwrap();
    let failed = store.checkpoint("one", |_| Err(std::io::Error::other("disk")));
    assert!(failed.await.is_err());
    drop(store);
    assert_eq!(open(dir.path(), "two").1.len(), 1);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::fs::write(
        &path,
        "this is no database, whatever its name says".repeat(100),
    )
    .unwrap();
    let error = Store::open(&path, "boot").unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("this is no")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_does_not_wait_for_a_sync() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static BUSY: AtomicBool = AtomicBool::new(true);
    let slow = |_: &File| {
        while BUSY.load(Ordering::Acquire) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    };
    let dir = tempfile::tempdir().unwrap();
    let place = Location::File(dir.path().join("store.db"));
    let (store, _) = Store::start(place, "boot", slow).unwrap();
    let flushing = tokio::spawn({
        let store = store.clone();
        async move { store.flush().await }
    });
    let marking = tokio::spawn({
        let store = store.clone();
        async move { store.checkpoint("boot", |_| Ok(())).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    store.write(|tx| tx.put(&T, "x", &1)).await.unwrap();
    assert_eq!(store.read(|tx| tx.get(&T, "x")).unwrap(), Some(1));
    assert!(!flushing.is_finished() && !marking.is_finished());
    BUSY.store(false, Ordering::Release);
    flushing.await.unwrap().unwrap();
    marking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sync_that_fails_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let place = Location::File(dir.path().join("store.db"));
    let failing = |_: &File| Err(std::io::Error::other("disk"));
    let (store, _) = Store::start(place, "boot", failing).unwrap();
    let flushed = store.flush().await;
    assert!(
        matches!(flushed, Err(StoreError::Durable(_))),
        "{flushed:?}"
    );
    assert!(store.checkpoint("boot", |_| Ok(())).await.is_err());
}

#[tokio::test]
async fn the_log_stays_short_while_much_is_written_and_nobody_makes_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), "boot");
    let mut longest = 0;
    for round in 0..40_u64 {
        let text: String = format!("{round:08}").repeat(128 << 10);
        let key = (round % 4).to_string();
        store
            .write(move |tx| tx.put(&crate::Table::new("long"), &key, &text))
            .await
            .unwrap();
        let log = dir.path().join("store.db-wal").metadata().unwrap();
        longest = longest.max(log.len());
    }
    // 40 MiB were written. One transaction more than the bound may be in it.
    let bound = (u64::from(LOG_PAGES) << 12) + (4 << 20);
    assert!(longest < bound, "{longest}");
}
