//! The configuration of an image without its layers: what a frontend asks for.

use bytes::Bytes;
use cooper_content::Digest;
use cooper_proto::pb;
use cooper_session::Group;

use super::{ImageResolver, ResolveMode};
use crate::SourceError;

/// What a frontend wants to know of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedConfig {
    /// Digest of the manifest, or of the index that it was found in.
    pub digest: Digest,
    /// The configuration for the platform, as it is stored: JSON.
    pub config: Bytes,
}

impl ImageResolver {
    /// Finds the configuration of the image `reference` for `platform`. Of a digest that is
    /// known nothing is asked over the network; those who ask for the same at once share one
    /// answer.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the request if nobody else waits for it.
    pub async fn config(
        &self,
        reference: &str,
        platform: &pb::Platform,
        mode: ResolveMode,
        sessions: &Group,
    ) -> Result<ResolvedConfig, SourceError> {
        let reference = SourceError::reference(reference)?;
        let found = self.resolve(&reference, platform, mode, sessions).await?;
        Ok(ResolvedConfig {
            digest: found.root.digest().clone(),
            config: found.config.clone(),
        })
    }

    /// The digest and the size alone: the platform does not matter.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the request.
    pub async fn digest(
        &self,
        reference: &str,
        sessions: &Group,
    ) -> Result<cooper_content::Descriptor, SourceError> {
        let reference = SourceError::reference(reference)?;
        let (root, _) = self.root(&reference, sessions).await?;
        Ok(root)
    }
}
