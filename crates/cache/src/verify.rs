//! Comparing what the ledger says with what is on the disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cooper_snapshot::{ActiveKey, SnapshotId, SnapshotName};

use crate::error::{io, snapshot};
use crate::record::{LEASES, Stage};
use crate::{CacheError, CacheManager};

/// From the first look to the second: a difference that is only seen once was work that went on.
const AGAIN: Duration = Duration::from_millis(300);

/// What comparing the ledger with the file system gave.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// How many records there are.
    pub records: usize,
    /// What they take by the ledger, in bytes.
    pub ledger: u64,
    /// What their snapshots and blobs take on the disk, with all that is found among those, in
    /// bytes.
    pub disk: u64,
    /// Where the two differ.
    pub differences: Vec<Difference>,
    /// What the entries of the folder that the cache is in take, in bytes: snapshots and blobs
    /// are among them when they are kept there, and metadata and the executor's files.
    pub folders: Vec<(PathBuf, u64)>,
}

/// Where the ledger and the file system differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// A snapshot, a blob, a path.
    pub what: String,
    /// What it takes by the ledger, in bytes; `None` when the ledger does not know it.
    pub ledger: Option<u64>,
    /// What it takes on the disk, in bytes; `None` when it is not there.
    pub disk: Option<u64>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match (self.ledger, self.disk) {
            (Some(ledger), Some(disk)) => {
                write!(f, "{what}: takes {disk} bytes, the ledger says {ledger}")
            }
            (Some(ledger), None) => {
                write!(f, "{what}: is not there, the ledger says {ledger} bytes")
            }
            (None, Some(disk)) => write!(f, "{what}: takes {disk} bytes and belongs to no record"),
            (None, None) => f.write_str(what),
        }
    }
}

impl CacheManager {
    /// Compares the ledger with the file system. Builds may go on meanwhile: what they are
    /// writing is no difference.
    ///
    /// # Cancel safety
    /// Nothing is changed but what is known of sizes.
    pub async fn verify(&self) -> Result<Verified, CacheError> {
        let mut found = self.look().await?;
        if !found.differences.is_empty() {
            tokio::time::sleep(AGAIN).await;
            let again = self.look().await?;
            let before: HashSet<String> = found.differences.into_iter().map(|d| d.what).collect();
            found = again;
            found.differences.retain(|one| before.contains(&one.what));
        }
        let root = self.shared.mounts.parent().map(Path::to_owned);
        if let Some(root) = root {
            let walking = tokio::task::spawn_blocking(move || folders(&root));
            found.folders = walking.await.map_err(|source| CacheError::Thread {
                id: "the cache".to_owned(),
                source,
            })??;
        }
        Ok(found)
    }

