//! TLS to a daemon: who it has to be, and who this client is.

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::ClientError;

/// The files that a TLS connection needs. With all of it empty the connection is plain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that the daemon's certificate is for; by default the host of the address.
    pub server_name: Option<String>,
    /// Certificates of the authorities that the daemon's is checked against (PEM); by default
    /// those of the system.
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM); with a key, or none of both.
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

impl Tls {
    /// The files of a folder by the names that BuildKit's client gives them: `ca.pem`,
    /// `cert.pem` and `key.pem`, as far as they are there.
    pub fn in_dir(dir: &Path) -> Self {
        let file = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        Self {
            server_name: None,
            ca: file("ca.pem"),
            cert: file("cert.pem"),
            key: file("key.pem"),
        }
    }

    /// Whether anything of it is set.
    pub fn is_used(&self) -> bool {
        *self != Self::default()
    }

    pub(crate) fn config(&self) -> Result<ClientTlsConfig, ClientError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| ClientError::Config {
                path: path.display().to_string(),
                source,
            })
        };
        let mut config = ClientTlsConfig::new();
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        config = match &self.ca {
            Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
            None => config.with_native_roots(),
        };
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            (None, None) => {}
            (Some(one), None) | (None, Some(one)) => {
                let text = "a certificate needs a key, and a key a certificate";
                return Err(ClientError::Config {
                    path: one.display().to_string(),
                    source: std::io::Error::other(text),
                });
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Tls::in_dir(dir.path()).is_used());
        std::fs::write(dir.path().join("ca.pem"), "").unwrap();
        std::fs::write(dir.path().join("key.pem"), "").unwrap();
        let tls = Tls::in_dir(dir.path());
        assert_eq!(tls.ca, Some(dir.path().join("ca.pem")));
        assert_eq!(tls.cert, None);
        // Half of a pair is a mistake, not a client without a name.
        assert!(tls.config().is_err());
    }
}
