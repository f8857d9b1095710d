//! What is left of a build for other programs: `--metadata-file` and `--iidfile`.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_proto::control::SolveResponse;
use serde_json::{Map, Value};

/// Writes the files that are asked for.
pub(crate) fn write(
    response: &SolveResponse,
    metadata: Option<&Path>,
    id: Option<&Path>,
) -> Result<()> {
    if let Some(path) = metadata {
        put(path, &format!("{:#}\n", Value::Object(readable(response))))?;
    }
    if let (Some(path), Some(id)) = (id, image_id(response)) {
        put(path, id)?;
    }
    Ok(())
}

/// Writes a file so that nobody sees a part of it.
pub(crate) fn put(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mode = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new()
            .permissions(mode)
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(path).map_err(|error| error.error)
    };
    // Devices and pipes are written to as they are.
    let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let written = match special {
        true => std::fs::write(path, text),
        false => write().map(drop),
    };
    written.with_context(|| format!("failed to write {}", path.display()))
}

/// The digest by which the image is known: of its configuration, else of its manifest.
pub(crate) fn image_id(response: &SolveResponse) -> Option<&str> {
    let of = |name: &str| response.exporter_response.get(name);
    let id = of("containerimage.config.digest").or_else(|| of("containerimage.digest"));
    id.map(String::as_str)
}

/// The exporters' answers; those that are base64 of JSON as JSON, as buildx writes them.
fn readable(response: &SolveResponse) -> Map<String, Value> {
    let answers = response.exporter_response.iter();
    let answers = answers.map(|(name, value)| {
        let decoded = STANDARD.decode(value).ok();
        let json = decoded.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let json = json.filter(|json| json.is_object() || json.is_array());
        (
            name.clone(),
            json.unwrap_or_else(|| Value::String(value.clone())),
        )
    });
    answers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_written_so_that_they_can_be_read() {
        let descriptor = STANDARD.encode(r#"{"mediaType":"x","size":1}"#);
        let response = SolveResponse {
            exporter_response: [
                ("containerimage.digest", "sha256:m"),
                ("containerimage.config.digest", "sha256:c"),
                ("containerimage.descriptor", &descriptor),
                ("image.name", "abcd"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let (metadata, id) = (dir.path().join("m.json"), dir.path().join("id"));
        write(&response, Some(&metadata), Some(&id)).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
        assert_eq!(read["containerimage.descriptor"]["size"], 1);
        assert_eq!(read["image.name"], "abcd");
        assert_eq!(std::fs::read_to_string(id).unwrap(), "sha256:c");
    }
}
