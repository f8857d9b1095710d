//! Why a vertex was not found in the cache.
//!
//! A key is a digest and says nothing. So what it was made of is written down when a result is
//! kept: a [`Note`], beside the key, in a [`Journal`] of bounded size that also remembers notes
//! of results that were pruned. When a job asks for it, the earlier note that is nearest to a
//! vertex that has to be carried out is found, and the first difference is the
//! [`Explanation`].
//!
//! Nothing of this happens for what is found in the cache, and nothing is held in memory.

mod compare;
mod files;
mod memory;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::keys::KeyId;

pub(crate) use compare::{Miss, MissInput, Operations, explain};
pub use files::{FileChange, FileChangeKind, FileEntry, FileList, MAX_FILES};
pub use memory::{MemoryJournal, Recent};

/// Bytes of a value that are kept; of a longer one its begin and a digest are.
const MAX_VALUE: usize = 256;
/// Bytes of a name.
const MAX_NAME: usize = 160;
/// Parts of one description that are kept one by one.
const MAX_PARTS: usize = 512;
/// Inputs of one note.
const MAX_INPUTS: usize = 64;
/// Keys of one input.
const MAX_KEYS: usize = 4;

/// One part of what an operation is: `variable PATH`, `argument 2`, `platform`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is called, unique within a description.
    pub name: String,
    /// What it is. Never a secret: of secrets the ids are parts.
    pub value: String,
}

/// What an operation is, in parts that a user knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What kind of operation: only those of one kind are compared.
    pub kind: String,
    /// What it is about: the instruction, the image, the repository. The same operation in
    /// another form has the same subject, if possible.
    pub subject: String,
    /// Its parts, those first that say most.
    pub parts: Vec<Part>,
    /// How its inputs are put together: named only if nothing else differs.
    #[serde(default)]
    pub wiring: String,
    /// Whether it is never found in the cache by what it is, such as files that a client sends:
    /// that is not worth an explanation.
    #[serde(default)]
    pub volatile: bool,
}

impl Description {
    /// One of this kind, about `subject`, without parts.
    pub fn new(kind: &str, subject: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            subject: shortened(subject, MAX_VALUE),
            ..Self::default()
        }
    }

    /// Adds a part, unless its value is empty. Long values are shortened in a way that keeps
    /// different ones apart; what comes after very many parts is kept as one.
    pub fn part(&mut self, name: impl Into<String>, value: &str) {
        if value.is_empty() {
            return;
        }
        let part = Part {
            name: shortened(&name.into(), MAX_NAME),
            value: shortened(value, MAX_VALUE),
        };
        match self.parts.len() {
            MAX_PARTS.. => {
                if let Some(last) = self.parts.last_mut() {
                    last.name = "one of the further parts".to_owned();
                    let all = format!("{}\0{}\0{}", last.value, part.name, part.value);
                    last.value = short_digest(all.as_bytes());
                }
            }
            _ => self.parts.push(part),
        }
    }

    /// The value of the part `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let part = self.parts.iter().find(|part| part.name == name);
        part.map(|part| part.value.as_str())
    }
}

/// The begin of a text, and a digest of all of it if that is not all.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let begin = &text[..text.floor_char_boundary(most - 24)];
    format!("{begin}… ({})", short_digest(text.as_bytes()))
}

/// 16 hexadecimal digits of the sha256.
fn short_digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(bytes)[..8])
}

/// An input as it was when a result was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteInput {
    /// The names of its keys.
    pub keys: Vec<String>,
    /// The name of the key of its content, if only its content matters.
    pub content: Option<String>,
    /// The [name](FileList::name) of the list of files behind that key.
    #[serde(default)]
    pub files: Option<String>,
}

impl NoteInput {
    fn has(&self, key: &KeyId) -> bool {
        self.keys.iter().any(|known| known == key.as_str())
    }
}

