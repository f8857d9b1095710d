//! Opening: what a dead process or a dead machine left is put right.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cooper_content::{BlobReader, ContentStore, Digest};
use cooper_snapshot::{ActiveKey, SnapshotError, SnapshotId, SnapshotName, Snapshotter};
use cooper_store::StoreError;
use sha2::Digest as _;

use crate::blobs::Book;
use crate::contenthash::HashCache;
use crate::core::Core;
use crate::error::{io, snapshot};
use crate::record::{LEASES, META, OPENED, RECORDS, Record, Stage, USES, Uses};
use crate::state::State;
use crate::{CacheConfig, CacheError, RefId};

/// Everything that was stored.
struct Stored {
    records: BTreeMap<RefId, Record>,
    uses: HashMap<RefId, Uses>,
    opened: Vec<String>,
    leases: Vec<(String, u64)>,
    epoch: u64,
    boot: Option<String>,
}

fn load(store: &cooper_store::Store) -> Result<Stored, StoreError> {
    store.read(|tx| {
        // A key that is no id is in no use; it is struck out below.
        let mut records = BTreeMap::new();
        for (key, record) in tx.scan(&RECORDS, "")? {
            if let Ok(id) = key.parse() {
                records.insert(id, record);
            }
        }
        let uses = tx.scan(&USES, "")?.into_iter();
        let uses = uses.filter_map(|(key, uses)| Some((key.parse().ok()?, uses)));
        Ok(Stored {
            records,
            uses: uses.collect(),
            opened: tx
                .scan(&OPENED, "")?
                .into_iter()
                .map(|(key, ())| key)
                .collect(),
            leases: tx.scan(&LEASES, "")?,
            epoch: tx
                .get(&META, "epoch")?
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            boot: tx.get(&META, "boot")?,
        })
    })
}

/// Puts right what is stored, and makes the core of a cache over it.
pub(crate) async fn open(config: CacheConfig) -> Result<Core, CacheError> {
    std::fs::create_dir_all(&config.mounts).map_err(io("make", &config.mounts))?;
    let boot =
        cooper_sys::boot_id().map_err(io("read", "/proc/sys/kernel/random/boot_id".as_ref()))?;
    let mut stored = load(&config.store)?;
    let died = !config.dropped.is_empty() || stored.boot.as_ref().is_some_and(|was| *was != boot);
    let before: BTreeSet<RefId> = stored.records.keys().cloned().collect();
    if died {
        // What was written in place when the machine died may be anything.
        let lost = config.dropped.iter();
        let lost = lost.filter(|row| row.table == OPENED.name());
        let lost = lost.map(|row| &row.key).chain(&stored.opened);
        for id in lost.filter_map(|key| key.parse::<RefId>().ok()) {
            stored.records.remove(&id);
        }
    }
    let snapshots = config.snapshotter.list().await;
    let snapshots = snapshots.map_err(snapshot("list the snapshots", &"the cache"))?;
    let snapshots: HashSet<SnapshotId> = snapshots.into_iter().collect();
    let repaired = mend(&mut stored.records, &snapshots);
    let blobs = drop_waste(&mut stored.records);
    sweep_mounts(&config.mounts);

    let epoch = stored.epoch + 1;
    let gone: Vec<RefId> = before
        .into_iter()
        .filter(|id| !stored.records.contains_key(id))
        .collect();
    let mut rows: Vec<(RefId, Record)> = Vec::new();
    for id in repaired {
        if let Some(record) = stored.records.get(&id) {
            rows.push((id, record.clone()));
        }
    }
    let opened: Vec<String> = if died {
        // The survivors were not open.
        std::mem::take(&mut stored.opened)
    } else {
        Vec::new()
    };
    let leases = stored.leases;
    let now = boot.clone();
    let durably = died || !gone.is_empty();
    let write = config.store.write(move |tx| {
        for id in &gone {
            tx.delete(&RECORDS, id.as_str())?;
            tx.delete(&USES, id.as_str())?;
            tx.delete(&OPENED, id.as_str())?;
        }
        for (id, record) in &rows {
            tx.put(&RECORDS, id.as_str(), record)?;
        }
        for key in &opened {
            tx.delete(&OPENED, key)?;
        }
        // All are of older epochs: this one begins here.
        for (key, _) in &leases {
            tx.delete(&LEASES, key)?;
        }
        tx.put(&META, "epoch", &epoch.to_string())?;
        tx.put(&META, "boot", &now)
    });
    write.await?;
    if durably {
        // Before any file goes, and with what the store has told: were the machine to die now,
        // half a snapshot would be taken for a whole one.
        config.store.flush().await?;
    }
    let hashes = HashCache::open(config.mounts.with_file_name("hashes"), |id| {
        stored.records.contains_key(id)
    })?;
    sweep_snapshots(config.snapshotter.as_ref(), &stored.records, snapshots).await?;

    let mut state = State::default();
    fill(&mut state, stored.records, &stored.uses);
    for key in stored.opened {
        if let Ok(id) = key.parse()
            && state.get(&id).is_some()
        {
            // Its size was noted before it was written.
            state.set_size(&id, None);
            state.opened.insert(id, 0);
        }
    }
    for blob in blobs.iter().filter(|blob| !state.has_blob(blob)) {
        if let Err(error) = config.content.delete(blob).await {
            tracing::warn!(digest = %blob, %error, "could not remove a blob");
        }
    }
    if died {
        verify_blobs(config.content.as_ref(), &state).await?;
    }
    let book = Book::default();
    book.load(config.content.walk().await?);
    Ok(Core::new(config, epoch, boot, state, book, hashes))
}