    async fn look(&self) -> Result<Verified, CacheError> {
        let core = &self.shared.core;
        self.settle().await;
        core.measure_all(true).await?;
        let mut found = Verified::default();
        // The snapshots by the ledger; of what is being written the size means nothing.
        let mut known: HashMap<SnapshotId, (Option<u64>, u64)> = HashMap::new();
        {
            let state = core.state();
            found.ledger = state.snapshot_bytes();
            found.records = state.iter().count();
            for (_, entry) in state
                .iter()
                .filter(|(_, entry)| entry.record.has_snapshot())
            {
                let id = match &entry.record.state {
                    Stage::Active { key } => SnapshotId::Active(ActiveKey::new(key.clone())),
                    Stage::Committed { name, .. } => {
                        SnapshotId::Committed(SnapshotName::new(name.clone()))
                    }
                    Stage::Sealed { .. } | Stage::Lazy => continue,
                };
                let size = entry.uses.size.filter(|_| !entry.taken);
                known.insert(id, (size, entry.record.shared_bytes));
            }
        }
        let leases = core.store.read(|tx| tx.scan(&LEASES, ""))?;
        let leases: HashSet<String> = leases.into_iter().map(|(key, _)| key).collect();
        let mut shared = HashSet::new();
        let attempt = snapshot("compare the snapshots", &"the cache");
        let there = core.snapshotter.list().await.map_err(attempt)?;
        for id in &there {
            let usage = match id {
                SnapshotId::Active(key) => core.snapshotter.usage_active(key).await,
                SnapshotId::Committed(name) => core.snapshotter.usage(name).await,
            };
            // Gone since it was listed.
            let Ok(usage) = usage else { continue };
            let (ledger, of_others) = match known.remove(id) {
                Some((size, of_others)) => (Some(size), of_others),
                None => (None, 0),
            };
            let usage = core.own(usage, of_others);
            found.disk += usage.bytes;
            for file in &usage.shared {
                if !shared.insert((file.device, file.inode)) {
                    found.disk -= file.bytes;
                }
            }
            let what = || match id {
                SnapshotId::Active(key) => format!("snapshot {key} that is written"),
                SnapshotId::Committed(name) => format!("snapshot {name}"),
            };
            match ledger {
                // Being written.
                Some(None) => {}
                Some(Some(ledger)) if ledger == usage.bytes => {}
                Some(ledger) => found.differences.push(Difference {
                    what: what(),
                    ledger,
                    disk: Some(usage.bytes),
                }),
                // Work that goes on, or a view.
                None if leases.contains(id.as_str()) => {}
                None => found.differences.push(Difference {
                    what: what(),
                    ledger: None,
                    disk: Some(usage.bytes),
                }),
            }
        }
        for (id, (ledger, _)) in known {
            if ledger.is_some() {
                found.differences.push(Difference {
                    what: format!("snapshot {id}"),
                    ledger,
                    disk: None,
                });
            }
        }
        let attempt = snapshot("compare the snapshots", &"the cache");
        for (path, bytes) in core.snapshotter.strays().await.map_err(attempt)? {
            found.disk += bytes;
            found.differences.push(Difference {
                what: path.display().to_string(),
                ledger: None,
                disk: Some(bytes),
            });
        }
        self.look_at_blobs(&mut found).await?;
        found.differences.sort();
        Ok(found)
    }

    async fn look_at_blobs(&self, found: &mut Verified) -> Result<(), CacheError> {
        let core = &self.shared.core;
        let noted = core.book.list(|_| true);
        found.records += core
            .book
            .list(|digest| !core.state().has_blob(digest))
            .len();
        found.ledger += noted.iter().map(|(_, blob, _)| blob.disk).sum::<u64>();
        let mut noted: BTreeMap<String, u64> = noted
            .into_iter()
            .map(|(digest, blob, _)| (digest.to_string(), blob.disk))
            .collect();
        for info in core.blobs.walk().await? {
            found.disk += info.disk;
            let ledger = noted.remove(&info.digest.to_string());
            if ledger != Some(info.disk) {
                found.differences.push(Difference {
                    what: format!("blob {}", info.digest),
                    ledger,
                    disk: Some(info.disk),
                });
            }
        }
        found
            .differences
            .extend(noted.into_iter().map(|(digest, disk)| Difference {
                what: format!("blob {digest}"),
                ledger: Some(disk),
                disk: None,
            }));
        Ok(())
    }
}

/// What the entries of `root` take, what is mounted in them not included.
fn folders(root: &Path) -> Result<Vec<(PathBuf, u64)>, CacheError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(io("list", root))? {
        let path = entry.map_err(io("list", root))?.path();
        let bytes = bytes_of(&path);
        found.push((path, bytes));
    }
    found.sort();
    Ok(found)
}

/// What is gone before it was looked at does not count.
fn bytes_of(path: &Path) -> u64 {
    let Ok(top) = path.symlink_metadata() else {
        return 0;
    };
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut open = vec![(path.to_owned(), top.clone())];
    while let Some((path, meta)) = open.pop() {
        if meta.dev() != top.dev() || (!meta.is_dir() && !seen.insert(meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))));
        }
    }
    bytes
}
