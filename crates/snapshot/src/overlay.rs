//! Snapshots on overlayfs: each is the folder of its own changes, and a mount stacks them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cooper_store::Store;
use cooper_sys::MountGuard;

use crate::error::io;
use crate::index::{Index, Record};
use crate::project::Projects;
use crate::tree::{self, blocking};
use crate::{ActiveKey, Mount, SnapshotError, SnapshotId, SnapshotName, Snapshotter, Usage};

/// What the kernel's overlayfs is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Mount without syncing what is written (Linux 5.10): unmounting is then cheap, and the
    /// upper folder is only complete on disk after a sync of its file system.
    pub volatile: bool,
    /// Keep overlayfs's marks in `user.` attributes: for mounts in a user namespace.
    pub userxattr: bool,
}

/// Keeps each snapshot's changes in `<root>/s/<number>/fs`.
#[derive(Clone, Debug)]
pub struct OverlaySnapshotter {
    index: Arc<Index>,
    options: OverlayOptions,
    work: Arc<AtomicU64>,
    /// Looked for when the first limit is asked for.
    projects: Arc<OnceLock<Option<Projects>>>,
}

impl OverlaySnapshotter {
    /// Opens the snapshots in `root`, made when it is missing; their metadata is in `store`.
    /// The options are those that [`OverlaySnapshotter::probe`] found.
    pub fn open(root: &Path, store: Store, options: OverlayOptions) -> Result<Self, SnapshotError> {
        let index = Arc::new(Index::open(root, store)?);
        Ok(Self {
            index,
            options,
            work: Arc::default(),
            projects: Arc::default(),
        })
    }

    /// Mounts an overlay in a temporary folder of `root` and says what is possible there.
    ///
    /// # Errors
    /// When overlayfs cannot be used on this file system or by this user.
    pub fn probe(root: &Path) -> Result<OverlayOptions, SnapshotError> {
        std::fs::create_dir_all(root).map_err(io("make", root))?;
        let folder = root.join(format!("probe-{}", std::process::id()));
        tree::remove(&folder)?;
        tree::make(&folder, &["l", "u", "v", "w", "x", "m"])?;
        // In a user namespace the other attributes cannot be written (from Linux 5.11 on these
        // can): the mount would succeed and then lose what is removed in it.
        let userxattr = cooper_sys::userns::inside();
        let attempt = |volatile: bool, upper: &str, work: &str| {
            let options = OverlayOptions {
                volatile,
                userxattr,
            };
            let place = |name: &str| folder.join(name).display().to_string();
            let mut list = vec![
                format!("lowerdir={}", place("l")),
                format!("upperdir={}", place(upper)),
                format!("workdir={}", place(work)),
            ];
            list.extend(fixed(options));
            let target = folder.join("m");
            let mounted = MountGuard::mount("overlay", Path::new("overlay"), &list, &target);
            mounted.and_then(MountGuard::close).map(|()| options)
        };
        let result = attempt(true, "u", "w")
            .or_else(|_| attempt(false, "v", "x").map_err(io("mount an overlay in", &folder)));
        tree::remove(&folder)?;
        result
    }

    /// Makes a work folder that no mount has had. Those of an earlier process are still there:
    /// what is in them is not known, so they are passed over.
    fn fresh_work(&self, below: &Path) -> Result<PathBuf, SnapshotError> {
        loop {
            let number = self.work.fetch_add(1, Ordering::Relaxed);
            let work = below.join(number.to_string());
            match std::fs::create_dir(&work) {
                Ok(()) => return Ok(work),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io("make", &work)(error)),
            }
        }
    }

    async fn make(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
        view: bool,
    ) -> Result<(), SnapshotError> {
        let number = self.index.allocate();
        let folder = self.index.folder(number);
        tree::make(&folder, &["fs", "work"])?;
        let result = async {
            if let Some(parent) = parent {
                let record = self.index.get(&SnapshotId::Committed(parent.clone()))?;
                let below = self.index.folder(record.number).join("fs");
                let meta = below.metadata().map_err(io("stat", &below))?;
                // The root of the stack is the topmost folder: it belongs to who owned it below.
                let top = folder.join("fs");
                std::os::unix::fs::chown(&top, Some(meta.uid()), Some(meta.gid()))
                    .map_err(io("change the owner of", &top))?;
            }
            let record = Record {
                number,
                parent: parent.map(ToString::to_string),
                view,
            };
            self.index.insert(key, record).await
        };
        let result = result.await;
        if result.is_err() {
            let _ = tree::remove(&folder);
        }
        result
    }
}

