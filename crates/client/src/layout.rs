//! Image layouts on the client's disk: the index that names what is in them (OCI image layout
//! specification, "index.json file"). Blobs come and go over the session.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cooper_proto::control::SolveResponse;
use serde_json::{Map, Value, json};

use crate::ClientError;

const INDEX: &str = "index.json";
const LAYOUT: &str = "oci-layout";
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// No index of a layout is larger, in bytes.
const MAX_INDEX: u64 = 8 << 20;

/// The digest of the image that the layout `dir` has under `tag`. A tag is compared with both
/// names that an entry may have; no tag means `latest`, or the only image that there is.
///
/// # Errors
/// There is no layout, or no such image in it.
pub fn digest(dir: &Path, tag: Option<&str>) -> Result<String, ClientError> {
    let index = dir.join(INDEX);
    let failed = |source| ClientError::Config {
        path: index.display().to_string(),
        source,
    };
    let read = read(&index).map_err(failed)?;
    let manifests = read["manifests"].as_array().cloned().unwrap_or_default();
    let wanted = tag.unwrap_or("latest");
    let named = manifests.iter().find(|entry| {
        [REF_NAME, IMAGE_NAME].iter().any(|key| {
            entry["annotations"][key]
                .as_str()
                .is_some_and(|name| name == wanted || tag_of(name) == Some(wanted))
        })
    });
    let found = match (named, &manifests[..], tag) {
        (Some(found), ..) => Some(found),
        (None, [only], None) => Some(only),
        _ => None,
    };
    let digest = found.and_then(|entry| entry["digest"].as_str());
    digest.map(str::to_owned).ok_or_else(|| {
        failed(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no image {wanted} in the layout"),
        ))
    })
}

fn tag_of(name: &str) -> Option<&str> {
    let (_, tag) = name.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}

/// Enters the image of a solve that wrote its blobs into `dir` into the layout's index, under
/// the names that the daemon told, else as `latest`. An older image of a name loses it.
pub(crate) fn enter(dir: &Path, response: &SolveResponse) -> Result<(), ClientError> {
    let told = |key: &str| response.exporter_response.get(key);
    let descriptor = told("containerimage.descriptor")
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .and_then(|text| serde_json::from_slice(&text).ok());
    let Some(Value::Object(descriptor)) = descriptor else {
        // An older daemon, or an exporter that made no image.
        return Ok(());
    };
    let names = match told("image.name") {
        Some(names) => names.split(',').map(Some).collect(),
        None => vec![None],
    };
    let index = dir.join(INDEX);
    write(dir, &index, &descriptor, &names).map_err(|source| ClientError::Layout {
        path: index,
        source,
    })
}

fn write(
    dir: &Path,
    index: &Path,
    descriptor: &Map<String, Value>,
    names: &[Option<&str>],
) -> io::Result<()> {
    let mut all = match read(index) {
        Ok(index) => index,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({ "schemaVersion": 2 }),
        Err(error) => return Err(error),
    };
    let mut manifests = match all["manifests"].take() {
        Value::Array(manifests) => manifests,
        _ => Vec::new(),
    };
    for name in names {
        let mut entry = descriptor.clone();
        let annotations = entry.entry("annotations").or_insert_with(|| json!({}));
        match name {
            Some(name) => {
                annotations[IMAGE_NAME] = json!(name);
                annotations[REF_NAME] = json!(tag_of(name).unwrap_or("latest"));
            }
            None => annotations[REF_NAME] = json!("latest"),
        }
        let same = |key: &str, other: &Value| annotations[key] == other["annotations"][key];
        manifests.retain(|other| !(same(IMAGE_NAME, other) && same(REF_NAME, other)));
        manifests.push(Value::Object(entry));
    }
    all["manifests"] = Value::Array(manifests);
    replace(&dir.join(LAYOUT), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    replace(index, &all.to_string())
}

fn read(index: &Path) -> io::Result<Value> {
    use io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(index)?;
    file.take(MAX_INDEX).read_to_string(&mut text)?;
    let index: Value = serde_json::from_str(&text)?;
    match index {
        Value::Object(_) => Ok(index),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not an image index",
        )),
    }
}

/// Whoever reads it meanwhile finds the old one or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", uuid::Uuid::new_v4().simple()));
    let new = PathBuf::from(new);
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn response(digest: &str, name: Option<&str>) -> SolveResponse {
        let descriptor = json!({
            "mediaType": "m", "digest": digest, "size": 1, "annotations": {"a": "b"}
        });
        let mut response = SolveResponse::default();
        let told = &mut response.exporter_response;
        told.insert(
            "containerimage.descriptor".into(),
            BASE64_STANDARD.encode(descriptor.to_string()),
        );
        if let Some(name) = name {
            told.insert("image.name".into(), name.into());
        }
        response
    }

    #[test]
    fn a_name_belongs_to_the_last_image_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(digest(dir, None).is_err());
        enter(dir, &SolveResponse::default()).unwrap();
        assert!(!dir.join(INDEX).exists());
        enter(dir, &response("sha256:1", None)).unwrap();
        assert_eq!(digest(dir, None).unwrap(), "sha256:1");
        enter(dir, &response("sha256:2", None)).unwrap();
        assert_eq!(digest(dir, Some("latest")).unwrap(), "sha256:2");
        let names = "example.com:5000/app:v1,example.com/other:v2";
        enter(dir, &response("sha256:3", Some(names))).unwrap();
        enter(dir, &response("sha256:4", Some("example.com/other:v2"))).unwrap();
        let found = |tag| digest(dir, Some(tag)).unwrap();
        assert_eq!(found("v1"), "sha256:3");
        assert_eq!(found("example.com:5000/app:v1"), "sha256:3");
        assert_eq!(found("v2"), "sha256:4");
        assert_eq!(found("latest"), "sha256:2");
        assert!(digest(dir, Some("v3")).is_err());
        let index = read(&dir.join(INDEX)).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
        assert_eq!(index["manifests"][1]["annotations"]["a"], "b");
        // Nothing but the layout is left.
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
        std::fs::write(dir.join(INDEX), "[]").unwrap();
        assert!(enter(dir, &response("sha256:5", None)).is_err());
    }
}
