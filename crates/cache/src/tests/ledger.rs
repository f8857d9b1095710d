//! Every byte belongs to one record, and limits hold while steps write.

use std::time::Duration;

use super::pruning::kept;
use super::*;
use crate::{CacheError, CacheLimits, PruneOptions, RecordType, Why, Written};

/// The ledger says what the file system says.
async fn agrees(cache: &CacheManager) {
    let found = cache.verify().await.unwrap();
    assert_eq!(found.differences, [], "{found:?}");
    assert_eq!(found.ledger, found.disk, "{found:?}");
}

#[tokio::test]
async fn what_the_ledger_does_not_know_is_named() {
    let place = Place::overlay();
    let cache = place.open().await;
    let one = kept(&cache, None, 64).await;
    kept(&cache, Some(&one), 64).await;
    agrees(&cache).await;
    // A file that grew behind its back, a folder and a blob of nobody, a blob that went.
    let lost = cache.content().write_all(b"lost").await.unwrap();
    let local = cache.get(&one).await.unwrap().local().unwrap();
    let dir = local.mounts().await.unwrap()[0].source.clone();
    std::fs::write(dir.join("more"), vec![1; 1 << 20]).unwrap();
    let stray = place.dir.path().join("snapshots/s/stray");
    std::fs::create_dir(&stray).unwrap();
    place.content.delete(&lost).await.unwrap();
    let blob = place.content.write_all(b"somebody else's").await.unwrap();
    let found = cache.verify().await.unwrap();
    let named: Vec<String> = found.differences.iter().map(ToString::to_string).collect();
    let has = |what: &str, how: &str| {
        let found = named
            .iter()
            .any(|one| one.contains(what) && one.contains(how));
        assert!(found, "{what} {how}: {named:?}");
    };
    assert_eq!(named.len(), 4, "{named:?}");
    has(one.as_str(), "the ledger says");
    has("s/stray", "belongs to no record");
    has(blob.as_ref(), "belongs to no record");
    has(lost.as_ref(), "is not there");
}

#[tokio::test]
async fn a_blob_of_no_ref_is_a_record_and_stays_while_a_build_has_seen_it() {
    let place = Place::overlay();
    let cache = place.open().await;
    let build = cache.work();
    let manifest = cache.content().write_all(b"manifest").await.unwrap();
    let find = |all: &[crate::UsageRecord]| {
        let wanted = all.iter().find(|one| one.id.as_str() == manifest.digest());
        wanted.cloned()
    };
    let shown = find(&cache.disk_usage().await.unwrap()).unwrap();
    assert!(shown.in_use && shown.size == 8, "{shown:?}");
    let all = PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert!(cache.prune(all.clone()).await.unwrap().is_empty());
    // One that began later does not need what it has not seen.
    let later = cache.work();
    drop(build);
    let plan = cache.plan_prune(&all).await.unwrap();
    assert!(find(&plan.goes).is_some(), "{plan:?}");
    // It looks whether it is there: from then on it counts on that.
    cache.content().info(&manifest).await.unwrap();
    assert!(cache.prune(all.clone()).await.unwrap().is_empty());
    drop(later);
    assert!(find(&cache.prune(all).await.unwrap()).is_some());
    assert!(cache.content().info(&manifest).await.is_err());
    agrees(&cache).await;
}

#[tokio::test]
async fn bytes_that_two_records_have_belong_to_the_older() {
    let place = Place::overlay();
    let cache = place.open().await;
    let blob = cache.content().write_all(&[7; 5000]).await.unwrap();
    let one = commit(&cache, None, "one").await;
    let other = commit(&cache, None, "other").await;
    let sizes = async || {
        let all = cache.disk_usage().await.unwrap();
        let size = |id: &RefId| all.iter().find(|one| one.id == *id).map(|one| one.size);
        (size(one.id()), size(other.id()))
    };
    let (alone, _) = sizes().await;
    for (made, name) in [(&other, "other"), (&one, "one")] {
        made.set_layer(layer_of(name, &blob)).await.unwrap();
    }
    let (older, younger) = sizes().await;
    assert_eq!(older, alone.map(|bytes| bytes + 5000));
    assert_eq!(younger, alone);
    agrees(&cache).await;
    let id = one.id().clone();
    drop(one);
    cache.settle().await;
    let all = cache.disk_usage().await.unwrap();
    assert!(all.iter().all(|record| record.id != id));
    assert_eq!(all[0].size, older.unwrap());
    agrees(&cache).await;
}

