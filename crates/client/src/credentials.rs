//! Registry credentials as Docker's clients keep them: `config.json` and credential helpers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_proto::auth::{FetchTokenRequest, FetchTokenResponse};
use cooper_session::auth::Credentials;
use cooper_session::serve::AuthProvider;
use ring::signature::Ed25519KeyPair;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::authority::{self, Seeds};
use crate::{ClientError, helper, token};

/// Docker Hub's registry, and the key that its credentials are kept under.
const HUB: &str = "registry-1.docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// A variable that is true where daemons are to be given credentials and no tokens.
const NO_TOKENS: &str = "BUILDKIT_NO_CLIENT_TOKEN";

/// Docker's configuration file, as far as it is about credentials. Secrets are read when they
/// are asked for, and never logged.
#[derive(Default)]
pub struct DockerConfig {
    file: File,
    /// What was found for a host, so that a helper is asked once.
    known: Mutex<HashMap<String, Account>>,
    seeds: Arc<Seeds>,
    tls: BTreeMap<String, RegistryTls>,
}

/// The certificates that the token server of a registry is met with, besides the system's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryTls {
    /// Files of authorities that vouch for it (PEM).
    pub authorities: Vec<PathBuf>,
    /// The file of this client's certificate and that of its key (PEM).
    pub pair: Option<(PathBuf, PathBuf)>,
}

/// What is kept for a registry.
#[derive(Clone, Default)]
struct Account {
    credentials: Credentials,
    /// A token that is taken as it is.
    token: String,
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
    proxies: BTreeMap<String, ProxyEntry>,
}

/// What builds are told of proxies.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyEntry {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
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
        let empty = Self {
            seeds: Arc::new(Seeds::in_dir(path.parent().map(Path::to_owned))),
            ..Self::default()
        };
        match std::fs::read(path) {
            Ok(bytes) => {
                // The reason would quote what may be a secret.
                let place = |error: serde_json::Error| {
                    let (line, column) = (error.line(), error.column());
                    failed(io::Error::other(format!("no JSON at {line}:{column}")))
                };
                Ok(Self {
                    file: serde_json::from_slice(&bytes).map_err(place)?,
                    ..empty
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(empty),
            Err(error) => Err(failed(error)),
        }
    }

    /// Meets the token servers of registries, by their hosts, with these certificates.
    pub fn with_tls(mut self, tls: BTreeMap<String, RegistryTls>) -> Self {
        let named = |(host, tls): (String, _)| (hostname(&host).to_owned(), tls);
        self.tls = tls.into_iter().map(named).collect();
        self
    }

    /// The build arguments that the file gives to every build (`proxies`, `default`): each in
    /// capitals and in small letters.
    pub fn proxies(&self) -> BTreeMap<String, String> {
        let Some(entry) = self.file.proxies.get("default") else {
            return BTreeMap::new();
        };
        let set = [
            ("HTTP_PROXY", &entry.http_proxy),
            ("HTTPS_PROXY", &entry.https_proxy),
            ("NO_PROXY", &entry.no_proxy),
            ("FTP_PROXY", &entry.ftp_proxy),
            ("ALL_PROXY", &entry.all_proxy),
        ];
        let set = set.into_iter().filter(|(_, value)| !value.is_empty());
        set.flat_map(|(name, value)| {
            [name.to_owned(), name.to_lowercase()].map(|name| (name, value.clone()))
        })
        .collect()
    }

    async fn account(&self, host: &str) -> io::Result<Account> {
        let key = if host == HUB { HUB_KEY } else { host };
        // Held while a helper is asked: some cannot be asked twice at a time.
        let mut known = self.known.lock().await;
        if let Some(account) = known.get(key) {
            return Ok(account.clone());
        }
        let account = self.find(key).await?;
        known.insert(key.to_owned(), account.clone());
        Ok(account)
    }

    async fn find(&self, key: &str) -> io::Result<Account> {
        let helper = self.file.cred_helpers.get(key);
        let store = Some(&self.file.creds_store).filter(|name| !name.is_empty());
        if let Some(name) = helper.or(store)
            && let Some(credentials) = helper::ask(name, key).await?
        {
            return Ok(Account {
                credentials,
                token: String::new(),
            });
        }
        let auths = &self.file.auths;
        let entry = auths.get(key).or_else(|| {
            let mut all = auths.iter();
            all.find(|(name, _)| hostname(name) == hostname(key))
                .map(|(_, entry)| entry)
        });
        entry.map_or_else(|| Ok(Account::default()), Entry::account)
    }

    async fn key(&self, host: &str, salt: &[u8]) -> io::Result<Ed25519KeyPair> {
        let credentials = self.account(host).await?.credentials;
        let with_credentials = !credentials.secret.is_empty();
        let (seeds, host, salt) = (self.seeds.clone(), host.to_owned(), salt.to_owned());
        let made = move || seeds.key(&host, &salt, with_credentials);
        tokio::task::spawn_blocking(made).await?
    }
}

#[async_trait]
impl AuthProvider for DockerConfig {
    async fn credentials(&self, host: &str) -> io::Result<Credentials> {
        Ok(self.account(host).await?.credentials)
    }

    fn fetches_tokens(&self) -> bool {
        let value = std::env::var(NO_TOKENS).unwrap_or_default();
        !matches!(&*value, "1" | "t" | "T" | "true" | "TRUE" | "True")
    }

    async fn fetch_token(&self, request: &FetchTokenRequest) -> io::Result<FetchTokenResponse> {
        let account = self.account(&request.host).await?;
        if !account.token.is_empty() {
            return Ok(token::known(&account.token));
        }
        let tls = self.tls.get(&request.host);
        token::fetch(request, &account.credentials, tls).await
    }

    async fn token_authority(&self, host: &str, salt: &[u8]) -> io::Result<Vec<u8>> {
        Ok(authority::public(&self.key(host, salt).await?))
    }

    async fn sign(&self, host: &str, payload: &[u8], salt: &[u8]) -> io::Result<Vec<u8>> {
        Ok(authority::sign(&self.key(host, salt).await?, payload))
    }
}

impl Entry {
    fn account(&self) -> io::Result<Account> {
        Ok(Account {
            credentials: self.credentials()?,
            token: self.registrytoken.clone(),
        })
    }

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
            }, "unknown": 1,
            "proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "x"}}}"#,
        );
        let pair = |user: &str, secret: &str| (user.to_owned(), secret.to_owned());
        assert_eq!(found(&config, HUB).await, pair("me", "pa:ss"));
        assert_eq!(found(&config, "registry.example").await, pair("u", "p"));
        assert_eq!(found(&config, "token.example").await, pair("", "the-token"));
        assert_eq!(found(&config, "other.example").await, pair("", ""));
        assert!(config.credentials("bad.example").await.is_err());
        assert!(!format!("{config:?}").contains("pass"));
        let proxies = config.proxies();
        let names: Vec<_> = proxies.keys().map(String::as_str).collect();
        assert_eq!(names, ["HTTP_PROXY", "NO_PROXY", "http_proxy", "no_proxy"]);
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
        std::fs::write(&path, r#"{"auths": {"x": {"auth": 12345}}}"#).unwrap();
        let error = DockerConfig::read(&path).unwrap_err();
        let shown = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(shown.contains("1:"), "{shown}");
        assert!(!shown.contains("12345"), "{shown}");
    }
}
