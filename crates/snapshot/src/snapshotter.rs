//! The trait and its nouns.

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::SnapshotError;

/// Names a snapshot that is written, or a view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActiveKey(String);

/// Names a committed snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName(String);

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// Takes any text.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(ActiveKey);
text!(SnapshotName);

/// A snapshot of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SnapshotId {
    /// One that is written, or a view.
    Active(ActiveKey),
    /// A committed one.
    Committed(SnapshotName),
}

impl SnapshotId {
    /// The key or the name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Active(key) => key.as_str(),
            Self::Committed(name) => name.as_str(),
        }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active(key) => key.fmt(f),
            Self::Committed(name) => name.fmt(f),
        }
    }
}

/// A mount as containerd describes one: what mount(8) would be told, without the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `overlay`, `bind`, …
    pub kind: String,
    /// What is mounted; `overlay` for an overlay.
    pub source: PathBuf,
    /// Flags and options: `ro`, `lowerdir=…`.
    pub options: Vec<String>,
}

impl Mount {
    /// A recursive bind of `source`.
    pub fn bind(source: &Path, read_only: bool) -> Self {
        let mode = if read_only { "ro" } else { "rw" };
        let options = ["rbind", mode].map(str::to_owned).to_vec();
        Self {
            kind: "bind".into(),
            source: source.to_owned(),
            options,
        }
    }

    /// The value of `name=value` among the options.
    pub fn option(&self, name: &str) -> Option<&str> {
        let pairs = self
            .options
            .iter()
            .filter_map(|option| option.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
    }

    /// The directory that takes the changes: the upper one of an overlay, or what is bound.
    pub fn upper(&self) -> Option<&Path> {
        if self.options.iter().any(|option| option == "ro") {
            return None;
        }
        match self.kind.as_str() {
            "overlay" => self.option("upperdir").map(Path::new),
            "bind" => Some(&self.source),
            _ => None,
        }
    }

    /// The same for reading only: an overlay's upper directory becomes its topmost lower one.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        if self.kind == "overlay"
            && let (Some(upper), Some(lower)) = (self.option("upperdir"), self.option("lowerdir"))
        {
            let lower = format!("lowerdir={upper}:{lower}");
            let gone = ["upperdir=", "workdir=", "lowerdir="];
            self.options.retain(|option| {
                option != "volatile" && !gone.iter().any(|gone| option.starts_with(gone))
            });
            self.options.push(lower);
        }
        self.options
            .retain(|option| option != "rw" && option != "ro");
        self.options.push("ro".into());
        self
    }
}

/// What a snapshot itself takes on disk, the folder that holds it included and its parents not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its blocks; a file with several names counts once.
    pub bytes: u64,
    /// Files, folders and the like.
    pub inodes: u64,
    /// Those of the files that have names elsewhere too, such as in another snapshot: their bytes
    /// are among `bytes`.
    pub shared: Vec<SharedFile>,
}

/// A file with names in a snapshot and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedFile {
    /// The file system that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Bytes of its blocks.
    pub bytes: u64,
    /// Names in the snapshot.
    pub names: u64,
    /// All its names.
    pub links: u64,
}

/// Keeps states of a file system.
///
/// Every call that changes something is done when it returns, in the sense that it survives
/// the death of the process, and none waits for a sync.
///
/// # Cancel safety
/// A call whose future is dropped has happened or not; [`Snapshotter::remove`] of its key or
/// name puts either right.
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// `overlayfs`, `native`, …: the name that BuildKit or containerd gives it.
    fn name(&self) -> &str;

    /// A folder of the file system that holds the snapshots, if they are not kept below a folder
    /// of the caller's: who wants them to survive the death of the machine syncs that file
    /// system.
    fn elsewhere(&self) -> Option<&Path> {
        None
    }

    /// Whether a snapshot holds a copy of what it stands on, and not only what differs.
    fn copies(&self) -> bool {
        false
    }

    /// Whether what it says of the size of a snapshot tells which files others may have too
    /// ([`Usage::shared`]).
    fn tells_shared(&self) -> bool {
        true
    }

    /// Makes a snapshot to be written, on top of `parent` or empty.
    async fn prepare(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError>;

    /// Makes a view: `parent` to be read, under a key that is removed like an active one.
    async fn view(
        &self,
        key: &ActiveKey,
        parent: Option<&SnapshotName>,
    ) -> Result<(), SnapshotError>;

    /// The mounts that show an active snapshot or a view. For one that is written, each call
    /// gives mounts that can be mounted although earlier ones were.
    async fn mounts(&self, key: &ActiveKey) -> Result<Vec<Mount>, SnapshotError>;

    /// Lets the file system itself refuse what is written to the new snapshot `key` beyond `bytes`
    /// (`EDQUOT`), until it is committed. Says whether it does: not all can.
    async fn limit(&self, key: &ActiveKey, bytes: u64) -> Result<bool, SnapshotError> {
        let _ = (key, bytes);
        Ok(false)
    }

    /// Ends the writing: from now on the snapshot has `name`, and its key is free. Nothing may
    /// have it mounted for writing.
    async fn commit(&self, key: &ActiveKey, name: &SnapshotName) -> Result<(), SnapshotError>;

    /// What a committed snapshot takes. Walks its files.
    async fn usage(&self, name: &SnapshotName) -> Result<Usage, SnapshotError>;

    /// What a snapshot that is still active takes. Walks its files.
    async fn usage_active(&self, key: &ActiveKey) -> Result<Usage, SnapshotError>;

    /// Removes a snapshot. One that is not there is no error; one that has children is.
    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError>;

    /// Removes some of them, in their order: those on top come first. Says of each, as
    /// [`Snapshotter::remove`] does, whether that went well; one that stays keeps no other.
    async fn remove_all(&self, ids: &[SnapshotId]) -> Vec<Result<(), SnapshotError>> {
        let mut results = Vec::with_capacity(ids.len());
        for id in ids {
            results.push(self.remove(id).await);
        }
        results
    }

    /// What lies among the files of the snapshots and belongs to none, with the bytes that it
    /// takes.
    async fn strays(&self) -> Result<Vec<(PathBuf, u64)>, SnapshotError> {
        Ok(Vec::new())
    }

    /// All snapshots, for the clean-up at start.
    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError>;
}