/// Options that do not name folders, each said explicitly because kernels differ in defaults.
fn fixed(options: OverlayOptions) -> Vec<String> {
    let mut fixed = vec!["index=off".to_owned()];
    if options.userxattr {
        // With it the kernel allows neither redirections nor metadata copies anyway.
        fixed.push("userxattr".into());
    } else {
        fixed.push("redirect_dir=off".into());
        fixed.push("metacopy=off".into());
    }
    if options.volatile {
        fixed.push("volatile".into());
    }
    fixed
}

#[async_trait]
impl Snapshotter for OverlaySnapshotter {
    fn name(&self) -> &str {
        "overlayfs"
    }

    async fn prepare(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        self.make(key, parent, false).await
    }

    async fn view(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError> {
        self.make(key, parent, true).await
    }

    async fn mounts(&self, key: &ActiveKey) -> Result<Vec<Mount>, SnapshotError> {
        let record = self.index.get(&SnapshotId::Active(key.clone()))?;
        let folder = self.index.folder(record.number);
        let top = folder.join("fs");
        let lower = match &record.parent {
            Some(parent) => self.index.chain(parent)?,
            None => return Ok(vec![Mount::bind(&top, record.view)]),
        };
        let place = |number: &u64| self.index.folder(*number).join("fs");
        if record.view
            && let [only] = lower.as_slice()
        {
            return Ok(vec![Mount::bind(&place(only), true)]);
        }
        let stack: Vec<_> = lower
            .iter()
            .map(|number| place(number).display().to_string())
            .collect();
        let mut options = vec![format!("lowerdir={}", stack.join(":"))];
        if record.view {
            options.extend(fixed(OverlayOptions {
                volatile: false,
                ..self.options
            }));
            options.push("ro".into());
        } else {
            // A work folder of its own for each mount: a volatile one leaves a mark that
            // forbids the next (Documentation/filesystems/overlayfs.rst, "Volatile mount").
            let work = self.fresh_work(&folder.join("work"))?;
            options.push(format!("upperdir={}", top.display()));
            options.push(format!("workdir={}", work.display()));
            options.extend(fixed(self.options));
        }
        Ok(vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options,
        }])
    }

    async fn limit(&self, key: &ActiveKey, bytes: u64) -> Result<bool, SnapshotError> {
        let find = || Projects::find(self.index.folders());
        let Some(projects) = self.projects.get_or_init(find) else {
            return Ok(false);
        };
        let record = self.index.get(&SnapshotId::Active(key.clone()))?;
        let folder = self.index.folder(record.number);
        projects.limit(record.number, &folder, &["fs", "work"], bytes)?;
        Ok(true)
    }

    async fn commit(&self, key: &ActiveKey, name: &SnapshotName) -> Result<(), SnapshotError> {
        let record = self.index.commit(key, name).await?;
        if let Some(Some(projects)) = self.projects.get() {
            projects.release(record.number, &self.index.folder(record.number))?;
        }
        // Empty folders; a process that dies here leaves them, which harms nobody.
        tree::remove(&self.index.folder(record.number).join("work"))
    }

    async fn usage(&self, name: &SnapshotName) -> Result<Usage, SnapshotError> {
        let record = self.index.get(&SnapshotId::Committed(name.clone()))?;
        let folder = self.index.folder(record.number);
        blocking(move || tree::usage(&folder)).await
    }

    async fn usage_active(&self, key: &ActiveKey) -> Result<Usage, SnapshotError> {
        let record = self.index.get(&SnapshotId::Active(key.clone()))?;
        let folder = self.index.folder(record.number);
        blocking(move || tree::usage(&folder)).await
    }

    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let mut results = self.index.remove_all(std::slice::from_ref(id)).await;
        results.pop().unwrap_or(Ok(()))
    }

    async fn remove_all(&self, ids: &[SnapshotId]) -> Vec<Result<(), SnapshotError>> {
        self.index.remove_all(ids).await
    }

    async fn strays(&self) -> Result<Vec<(std::path::PathBuf, u64)>, SnapshotError> {
        let index = self.index.clone();
        blocking(move || index.strays()).await
    }

    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.index.list()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn overlays_conform_with_and_without_sync() {
        for volatile in [true, false] {
            let open = |root: &Path, store| {
                let mut options = OverlaySnapshotter::probe(root).unwrap();
                options.volatile &= volatile;
                let snapshots: Arc<dyn Snapshotter> =
                    Arc::new(OverlaySnapshotter::open(root, store, options).unwrap());
                snapshots
            };
            crate::testsuite::run(open).await;
            crate::testsuite::run_on_folders(open).await;
        }
    }

    /// An ext4 of its own that keeps quotas of projects; none where the kernel cannot.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn with_quotas() -> Option<Self> {
            let disk = Self(tempfile::tempdir().unwrap());
            let (image, place) = (disk.0.path().join("image"), disk.path());
            let file = std::fs::File::create(&image).unwrap();
            file.set_len(64 << 20).unwrap();
            std::fs::create_dir(&place).unwrap();
            let run = |name: &str, args: &[&str], last: [&Path; 2]| {
                let mut command = std::process::Command::new(name);
                let ran = command.args(args).args(last).output().unwrap();
                ran.status.success()
            };
            let features = ["-q", "-O", "quota,project", "-E", "quotatype=prjquota"];
            let made = std::process::Command::new("mkfs.ext4")
                .args(features)
                .arg(&image)
                .status();
            assert!(made.unwrap().success());
            // Where loop devices are a module there is none before it is loaded.
            let _ = std::process::Command::new("modprobe").arg("loop").output();
            run("mount", &["-o", "loop,prjquota"], [&image, &place]).then_some(disk)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("disk")
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg(self.path())
                .status();
        }
    }

    #[tokio::test]
    async fn a_file_system_with_quotas_keeps_the_limit_of_a_snapshot() {
        const MIB: usize = 1 << 20;
        let plain = tempfile::tempdir().unwrap();
        let disk = Disk::with_quotas();
        let place = disk.as_ref().map_or(plain.path().to_owned(), Disk::path);
        let options = OverlaySnapshotter::probe(&place).unwrap();
        let store = Store::in_memory().unwrap();
        let snapshots = OverlaySnapshotter::open(&place, store, options).unwrap();
        let (base, key) = (SnapshotName::new("base"), ActiveKey::new("key"));
        snapshots.prepare(&key, None).await.unwrap();
        snapshots.commit(&key, &base).await.unwrap();
        snapshots.prepare(&key, Some(&base)).await.unwrap();
        let kept = snapshots.limit(&key, MIB as u64).await.unwrap();
        // Where there are no quotas it says so.
        assert_eq!(kept, disk.is_some());
        let write = async |key: &ActiveKey, name: &str, bytes: usize| {
            let mounts = snapshots.mounts(key).await.unwrap();
            let mounted = crate::MountedDir::mount(&mounts, &place).unwrap();
            let written = std::fs::write(mounted.path().join(name), vec![1; bytes]);
            mounted.close().unwrap();
            written.map_err(|error| error.raw_os_error())
        };
        write(&key, "little", MIB / 2).await.unwrap();
        let much = write(&key, "much", 4 * MIB).await;
        assert_eq!(much.is_err(), kept, "{much:?}");
        if kept {
            assert_eq!(much, Err(Some(rustix::io::Errno::DQUOT.raw_os_error())));
            assert!(snapshots.usage_active(&key).await.unwrap().bytes <= MIB as u64);
        }
        // The next one on top of it has no limit until it gets one.
        let done = SnapshotName::new("done");
        snapshots.commit(&key, &done).await.unwrap();
        snapshots.prepare(&key, Some(&done)).await.unwrap();
        write(&key, "much", 4 * MIB).await.unwrap();
        drop(snapshots);
    }

    #[tokio::test]
    async fn a_volatile_snapshot_is_mounted_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = OverlaySnapshotter::probe(dir.path()).unwrap();
        let store = Store::in_memory().unwrap();
        let snapshots = OverlaySnapshotter::open(dir.path(), store, options).unwrap();
        let (base, key) = (SnapshotName::new("base"), ActiveKey::new("key"));
        snapshots.prepare(&key, None).await.unwrap();
        snapshots.commit(&key, &base).await.unwrap();
        snapshots.prepare(&key, Some(&base)).await.unwrap();
        for name in ["first", "second"] {
            let mounts = snapshots.mounts(&key).await.unwrap();
            let mounted = crate::MountedDir::mount(&mounts, dir.path()).unwrap();
            std::fs::write(mounted.path().join(name), name).unwrap();
            assert!(mounted.path().join("first").exists());
            mounted.close().unwrap();
        }
        // Another process begins to count anew.
        let again = OverlaySnapshotter {
            work: Arc::default(),
            ..snapshots.clone()
        };
        again.mounts(&key).await.unwrap();
    }
}
