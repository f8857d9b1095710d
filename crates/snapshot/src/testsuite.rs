//! What every snapshotter does the same, as a test that panics when it does not. Needs
//! root: it mounts.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_store::Store;
use cooper_sys::{MountPoint, Root};

use crate::diff::{Change, ChangeKind, upper_changes, walk_changes};
use crate::{ActiveKey, MountedDir, SnapshotError, SnapshotId, SnapshotName, Snapshotter};

struct Suite {
    dir: tempfile::TempDir,
    snapshots: Arc<dyn Snapshotter>,
}

/// Runs the suite on snapshotters that `open` makes, each on a new folder and store.
pub async fn run(open: impl Fn(&Path, Store) -> Arc<dyn Snapshotter>) {
    let suite = || {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = open(&dir.path().join("root"), Store::in_memory().unwrap());
        Suite { dir, snapshots }
    };
    suite().states_stack_and_do_not_change_what_is_below().await;
    suite().names_are_unique_and_removal_is_idempotent().await;
    suite().a_view_is_for_reading().await;
    suite().changes_are_named().await;
    suite().deep_stacks_work().await;
    reopening_keeps_what_was_written_down(&open).await;
}

async fn reopening_keeps_what_was_written_down(
    open: &impl Fn(&Path, Store) -> Arc<dyn Snapshotter>,
) {
    let dir = tempfile::tempdir().unwrap();
    let (root, store) = (dir.path().join("root"), Store::in_memory().unwrap());
    let snapshots = open(&root, store.clone());
    let name = SnapshotName::new("kept");
    snapshots.prepare(&ActiveKey::new("k"), None).await.unwrap();
    snapshots.commit(&ActiveKey::new("k"), &name).await.unwrap();
    drop(snapshots);
    let snapshots = open(&root, store);
    assert_eq!(
        snapshots.list().await.unwrap(),
        [SnapshotId::Committed(name)]
    );
}

/// Runs what those who keep their folders themselves do the same besides.
pub async fn run_on_folders(open: impl Fn(&Path, Store) -> Arc<dyn Snapshotter>) {
    let dir = tempfile::tempdir().unwrap();
    let (root, store) = (dir.path().join("root"), Store::in_memory().unwrap());
    drop(open(&root, store.clone()));
    // What a process leaves that dies before it writes a new snapshot down.
    let stray = root.join("s/999/fs");
    std::fs::create_dir_all(&stray).unwrap();
    let snapshots = open(&root, store);
    assert_eq!(snapshots.list().await.unwrap(), []);
    assert!(!stray.exists());
}

impl Suite {
    fn mount(&self, mounts: &[crate::Mount]) -> MountedDir {
        MountedDir::mount(mounts, &self.dir.path().join("mnt")).unwrap()
    }

    /// Makes a committed snapshot whose files `write` writes.
    async fn layer(&self, name: &str, parent: Option<&str>, write: impl FnOnce(&Path)) {
        let key = ActiveKey::new(format!("key-{name}"));
        let parent = parent.map(SnapshotName::new);
        self.snapshots.prepare(&key, parent.as_ref()).await.unwrap();
        let mounted = self.mount(&self.snapshots.mounts(&key).await.unwrap());
        write(mounted.path());
        mounted.close().unwrap();
        self.snapshots
            .commit(&key, &SnapshotName::new(name))
            .await
            .unwrap();
    }

    async fn view(&self, name: &str) -> MountedDir {
        let key = ActiveKey::new(format!("view-{name}"));
        self.snapshots
            .view(&key, Some(&SnapshotName::new(name)))
            .await
            .unwrap();
        self.mount(&self.snapshots.mounts(&key).await.unwrap())
    }

