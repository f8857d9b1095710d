//! What is there after the process or the machine died.

use super::*;
use crate::CacheError;
use crate::record::OPENED;

/// Runs `work` in a runtime that ends with everything that it held, at once.
fn and_die<T: Send + 'static>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

#[test]
fn the_process_dies_and_what_was_acknowledged_is_there() {
    let place = Place::overlay();
    let (done, mount, sealed) = and_die(async {
        let cache = place.open().await;
        let base = commit(&cache, None, "base").await;
        let done = commit(&cache, Some(&base), "done").await;
        let half = cache
            .new_mutable(done.local().as_ref(), named("half"))
            .await;
        let mount = cache
            .new_mutable(None, retained("cache-dir:x"))
            .await
            .unwrap();
        write(&mount, "file", "kept").await;
        let source = cache.new_mutable(None, retained("local:x")).await.unwrap();
        write(&source, "source", "text").await;
        let sealed = source.commit().await.unwrap();
        for acknowledged in [&done, &sealed] {
            acknowledged.retain().await.unwrap();
        }
        let ids = (done.id().clone(), mount.id().clone(), sealed.id().clone());
        std::mem::forget((base, done, half.unwrap(), mount, sealed));
        ids
    });
    and_die(async {
        let cache = place.open().await;
        place.check(&cache).await;
        let done = cache.get(&done).await.unwrap().local().unwrap();
        assert_eq!(read(&done, "base").await.as_deref(), Some("base"));
        let work = cache.get_mutable(&mount).await.unwrap();
        let dir = work.mount().await.unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("file")).unwrap(),
            "kept"
        );
        let sealed = cache.get(&sealed).await.unwrap().local().unwrap();
        assert_eq!(read(&sealed, "source").await.as_deref(), Some("text"));
    });
}

#[test]
fn the_process_dies_and_what_nobody_had_asked_for_is_gone() {
    let place = Place::overlay();
    and_die(async {
        let cache = place.open().await;
        let base = commit(&cache, None, "base").await;
        let kept = commit(&cache, Some(&base), "kept").await;
        kept.retain().await.unwrap();
        // Done, and nobody has said yet that it is to stay.
        let middle = commit(&cache, Some(&kept), "middle").await;
        let top = commit(&cache, Some(&middle), "top").await;
        std::mem::forget((base, kept, middle, top));
    });
    and_die(async {
        let cache = place.open().await;
        place.check(&cache).await;
        let shown = cache.disk_usage().await.unwrap();
        let shown: Vec<_> = shown.iter().map(|one| one.description.as_str()).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert_eq!(cache.snapshotter().list().await.unwrap().len(), 2);
        // Nothing that is not shown keeps what is shown from being pruned.
        let all = crate::PruneOptions {
            all: true,
            ..crate::PruneOptions::default()
        };
        cache.prune(all).await.unwrap();
        assert_eq!(cache.snapshotter().list().await.unwrap(), []);
    });
}

#[test]
fn the_machine_dies_and_nothing_is_wrong() {
    let place = Place::new();
    let (safe, lost, open, closed) = and_die(async {
        let cache = place.open().await;
        let safe = commit(&cache, None, "safe").await;
        safe.retain().await.unwrap();
        let open = cache
            .new_mutable(None, retained("cache-dir:open"))
            .await
            .unwrap();
        let closed = cache
            .new_mutable(None, retained("cache-dir:closed"))
            .await
            .unwrap();
        let ids = (safe.id().clone(), open.id().clone(), closed.id().clone());
        drop((open, closed));
        // The checkpoint of the store of these tests, in the boot that it was opened in.
        checkpoint(&cache).await;
        // Got again after the checkpoint, whose row is durable: written in place.
        let open = cache.get_mutable(&ids.1).await.unwrap();
        let lost = commit(&cache, Some(&safe), "lost").await;
        let lost_id = lost.id().clone();
        std::mem::forget((safe, open, lost));
        (ids.0, lost_id, ids.1, ids.2)
    });
    and_die(async {
        let cache = place.open_in("another boot").await;
        place.check(&cache).await;
        assert!(cache.get(&safe).await.is_ok());
        assert!(cache.get(&lost).await.is_err());
        assert!(cache.get_mutable(&closed).await.is_ok());
        let error = cache.get_mutable(&open).await.unwrap_err();
        assert!(matches!(error, CacheError::NotFound { .. }));
    });
}

/// What the keeper does some seconds after something was written.
async fn checkpoint(cache: &CacheManager) {
    cache.settle().await;
    cache.shared.core.checkpoint().await.unwrap();
}

