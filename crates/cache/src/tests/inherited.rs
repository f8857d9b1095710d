//! Content hashes of what stands on a state whose hashes are known.

use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::ChecksumOptions;
use crate::contenthash::afresh;

/// One change, to a name in one of some folders.
#[derive(Clone, Debug)]
enum Act {
    Write(u8, u8, u8),
    Remove(u8, u8),
    RemoveFolder(u8),
    /// The folder is another: what was in it is hidden.
    Renew(u8, u8),
    Mode(u8, u16),
    Link(u8, u8),
    Deep(u8, u8),
    FileForFolder(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        (0..3u8, 0..5u8, any::<u8>()).prop_map(|(f, n, v)| Act::Write(f, n, v)),
        (0..3u8, 0..5u8).prop_map(|(f, n)| Act::Remove(f, n)),
        (0..3u8).prop_map(Act::RemoveFolder),
        (0..3u8, 0..5u8).prop_map(|(f, n)| Act::Renew(f, n)),
        (0..3u8, 0..3u16).prop_map(|(f, m)| Act::Mode(f, 0o700 + m)),
        (0..3u8, 0..5u8).prop_map(|(f, n)| Act::Link(f, n)),
        (0..3u8, 0..5u8).prop_map(|(f, n)| Act::Deep(f, n)),
        (0..3u8).prop_map(Act::FileForFolder),
    ];
    proptest::collection::vec(one, 1..8)
}

fn act(root: &Path, what: &Act) {
    let folder = |number: &u8| root.join(format!("d{number}"));
    let make = |number: &u8| {
        let path = folder(number);
        if !path.is_dir() {
            let _ = std::fs::remove_file(&path);
            std::fs::create_dir(&path).unwrap();
        }
        path
    };
    let clear = |path: &Path| {
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_dir_all(path);
    };
    match what {
        Act::Write(f, n, value) => {
            let path = make(f).join(format!("n{n}"));
            clear(&path);
            std::fs::write(path, [*value]).unwrap();
        }
        Act::Remove(f, n) => clear(&folder(f).join(format!("n{n}"))),
        Act::RemoveFolder(f) => clear(&folder(f)),
        Act::Renew(f, n) => {
            clear(&folder(f));
            std::fs::write(make(f).join(format!("n{n}")), "new").unwrap();
        }
        Act::Mode(f, mode) => {
            let mode = std::fs::Permissions::from_mode(u32::from(*mode));
            std::fs::set_permissions(make(f), mode).unwrap();
        }
        Act::Link(f, n) => {
            let path = make(f).join(format!("n{n}"));
            clear(&path);
            symlink(format!("../d0/n{n}"), path).unwrap();
        }
        Act::Deep(f, n) => {
            let path = make(f).join(format!("n{n}"));
            clear(&path);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("deep"), "deep").unwrap();
        }
        Act::FileForFolder(f) => {
            clear(&folder(f));
            std::fs::write(folder(f), "file").unwrap();
        }
    }
}

async fn step(cache: &CacheManager, below: Option<&LocalRef>, acts: &[Act]) -> LocalRef {
    let work = cache.new_mutable(below, named("step")).await.unwrap();
    let dir = work.mount().await.unwrap();
    for what in acts {
        act(dir.path(), what);
    }
    dir.close().unwrap();
    work.commit().await.unwrap().local().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_inherited_is_what_is_there(layers in proptest::collection::vec(acts(), 2..5), asked in any::<u32>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let place = Place::overlay();
            let cache = place.open().await;
            let mut below: Option<LocalRef> = None;
            for (index, acts) in layers.iter().enumerate() {
                let made = step(&cache, below.as_ref(), acts).await;
                let names = ["/", "/d0", "/d1", "/d1/n2"];
                for (place_of, name) in names.iter().enumerate() {
                    // Some are asked for and others not: what is known has holes.
                    if asked >> (index * 4 + place_of) & 1 == 0 {
                        continue;
                    }
                    let options = ChecksumOptions { follow_links: place_of == 3, ..ChecksumOptions::default() };
                    let found = made.checksum(Path::new(name), &options).await;
                    let mounts = made.mounts().await.unwrap();
                    let fresh = afresh(mounts, &place.mounts(), Path::new(name), &options);
                    match (found, fresh) {
                        (Ok(found), Ok(fresh)) => assert_eq!(found, fresh, "{name} of {index}: {layers:?}"),
                        (Err(_), Err(_)) => {}
                        other => panic!("{name} of {index}: {other:?} {layers:?}"),
                    }
                }
                below = Some(made);
            }
        });
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_read_again() {
    let place = Place::overlay();
    let cache = place.open().await;
    let files: Vec<Act> = (0..5).map(|n| Act::Write(0, n, 1)).collect();
    let base = step(&cache, None, &files).await;
    let options = ChecksumOptions::default();
    let root = Path::new("/");
    base.checksum(root, &options).await.unwrap();
    // Something lies over it, and something over that.
    let middle = step(&cache, Some(&base), &[Act::Write(1, 1, 1)]).await;
    let top = step(&cache, Some(&middle), &[Act::Write(0, 3, 2)]).await;
    let expected = afresh(top.mounts().await.unwrap(), &place.mounts(), root, &options).unwrap();
    // Were they read again, they would have another hash.
    let folder = base.mounts().await.unwrap()[0].source.clone();
    for name in ["n0", "n1", "n2", "n4"] {
        std::fs::write(folder.join("d0").join(name), "changed behind its back").unwrap();
    }
    assert_eq!(top.checksum(root, &options).await.unwrap(), expected);
    // It is known after a restart, too.
    top.retain().await.unwrap();
    let id = top.id().clone();
    cache.close().await;
    drop((base, middle, top, cache));
    let cache = place.open().await;
    let top = cache.get(&id).await.unwrap().local().unwrap();
    assert_eq!(top.checksum(root, &options).await.unwrap(), expected);
}