    async fn states_stack_and_do_not_change_what_is_below(self) {
        self.layer("a", None, |dir| {
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/kept"), "kept").unwrap();
            std::fs::write(dir.join("d/gone"), "gone").unwrap();
            std::fs::hard_link(dir.join("d/kept"), dir.join("d/hard")).unwrap();
            symlink("kept", dir.join("d/link")).unwrap();
            std::fs::set_permissions(dir.join("d/kept"), PermissionsExt::from_mode(0o4711))
                .unwrap();
        })
        .await;
        self.layer("b", Some("a"), |dir| {
            std::fs::remove_file(dir.join("d/gone")).unwrap();
            std::fs::write(dir.join("d/new"), "new").unwrap();
        })
        .await;
        self.layer("c", Some("b"), |dir| {
            std::fs::remove_dir_all(dir.join("d")).unwrap();
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/other"), "other").unwrap();
        })
        .await;
        let names = |dir: &Path| {
            let list = std::fs::read_dir(dir.join("d")).unwrap();
            let mut names: Vec<_> = list
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let (a, b, c) = (
            self.view("a").await,
            self.view("b").await,
            self.view("c").await,
        );
        assert_eq!(names(a.path()), ["gone", "hard", "kept", "link"]);
        assert_eq!(names(b.path()), ["hard", "kept", "link", "new"]);
        assert_eq!(names(c.path()), ["other"]);
        let kept = b.path().join("d/kept").metadata().unwrap();
        assert_eq!((kept.mode() & 0o7777, kept.len()), (0o4711, 4));
        assert!(
            self.snapshots
                .usage(&SnapshotName::new("a"))
                .await
                .unwrap()
                .inodes
                >= 5
        );
        drop((a, b, c));
        assert_eq!(MountPoint::below(self.dir.path()).unwrap(), []);
    }

    async fn names_are_unique_and_removal_is_idempotent(self) {
        self.layer("a", None, |_| {}).await;
        let key = ActiveKey::new("k");
        let (a, b) = (SnapshotName::new("a"), SnapshotName::new("b"));
        self.snapshots.prepare(&key, Some(&a)).await.unwrap();
        let again = self.snapshots.prepare(&key, None).await.unwrap_err();
        assert!(matches!(again, SnapshotError::Exists { .. }), "{again:?}");
        let taken = self.snapshots.commit(&key, &a).await.unwrap_err();
        assert!(matches!(taken, SnapshotError::Exists { .. }), "{taken:?}");
        let unknown = self
            .snapshots
            .prepare(&ActiveKey::new("x"), Some(&b))
            .await
            .unwrap_err();
        assert!(
            matches!(unknown, SnapshotError::NotFound { .. }),
            "{unknown:?}"
        );
        let held = self
            .snapshots
            .remove(&SnapshotId::Committed(a.clone()))
            .await
            .unwrap_err();
        assert!(
            matches!(held, SnapshotError::HasChildren { .. }),
            "{held:?}"
        );
        self.snapshots.commit(&key, &b).await.unwrap();
        for id in [
            SnapshotId::Active(key),
            SnapshotId::Committed(b),
            SnapshotId::Committed(a),
        ] {
            self.snapshots.remove(&id).await.unwrap();
            self.snapshots.remove(&id).await.unwrap();
        }
        assert_eq!(self.snapshots.list().await.unwrap(), []);
    }

    async fn a_view_is_for_reading(self) {
        self.layer("a", None, |dir| std::fs::write(dir.join("f"), "f").unwrap())
            .await;
        self.layer("b", Some("a"), |dir| {
            std::fs::write(dir.join("g"), "g").unwrap()
        })
        .await;
        for name in ["a", "b"] {
            let view = self.view(name).await;
            assert!(std::fs::write(view.path().join("x"), "x").is_err());
            let key = ActiveKey::new(format!("view-{name}"));
            let commit = self
                .snapshots
                .commit(&key, &SnapshotName::new("no"))
                .await
                .unwrap_err();
            assert!(
                matches!(commit, SnapshotError::ReadOnly { .. }),
                "{commit:?}"
            );
        }
        // An active snapshot is shown for reading by its own mounts turned.
        let key = ActiveKey::new("k");
        self.snapshots
            .prepare(&key, Some(&SnapshotName::new("b")))
            .await
            .unwrap();
        let mounts = self.snapshots.mounts(&key).await.unwrap();
        let mounts: Vec<_> = mounts.into_iter().map(crate::Mount::read_only).collect();
        let shown = self.mount(&mounts);
        assert!(shown.path().join("g").exists());
        assert!(std::fs::write(shown.path().join("x"), "x").is_err());
    }

    async fn changes_are_named(self) {
        self.layer("a", None, |dir| {
            for folder in ["same", "opaque", "gone"] {
                std::fs::create_dir(dir.join(folder)).unwrap();
                std::fs::write(dir.join(folder).join("file"), folder).unwrap();
            }
            std::fs::write(dir.join("becomes-folder"), "").unwrap();
        })
        .await;
        let key = ActiveKey::new("k");
        self.snapshots
            .prepare(&key, Some(&SnapshotName::new("a")))
            .await
            .unwrap();
        let mounts = self.snapshots.mounts(&key).await.unwrap();
        let mounted = self.mount(&mounts);
        let dir = mounted.path();
        std::fs::write(dir.join("same/file"), "changed").unwrap();
        std::fs::write(dir.join("same/added"), "").unwrap();
        std::fs::remove_dir_all(dir.join("gone")).unwrap();
        std::fs::remove_dir_all(dir.join("opaque")).unwrap();
        std::fs::create_dir(dir.join("opaque")).unwrap();
        std::fs::write(dir.join("opaque/new"), "").unwrap();
        std::fs::remove_file(dir.join("becomes-folder")).unwrap();
        std::fs::create_dir(dir.join("becomes-folder")).unwrap();
        let view = self.view("a").await;
        let lower = Root::open(view.path()).unwrap();
        let expected: Vec<(ChangeKind, PathBuf)> = [
            (ChangeKind::Modify, "becomes-folder"),
            (ChangeKind::Delete, "gone"),
            (ChangeKind::Delete, "opaque/file"),
            (ChangeKind::Add, "opaque/new"),
            (ChangeKind::Add, "same/added"),
            (ChangeKind::Modify, "same/file"),
        ]
        .map(|(kind, path)| (kind, PathBuf::from(path)))
        .to_vec();
        let mut found = Vec::new();
        let mut visit = |change: Change| {
            found.push((change.kind, change.path));
            Ok(())
        };
        walk_changes(Some(&lower), &Root::open(dir).unwrap(), &mut visit).unwrap();
        assert_eq!(found, expected);
        if mounts[0].kind == "overlay" {
            let upper = Root::open(mounts[0].upper().unwrap()).unwrap();
            let mut found = Vec::new();
            let mut visit = |change: Change| {
                found.push((change.kind, change.path));
                Ok(())
            };
            upper_changes(Some(&lower), &upper, &mut visit).unwrap();
            assert_eq!(found, expected);
        }
    }

    async fn deep_stacks_work(self) {
        let mut parent: Option<String> = None;
        for number in 0..130 {
            let name = format!("layer-{number}");
            let file = number.to_string();
            self.layer(&name, parent.as_deref(), |dir| {
                std::fs::write(dir.join(file), "").unwrap()
            })
            .await;
            parent = Some(name);
        }
        let view = self.view("layer-129").await;
        assert_eq!(std::fs::read_dir(view.path()).unwrap().count(), 130);
    }
}