/// When and why a result went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Seconds since 1970.
    pub at: u64,
    /// What took it: `the policy keepDuration`.
    pub by: String,
}

/// What is written down beside a key: what it was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The name of the vertex.
    pub name: String,
    /// The digest of the operation, its inputs left out.
    pub digest: Digest,
    /// The operation.
    pub description: Description,
    /// Its inputs.
    pub inputs: Vec<NoteInput>,
    /// When the result went, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
}

impl Note {
    /// Adds a key of the input `index`; what is beyond the bounds is left out.
    pub(crate) fn add_key(&mut self, index: usize, key: &KeyId, content: bool) {
        if index >= MAX_INPUTS {
            return;
        }
        if self.inputs.len() <= index {
            self.inputs.resize_with(index + 1, NoteInput::default);
        }
        let input = &mut self.inputs[index];
        if content {
            input.content = Some(key.as_str().to_owned());
        } else if input.keys.len() < MAX_KEYS {
            input.keys.push(key.as_str().to_owned());
        }
    }

    /// Where a journal has to find it: short texts without spaces. What is like it has one of
    /// them, too.
    pub fn places(&self) -> Vec<String> {
        let mut places = places(&self.name, &self.digest, &self.description);
        // Of what counts by its content alone the other keys are of no use.
        let key = |input: &NoteInput| input.content.clone().or(input.keys.first().cloned());
        let keys = self.inputs.iter().filter_map(key);
        places.extend(
            keys.take(MAX_KEYS)
                .map(|key| on_input(&self.description, &key)),
        );
        places.dedup();
        places
    }
}

/// The places of a vertex that do not depend on its inputs.
fn places(name: &str, digest: &Digest, description: &Description) -> Vec<String> {
    let Description { kind, subject, .. } = description;
    let place = |what: &str, of: &str| short_digest(format!("{what}\0{kind}\0{of}").as_bytes());
    let mut places = vec![place("digest", digest.as_ref()), place("subject", subject)];
    if let Some(position) = position(name) {
        places.push(place("position", position));
    }
    places
}

/// The place of all operations of a kind on an input.
fn on_input(description: &Description, key: &str) -> String {
    short_digest(format!("input\0{}\0{key}", description.kind).as_bytes())
}

/// Where a vertex stands among the others, `build 2` of `[build 2/5] RUN make`.
fn position(name: &str) -> Option<&str> {
    let (inside, _) = name.strip_prefix('[')?.split_once(']')?;
    let (position, count) = inside.rsplit_once('/')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let place = position.rsplit(' ').next().unwrap_or(position);
    (number(count) && number(place)).then_some(position)
}

/// The name of a vertex without its position: `RUN make` of `[build 2/5] RUN make`.
pub fn without_position(name: &str) -> &str {
    match position(name) {
        Some(_) => name.split_once("] ").map_or(name, |(_, rest)| rest),
        None => name,
    }
}

/// What is known of an operation that was carried out, before its keys are known.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) description: Description,
    /// The files behind the content of an input.
    pub(crate) files: Vec<(usize, FileList)>,
}

/// What is kept of one result besides its keys.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The note.
    pub note: Note,
    /// The files behind the keys of content of its inputs.
    pub files: Vec<FileList>,
}

/// Where notes are kept. Unlike a [`KeyStore`](crate::KeyStore) it may read from a disk: it is
/// asked on a thread that may block, and only when somebody wants an explanation.
pub trait Journal: Send + Sync {
    /// The notes at a [place](Note::places) that were [used](Self::used) last, the latest first,
    /// at most `limit`.
    fn at(&self, place: &str, limit: usize) -> Vec<(KeyId, Note)>;

    /// The note beside a key.
    fn of(&self, key: &KeyId) -> Option<Note>;

    /// The list of files that has this [name](FileList::name).
    fn files(&self, name: &str) -> Option<FileList>;

