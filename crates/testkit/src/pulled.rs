//! Images as a user gets them: copied with skopeo, which knows nothing of Cooper.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::run::run;

/// An image in a temporary folder, with the manifest as its source has it.
#[derive(Debug)]
pub struct Pulled {
    dir: tempfile::TempDir,
    /// The manifest of this machine's platform.
    pub manifest: Value,
    /// The image's configuration.
    pub config: Value,
}

impl Pulled {
    /// Copies the image `source`, in skopeo's words: `docker://HOST/NAME`, `oci-archive:FILE`.
    #[track_caller]
    pub fn from(source: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-pulled-")
            .tempdir()
            .unwrap();
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", source])
            .arg(format!("dir:{}", dir.path().display())))
        .success();
        let manifest = json(&dir.path().join("manifest.json"));
        let config = json(&blob(dir.path(), &manifest["config"]));
        Self {
            dir,
            manifest,
            config,
        }
    }

    /// The image `reference` of a registry.
    #[track_caller]
    pub fn registry(reference: &str) -> Self {
        Self::from(&format!("docker://{reference}"))
    }

    /// The manifest's digest.
    pub fn digest(&self) -> String {
        use sha2::Digest as _;
        let manifest = std::fs::read(self.dir.path().join("manifest.json")).unwrap();
        format!("sha256:{}", hex::encode(sha2::Sha256::digest(manifest)))
    }

    /// The blob of the layer number `index`, the lowest first.
    pub fn layer(&self, index: usize) -> Vec<u8> {
        let descriptor = &self.manifest["layers"][index];
        std::fs::read(blob(self.dir.path(), descriptor)).unwrap()
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.manifest["layers"].as_array().unwrap().len()
    }

    /// Unpacks all layers, one over the other, and returns the folder. Whiteouts are not acted
    /// on.
    pub fn unpack(&self) -> PathBuf {
        let root = self.dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for layer in self.manifest["layers"].as_array().unwrap() {
            let mut file = File::open(blob(self.dir.path(), layer)).unwrap();
            let mut magic = [0; 2];
            file.read_exact(&mut magic).unwrap();
            file.rewind().unwrap();
            let file = BufReader::new(file);
            let reader: Box<dyn Read> = match magic {
                [0x1f, 0x8b] => Box::new(flate2::read::GzDecoder::new(file)),
                _ => Box::new(file),
            };
            let mut archive = tar::Archive::new(reader);
            archive.set_preserve_permissions(true);
            archive.unpack(&root).unwrap();
        }
        root
    }
}

fn blob(dir: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    dir.join(digest.trim_start_matches("sha256:"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