/// Takes out records that do not stand on anything, until all do; gives those that were changed.
fn mend(records: &mut BTreeMap<RefId, Record>, snapshots: &HashSet<SnapshotId>) -> Vec<RefId> {
    let active = |key: &String| SnapshotId::Active(ActiveKey::new(key.clone()));
    let committed = |name: &String| SnapshotId::Committed(SnapshotName::new(name.clone()));
    let mut repaired = Vec::new();
    for (id, record) in records.iter_mut() {
        // Committed under its own name, and the process died before it was written down.
        if matches!(record.state, Stage::Sealed { .. })
            && snapshots.contains(&committed(&id.to_string()))
        {
            record.state = Stage::Committed {
                name: id.to_string(),
                owner: None,
            };
            repaired.push(id.clone());
        }
    }
    loop {
        let stands = |record: &Record| {
            let needs = record.needs().all(|id| records.contains_key(id));
            needs
                && match &record.state {
                    Stage::Active { key } => record.retain && snapshots.contains(&active(key)),
                    Stage::Committed { name, .. } => snapshots.contains(&committed(name)),
                    Stage::Sealed { origin } => matches!(
                        records.get(origin).map(|record| &record.state),
                        Some(Stage::Active { .. })
                    ),
                    Stage::Lazy => record.layer.is_some() || record.repeats.is_some(),
                }
        };
        let fallen: Vec<RefId> = records
            .iter()
            .filter(|(_, record)| !stands(record))
            .map(|(id, _)| id.clone())
            .collect();
        if fallen.is_empty() {
            return repaired;
        }
        for id in fallen {
            tracing::info!(%id, "a record without its files is dropped");
            records.remove(&id);
        }
    }
}

/// Takes out records that nobody will ask for by their id and that no other needs: what they stand
/// for was done, and the process died before anybody referred to it. Gives their blobs.
fn drop_waste(records: &mut BTreeMap<RefId, Record>) -> Vec<Digest> {
    let mut children: HashMap<RefId, usize> = HashMap::new();
    for needed in records.values().flat_map(Record::needs) {
        *children.entry(needed.clone()).or_default() += 1;
    }
    let is_waste = |record: &Record| !record.kept && !record.retain;
    let alone = |id: &RefId| !children.contains_key(id);
    let mut waste: Vec<RefId> = records
        .iter()
        .filter(|(id, record)| is_waste(record) && alone(id))
        .map(|(id, _)| id.clone())
        .collect();
    let mut blobs = Vec::new();
    while let Some(id) = waste.pop() {
        let Some(record) = records.remove(&id) else {
            continue;
        };
        tracing::info!(%id, "a record that nobody has asked for is dropped");
        for needed in record.needs() {
            let Some(count) = children.get_mut(needed) else {
                continue;
            };
            *count -= 1;
            if *count == 0 && records.get(needed).is_some_and(is_waste) {
                waste.push(needed.clone());
            }
        }
        blobs.extend(record.layer.map(|layer| layer.descriptor.digest().clone()));
    }
    blobs
}