    /// What is behind the key was found in the cache. Called for everything that is found: it
    /// has to be cheap, and nothing of it has to be kept.
    fn used(&self, key: &KeyId) {
        let _ = key;
    }

    /// When it was written or found last, as a number that only grows; 0 for not lately.
    fn last_used(&self, key: &KeyId) -> u64 {
        let _ = key;
        0
    }
}

/// Why a vertex was not found in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The vertex.
    pub vertex: Digest,
    /// Its name.
    pub name: String,
    /// Why.
    pub cause: Cause,
    /// The key of the note that it was compared with.
    pub(crate) against: Option<KeyId>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not cached: {}", self.cause)
    }
}

/// A cause. `Display` says it to a user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The cache was not to be used for it.
    NoCache,
    /// Nothing like it is remembered.
    First,
    /// A part of the operation is another one.
    Part {
        /// Which.
        name: String,
        /// What it was; `None` when it was not there.
        old: Option<String>,
        /// What it is; `None` when it is not there any more.
        new: Option<String>,
    },
    /// A file that it takes is another one.
    File {
        /// Which, and how.
        change: FileChange,
        /// How many others differ too, as far as is known.
        more: usize,
    },
    /// The content of an input is another one, and it is not remembered what it was.
    Content {
        /// The name of the input.
        input: String,
    },
    /// A step before it was carried out anew or replaced.
    Input {
        /// The name of the step.
        step: String,
        /// Why that step.
        root: Arc<Cause>,
    },
    /// It came after another step.
    Order {
        /// After which it came.
        before: String,
        /// After which it comes.
        now: String,
    },
    /// Its result was pruned.
    Pruned(Pruned),
    /// Its result is not there any more.
    Gone,
}

impl Cause {
    /// The cause behind the causes.
    pub fn root(&self) -> &Self {
        let mut cause = self;
        while let Self::Input { root, .. } = cause {
            cause = root;
        }
        cause
    }

    /// One word for the kind of the cause, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoCache => "no-cache",
            Self::First => "first",
            Self::Part { .. } => "part",
            Self::File { .. } => "file",
            Self::Content { .. } => "content",
            Self::Input { .. } => "input",
            Self::Order { .. } => "order",
            Self::Pruned(_) => "pruned",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache => f.write_str("the cache is not to be used for it (no-cache)"),
            Self::First => f.write_str("no earlier record of this step"),
            Self::Part { name, old, new } => match (old, new) {
                (Some(old), Some(new)) => write!(f, "{name} changed from {old:?} to {new:?}"),
                (None, Some(new)) => write!(f, "{name} was added: {new:?}"),
                (Some(old), None) => write!(f, "{name} was removed: {old:?}"),
                (None, None) => write!(f, "{name} changed"),
            },
            Self::File { change, more: 0 } => write!(f, "{change}"),
            Self::File { change, more } => write!(f, "{change}, and {more} more"),
            Self::Content { input } => write!(f, "the content of {input} changed"),
            Self::Input { step, root } => write!(f, "its input changed: {step}: {root}"),
            Self::Order { before, now } => write!(
                f,
                "the order of steps changed: it came after {before}, it comes after {now}"
            ),
            Self::Pruned(Pruned { at, by }) => {
                write!(f, "its record was pruned on {} by {by}", date(*at))
            }
            Self::Gone => f.write_str("its result is gone"),
        }
    }
}

/// A time as a user reads it, in UTC: `3 June 2026 at 14:02 UTC`.
fn date(seconds: u64) -> String {
    let since = i64::try_from(seconds).ok();
    let time = since.and_then(|since| time::OffsetDateTime::from_unix_timestamp(since).ok());
    match time {
        Some(time) => format!(
            "{} {} {} at {:02}:{:02} UTC",
            time.day(),
            time.month(),
            time.year(),
            time.hour(),
            time.minute()
        ),
        None => format!("{seconds} seconds after 1970"),
    }
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
