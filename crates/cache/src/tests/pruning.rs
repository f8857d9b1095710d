use std::time::Duration;

use super::*;
use crate::{PruneOptions, RecordType};

/// A kept ref of about `kib` KiB that nobody has.
pub(super) async fn kept(cache: &CacheManager, parent: Option<&RefId>, kib: usize) -> RefId {
    let parent = match parent {
        Some(parent) => cache.get(parent).await.unwrap().local(),
        None => None,
    };
    let work = cache
        .new_mutable(parent.as_ref(), named("kept"))
        .await
        .unwrap();
    write(&work, "data", &"x".repeat(kib << 10)).await;
    let done = work.commit().await.unwrap();
    done.retain().await.unwrap();
    done.id().clone()
}

#[tokio::test]
async fn usage_tells_sizes_and_who_is_in_use() {
    let place = Place::overlay();
    let cache = place.open().await;
    let base = kept(&cache, None, 64).await;
    let top = kept(&cache, Some(&base), 128).await;
    let find = |all: &[crate::UsageRecord], id: &RefId| {
        all.iter().find(|record| record.id == *id).unwrap().clone()
    };
    let all = cache.disk_usage().await.unwrap();
    assert_eq!(all.len(), 2);
    let (below, above) = (find(&all, &base), find(&all, &top));
    assert!(
        below.size >= 64 << 10 && below.size < 100 << 10,
        "{}",
        below.size
    );
    assert!(above.size >= 128 << 10 && above.size < 170 << 10);
    assert_eq!(above.parents, std::slice::from_ref(&base));
    assert!(!below.in_use && !above.in_use && !above.mutable);
    assert!(above.last_used_at.is_some() && above.usage_count > 0);
    let handle = cache.get(&top).await.unwrap();
    let all = cache.disk_usage().await.unwrap();
    assert!(find(&all, &base).in_use && find(&all, &top).in_use);
    let pruned = cache.prune(PruneOptions::default()).await.unwrap();
    assert!(pruned.is_empty(), "all are in use");
    drop(handle);
    let work = cache
        .new_mutable(None, retained("cache-dir:x"))
        .await
        .unwrap();
    let all = cache.disk_usage().await.unwrap();
    let record = find(&all, work.id());
    assert!(record.mutable && record.in_use);
    drop(work);
    // Of a source and what is sealed over it one is shown.
    let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
    let source = work.id().clone();
    let sealed = work.commit().await.unwrap();
    sealed.retain().await.unwrap();
    let ids = |all: Vec<crate::UsageRecord>| -> Vec<RefId> {
        all.into_iter().map(|record| record.id).collect()
    };
    let shown = ids(cache.disk_usage().await.unwrap());
    assert!(shown.contains(sealed.id()) && !shown.contains(&source));
    let (sealed, handle) = (sealed.id().clone(), sealed);
    drop(handle);
    let shown = ids(cache.disk_usage().await.unwrap());
    assert!(!shown.contains(&sealed) && shown.contains(&source));
}

#[tokio::test]
async fn pruning_ends_what_is_not_spared() {
    let place = Place::new();
    let cache = place.open().await;
    let base = kept(&cache, None, 4).await;
    let top = kept(&cache, Some(&base), 4).await;
    let frontend = cache.get(&kept(&cache, None, 4).await).await.unwrap();
    frontend
        .set_record_type(RecordType::Frontend)
        .await
        .unwrap();
    let (frontend, handle) = (frontend.id().clone(), frontend);
    drop(handle);
    let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
    let sealed = work.commit().await.unwrap();
    sealed.retain().await.unwrap();
    drop(sealed);
    // Recently used things are spared.
    let options = PruneOptions {
        keep_duration: Duration::from_secs(3600),
        ..PruneOptions::default()
    };
    assert!(cache.prune(options).await.unwrap().is_empty());
    let only = base.clone();
    let options = PruneOptions {
        filter: Some(Arc::new(move |record| record.id == only)),
        ..PruneOptions::default()
    };
    assert!(
        cache.prune(options).await.unwrap().is_empty(),
        "a child stands on it"
    );
    let pruned = cache.prune(PruneOptions::default()).await.unwrap();
    let mut ids: Vec<RefId> = pruned.into_iter().map(|record| record.id).collect();
    // What is on top goes first.
    let at = |id: &RefId| ids.iter().position(|one| one == id).unwrap();
    assert!(at(&top) < at(&base));
    ids.retain(|id| *id != top && *id != base);
    assert_eq!(ids.len(), 1, "the source: {ids:?}");
    assert!(is_there(&cache, &frontend).await);
    let all = PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert_eq!(cache.prune(all).await.unwrap().len(), 1);
    place.check(&cache).await;
    assert_eq!(cache.snapshotter().list().await.unwrap(), []);
}

#[tokio::test]
async fn pruning_to_a_size_takes_the_least_used_first() {
    let place = Place::new();
    let cache = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(kept(&cache, None, 256).await);
    }
    for _ in 0..3 {
        // The second is used most, and last.
        drop(cache.get(&ids[1]).await.unwrap());
    }
    let options = PruneOptions {
        max_used_space: 600 << 10,
        ..PruneOptions::default()
    };
    let pruned = cache.prune(options.clone()).await.unwrap();
    assert_eq!(pruned.len(), 2);
    assert!(pruned.iter().all(|record| record.id != ids[1]));
    assert!(cache.prune(options).await.unwrap().is_empty());
    place.check(&cache).await;
}

#[tokio::test]
async fn a_blob_goes_with_the_last_record_that_has_it() {
    let place = Place::new();
    let cache = place.open().await;
    let blob = place.content.write_all(b"blob").await.unwrap();
    let one = commit(&cache, None, "one").await;
    one.set_layer(layer_of("one", &blob)).await.unwrap();
    let other = commit(&cache, None, "other").await;
    other.set_layer(layer_of("other", &blob)).await.unwrap();
    let usage = cache.disk_usage().await.unwrap();
    assert!(usage.iter().all(|record| record.size >= 4));
    drop(one);
    cache.settle().await;
    assert!(place.content.info(&blob).await.is_ok());
    drop(other);
    cache.settle().await;
    assert!(place.content.info(&blob).await.is_err());
}
