//! What of an image stays with the record of its build: its manifests and configurations, and no
//! layers, as in BuildKit (`migrateBlobV2`, `detectSkipLayer`).

use cooper_content::{ContentStore, Digest};
use serde::Deserialize;

/// The largest text that is kept, in bytes (that of containerd for manifests is 8 MiB).
const MOST_TEXT: u64 = 8 << 20;
/// How many texts of one image are kept at most.
const MOST_TEXTS: usize = 256;

#[derive(Deserialize)]
struct Text {
    #[serde(default)]
    manifests: Vec<Reference>,
    config: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    digest: String,
}

/// Copies the texts of the image `root` that are in `from`; says which are there now, and how large
/// they are.
///
/// # Errors
/// Only those of the writing: what is not there to be read is left out.
pub(crate) async fn copy(
    from: &dyn ContentStore,
    to: &dyn ContentStore,
    root: &Digest,
) -> Result<Vec<(Digest, u64)>, cooper_content::ContentError> {
    // The second says whether it speaks of others.
    let mut wanted = vec![(root.clone(), true)];
    let mut copied: Vec<(Digest, u64)> = Vec::new();
    while let Some((digest, speaks)) = wanted.pop() {
        if copied.len() >= MOST_TEXTS || copied.iter().any(|(known, _)| *known == digest) {
            continue;
        }
        let bytes = match from.read_all(&digest, MOST_TEXT).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%digest, %error, "a text of an image is not kept");
                continue;
            }
        };
        to.write_all(&bytes).await?;
        copied.push((digest, bytes.len() as u64));
        if !speaks {
            continue;
        }
        let Ok(text) = serde_json::from_slice::<Text>(&bytes) else {
            continue;
        };
        let parse = |reference: Reference| reference.digest.parse().ok();
        wanted.extend(text.config.and_then(parse).map(|digest| (digest, false)));
        let parts = text.manifests.into_iter().filter_map(parse);
        wanted.extend(parts.map(|digest| (digest, true)));
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_content::MemoryContentStore;

    #[tokio::test]
    async fn manifests_and_configurations_are_copied_and_layers_are_not() {
        let (from, to) = (MemoryContentStore::default(), MemoryContentStore::default());
        let put = async |text: String| from.write_all(text.as_bytes()).await.unwrap();
        let config = put(r#"{"os":"linux","config":{"digest":"x"}}"#.into()).await;
        let layer = put("layer".into()).await;
        let manifest = put(format!(
            r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#
        ))
        .await;
        let gone = cooper_content::digest_of(b"gone");
        // It names itself, which does not matter, and one that is not there.
        let index = put(format!(
            r#"{{"manifests":[{{"digest":"{manifest}"}},{{"digest":"{gone}"}},{{"digest":"no"}}]}}"#
        ))
        .await;
        let copied = copy(&from, &to, &index).await.unwrap();
        let copied: Vec<_> = copied.into_iter().map(|(digest, _)| digest).collect();
        assert_eq!(copied, [index, manifest, config]);
        for digest in &copied {
            assert!(to.info(digest).await.is_ok());
        }
        assert!(to.info(&layer).await.is_err());
        assert_eq!(copy(&from, &to, &gone).await.unwrap(), []);
    }
}
