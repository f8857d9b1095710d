//! What holds for whatever a registry may answer.

use cooper_content::digest_from;
use cooper_llb::platform;
use cooper_registry::Descriptor;
use oci_spec::image::{ImageManifest, MediaType};
use sha2::{Digest as _, Sha256};

use super::manifest::{Kind, MAX_LAYERS, choose, detect, layers};

/// A manifest or an index, and after a NUL byte a configuration.
pub fn manifest(data: &[u8]) {
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    let (bytes, config) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let digest = digest_from(&Sha256::digest(bytes));
    let detected = detect(&digest, bytes);
    for media_type in [
        MediaType::Other("application/json".to_owned()),
        MediaType::ImageManifest,
        MediaType::ImageIndex,
    ] {
        let root = Descriptor::new(media_type, bytes.len() as u64, digest.clone());
        let Ok(kind) = Kind::of(&root, bytes) else {
            continue;
        };
        match kind {
            Kind::Index => {
                let wanted = platform::host();
                if let Ok(chosen) = choose(&root, bytes, &wanted) {
                    // What is followed has a digest, which is part of an address.
                    assert!(!chosen.digest().as_ref().contains(['/', '?', '#', ' ']));
                }
            }
            Kind::Manifest => {
                let Ok(manifest) = serde_json::from_slice::<ImageManifest>(bytes) else {
                    continue;
                };
                if let Ok(found) = layers("host/name".into(), &manifest, config) {
                    assert_eq!(found.len(), manifest.layers().len());
                    assert!(found.len() <= MAX_LAYERS);
                }
            }
        }
    }
    // Nothing is read as both.
    if matches!(detected, Ok(MediaType::ImageManifest)) {
        let index = serde_json::from_slice::<serde_json::Value>(bytes);
        let manifests = index.ok().and_then(|json| json.get("manifests").cloned());
        assert!(manifests.is_none_or(|list| list.is_null() || json_names_itself(bytes)));
    }
}

fn json_names_itself(bytes: &[u8]) -> bool {
    let json = serde_json::from_slice::<serde_json::Value>(bytes);
    json.is_ok_and(|json| json.get("mediaType").is_some())
}
