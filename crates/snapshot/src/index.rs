//! The metadata that both local snapshotters share: which key or name is which folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cooper_store::{Read, Store, StoreError, Table, Write};
use serde::{Deserialize, Serialize};

use crate::error::io;
use crate::{ActiveKey, SnapshotError, SnapshotId, SnapshotName};

/// Keys are `a/<key>` and `c/<name>`.
const SNAPSHOTS: Table<Record> = Table::new("snapshots");
/// Keys are `<parent's name>/<id of the child as above>`.
const CHILDREN: Table<()> = Table::new("snapshot-children");
/// Folders that one thread removes, at least: few are gone before another has begun.
const ALONE: usize = 16;
/// Layers of one chain at most: a bound on a walk, far above what images have.
const MAX_CHAIN: usize = 4096;

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its folder.
    pub(crate) number: u64,
    /// What it stands on.
    pub(crate) parent: Option<String>,
    /// Whether it is a view.
    pub(crate) view: bool,
}

#[derive(Debug)]
pub(crate) struct Index {
    root: PathBuf,
    store: Store,
    next: AtomicU64,
}

fn active(key: &ActiveKey) -> String {
    format!("a/{key}")
}

fn committed(name: &SnapshotName) -> String {
    format!("c/{name}")
}

fn id_key(id: &SnapshotId) -> String {
    match id {
        SnapshotId::Active(key) => active(key),
        SnapshotId::Committed(name) => committed(name),
    }
}

impl Index {
    /// Opens the index of the snapshots in `root`, and removes folders that belong to none:
    /// what a process left that died between making a folder and writing it down.
    pub(crate) fn open(root: &Path, store: Store) -> Result<Self, SnapshotError> {
        // Short, because the path of every layer of a chain is part of one mount.
        let folders = root.join("s");
        std::fs::create_dir_all(&folders).map_err(io("make", &folders))?;
        let records = store.read(|tx| tx.scan(&SNAPSHOTS, ""))?;
        let known: std::collections::HashSet<u64> =
            records.iter().map(|(_, record)| record.number).collect();
        let mut next = known.iter().max().map_or(1, |number| number + 1);
        for entry in std::fs::read_dir(&folders).map_err(io("list", &folders))? {
            let path = entry.map_err(io("list", &folders))?.path();
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.parse::<u64>().ok());
            if let Some(number) = number {
                next = next.max(number + 1);
                if known.contains(&number) {
                    continue;
                }
            }
            std::fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
        Ok(Self {
            root: folders,
            store,
            next: AtomicU64::new(next),
        })
    }

    /// What the folders of all snapshots are in.
    pub(crate) fn folders(&self) -> &Path {
        &self.root
    }

