use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::CacheError;

#[tokio::test]
async fn what_is_committed_is_read_and_stands_on_its_parent() {
    for place in [Place::new(), Place::overlay()] {
        let cache = place.open().await;
        let base = commit(&cache, None, "base").await;
        let top = commit(&cache, Some(&base), "top").await;
        let local = top.local().unwrap();
        assert_eq!(read(&local, "base").await.as_deref(), Some("base"));
        assert_eq!(read(&local, "top").await.as_deref(), Some("top"));
        assert_eq!(top.parent().as_ref(), Some(&base));
        assert_eq!(top.chain(), [base.clone(), top.clone()]);
        assert_eq!(top.description(), "top");
        let (lower, upper) = local.diff_mounts().await.unwrap();
        assert!(!lower.is_empty() && !upper.is_empty());
        // Read-only, and as often as wanted.
        let (one, other) = (local.mount().await.unwrap(), local.mount().await.unwrap());
        assert!(std::fs::write(one.path().join("x"), "x").is_err());
        assert!(exists(&other.path().join("top")));
        drop((one, other));
        drop((base, top, local));
        place.check(&cache).await;
    }
}

#[tokio::test]
async fn nobody_holds_it_and_nobody_keeps_it() {
    let place = Place::new();
    let cache = place.open().await;
    let base = commit(&cache, None, "base").await;
    let top = commit(&cache, Some(&base), "top").await;
    let (below, above) = (base.id().clone(), top.id().clone());
    drop(base);
    assert!(is_there(&cache, &below).await, "a child holds it");
    top.retain().await.unwrap();
    drop(top);
    assert!(is_there(&cache, &above).await, "it is kept");
    assert!(is_there(&cache, &below).await, "and what it stands on");
    let waste = commit(&cache, Some(&cache.get(&above).await.unwrap()), "waste").await;
    let id = waste.id().clone();
    let removed = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = removed.clone();
    cache.on_removed(move |id, _| told.lock().unwrap().push(id.clone()));
    let other = waste.clone();
    drop(waste);
    assert!(is_there(&cache, &id).await, "a clone holds it");
    // A view outlives no handle.
    let local = other.local().unwrap();
    drop(local.mount().await.unwrap());
    drop((other, local));
    assert!(!is_there(&cache, &id).await);
    assert_eq!(*removed.lock().unwrap(), [id]);
    place.check(&cache).await;
}

#[tokio::test]
async fn dropping_a_mutable_ref_discards_it() {
    let place = Place::new();
    let cache = place.open().await;
    let work = cache.new_mutable(None, named("gone")).await.unwrap();
    write(&work, "file", "text").await;
    drop(work);
    place.check(&cache).await;
    assert_eq!(cache.snapshotter().list().await.unwrap(), []);
}

