//! What the client gives for a repository: a token or a header, an ssh agent, known hosts.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cooper_session::{Group, Session, SessionError, secrets, ssh};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::spec::Spec;
use crate::SourceError;

/// Servers whose repositories all take the same token.
const SHARED: &[&str] = &["https://github.com/", "https://www.github.com/"];

/// What one build may use. Dropping it takes it all back.
#[derive(Debug, Default)]
pub(super) struct Access {
    config: Vec<String>,
    env: Vec<(&'static str, String)>,
    _forwarding: JoinSet<()>,
    _dir: Option<TempDir>,
}

impl Access {
    /// Asks the client.
    ///
    /// # Cancel safety
    /// Nothing is left.
    pub(super) async fn open(spec: &Spec, sessions: &Group) -> Result<Self, SourceError> {
        let mut access = Self::default();
        if let Some(authorization) = authorization(spec, sessions).await {
            let shared = SHARED
                .iter()
                .find(|prefix| spec.remote.starts_with(**prefix));
            let scope = shared.copied().unwrap_or(&spec.remote);
            // Not among the arguments, which every user of the machine can read.
            access.env.extend([
                ("GIT_CONFIG_COUNT", "1".to_owned()),
                ("GIT_CONFIG_KEY_0", format!("http.{scope}.extraheader")),
                (
                    "GIT_CONFIG_VALUE_0",
                    format!("Authorization: {authorization}"),
                ),
            ]);
        }
        let mut ssh_command = "ssh -F /dev/null".to_owned();
        if !spec.ssh.is_empty() || !spec.known_hosts.is_empty() {
            // In the system's folder for temporary files: the name of a socket is short.
            let dir = tempfile::Builder::new().prefix("cooper-git-").tempdir();
            let dir = dir.map_err(io("make a folder in", std::env::temp_dir()))?;
            if !spec.ssh.is_empty() {
                access.forward_agent(spec, sessions, &dir).await?;
            }
            if !spec.known_hosts.is_empty() {
                let path = dir.path().join("known_hosts");
                std::fs::write(&path, &spec.known_hosts).map_err(io("write", &path))?;
                ssh_command += &format!(" -o UserKnownHostsFile={}", path.display());
            }
            access._dir = Some(dir);
        }
        if spec.known_hosts.is_empty() {
            ssh_command += " -o StrictHostKeyChecking=no";
        }
        access.env.push(("GIT_SSH_COMMAND", ssh_command));
        Ok(access)
    }

    async fn forward_agent(
        &mut self,
        spec: &Spec,
        sessions: &Group,
        dir: &TempDir,
    ) -> Result<(), SourceError> {
        let ask = |session: Session| async move {
            ssh::check(&session, &spec.ssh).await.map(|()| session)
        };
        let session = sessions.any(ask).await.map_err(|error: SessionError| {
            if error.is_unimplemented() {
                let id = spec.ssh.clone();
                return SourceError::NoSsh { id };
            }
            error.into()
        })?;
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).map_err(io("listen on", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
            .map_err(io("set the mode of", &path))?;
        self._forwarding
            .spawn(ssh::serve(listener, session, spec.ssh.clone()));
        self.env.push(("SSH_AUTH_SOCK", path.display().to_string()));
        Ok(())
    }

    /// Options before the subcommand.
    pub(super) fn config(&self) -> &[String] {
        &self.config
    }

    /// Environment variables.
    pub(super) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// The header that the client has a secret for. Secrets for this host come first. What goes
/// wrong with them does not matter: most repositories need none.
async fn authorization(spec: &Spec, sessions: &Group) -> Option<String> {
    let (header, token) = (&spec.header_secret, &spec.token_secret);
    let host = spec.host().unwrap_or_default();
    let names = [
        (format!("{header}.{host}"), header, false),
        (format!("{token}.{host}"), token, true),
        (header.clone(), header, false),
        (token.clone(), token, true),
    ];
    for (name, base, is_token) in names {
        if base.is_empty() {
            continue;
        }
        let id = name.as_str();
        let asked = sessions.any(|session| async move { secrets::get(&session, id).await });
        let Ok(Some(secret)) = asked.await else {
            continue;
        };
        if is_token {
            let pair = [b"x-access-token:".as_slice(), &secret].concat();
            return Some(format!("basic {}", STANDARD.encode(pair)));
        }
        return Some(String::from_utf8_lossy(&secret).into_owned());
    }
    None
}

fn io(
    attempt: &'static str,
    path: impl Into<std::path::PathBuf>,
) -> impl FnOnce(std::io::Error) -> SourceError {
    let path = path.into();
    move |source| SourceError::Io {
        attempt,
        path,
        source: Arc::new(source),
    }
}