#[tokio::test]
async fn a_file_that_snapshots_share_belongs_to_the_oldest_and_then_to_the_next() {
    const MIB: u64 = 1 << 20;
    let place = Place::overlay();
    let cache = place.open().await;
    let folder = async |id: &RefId| {
        let local = cache.get(id).await.unwrap().local().unwrap();
        let mounts = local.mounts().await.unwrap();
        mounts[0].source.clone()
    };
    let size = async |id: &RefId| {
        let all = cache.disk_usage().await.unwrap();
        let one = all.iter().find(|one| one.id == *id).unwrap();
        one.size
    };
    let mut ids = Vec::new();
    for number in 0..3_u64 {
        let work = cache.new_mutable(None, named("linked")).await.unwrap();
        if number == 0 {
            write(&work, "large", &"x".repeat(MIB as usize)).await;
            write(&work, "own", "first").await;
        } else {
            // As a merge of copies does, beside a file of its own.
            let dir = work.mount().await.unwrap();
            let large = folder(&ids[0]).await.join("large");
            std::fs::hard_link(&large, dir.path().join("large")).unwrap();
            std::fs::hard_link(&large, dir.path().join("again")).unwrap();
            dir.close().unwrap();
            write(&work, "own", &"y".repeat(number as usize * 20_000)).await;
        }
        let done = work.commit().await.unwrap();
        done.retain().await.unwrap();
        ids.push(done.id().clone());
        if number == 0 {
            // Measured when nobody else had it.
            assert!(size(&ids[0]).await > MIB);
        }
    }
    assert!(size(&ids[0]).await > MIB);
    assert!(size(&ids[1]).await < 60_000 && size(&ids[2]).await < 90_000);
    agrees(&cache).await;
    // When it goes, its bytes do not: they are the next one's.
    let prune = async |cache: &CacheManager, id: &RefId| {
        let id = id.clone();
        let options = PruneOptions {
            filter: Some(Arc::new(move |one| one.id == id)),
            ..PruneOptions::default()
        };
        let plan = cache.plan_prune(&options).await.unwrap();
        let gone = cache.prune(options).await.unwrap();
        assert_eq!(plan.goes, gone);
        assert_eq!(gone.len(), 1);
        gone[0].size
    };
    assert!(prune(&cache, &ids[0]).await < 60_000);
    assert!(size(&ids[1]).await > MIB && size(&ids[2]).await < 90_000);
    agrees(&cache).await;
    // A limit is kept by what is freed, not by what is counted: the next one alone does not do.
    let options = PruneOptions {
        max_used_space: MIB,
        ..PruneOptions::default()
    };
    let plan = cache.plan_prune(&options).await.unwrap();
    assert_eq!(plan.goes.len(), 2, "{plan:?}");
    assert!(plan.goes[0].size < 90_000 && plan.goes[1].size > MIB);
    // The next process knows it too.
    cache.close().await;
    drop(cache);
    let cache = place.open().await;
    agrees(&cache).await;
    let size = async |id: &RefId| {
        let all = cache.disk_usage().await.unwrap();
        let one = all.iter().find(|one| one.id == *id).unwrap();
        one.size
    };
    assert!(size(&ids[1]).await > MIB && size(&ids[2]).await < 90_000);
    assert!(prune(&cache, &ids[2]).await < 90_000);
    assert!(prune(&cache, &ids[1]).await > MIB);
    agrees(&cache).await;
    place.check(&cache).await;
}

