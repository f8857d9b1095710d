//! Refs with the changes of others on parents of their own.

use super::*;
use crate::PruneOptions;

async fn made(cache: &CacheManager, name: &str) -> ImmutableRef {
    let one = commit(cache, None, name).await;
    one.retain().await.unwrap();
    one
}

async fn stack(cache: &CacheManager, below: &ImmutableRef, over: &ImmutableRef) -> ImmutableRef {
    let options = named("merge");
    cache.stack(Some(below), over, options).await.unwrap()
}

#[tokio::test]
async fn they_are_lazy_and_share_the_files() {
    for overlay in [true, false] {
        let place = if overlay {
            Place::overlay()
        } else {
            Place::new()
        };
        let cache = &place.open().await;
        let (below, over) = (made(cache, "below").await, made(cache, "over").await);
        let merged = stack(cache, &below, &over).await;
        assert!(!merged.is_local());
        assert_eq!(merged.repeats(), Some(over.clone()));
        // The same again is the same, also by way of another that has these changes.
        assert_eq!(stack(cache, &below, &over).await, merged);
        let other = made(cache, "other").await;
        let longer = stack(cache, &merged, &other).await;
        assert_eq!(
            stack(cache, &below, &merged).await,
            merged,
            "these changes are there"
        );
        let fill = FillOne::default();
        let local = longer.localize(&fill).await.unwrap();
        for name in ["below", "over", "other"] {
            assert_eq!(read(&local, name).await.as_deref(), Some(name));
        }
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        assert_eq!((of(&fill.repeated), of(&fill.filled)), (2, 0));
        // A file that several have is one, and belongs to the oldest.
        let usage = cache.disk_usage().await.unwrap();
        let size = |one: &ImmutableRef| {
            let found = usage.iter().find(|record| record.id == *one.id());
            found.unwrap().size
        };
        if overlay {
            assert!(size(&over) > size(&merged), "{usage:#?}");
        }
        let parents = |one: &ImmutableRef| {
            let found = usage.iter().find(|record| record.id == *one.id());
            found.unwrap().parents.clone()
        };
        assert_eq!(
            parents(&merged),
            [below.id().clone(), over.id().clone()],
            "a user sees of what it is made"
        );
        let verified = cache.verify().await.unwrap();
        assert!(verified.differences.is_empty(), "{verified:?}");
    }
}

#[tokio::test]
async fn whose_changes_they_have_stays_as_long_as_they_do() {
    let place = Place::overlay();
    let cache = &place.open().await;
    let (below, over) = (made(cache, "below").await, made(cache, "over").await);
    let merged = stack(cache, &below, &over).await;
    merged.retain().await.unwrap();
    let ids = [&below, &over, &merged].map(|one| one.id().clone());
    drop((below, over));
    cache.settle().await;
    // Only the one on top is free to go, as long as somebody has it not even that.
    let all = || PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert!(cache.prune(all()).await.unwrap().is_empty());
    drop(merged);
    cache.close().await;
    // It is there after a restart.
    let cache = &place.open().await;
    let merged = cache.get(&ids[2]).await.unwrap();
    assert_eq!(merged.repeats().unwrap().id(), &ids[1]);
    let local = merged.localize(&FillOne::default()).await.unwrap();
    assert_eq!(read(&local, "over").await.as_deref(), Some("over"));
    drop((merged, local));
    let gone = cache.prune(all()).await.unwrap();
    assert_eq!(gone.len(), 3, "{gone:?}");
    assert_eq!(gone[0].id, ids[2], "what stands on others goes first");
}

#[tokio::test]
async fn of_a_layer_that_was_fetched_only_the_layer_counts() {
    let place = Place::overlay();
    let cache = &place.open().await;
    let below = made(cache, "below").await;
    let image = cache.get_by_blob(None, layer("image"), named("image"));
    let image = image.await.unwrap();
    let lazy = stack(cache, &below, &image).await;
    let fill = FillOne::default();
    image.localize(&fill).await.unwrap();
    // What is on disk of it need not be all that is in the layer.
    assert_eq!(stack(cache, &below, &image).await.repeats(), None);
    assert_eq!(lazy.repeats(), None);
    assert_eq!(lazy.layer().unwrap().diff_id, layer("image").diff_id);
    // Of one that was packed here they are the same.
    let over = made(cache, "over").await;
    over.set_layer(layer("packed")).await.unwrap();
    let merged = stack(cache, &below, &over).await;
    assert_eq!(merged.repeats(), Some(over));
    assert_eq!(merged.layer(), Some(layer("packed")));
}

#[tokio::test]
async fn what_could_be_continued_is_finished_first() {
    let place = Place::overlay();
    let cache = &place.open().await;
    let below = made(cache, "below").await;
    let work = cache.new_mutable(None, retained("index")).await.unwrap();
    let id = work.id().clone();
    write(&work, "file", "first").await;
    let sealed = work.commit().await.unwrap();
    let merged = stack(cache, &below, &sealed).await;
    drop(sealed);
    let local = merged.localize(&FillOne::default()).await.unwrap();
    let again = cache.get_mutable(&id).await.unwrap();
    write(&again, "file", "second").await;
    assert_eq!(read(&local, "file").await.as_deref(), Some("first"));
}