    /// The folder of a snapshot.
    pub(crate) fn folder(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// A number that no snapshot has had since the folders were last listed.
    pub(crate) fn allocate(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes down a new active snapshot or view.
    pub(crate) async fn insert(
        &self,
        key: &ActiveKey,
        record: Record,
    ) -> Result<(), SnapshotError> {
        let id = active(key);
        self.store
            .write(move |tx| {
                if tx.has(&SNAPSHOTS, &id)? {
                    return Ok(Err(SnapshotError::Exists {
                        id: id[2..].to_owned(),
                    }));
                }
                if let Some(parent) = &record.parent {
                    if !tx.has(&SNAPSHOTS, &format!("c/{parent}"))? {
                        return Ok(Err(SnapshotError::NotFound { id: parent.clone() }));
                    }
                    tx.put(&CHILDREN, &format!("{parent}/{id}"), &())?;
                }
                tx.put(&SNAPSHOTS, &id, &record)?;
                Ok(Ok(()))
            })
            .await?
    }

    pub(crate) fn get(&self, id: &SnapshotId) -> Result<Record, SnapshotError> {
        let record = self.store.read(|tx| tx.get(&SNAPSHOTS, &id_key(id)))?;
        record.ok_or_else(|| SnapshotError::NotFound { id: id.to_string() })
    }

    /// The numbers of `name` and all that it stands on, the topmost first.
    pub(crate) fn chain(&self, name: &str) -> Result<Vec<u64>, SnapshotError> {
        let walk = |tx: &Read<'_>| -> Result<Result<Vec<u64>, SnapshotError>, StoreError> {
            let mut chain = Vec::new();
            let mut next = Some(name.to_owned());
            while let Some(name) = next {
                let record = match tx.get(&SNAPSHOTS, &format!("c/{name}"))? {
                    Some(record) if chain.len() < MAX_CHAIN => record,
                    _ => return Ok(Err(SnapshotError::NotFound { id: name })),
                };
                chain.push(record.number);
                next = record.parent;
            }
            Ok(Ok(chain))
        };
        self.store.read(walk)?
    }

    /// Turns the active `key` into the committed `name`.
    pub(crate) async fn commit(
        &self,
        key: &ActiveKey,
        name: &SnapshotName,
    ) -> Result<Record, SnapshotError> {
        let (from, to) = (active(key), committed(name));
        self.store
            .write(move |tx| {
                let Some(record) = tx.get(&SNAPSHOTS, &from)? else {
                    return Ok(Err(SnapshotError::NotFound {
                        id: from[2..].to_owned(),
                    }));
                };
                if record.view {
                    return Ok(Err(SnapshotError::ReadOnly {
                        id: from[2..].to_owned(),
                    }));
                }
                if tx.has(&SNAPSHOTS, &to)? {
                    return Ok(Err(SnapshotError::Exists {
                        id: to[2..].to_owned(),
                    }));
                }
                tx.delete(&SNAPSHOTS, &from)?;
                tx.put(&SNAPSHOTS, &to, &record)?;
                if let Some(parent) = &record.parent {
                    tx.delete(&CHILDREN, &format!("{parent}/{from}"))?;
                    tx.put(&CHILDREN, &format!("{parent}/{to}"), &())?;
                }
                Ok(Ok(record))
            })
            .await?
    }

    /// Removes snapshots in their order, with their folders. Says of each whether that went well.
    pub(crate) async fn remove_all(&self, ids: &[SnapshotId]) -> Vec<Result<(), SnapshotError>> {
        let failed = |attempt: &str, error: &dyn std::error::Error| {
            let failed = ids.iter().map(|_| {
                Err(SnapshotError::Backend {
                    attempt: attempt.to_owned(),
                    source: error.to_string().into(),
                })
            });
            failed.collect()
        };
        let struck = match self.strike_out(ids).await {
            Ok(struck) => struck,
            // Nothing is gone.
            Err(error) => {
                let attempt = format!("strike out {} snapshots", ids.len());
                return failed(&attempt, &error);
            }
        };
        let folder = |record: Option<Record>| record.map(|record| self.folder(record.number));
        let folders: Vec<_> = struck.into_iter().map(|one| one.map(folder)).collect();
        let removed = tokio::task::spawn_blocking(move || remove_folders(folders)).await;
        removed.unwrap_or_else(|error| failed("remove folders", &error))
    }

    /// Strikes snapshots out in one transaction; gives what was written of each, `None` where
    /// there was none.
    async fn strike_out(
        &self,
        ids: &[SnapshotId],
    ) -> Result<Vec<Result<Option<Record>, SnapshotError>>, StoreError> {
        let keys: Vec<String> = ids.iter().map(id_key).collect();
        self.store
            .write(move |tx| keys.iter().map(|key| strike_out(tx, key)).collect())
            .await
    }

    /// What is in the folder of the snapshots and is none, with what it takes in bytes.
    pub(crate) fn strays(&self) -> Result<Vec<(PathBuf, u64)>, SnapshotError> {
        let records = self.store.read(|tx| tx.scan(&SNAPSHOTS, ""))?;
        let known: std::collections::HashSet<String> = records
            .iter()
            .map(|(_, record)| record.number.to_string())
            .collect();
        let mut strays = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(io("list", &self.root))? {
            let path = entry.map_err(io("list", &self.root))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if !name.is_some_and(|name| known.contains(name)) {
                let bytes = crate::tree::usage(&path).map_or(0, |usage| usage.bytes);
                strays.push((path, bytes));
            }
        }
        Ok(strays)
    }

    pub(crate) fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let records = self.store.read(|tx| tx.scan(&SNAPSHOTS, ""))?;
        let id = |key: &str| match key.strip_prefix("a/") {
            Some(key) => SnapshotId::Active(ActiveKey::new(key)),
            None => SnapshotId::Committed(SnapshotName::new(&key[2..])),
        };
        Ok(records.iter().map(|(key, _)| id(key)).collect())
    }
}

fn strike_out(
    tx: &mut Write<'_>,
    key: &str,
) -> Result<Result<Option<Record>, SnapshotError>, StoreError> {
    let Some(record) = tx.get(&SNAPSHOTS, key)? else {
        return Ok(Ok(None));
    };
    if let Some(name) = key.strip_prefix("c/")
        && let Some((child, ())) = tx.scan(&CHILDREN, &format!("{name}/"))?.pop()
    {
        let id = name.to_owned();
        let child = child[name.len() + 3..].to_owned();
        return Ok(Err(SnapshotError::HasChildren { id, child }));
    }
    tx.delete(&SNAPSHOTS, key)?;
    if let Some(parent) = &record.parent {
        tx.delete(&CHILDREN, &format!("{parent}/{key}"))?;
    }
    Ok(Ok(Some(record)))
}

/// Removes the folders of what was struck out, on some threads where there are many.
fn remove_folders(
    folders: Vec<Result<Option<PathBuf>, SnapshotError>>,
) -> Vec<Result<(), SnapshotError>> {
    let remove = |one: Result<Option<PathBuf>, SnapshotError>| match one? {
        Some(folder) => crate::tree::remove(&folder),
        None => Ok(()),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let each = folders.len().div_ceil(processors).max(ALONE);
    let mut parts: Vec<Vec<_>> = Vec::new();
    for (index, one) in folders.into_iter().enumerate() {
        if index % each == 0 {
            parts.push(Vec::with_capacity(each));
        }
        parts
            .last_mut()
            .expect("one was pushed a line ago")
            .push(one);
    }
    let work = move |part: Vec<_>| part.into_iter().map(remove).collect::<Vec<_>>();
    if parts.len() <= 1 {
        return parts.into_iter().flat_map(work).collect();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        let join = threads.into_iter().flat_map(|thread| match thread.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        join.collect()
    })
}
