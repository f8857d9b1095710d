//! A build context in a temporary folder.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A folder with files, removed when dropped.
#[derive(Debug)]
pub struct Context {
    dir: tempfile::TempDir,
}

impl Context {
    /// An empty folder.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cooper-context-")
            .tempdir()
            .unwrap();
        Self { dir }
    }

    /// Writes a file (mode 0644), with the folders above it.
    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(path, content);
        self
    }

    /// Writes a program (mode 0755).
    #[must_use]
    pub fn program(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.write(path, content);
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        self
    }

    /// Writes a file into a context that is already in use.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
