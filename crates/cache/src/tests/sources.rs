//! Local sources: written, sealed, continued.

use super::*;
use crate::{EntryKind, FileHasher, FileStat, HashedChange};

fn told(name: &str, text: &str) -> HashedChange {
    let stat = FileStat {
        mode: 0o600,
        size: text.len() as i64,
        ..FileStat::default()
    };
    let mut hasher = FileHasher::new(&stat);
    hasher.update(text.as_bytes());
    HashedChange::Set {
        path: name.into(),
        kind: EntryKind::File,
        digest: hasher.finish(),
        mode: stat.permissions(),
    }
}

async fn sum(local: &LocalRef, path: &str) -> String {
    let sum = local.checksum(Path::new(path), &Default::default()).await;
    sum.unwrap().to_string()
}

#[tokio::test]
async fn a_source_is_continued_where_it_was() {
    for place in [Place::new(), Place::overlay()] {
        let cache = place.open().await;
        let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
        let id = work.id().clone();
        write(&work, "a", "one").await;
        let first = work.commit().await.unwrap();
        assert_ne!(first.id(), &id);
        first.retain().await.unwrap();
        let sealed = first.id().clone();
        assert_eq!(
            read(&first.local().unwrap(), "a").await.as_deref(),
            Some("one")
        );
        drop(first);
        assert!(is_there(&cache, &sealed).await);
        // Nobody has it: the files are continued in place and the sealed ref ends.
        let work = cache.get_mutable(&id).await.unwrap();
        assert!(!is_there(&cache, &sealed).await);
        assert_eq!(cache.search("local:x").unwrap(), std::slice::from_ref(&id));
        let dir = work.mount().await.unwrap();
        assert!(exists(&dir.path().join("a")));
        drop(dir);
        write(&work, "b", "two").await;
        let second = work.commit().await.unwrap();
        let local = second.local().unwrap();
        assert_eq!(read(&local, "b").await.as_deref(), Some("two"));
        drop((second, local));
        place.check(&cache).await;
        assert_eq!(cache.snapshotter().list().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn who_has_a_sealed_ref_keeps_its_files() {
    for place in [Place::new(), Place::overlay()] {
        let cache = place.open().await;
        let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
        let id = work.id().clone();
        write(&work, "a", "one").await;
        let first = work.commit().await.unwrap().local().unwrap();
        let mounted = first.mount().await.unwrap();
        let work = cache.get_mutable(&id).await.unwrap();
        let dir = work.mount().await.unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("a")).unwrap(),
            "one"
        );
        std::fs::write(dir.path().join("a"), "two").unwrap();
        drop(dir);
        assert_eq!(
            std::fs::read_to_string(mounted.path().join("a")).unwrap(),
            "one"
        );
        let second = work.commit().await.unwrap().local().unwrap();
        assert_eq!(read(&first, "a").await.as_deref(), Some("one"));
        assert_eq!(read(&second, "a").await.as_deref(), Some("two"));
        drop((mounted, first, second));
        place.check(&cache).await;
    }
}

#[tokio::test]
async fn what_stands_on_a_sealed_ref_keeps_its_files() {
    let place = Place::overlay();
    let cache = place.open().await;
    let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
    let id = work.id().clone();
    write(&work, "a", "one").await;
    let sealed = work.commit().await.unwrap();
    let child = commit(&cache, Some(&sealed), "child").await;
    let local = child.local().unwrap();
    assert_eq!(read(&local, "a").await.as_deref(), Some("one"));
    drop(sealed);
    let work = cache.get_mutable(&id).await.unwrap();
    write(&work, "a", "two").await;
    assert_eq!(read(&local, "a").await.as_deref(), Some("one"));
    drop((work, local, child));
    place.check(&cache).await;
}

#[tokio::test]
async fn hashes_that_were_told_are_believed_and_continued() {
    let place = Place::new();
    let cache = place.open().await;
    let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
    let id = work.id().clone();
    write(&work, "a", "other text than was told").await;
    work.set_content_hashes([told("a", "one")]);
    let first = work.commit().await.unwrap().local().unwrap();
    let FileSum(expected) = FileSum::of("a", "one");
    assert_eq!(sum(&first, "/a").await, expected);
    let whole = sum(&first, "/").await;
    first.retain().await.unwrap();
    drop(first);
    cache.close().await;
    drop(cache);
    // Also after a restart, and only the changes are told.
    let cache = place.open().await;
    let work = cache.get_mutable(&id).await.unwrap();
    work.set_content_hashes([]);
    let same = work.commit().await.unwrap().local().unwrap();
    assert_eq!(sum(&same, "/").await, whole);
    drop(same);
    let work = cache.get_mutable(&id).await.unwrap();
    work.set_content_hashes([told("b", "two")]);
    let second = work.commit().await.unwrap().local().unwrap();
    assert_eq!(sum(&second, "/a").await, expected);
    assert_eq!(sum(&second, "/b").await, FileSum::of("b", "two").0);
    assert_ne!(sum(&second, "/").await, whole);
    drop(second);
    // One that gave up in the middle leaves files that nobody knows the hashes of.
    let work = cache.get_mutable(&id).await.unwrap();
    write(&work, "a", "three").await;
    drop(work);
    let work = cache.get_mutable(&id).await.unwrap();
    work.set_content_hashes([]);
    let third = work.commit().await.unwrap().local().unwrap();
    assert_ne!(sum(&third, "/a").await, expected);
}

struct FileSum(String);

impl FileSum {
    fn of(name: &str, text: &str) -> Self {
        match told(name, text) {
            HashedChange::Set { digest, .. } => Self(digest.to_string()),
            HashedChange::Delete { .. } => unreachable!(),
        }
    }
}

#[tokio::test]
async fn computed_hashes_survive_a_restart() {
    let place = Place::new();
    let cache = place.open().await;
    let done = commit(&cache, None, "file").await;
    done.retain().await.unwrap();
    let local = done.local().unwrap();
    let before = sum(&local, "/").await;
    let error = local
        .checksum(Path::new("x/../no"), &Default::default())
        .await;
    assert_eq!(error.unwrap_err().to_string(), "\"/no\": not found");
    let id = done.id().clone();
    drop((done, local));
    cache.close().await;
    drop(cache);
    let cache = place.open().await;
    let slot = cache.shared.hashes.get(&id).unwrap();
    assert!(slot.tree.lock().unwrap().get(b"").unwrap().digest.is_some());
    let local = cache.get(&id).await.unwrap().local().unwrap();
    assert_eq!(sum(&local, "/").await, before);
}

#[tokio::test]
async fn a_retained_ref_is_never_on_a_volatile_mount() {
    let place = Place::overlay();
    let cache = place.open().await;
    let base = commit(&cache, None, "base").await.local().unwrap();
    let plain = cache
        .new_mutable(Some(&base), named("plain"))
        .await
        .unwrap();
    let volatile = |mounts: Vec<Mount>| mounts[0].options.iter().any(|option| option == "volatile");
    assert!(volatile(plain.mounts().await.unwrap()));
    let kept = cache
        .new_mutable(Some(&base), retained("cache-dir:x"))
        .await
        .unwrap();
    assert!(!volatile(kept.mounts().await.unwrap()));
}
