//! A step that failed, with what a client needs to look into it.

use std::collections::BTreeMap;
use std::error::Error as StdError;

use cooper_cache::ImmutableRef;
use cooper_llb::digest_of;
use cooper_ops::OpsError;
use cooper_progress::Digest;
use cooper_proto::{errdefs, pb};
use cooper_solver::SolveError;
use prost::Message as _;

use crate::EvaluateError;

/// A step that failed, and what the definition says of it. Reads as what it failed with.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct StepFailure {
    /// The operation.
    pub op: Option<pb::Op>,
    /// What the definition's author said of it: `llb.customname`, …
    pub description: BTreeMap<String, String>,
    /// Why.
    #[source]
    pub source: EvaluateError,
}

impl StepFailure {
    /// The failure of the vertex `vertex` of `definition`.
    pub(crate) fn new(definition: &pb::Definition, vertex: &Digest, source: EvaluateError) -> Self {
        let raw = definition.def.iter().find(|raw| digest_of(raw) == *vertex);
        let metadata = definition.metadata.get(vertex.as_ref());
        Self {
            op: raw.and_then(|raw| pb::Op::decode(&**raw).ok()),
            description: metadata
                .map(|metadata| metadata.description.clone())
                .unwrap_or_default(),
            source,
        }
    }

    /// The one that `error` came from.
    pub(crate) fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(failure) = error.downcast_ref() {
                return Some(failure);
            }
            next = error.source();
        }
        None
    }

    /// Its details for a client; `name` gives states the ids that the client can have them by.
    pub(crate) fn detail(
        &self,
        name: impl Fn(&[Option<ImmutableRef>]) -> Vec<String>,
    ) -> errdefs::Solve {
        let mut detail = errdefs::Solve {
            op: self.op.clone(),
            description: self.description.clone(),
            ..errdefs::Solve::default()
        };
        let EvaluateError::Solve(SolveError::Op { source, .. }) = &self.source else {
            return detail;
        };
        match source.downcast_ref::<OpsError>() {
            Some(OpsError::Exec { files, .. } | OpsError::Start { files, .. }) => {
                detail.input_i_ds = name(&files.inputs);
                detail.mount_i_ds = name(&files.mounts);
            }
            Some(OpsError::File(error)) => {
                detail.input_i_ds = name(&error.files.inputs);
                detail.mount_i_ds = name(&error.files.mounts);
                let index = i64::try_from(error.index).unwrap_or_default();
                let action = errdefs::FileAction { index };
                detail.subject = Some(errdefs::solve::Subject::File(action));
            }
            Some(OpsError::Content(error)) => {
                detail.input_i_ds = name(std::slice::from_ref(&error.input));
                let index = i64::try_from(error.index).unwrap_or_default();
                let cache = errdefs::ContentCache { index };
                detail.subject = Some(errdefs::solve::Subject::Cache(cache));
            }
            _ => {}
        }
        detail
    }
}
