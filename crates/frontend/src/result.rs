//! What a frontend answers with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_proto::{fsutil, pb};
use oci_spec::image::Digest;

use crate::{FileRange, FrontendError};

/// A file-system state that a solve promised. It is built when something needs it.
///
/// # Cancel safety
///
/// Dropping the future of a method gives up waiting; what was built stays usable.
#[async_trait]
pub trait Reference: Send + Sync {
    /// Names the reference within its build. The engine finds its own object by it.
    fn id(&self) -> &str;

    /// The graph that the reference stands for, so that further graphs can be made on top.
    fn definition(&self) -> &pb::Definition;

    /// Builds it now.
    async fn evaluate(&self) -> Result<(), FrontendError>;

    /// Reads a file, following symbolic links inside the reference; the whole of it without a
    /// range. A missing file is a [`FrontendError::NotFound`].
    async fn read_file(
        &self,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, FrontendError>;

    /// Lists a directory, only names that match the pattern `include` unless it is empty.
    async fn read_dir(&self, path: &str, include: &str)
    -> Result<Vec<fsutil::Stat>, FrontendError>;

    /// Looks at a file, following symbolic links inside the reference.
    async fn stat_file(&self, path: &str) -> Result<fsutil::Stat, FrontendError>;
}

/// What a frontend or a solve answers with: one reference, or one for each platform.
#[derive(Clone, Default)]
pub struct FrontendResult {
    /// The one reference; `None` is an empty file system (or many references, below).
    pub reference: Option<Arc<dyn Reference>>,
    /// The references by platform id, such as `linux/amd64`. `None` is an empty file system.
    pub references: BTreeMap<String, Option<Arc<dyn Reference>>>,
    /// What goes with it: `containerimage.config`, `refs.platforms`, …
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Statements about the references, by platform id.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

impl fmt::Debug for FrontendResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn id(reference: &Option<Arc<dyn Reference>>) -> Option<&str> {
            reference.as_ref().map(|reference| reference.id())
        }
        let references: BTreeMap<_, _> = self
            .references
            .iter()
            .map(|(platform, reference)| (platform, id(reference)))
            .collect();
        f.debug_struct("FrontendResult")
            .field("reference", &id(&self.reference))
            .field("references", &references)
            .field("metadata", &self.metadata.keys())
            .finish_non_exhaustive()
    }
}

impl FrontendResult {
    /// The result with this one reference.
    pub fn single(reference: Option<Arc<dyn Reference>>) -> Self {
        Self {
            reference,
            ..Self::default()
        }
    }

    /// Whether it has one reference for each platform rather than one in all.
    pub fn is_multi(&self) -> bool {
        !self.references.is_empty()
    }
}

/// A statement about a result (an SBOM, a provenance).
#[derive(Clone)]
pub struct Attestation {
    /// The form.
    pub kind: AttestationKind,
    /// Reasons and other notes.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The reference that holds the statement.
    pub reference: Option<Arc<dyn Reference>>,
    /// Where in the reference.
    pub path: String,
    /// The predicate's type.
    pub predicate_type: String,
    /// What it is about.
    pub subjects: Vec<Subject>,
}

/// The form of an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttestationKind {
    /// An in-toto statement.
    InToto,
    /// A directory of in-toto statements.
    Bundle,
}

/// What an attestation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The form.
    pub kind: SubjectKind,
    /// The name.
    pub name: String,
    /// The digests.
    pub digests: Vec<Digest>,
}

/// The form of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectKind {
    /// The result itself.
    Itself,
    /// The name and the digests say it.
    Raw,
}