/// Removes snapshots that belong to no record, those on top first.
async fn sweep_snapshots(
    snapshotter: &dyn Snapshotter,
    records: &BTreeMap<RefId, Record>,
    snapshots: HashSet<SnapshotId>,
) -> Result<(), CacheError> {
    let mut known = HashSet::new();
    for record in records.values() {
        match &record.state {
            Stage::Active { key } => {
                known.insert(SnapshotId::Active(ActiveKey::new(key.clone())));
            }
            Stage::Committed { name, .. } => {
                known.insert(SnapshotId::Committed(SnapshotName::new(name.clone())));
            }
            Stage::Sealed { .. } | Stage::Lazy => {}
        }
    }
    let mut orphans: Vec<SnapshotId> = snapshots.difference(&known).cloned().collect();
    loop {
        let mut left = Vec::new();
        let count = orphans.len();
        for id in orphans {
            match snapshotter.remove(&id).await {
                Ok(()) => {}
                Err(SnapshotError::HasChildren { .. }) => left.push(id),
                Err(error) => return Err(snapshot("remove the orphan snapshot", &id)(error)),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == count {
            // They stand below somebody else's: not ours to remove.
            tracing::warn!(count, "snapshots without a record could not be removed");
            return Ok(());
        }
        orphans = left;
    }
}

/// Unmounts and removes what a dead process left in the folder for mounts.
fn sweep_mounts(folder: &std::path::Path) {
    let points = cooper_sys::MountPoint::below(folder).unwrap_or_default();
    for point in points.iter().filter(|point| point.target != folder) {
        if let Err(error) = cooper_sys::mount::unmount(&point.target) {
            tracing::warn!(path = %point.target.display(), %error, "could not unmount");
        }
    }
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        // Only empty folders: what is still mounted or not ours stays.
        let _ = std::fs::remove_dir(entry.path());
    }
}

/// Puts the records into memory, what others need before them.
fn fill(state: &mut State, records: BTreeMap<RefId, Record>, uses: &HashMap<RefId, Uses>) {
    let mut waiting = records;
    while !waiting.is_empty() {
        let ready: Vec<RefId> = waiting
            .iter()
            .filter(|(_, record)| {
                let mut needs = record.needs();
                let origin = match &record.state {
                    Stage::Sealed { origin } => Some(origin),
                    _ => None,
                };
                needs.all(|id| !waiting.contains_key(id))
                    && origin.is_none_or(|id| !waiting.contains_key(id))
            })
            .map(|(id, _)| id.clone())
            .collect();
        if ready.is_empty() {
            // A circle cannot be made by this program; such records are of no use.
            tracing::warn!(count = waiting.len(), "records that stand on each other");
            return;
        }
        for id in ready {
            if let Some(record) = waiting.remove(&id) {
                let used = uses.get(&id).copied().unwrap_or_default();
                state.insert(id.clone(), record, used);
                if let Some(entry) = state.get_mut(&id) {
                    entry.stored = true;
                }
            }
        }
    }
}

/// After the death of the machine a blob may be there by name and not by content. Those of
/// surviving records were synced before the records counted; all others are read again.
async fn verify_blobs(content: &dyn ContentStore, state: &State) -> Result<(), CacheError> {
    for info in content.walk().await? {
        if state.has_blob(&info.digest) {
            continue;
        }
        let blob = content.open(&info.digest).await?;
        let expected = info.digest.clone();
        let whole = tokio::task::spawn_blocking(move || is_whole(&*blob, &expected)).await;
        if !whole.unwrap_or(false) {
            tracing::info!(digest = %info.digest, "a blob did not survive the crash");
            content.delete(&info.digest).await?;
        }
    }
    Ok(())
}

fn is_whole(blob: &dyn cooper_content::Blob, expected: &Digest) -> bool {
    let mut hasher = sha2::Sha256::new();
    let mut reader = BlobReader::new(blob);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match std::io::Read::read(&mut reader, &mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(_) => return false,
        }
    }
    cooper_content::digest_from(&hasher.finalize()) == *expected
}
