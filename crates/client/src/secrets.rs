//! Secrets out of files and the environment.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use cooper_session::secrets::MAX_SECRET_SIZE;
use cooper_session::serve::SecretProvider;
use tokio::io::AsyncReadExt;

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// The content of a file, read when it is asked for.
    File(PathBuf),
    /// The value of a variable of this process's environment.
    Env(String),
}

/// Secrets by their ids.
#[derive(Clone, Debug, Default)]
pub struct Secrets(pub BTreeMap<String, SecretSource>);

#[async_trait]
impl SecretProvider for Secrets {
    async fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        use std::os::unix::ffi::OsStringExt;
        match self.0.get(id) {
            None => Ok(None),
            Some(SecretSource::Env(name)) => Ok(std::env::var_os(name).map(OsStringExt::into_vec)),
            Some(SecretSource::File(path)) => {
                let file = tokio::fs::File::open(path).await?;
                let mut content = Vec::new();
                // One byte more than may be: the size is refused, not cut.
                let most = MAX_SECRET_SIZE as u64 + 1;
                file.take(most).read_to_end(&mut content).await?;
                Ok(Some(content))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_come_from_files_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "hidden").unwrap();
        let secrets = Secrets(BTreeMap::from([
            ("file".to_owned(), SecretSource::File(file)),
            ("path".to_owned(), SecretSource::Env("PATH".into())),
            (
                "unset".to_owned(),
                SecretSource::Env("NOT_SET_AT_ALL".into()),
            ),
            ("gone".to_owned(), SecretSource::File("/nonexistent".into())),
        ]));
        let get = async |id: &str| secrets.secret(id).await;
        assert_eq!(get("file").await.unwrap().unwrap(), b"hidden");
        assert!(!get("path").await.unwrap().unwrap().is_empty());
        assert_eq!(get("unset").await.unwrap(), None);
        assert_eq!(get("other").await.unwrap(), None);
        assert!(get("gone").await.is_err());
    }
}
