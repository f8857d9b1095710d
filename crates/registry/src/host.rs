//! Where the registry of a domain is: mirrors, schemes, certificates.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cooper_session::Proxies;
use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Proxy};

use crate::RegistryError;

/// A dead peer is noticed after this long.
const KEEPALIVE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("cooper/", env!("CARGO_PKG_VERSION"));

/// What is known of a registry, as in `[registry."docker.io"]` of buildkitd.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Hosts that are asked first, in order, each with an optional path: `mirror.local:5000/hub`.
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset: for hosts of the loopback interface.
    pub http: Option<bool>,
    /// Certificates are not verified; together with `http`, HTTPS is tried first.
    pub insecure: Option<bool>,
    /// Files of certificates (PEM) that are trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// What the client shows to the server.
    pub keypairs: Vec<KeyPair>,
    /// Folders with further `*.crt` (trusted), and `*.cert` with their `*.key`.
    pub tls_dirs: Vec<PathBuf>,
}

/// A client certificate and its key, each a file (PEM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How to speak to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// HTTPS, and plain HTTP when that cannot be had.
    Either,
}

/// One place that serves a domain's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    /// Host and port.
    pub(crate) host: String,
    /// `/v2`, or `/v2/path` for a mirror.
    pub(crate) path: String,
    /// Whether it is a mirror: asked with the name of what it mirrors, never pushed to.
    pub(crate) mirror: bool,
    pub(crate) config: HostConfig,
}

impl Endpoint {
    /// `scheme://host/v2/repository/rest`.
    pub(crate) fn url(&self, plain: bool, repository: &str, rest: &str) -> String {
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{}{}/{repository}/{rest}", self.host, self.path)
    }
}

/// The places to ask for images of `domain`, the registry itself last. `config` gives what is
/// known of a host.
pub(crate) fn endpoints(domain: &str, config: impl Fn(&str) -> HostConfig) -> Vec<Endpoint> {
    let own = config(domain);
    let mut endpoints: Vec<_> = own
        .mirrors
        .iter()
        .map(|mirror| {
            let (host, path) = split_mirror(mirror);
            endpoint(host, format!("/v2{path}"), config(host), true)
        })
        .collect();
    let host = match domain {
        // The name of the hub is not the name of its registry.
        "docker.io" => "registry-1.docker.io",
        _ => domain,
    };
    endpoints.push(endpoint(host, "/v2".into(), own, false));
    endpoints
}

fn endpoint(host: &str, path: String, config: HostConfig, mirror: bool) -> Endpoint {
    let plain = config.http.unwrap_or_else(|| is_loopback(host));
    let scheme = match (plain, config.insecure.unwrap_or(false)) {
        (true, true) => Scheme::Either,
        (true, false) => Scheme::Http,
        (false, _) => Scheme::Https,
    };
    Endpoint {
        scheme,
        host: host.to_owned(),
        path,
        mirror,
        config,
    }
}

/// Host, and path with its leading slash; a scheme before it says nothing.
fn split_mirror(mirror: &str) -> (&str, &str) {
    let bare = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
    let bare = bare.trim_end_matches('/');
    match bare.find('/') {
        Some(slash) => bare.split_at(slash),
        None => (bare, ""),
    }
}

/// Whether `host`, with or without a port, is of the loopback interface.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        // More than one colon is an address of IPv6 without a port.
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Begins a client of HTTP with TLS by ring, which becomes the process's provider of
/// cryptography unless the program has chosen one, and with the proxies of the environment
/// ([`Proxies`]).
pub fn http_client() -> ClientBuilder {
    // An error says that there is one already, and that one serves.
    let _chosen_before = rustls::crypto::ring::default_provider().install_default();
    let proxies = Proxies::from_env(|name| std::env::var(name).ok());
    let direct = NoProxy::from_string(&proxies.without);
    let http = proxies.http.map(Proxy::http);
    let https = proxies.https.map(Proxy::https);
    let mut builder = Client::builder().no_proxy();
    for proxy in [http, https].into_iter().flatten() {
        match proxy {
            Ok(proxy) => builder = builder.proxy(proxy.no_proxy(direct.clone())),
            Err(error) => {
                // Its address may hold a password.
                let error = error.without_url();
                tracing::warn!(%error, "a proxy of the environment cannot be used");
            }
        }
    }
    builder
}

