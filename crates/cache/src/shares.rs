//! Files that several snapshots have by hard links: their bytes belong to the oldest record that
//! has them, and pass to the next when it goes.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use cooper_snapshot::SharedFile;

use crate::RefId;

/// The file system and the number of a file.
pub(crate) type FileId = (u64, u64);

fn id_of(file: &SharedFile) -> FileId {
    (file.device, file.inode)
}

#[derive(Debug, Default)]
struct Shared {
    bytes: u64,
    /// Who has it, the oldest first, each with how many names.
    holders: BTreeMap<(SystemTime, RefId), u64>,
    /// Its names when it was last asked who has them.
    asked: u64,
}

impl Shared {
    /// Bytes that are counted too often when the snapshots are added up.
    fn double(&self) -> u64 {
        self.bytes * (self.holders.len() as u64).saturating_sub(1)
    }
}

/// Who has which of them.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    files: HashMap<FileId, Shared>,
    of: HashMap<RefId, (SystemTime, Vec<SharedFile>)>,
    double: u64,
}

impl Shares {
    /// Notes that the record `id`, made at `made`, has `files`. Says whether some of their names
    /// are nowhere among those that are known: somebody who was measured before may have them.
    pub(crate) fn set(&mut self, id: &RefId, made: SystemTime, files: &[SharedFile]) -> bool {
        self.remove(id);
        let mut unknown = false;
        for file in files {
            let shared = self.files.entry(id_of(file)).or_default();
            self.double -= shared.double();
            shared.bytes = file.bytes;
            shared.holders.insert((made, id.clone()), file.names);
            self.double += shared.double();
            let names: u64 = shared.holders.values().sum();
            unknown |= names < file.links && shared.asked < file.links;
            shared.asked = file.links;
        }
        if !files.is_empty() {
            self.of.insert(id.clone(), (made, files.to_vec()));
        }
        unknown
    }

    /// Forgets what `id` has.
    pub(crate) fn remove(&mut self, id: &RefId) {
        let Some((made, files)) = self.of.remove(id) else {
            return;
        };
        let holder = (made, id.clone());
        for file in files {
            let Some(shared) = self.files.get_mut(&id_of(&file)) else {
                continue;
            };
            self.double -= shared.double();
            shared.holders.remove(&holder);
            self.double += shared.double();
            if shared.holders.is_empty() {
                self.files.remove(&id_of(&file));
            }
        }
    }

    /// What `id` has of them.
    pub(crate) fn of(&self, id: &RefId) -> &[SharedFile] {
        self.of.get(id).map_or(&[], |(_, files)| files)
    }

    /// How many have a file.
    pub(crate) fn holders(&self, file: FileId) -> usize {
        self.files
            .get(&file)
            .map_or(0, |shared| shared.holders.len())
    }

    /// Bytes in the snapshot of `id` that belong to older ones.
    pub(crate) fn of_others(&self, id: &RefId) -> u64 {
        let others = self.of(id).iter().filter(|file| {
            let shared = self.files.get(&id_of(file));
            let oldest = shared.and_then(|shared| shared.holders.first_key_value());
            oldest.is_some_and(|((_, oldest), _)| oldest != id)
        });
        others.map(|file| file.bytes).sum()
    }

    /// Bytes that are counted too often when the snapshots are added up.
    pub(crate) fn double(&self) -> u64 {
        self.double
    }
}
