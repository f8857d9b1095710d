//! What is stored of a ref.

use std::time::SystemTime;

use cooper_content::{Descriptor, Digest};
use cooper_store::Table;
use serde::{Deserialize, Serialize};

use crate::RefId;

/// The records, by id.
pub(crate) const RECORDS: Table<Record> = Table::new("cache-records");
/// How often and when a ref was used, and its size, by id. Apart from the records because it
/// changes often: a record that is not touched stays below the durable watermark.
pub(crate) const USES: Table<Uses> = Table::new("cache-uses");
/// Mutable refs that are or were written in place since the last checkpoint, by id.
pub(crate) const OPENED: Table<()> = Table::new("cache-opened");
/// Unfinished work, by the key of its snapshot; the value is the epoch of the daemon.
pub(crate) const LEASES: Table<u64> = Table::new("cache-leases");
/// `epoch` and `boot`.
pub(crate) const META: Table<String> = Table::new("cache-meta");

/// A layer of an image, as a registry has it and as its content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// References of images that the blob can be fetched from, without scheme.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// Which kind of thing a record stands for: users prune by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RecordType {
    /// A result of a step.
    #[default]
    Regular,
    /// Something that the daemon needs for itself.
    Internal,
    /// An image that a frontend runs in.
    Frontend,
    /// Files from a client.
    LocalSource,
    /// A checkout of a Git repository.
    GitCheckout,
    /// A cache mount.
    CacheMount,
}

impl RecordType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Regular,
        Self::Internal,
        Self::Frontend,
        Self::LocalSource,
        Self::GitCheckout,
        Self::CacheMount,
    ];

    /// The name that BuildKit gives it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

/// How a new record is described.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// What users see of it, such as the name of the step.
    pub description: String,
    /// Which kind of thing it is.
    pub record_type: RecordType,
    /// Whether a mutable ref outlives its handle and can be got again.
    pub retain: bool,
    /// When it was made; now when there is none.
    pub created_at: Option<SystemTime>,
    /// Names that it is found by ([`crate::CacheManager::search`]).
    pub indexes: Vec<String>,
}

/// A record as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The ref below it.
    pub(crate) parent: Option<RefId>,
    pub(crate) state: Stage,
    pub(crate) description: String,
    pub(crate) record_type: RecordType,
    pub(crate) created_at: SystemTime,
    /// A mutable ref that outlives its handle.
    #[serde(default)]
    pub(crate) retain: bool,
    /// A result that somebody refers to by its id: it stays until it is pruned.
    #[serde(default)]
    pub(crate) kept: bool,
    #[serde(default)]
    pub(crate) layer: Option<Layer>,
    /// Whether the layer was packed of its files, and is not what these came from.
    #[serde(default)]
    pub(crate) packed: bool,
    /// Whose changes it makes again on its parent ([`crate::CacheManager::stack`]).
    #[serde(default)]
    pub(crate) repeats: Option<RefId>,
    /// Bytes in its snapshot that are that one's, for where snapshots do not tell.
    #[serde(default)]
    pub(crate) shared_bytes: u64,
    #[serde(default)]
    pub(crate) indexes: Vec<String>,
}

/// Where a record is in its life, with what belongs to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Written, or between two times of being written.
    Active {
        /// The key of its snapshot.
        key: String,
    },
    /// Committed by contract, on the snapshot of a mutable ref that can be continued.
    Sealed {
        /// That mutable ref; the key of the snapshot is in its record.
        origin: RefId,
    },
    /// On disk and never changed again.
    Committed {
        /// The name of its snapshot.
        name: String,
        /// Whose snapshot it is, when two records have the same content in different blobs.
        #[serde(default)]
        owner: Option<RefId>,
    },
    /// Known by its layer or by whose changes it has, not on disk.
    Lazy,
}

impl Record {
    pub(crate) fn new(parent: Option<RefId>, state: Stage, options: RecordOptions) -> Self {
        Self {
            parent,
            state,
            description: options.description,
            record_type: options.record_type,
            created_at: options.created_at.unwrap_or_else(SystemTime::now),
            retain: options.retain,
            kept: false,
            layer: None,
            packed: false,
            repeats: None,
            shared_bytes: 0,
            indexes: options.indexes,
        }
    }

    pub(crate) fn is_mutable(&self) -> bool {
        matches!(self.state, Stage::Active { .. })
    }

    /// Whether a snapshot belongs to it.
    pub(crate) fn has_snapshot(&self) -> bool {
        match &self.state {
            Stage::Active { .. } => true,
            Stage::Committed { owner, .. } => owner.is_none(),
            Stage::Sealed { .. } | Stage::Lazy => false,
        }
    }

    /// The refs that it is made of.
    pub(crate) fn stands_on(&self) -> impl Iterator<Item = &RefId> {
        self.parent.iter().chain(&self.repeats)
    }

    /// The other records that have to live as long as this one.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &RefId> {
        let owner = match &self.state {
            Stage::Committed { owner, .. } => owner.as_ref(),
            _ => None,
        };
        self.stands_on().chain(owner)
    }
}

/// Use and size of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    /// When its last handle was dropped.
    pub(crate) last_used: Option<SystemTime>,
    /// How often.
    pub(crate) count: u64,
    /// What its snapshot takes in bytes.
    #[serde(default)]
    pub(crate) size: Option<u64>,
}