/// Makes the client for a host. Reads the files of `config` and, unless `plain`, the system's
/// certificates: blocks for the disk, shortly, once for each configuration.
pub(crate) fn client(
    host: &str,
    config: &HostConfig,
    plain: bool,
) -> Result<Client, RegistryError> {
    let mut builder = http_client()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .redirect(reqwest::redirect::Policy::none());
    if plain {
        // Without this the system's certificates would be loaded, or missed.
        builder = builder.tls_certs_only([]);
    } else {
        let (certificates, identities) = files(config);
        let mut trusted = Vec::new();
        for path in &certificates {
            let bundle = read(host, path)?;
            trusted.extend(Certificate::from_pem_bundle(&bundle).map_err(tls(host, path))?);
        }
        if !trusted.is_empty() {
            builder = builder.tls_certs_merge(trusted);
        }
        // A connection shows one identity: the first.
        if let Some(pair) = identities.first() {
            let mut pem = read(host, &pair.cert)?;
            pem.push(b'\n');
            pem.extend(read(host, &pair.key)?);
            builder = builder.identity(Identity::from_pem(&pem).map_err(tls(host, &pair.cert))?);
        }
        if config.insecure == Some(true) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
    }
    builder.build().map_err(|source| RegistryError::Client {
        host: host.to_owned(),
        source,
    })
}

/// The files named and those in the folders; a folder that cannot be read has none.
fn files(config: &HostConfig) -> (Vec<PathBuf>, Vec<KeyPair>) {
    let (mut certificates, mut identities) = (config.ca.clone(), config.keypairs.clone());
    for dir in &config.tls_dirs {
        let Ok(list) = std::fs::read_dir(dir) else {
            continue;
        };
        let mut paths: Vec<_> = list.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => certificates.push(path),
                Some("cert") => identities.push(KeyPair {
                    key: path.with_extension("key"),
                    cert: path,
                }),
                _ => {}
            }
        }
    }
    (certificates, identities)
}

fn read(host: &str, path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(tls(host, path))
}

fn tls<E: std::error::Error + Send + Sync + 'static>(
    host: &str,
    path: &Path,
) -> impl FnOnce(E) -> RegistryError + use<E> {
    let (host, path) = (host.to_owned(), path.to_owned());
    move |source| RegistryError::Tls {
        host,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_recognised() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:5000",
            "::1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.com",
            "example.com:5000",
            "10.0.0.1",
            "[::2]:1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn mirrors_come_first_and_the_hub_has_another_name() {
        let config = |host: &str| match host {
            "docker.io" => HostConfig {
                mirrors: vec!["https://mirror.local:5000/hub/".into(), "other".into()],
                ..HostConfig::default()
            },
            "other" => HostConfig {
                http: Some(true),
                ..HostConfig::default()
            },
            _ => HostConfig::default(),
        };
        let found = endpoints("docker.io", config);
        let seen: Vec<_> = found
            .iter()
            .map(|e| (e.url(false, "library/x", "manifests/y"), e.scheme, e.mirror))
            .collect();
        assert_eq!(
            seen,
            [
                (
                    "https://mirror.local:5000/v2/hub/library/x/manifests/y".to_owned(),
                    Scheme::Https,
                    true
                ),
                (
                    "https://other/v2/library/x/manifests/y".to_owned(),
                    Scheme::Http,
                    true
                ),
                (
                    "https://registry-1.docker.io/v2/library/x/manifests/y".to_owned(),
                    Scheme::Https,
                    false
                ),
            ]
        );
    }

    #[test]
    fn schemes_follow_the_configuration() {
        let table = [
            ("example.com", None, None, Scheme::Https),
            ("example.com", Some(true), None, Scheme::Http),
            ("example.com", Some(true), Some(true), Scheme::Either),
            ("example.com", None, Some(true), Scheme::Https),
            ("localhost:1", None, None, Scheme::Http),
            ("localhost:1", None, Some(true), Scheme::Either),
            ("localhost:1", Some(false), None, Scheme::Https),
        ];
        for (host, http, insecure, scheme) in table {
            let config = |_: &str| HostConfig {
                http,
                insecure,
                ..HostConfig::default()
            };
            assert_eq!(
                endpoints(host, config)[0].scheme,
                scheme,
                "{host} {http:?} {insecure:?}"
            );
        }
    }

    #[test]
    fn folders_of_certificates_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.crt", "a.crt", "c.cert", "c.key", "readme"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let config = HostConfig {
            tls_dirs: vec![dir.path().to_owned(), dir.path().join("missing")],
            ..HostConfig::default()
        };
        let (certificates, identities) = files(&config);
        assert_eq!(
            certificates,
            [dir.path().join("a.crt"), dir.path().join("b.crt")]
        );
        let pair = KeyPair {
            cert: dir.path().join("c.cert"),
            key: dir.path().join("c.key"),
        };
        assert_eq!(identities, [pair]);
        let missing = HostConfig {
            ca: vec![dir.path().join("missing.pem")],
            ..HostConfig::default()
        };
        let error = client("x", &missing, false).unwrap_err();
        assert!(error.to_string().contains("missing.pem"), "{error}");
    }
}
