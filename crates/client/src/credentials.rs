//! Registry credentials as Docker's clients keep them: `config.json` and credential helpers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_session::auth::Credentials;
use cooper_session::serve::AuthProvider;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::ClientError;

/// Docker Hub's registry, and the key that its credentials are kept under.
const HUB: &str = "registry-1.docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// A helper may ask its user, but a build does not wait for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// The username that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Docker's configuration file, as far as it is about credentials. Secrets are read when they
/// are asked for, and never logged.
#[derive(Default)]
pub struct DockerConfig {
    file: File,
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig").finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; without a file there are
    /// no credentials.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load() -> Result<Self, ClientError> {
        let folder = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty());
        let folder = folder.map(PathBuf::from).or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(Path::new(&home).join(".docker"))
        });
        match folder {
            Some(folder) => Self::read(&folder.join("config.json")),
            None => Ok(Self::default()),
        }
    }

    /// Reads a file of that form.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Config {
            path: path.display().to_string(),
            source,
        };
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self {
                file: serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
        }
    }

    async fn find(&self, host: &str) -> io::Result<Credentials> {
        let key = if host == HUB { HUB_KEY } else { host };
        let helper = self.file.cred_helpers.get(key);
        let store = Some(&self.file.creds_store).filter(|name| !name.is_empty());
        if let Some(helper) = helper.or(store)
            && let Some(found) = ask(helper, key).await?
        {
            return Ok(found);
        }
        let auths = &self.file.auths;
        let entry = auths.get(key).or_else(|| {
            let mut all = auths.iter();
            all.find(|(name, _)| hostname(name) == hostname(key))
                .map(|(_, entry)| entry)
        });
        entry.map_or_else(|| Ok(Credentials::default()), Entry::credentials)
    }
}

#[async_trait]
impl AuthProvider for DockerConfig {
    async fn credentials(&self, host: &str) -> io::Result<Credentials> {
        self.find(host).await
    }
}

impl Entry {
    fn credentials(&self) -> io::Result<Credentials> {
        if !self.identitytoken.is_empty() {
            return Ok(Credentials {
                username: String::new(),
                secret: self.identitytoken.clone(),
            });
        }
        if self.auth.is_empty() {
            return Ok(Credentials {
                username: self.username.clone(),
                secret: self.password.clone(),
            });
        }
        let invalid = || io::Error::other("invalid auth configuration file");
        let text = STANDARD.decode(&self.auth).map_err(|_| invalid())?;
        let text = String::from_utf8(text).map_err(|_| invalid())?;
        let (username, secret) = text.split_once(':').ok_or_else(invalid)?;
        Ok(Credentials {
            username: username.to_owned(),
            secret: secret.trim_end_matches('\0').to_owned(),
        })
    }
}

/// Asks `docker-credential-NAME` (docker/docker-credential-helpers); `None` when it has none.
async fn ask(helper: &str, key: &str) -> io::Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    let asking = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(key.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let late = |_| {
        let seconds = HELPER_TIMEOUT.as_secs();
        io::Error::other(format!("{program} did not answer within {seconds} s"))
    };
    let output = match timeout(HELPER_TIMEOUT, asking).await.map_err(late)? {
        Ok(output) => output,
        Err(error) => {
            let text = format!("error getting credentials - err: exec {program}: {error}");
            return Err(io::Error::other(text));
        }
    };
    if !output.status.success() {
        // Helpers say errors on standard output.
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.trim();
        if text.contains("credentials not found") {
            return Ok(None);
        }
        let text = format!(
            "error getting credentials - err: {}, out: `{text}`",
            output.status
        );
        return Err(io::Error::other(text));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| io::Error::other(format!("{program} gave no credentials")))?;
    Ok(Some(Credentials {
        username: match answer.username.as_str() {
            TOKEN_USER => String::new(),
            name => name.to_owned(),
        },
        secret: answer.secret,
    }))
}

/// `https://host/v1/` is kept for `host`.
fn hostname(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DockerConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        DockerConfig::read(&path).unwrap()
    }

    async fn found(config: &DockerConfig, host: &str) -> (String, String) {
        let found = config.credentials(host).await.unwrap();
        (found.username, found.secret)
    }

    #[tokio::test]
    async fn credentials_are_found_as_docker_finds_them() {
        let config = config(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
                "https://registry.example/v2/": {"username": "u", "password": "p"},
                "token.example": {"auth": "eDp5", "identitytoken": "the-token"},
                "bad.example": {"auth": "!"}
            }, "unknown": 1}"#,
        );
        let pair = |user: &str, secret: &str| (user.to_owned(), secret.to_owned());
        assert_eq!(found(&config, HUB).await, pair("me", "pa:ss"));
        assert_eq!(found(&config, "registry.example").await, pair("u", "p"));
        assert_eq!(found(&config, "token.example").await, pair("", "the-token"));
        assert_eq!(found(&config, "other.example").await, pair("", ""));
        assert!(config.credentials("bad.example").await.is_err());
        assert!(!format!("{config:?}").contains("pass"));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error() {
        let config = config(r#"{"credHelpers": {"x": "does-not-exist"}}"#);
        let error = config.credentials("x").await.unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-does-not-exist"),
            "{error}"
        );
        assert_eq!(found(&config, "y").await, (String::new(), String::new()));
    }

    #[test]
    fn no_file_means_no_credentials_and_a_broken_one_is_an_error() {
        assert!(DockerConfig::read(Path::new("/nonexistent/config.json")).is_ok());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{").unwrap();
        assert!(DockerConfig::read(&path).is_err());
    }
}