#[test]
fn what_was_checkpointed_survives_whatever_is_done_with_it_since() {
    let place = Place::new();
    let (base, top, lazy, mount) = and_die(async {
        let cache = place.open().await;
        let base = commit(&cache, None, "base").await;
        let top = commit(&cache, Some(&base), "top").await;
        let lazy = cache.get_by_blob(None, layer("lazy"), named("lazy")).await;
        let lazy = lazy.unwrap();
        for one in [&base, &top, &lazy] {
            one.retain().await.unwrap();
        }
        let mount = cache.new_mutable(None, retained("cache-dir:x")).await;
        let mount = mount.unwrap();
        write(&mount, "file", "kept").await;
        let id = mount.id().clone();
        drop(mount);
        checkpoint(&cache).await;
        // Packed into a layer, found by another name, named by another image, used.
        base.set_layer(layer("base")).await.unwrap();
        top.add_index("found").await.unwrap();
        let other = Layer {
            sources: vec!["another".into()],
            ..layer("lazy")
        };
        let again = cache.get_by_blob(None, other, named("lazy")).await.unwrap();
        assert_eq!(again, lazy);
        drop(cache.get(base.id()).await.unwrap());
        cache.settle().await;
        let ids = (base.id().clone(), top.id().clone(), lazy.id().clone(), id);
        std::mem::forget((base, top, lazy, again));
        ids
    });
    and_die(async {
        let cache = place.open_in("another boot").await;
        place.check(&cache).await;
        for id in [&base, &top] {
            let found = cache.get(id).await.unwrap().local().unwrap();
            assert_eq!(read(&found, "base").await.as_deref(), Some("base"));
        }
        assert!(cache.get(&lazy).await.is_ok());
        let mount = cache.get_mutable(&mount).await.unwrap();
        let dir = mount.mount().await.unwrap();
        let text = std::fs::read_to_string(dir.path().join("file")).unwrap();
        assert_eq!(text, "kept");
    });
}

#[test]
fn what_was_written_again_and_pruned_does_not_come_back() {
    let place = Place::new();
    let id = and_die(async {
        let cache = place.open().await;
        let done = commit(&cache, None, "done").await;
        done.retain().await.unwrap();
        checkpoint(&cache).await;
        done.add_index("found").await.unwrap();
        let (id, durable) = (done.id().clone(), &cache.shared.core.durable);
        let seq = cache.shared.core.state().get(&id).unwrap().seq;
        assert!(seq <= durable.load(Ordering::SeqCst), "it may come back");
        drop(done);
        let all = crate::PruneOptions {
            all: true,
            ..crate::PruneOptions::default()
        };
        cache.prune(all).await.unwrap();
        id
    });
    and_die(async {
        let cache = place.open_in("another boot").await;
        place.check(&cache).await;
        assert!(cache.get(&id).await.is_err());
    });
}

#[test]
fn a_sealed_ref_that_was_continued_does_not_come_back() {
    let place = Place::new();
    let (sealed, source) = and_die(async {
        let cache = place.open().await;
        let work = cache.new_mutable(None, retained("local:x")).await.unwrap();
        let source = work.id().clone();
        write(&work, "a", "one").await;
        let sealed = work.commit().await.unwrap();
        sealed.retain().await.unwrap();
        let id = sealed.id().clone();
        drop(sealed);
        checkpoint(&cache).await;
        let work = cache.get_mutable(&source).await.unwrap();
        write(&work, "a", "two").await;
        std::mem::forget(work);
        (id, source)
    });
    and_die(async {
        let cache = place.open_in("another boot").await;
        place.check(&cache).await;
        assert!(cache.get(&sealed).await.is_err());
        assert!(cache.get_mutable(&source).await.is_err());
    });
}

#[tokio::test]
async fn a_checkpoint_covers_what_is_quiet() {
    let place = Place::new();
    let cache = place.open().await;
    let quiet = cache.new_mutable(None, retained("a")).await.unwrap();
    let busy = cache.new_mutable(None, retained("b")).await.unwrap();
    let id = busy.id().clone();
    drop(quiet);
    cache.close().await;
    let opened = cache.shared.store.read(|tx| tx.scan(&OPENED, "")).unwrap();
    assert_eq!(opened, [(id.to_string(), ())]);
    assert!(cache.shared.durable.load(Ordering::SeqCst) > 0);
    // It goes on after it was closed.
    drop(busy);
    let done = commit(&cache, None, "done").await;
    drop(done);
    place.check(&cache).await;
}

#[tokio::test]
async fn a_blob_that_did_not_survive_is_not_found() {
    let place = Place::new();
    let whole = place.content.write_all(b"whole").await.unwrap();
    let cache = place.open().await;
    drop(cache);
    // Dropped rows tell that the machine has died; what is whole stays.
    let (store, _) = Store::open(
        &place.dir.path().join("store.db"),
        &cooper_sys::boot_id().unwrap(),
    )
    .unwrap();
    let dropped = vec![cooper_store::Dropped {
        table: "other".into(),
        key: "x".into(),
    }];
    place.open_with(store, dropped).await;
    assert!(place.content.info(&whole).await.is_ok());
}

#[tokio::test]
async fn mounts_of_a_dead_process_are_gone() {
    let place = Place::new();
    let folder = place.mounts().join("mounted-1-1");
    std::fs::create_dir_all(&folder).unwrap();
    let source = place.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let options = ["bind".to_owned()];
    let guard = cooper_sys::MountGuard::mount("bind", &source, &options, &folder).unwrap();
    std::mem::forget(guard);
    let cache = place.open().await;
    place.check(&cache).await;
    assert!(exists(&source));
}