#[tokio::test]
async fn a_plan_says_what_would_go_and_why_the_rest_stays() {
    let place = Place::overlay();
    let cache = place.open().await;
    let base = kept(&cache, None, 4).await;
    let held = cache
        .get(&kept(&cache, Some(&base), 4).await)
        .await
        .unwrap();
    let free = kept(&cache, None, 4).await;
    let internal = cache.get(&kept(&cache, None, 4).await).await.unwrap();
    internal
        .set_record_type(RecordType::Internal)
        .await
        .unwrap();
    let internal_id = internal.id().clone();
    drop(internal);
    let plan = cache.plan_prune(&PruneOptions::default()).await.unwrap();
    let goes: Vec<_> = plan.goes.iter().map(|one| &one.id).collect();
    assert_eq!(goes, [&free]);
    let why = |plan: &crate::Plan, id: &RefId| {
        let stays = plan.stays.iter().find(|one| one.record.id == *id);
        stays.map(|one| one.why.clone())
    };
    assert_eq!(why(&plan, held.id()), Some(Why::InUse));
    let by = held.id().clone();
    assert_eq!(why(&plan, &base), Some(Why::Needed { by }));
    assert_eq!(why(&plan, &internal_id), Some(Why::Internal));
    let options = PruneOptions {
        keep_duration: Duration::from_secs(60),
        ..PruneOptions::default()
    };
    let plan = cache.plan_prune(&options).await.unwrap();
    assert!(matches!(why(&plan, &free), Some(Why::Recent { .. })));
    let options = PruneOptions {
        filter: Some(Arc::new(|_| false)),
        ..PruneOptions::default()
    };
    let plan = cache.plan_prune(&options).await.unwrap();
    assert_eq!(why(&plan, &free), Some(Why::Filtered));
    let options = PruneOptions {
        max_used_space: 1 << 30,
        ..PruneOptions::default()
    };
    let plan = cache.plan_prune(&options).await.unwrap();
    assert_eq!(why(&plan, &free), Some(Why::Space { keep: 1 << 30 }));
    assert!(plan.goes.is_empty());
    // Nothing of all this has removed anything.
    assert_eq!(cache.disk_usage().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_long_chain_goes_at_once() {
    let place = Place::overlay();
    let cache = place.open().await;
    let mut last: Option<ImmutableRef> = None;
    for number in 0..150 {
        let next = commit(&cache, last.as_ref(), &number.to_string()).await;
        if number % 3 == 0 {
            // What nobody asks for goes with what stands on it.
            next.retain().await.unwrap();
        }
        last = Some(next);
    }
    last.as_ref().unwrap().retain().await.unwrap();
    drop(last);
    let pruned = cache.prune(PruneOptions::default()).await.unwrap();
    assert_eq!(pruned.len(), 150);
    assert_eq!(cache.snapshotter().list().await.unwrap(), []);
    place.check(&cache).await;
    agrees(&cache).await;
}

#[tokio::test]
async fn limits_hold_while_a_step_writes() {
    const MIB: u64 = 1 << 20;
    let place = Place::overlay();
    let cache = place.open().await;
    let policy = PruneOptions {
        max_used_space: 8 * MIB,
        ..PruneOptions::default()
    };
    let _collector = cache.collect(CacheLimits {
        policies: vec![policy],
        most_of_step: 0,
    });
    for _ in 0..20 {
        kept(&cache, None, 1024).await;
    }
    let free = async || {
        let all = cache.disk_usage().await.unwrap();
        let unused = all.iter().filter(|one| !one.mutable);
        (
            unused.map(|one| one.size).sum::<u64>(),
            all.iter().map(|one| one.size).sum::<u64>(),
        )
    };
    let soon = async |limit: u64| {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let (unused, all) = free().await;
            if all < limit || unused == 0 {
                return unused;
            }
            assert!(std::time::Instant::now() < deadline, "{unused} {all}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(soon(8 * MIB).await >= 5 * MIB, "no more than has to go");
    // A step that writes pushes out what nobody uses, before it is done; the collector has had
    // nothing to do for a while.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let work = cache.new_mutable(None, named("step")).await.unwrap();
    let dir = work.mount().await.unwrap();
    std::fs::write(dir.path().join("data"), vec![1; 4 * MIB as usize]).unwrap();
    assert!(soon(8 * MIB).await < 4 * MIB);
    std::fs::write(dir.path().join("more"), vec![1; 8 * MIB as usize]).unwrap();
    // It alone is more than all may take: nothing else is left.
    assert_eq!(soon(8 * MIB).await, 0);
    dir.close().unwrap();
    drop(work);
    place.check(&cache).await;
    agrees(&cache).await;
}

#[tokio::test]
async fn what_is_let_go_is_free_once_there_is_room_for_it() {
    const MIB: u64 = 1 << 20;
    let place = Place::overlay();
    let cache = place.open().await;
    let _collector = cache.collect(CacheLimits {
        policies: vec![PruneOptions {
            max_used_space: 8 * MIB,
            ..PruneOptions::default()
        }],
        most_of_step: 0,
    });
    let free = async || -> u64 {
        let all = cache.disk_usage().await.unwrap();
        let free = all.iter().filter(|one| !one.in_use);
        free.map(|one| one.size).sum()
    };
    for _ in 0..40 {
        kept(&cache, None, 1024).await;
        let free = free().await;
        assert!(free <= 8 * MIB, "{free}");
    }
    // And it does become free.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while free().await < 5 * MIB {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Who asks for it to go does not wait for that.
    let last = kept(&cache, None, 1024).await;
    let pruned = cache.prune(PruneOptions::default()).await.unwrap();
    assert!(pruned.iter().any(|one| one.id == last), "{pruned:?}");
    agrees(&cache).await;
}

#[tokio::test]
async fn a_step_that_writes_too_much_is_told() {
    let place = Place::overlay();
    let cache = place.open().await;
    let _collector = cache.collect(CacheLimits {
        policies: Vec::new(),
        most_of_step: 1 << 20,
    });
    let base = kept(&cache, None, 4096).await;
    let base = cache.get(&base).await.unwrap().local().unwrap();
    let work = cache.new_mutable(Some(&base), named("step")).await.unwrap();
    write(&work, "little", "x").await;
    Written::to([&work]).check().await.unwrap();
    let watched = Written::to([&work]);
    let told = watched.outgrown();
    tokio::pin!(told);
    let waited = tokio::time::timeout(Duration::from_millis(500), &mut told).await;
    assert!(waited.is_err(), "what it stands on is not its own");
    write(&work, "much", &"x".repeat(2 << 20)).await;
    let error = told.await;
    assert!(
        matches!(
            error,
            CacheError::Outgrown {
                most: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("maxStepBytes"));
    assert!(Written::to([&work]).check().await.is_err());
}
