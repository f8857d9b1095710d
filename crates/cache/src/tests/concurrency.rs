use std::time::Duration;

use super::*;
use crate::CacheError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_has_a_retained_ref() {
    let place = Place::new();
    let cache = place.open().await;
    let first = cache
        .new_mutable(None, retained("cache-dir:x"))
        .await
        .unwrap();
    let id = first.id().clone();
    let error = cache.get_mutable(&id).await.unwrap_err();
    assert!(matches!(error, CacheError::Locked { .. }));
    assert_eq!(error.to_string(), format!("{id} is locked"));
    write(&first, "count", "0").await;
    drop(first);
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (cache, id, inside) = (cache.clone(), id.clone(), inside.clone());
            tokio::spawn(async move {
                let work = cache.wait_mutable(&id).await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                let dir = work.mount().await.unwrap();
                let path = dir.path().join("count");
                let count: u32 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
                tokio::task::yield_now().await;
                std::fs::write(&path, (count + 1).to_string()).unwrap();
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let work = cache.get_mutable(&id).await.unwrap();
    let dir = work.mount().await.unwrap();
    let count = std::fs::read_to_string(dir.path().join("count")).unwrap();
    assert_eq!(count, "8");
    drop((dir, work));
    place.check(&cache).await;
}

#[tokio::test]
async fn who_waits_gets_it_also_when_others_give_up() {
    let place = Place::new();
    let cache = place.open().await;
    let first = cache.new_mutable(None, retained("x")).await.unwrap();
    let id = first.id().clone();
    let short = tokio::time::timeout(Duration::from_millis(5), cache.wait_mutable(&id)).await;
    assert!(short.is_err());
    let (second, ()) = tokio::join!(cache.wait_mutable(&id), async { drop(first) });
    drop(second.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_chain_is_brought_once_for_all() {
    let place = Place::new();
    let cache = place.open().await;
    let mut top: Option<ImmutableRef> = None;
    for name in ["a", "b", "c"] {
        let next = cache
            .get_by_blob(top.as_ref(), layer(name), named(name))
            .await;
        top = Some(next.unwrap());
    }
    let top = top.unwrap();
    assert!(!top.is_local() && top.local().is_none());
    let fill = Arc::new(FillOne::default());
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (top, fill) = (top.clone(), fill.clone());
            tokio::spawn(async move { top.localize(&*fill).await.map(|_| ()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(fill.filled.load(Ordering::SeqCst), 3);
    assert!(fill.ahead.load(Ordering::SeqCst) >= 3);
    let local = top.local().unwrap();
    for name in ["a", "b", "c"] {
        let file = digest_of(name.as_bytes());
        assert_eq!(read(&local, file.digest()).await.as_deref(), Some("filled"));
    }
    drop((local, top));
    place.check(&cache).await;
}

#[tokio::test]
async fn when_one_gives_up_the_other_goes_on() {
    let place = Place::new();
    let cache = place.open().await;
    let lazy = cache
        .get_by_blob(None, layer("a"), named("a"))
        .await
        .unwrap();
    let (hangs, works) = (
        FillOne {
            hangs: true,
            ..FillOne::default()
        },
        FillOne::default(),
    );
    {
        let entered = hangs.entered.notified();
        let first = lazy.localize(&hangs);
        tokio::select! {
            _ = first => panic!("it hangs"),
            () = entered => {}
        }
    }
    let failing = FillOne {
        fails: true,
        ..FillOne::default()
    };
    let error = lazy.localize(&failing).await.unwrap_err();
    assert!(matches!(error, CacheError::Fill { .. }));
    let local = lazy.localize(&works).await.unwrap();
    assert_eq!(works.filled.load(Ordering::SeqCst), 1);
    drop((lazy, local));
    place.check(&cache).await;
}

#[tokio::test]
async fn the_same_blobs_are_the_same_ref() {
    let place = Place::new();
    let cache = place.open().await;
    let base = cache
        .get_by_blob(None, layer("a"), named("a"))
        .await
        .unwrap();
    let again = cache
        .get_by_blob(None, layer("a"), named("b"))
        .await
        .unwrap();
    assert_eq!(base, again);
    // From another image too: it can be fetched from either.
    let mut other = layer("a");
    other.sources = vec!["example.com/other".into()];
    cache.get_by_blob(None, other, named("c")).await.unwrap();
    let sources = base.layer().unwrap().sources;
    assert_eq!(sources, ["example.com/other", "example.com/a:latest"]);
    // Also when only its layers are named, and not those that nobody knows.
    let mut third = layer("a");
    third.sources = vec!["example.com/third".into()];
    cache.note_sources(&[third, layer("new")]).await.unwrap();
    assert_eq!(base.layer().unwrap().sources[0], "example.com/third");
    let top = cache.get_by_blob(Some(&base), layer("a"), named("d")).await;
    assert_ne!(top.unwrap(), base);
    // A ref that was packed is found as well.
    let made = commit(&cache, None, "made").await;
    made.set_layer(layer("made")).await.unwrap();
    let found = cache.get_by_blob(None, layer("made"), named("x")).await;
    assert_eq!(found.unwrap(), made);
}

#[tokio::test]
async fn the_same_content_in_other_blobs_is_not_fetched() {
    let place = Place::overlay();
    let cache = place.open().await;
    let one = cache
        .get_by_blob(None, layer("a"), named("gzip"))
        .await
        .unwrap();
    one.localize(&FillOne::default()).await.unwrap();
    let other = layer_of("a", &digest_of(b"zstd"));
    let other = cache.get_by_blob(None, other, named("zstd")).await.unwrap();
    assert_ne!(one, other);
    let fill = FillOne::default();
    let local = other.localize(&fill).await.unwrap();
    assert_eq!(fill.filled.load(Ordering::SeqCst), 0);
    let id = one.id().clone();
    drop(one);
    assert!(is_there(&cache, &id).await, "its snapshot is in use");
    let file = digest_of(b"a");
    assert_eq!(read(&local, file.digest()).await.as_deref(), Some("filled"));
    drop((other, local));
    assert!(!is_there(&cache, &id).await);
    place.check(&cache).await;
}