#[tokio::test]
async fn indexes_are_found_also_after_a_restart() {
    let place = Place::new();
    let cache = place.open().await;
    let kept = commit(&cache, None, "kept").await;
    kept.add_index("git:x").await.unwrap();
    kept.add_index("git:x").await.unwrap();
    kept.retain().await.unwrap();
    let mount = cache
        .new_mutable(None, retained("cache-dir:a"))
        .await
        .unwrap();
    mount.add_index("cache-dir:b").await.unwrap();
    let (kept, mount) = (kept.id().clone(), mount.id().clone());
    cache.close().await;
    drop(cache);
    let cache = place.open().await;
    assert_eq!(cache.search("git:x").unwrap(), [kept]);
    for index in ["cache-dir:a", "cache-dir:b"] {
        assert_eq!(cache.search(index).unwrap(), std::slice::from_ref(&mount));
    }
    assert!(cache.search("git:y").unwrap().is_empty());
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_an_error() {
    let place = Place::new();
    let cache = place.open().await;
    let id = RefId::random();
    assert!(matches!(
        cache.get(&id).await,
        Err(CacheError::NotFound { .. })
    ));
    assert!(cache.get_mutable(&id).await.unwrap_err().is_not_found());
    let done = commit(&cache, None, "done").await;
    let error = cache.get_mutable(done.id()).await.unwrap_err();
    assert!(matches!(error, CacheError::NotMutable { .. }));
    let work = cache.new_mutable(None, named("work")).await.unwrap();
    assert!(cache.get(work.id()).await.is_err(), "it is not immutable");
}

/// One step of a life with several refs.
#[derive(Clone, Debug)]
enum Step {
    New { parent: Option<usize>, retain: bool },
    Commit(usize),
    DropMutable(usize),
    Get(usize),
    DropImmutable(usize),
    Keep(usize),
    Mount(usize),
    Blob { parent: Option<usize>, layer: u8 },
    Localize(usize),
    Checksum(usize),
    Prune,
}

fn step() -> impl Strategy<Value = Step> {
    let any = || 0..8usize;
    let parent = || proptest::option::of(0..8usize);
    prop_oneof![
        3 => (parent(), proptest::bool::ANY).prop_map(|(parent, retain)| Step::New { parent, retain }),
        3 => any().prop_map(Step::Commit),
        1 => any().prop_map(Step::DropMutable),
        2 => any().prop_map(Step::Get),
        2 => any().prop_map(Step::DropImmutable),
        1 => any().prop_map(Step::Keep),
        1 => any().prop_map(Step::Mount),
        2 => (parent(), 0..3u8).prop_map(|(parent, layer)| Step::Blob { parent, layer }),
        2 => any().prop_map(Step::Localize),
        1 => any().prop_map(Step::Checksum),
        1 => Just(Step::Prune),
    ]
}

#[derive(Default)]
struct Held {
    mutable: Vec<MutableRef>,
    immutable: Vec<ImmutableRef>,
    ids: Vec<RefId>,
}

impl Held {
    fn pick<T>(list: &[T], index: usize) -> Option<&T> {
        (!list.is_empty()).then(|| &list[index % list.len()])
    }

    async fn take(&mut self, cache: &CacheManager, step: Step) -> Result<(), CacheError> {
        match step {
            Step::New { parent, retain } => {
                let parent = parent.and_then(|parent| Self::pick(&self.immutable, parent));
                let parent = parent.and_then(ImmutableRef::local);
                let options = RecordOptions {
                    retain,
                    ..named("work")
                };
                let made = cache.new_mutable(parent.as_ref(), options).await?;
                self.ids.push(made.id().clone());
                self.mutable.push(made);
            }
            Step::Commit(index) if !self.mutable.is_empty() => {
                let work = self.mutable.swap_remove(index % self.mutable.len());
                let done = work.commit().await?;
                self.ids.push(done.id().clone());
                self.immutable.push(done);
            }
            Step::DropMutable(index) if !self.mutable.is_empty() => {
                drop(self.mutable.swap_remove(index % self.mutable.len()));
            }
            Step::DropImmutable(index) if !self.immutable.is_empty() => {
                self.immutable.swap_remove(index % self.immutable.len());
            }
            Step::Get(index) => {
                if let Some(id) = Self::pick(&self.ids, index).cloned() {
                    match cache.get_mutable(&id).await {
                        Ok(work) => self.mutable.push(work),
                        Err(_) => self.immutable.extend(cache.get(&id).await.ok()),
                    }
                }
            }
            Step::Keep(index) => {
                if let Some(one) = Self::pick(&self.immutable, index) {
                    one.retain().await?;
                }
            }
            Step::Mount(index) => {
                if let Some(local) = Self::pick(&self.immutable, index).and_then(|r| r.local()) {
                    drop(local.mount().await?);
                }
            }
            Step::Blob { parent, layer } => {
                let parent = parent.and_then(|parent| Self::pick(&self.immutable, parent));
                let layer = super::layer(&layer.to_string());
                let found = cache.get_by_blob(parent, layer, named("blob")).await?;
                self.ids.push(found.id().clone());
                self.immutable.push(found);
            }
            Step::Localize(index) => {
                if let Some(one) = Self::pick(&self.immutable, index) {
                    one.localize(&FillOne::default()).await?;
                }
            }
            Step::Checksum(index) => {
                if let Some(local) = Self::pick(&self.immutable, index).and_then(|r| r.local()) {
                    local.checksum(Path::new("/"), &Default::default()).await?;
                }
            }
            Step::Prune => {
                cache.prune(Default::default()).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Polls `future` at most `polls` times and then drops it.
async fn give_up<F: Future>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
        std::task::Poll::Pending => {
            left -= 1;
            std::task::Poll::Pending
        }
    })
    .await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is done, given up in the middle of or panics: nothing is left that no record
    /// owns; and what a restart finds is what was acknowledged and kept.
    #[test]
    fn nothing_is_left_behind(
        steps in proptest::collection::vec((step(), 0..9u32), 1..30),
        overlay in any::<bool>(),
        ending in 0..3u8,
    ) {
        let place = if overlay { Place::overlay() } else { Place::new() };
        let runtime = || tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let first = runtime();
        let kept = first.block_on(async {
            let cache = place.open().await;
            let mut held = Held::default();
            for (step, polls) in steps {
                // Most steps get done: eight polls are more than any of them takes.
                if let Some(Err(error)) = give_up(held.take(&cache, step.clone()), polls).await {
                    let pruned = error.is_not_found() || matches!(error, CacheError::Locked { .. });
                    assert!(pruned, "{step:?}: {error}");
                }
            }
            let acknowledged: Vec<RefId> = held.immutable.iter().map(|r| r.id().clone()).collect();
            for one in &held.immutable {
                one.retain().await.unwrap();
            }
            match ending {
                0 => drop(held),
                1 => {
                    let panicked = AssertUnwindSafe(async move {
                        let _held = held;
                        panic!("on purpose");
                    });
                    assert!(panicked.catch_unwind().await.is_err());
                }
                // The process dies while they are held.
                _ => {
                    std::mem::forget(held);
                    return acknowledged;
                }
            }
            place.check(&cache).await;
            acknowledged
        });
        first.shutdown_timeout(Duration::from_secs(10));
        let second = runtime();
        second.block_on(async {
            let cache = place.open().await;
            place.check(&cache).await;
            for id in &kept {
                let again = cache.get(id).await;
                prop_assert!(again.is_ok(), "{id} is lost");
                let again = again.unwrap();
                let local = again.localize(&FillOne::default()).await;
                prop_assert!(local.is_ok(), "{id}: {local:?}");
                drop(local.unwrap().mount().await.unwrap());
            }
            cache.prune(crate::PruneOptions { all: true, ..Default::default() }).await.unwrap();
            place.check(&cache).await;
            prop_assert_eq!(cache.snapshotter().list().await.unwrap(), []);
            Ok(())
        })?;
    }
}
