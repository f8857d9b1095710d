//! The server's side of TLS, by the rules of buildkitd's `[grpc.tls]`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::DaemonError;
use crate::config::TlsConfig;

/// What clients and servers agree on (RFC 7301): gRPC goes over HTTP/2.
const PROTOCOL: &[u8] = b"h2";

/// `None` without a certificate. With an authority, clients have to have a certificate of it.
pub(super) fn acceptor(config: &TlsConfig) -> Result<Option<TlsAcceptor>, DaemonError> {
    if config.cert.is_empty() && config.key.is_empty() {
        if !config.ca.is_empty() {
            // Whoever names it expects that not everybody is let in.
            return Err(failed("it needs a certificate and a key", &config.ca)(None));
        }
        return Ok(None);
    }
    if config.cert.is_empty() || config.key.is_empty() {
        let present = format!("{}{}", config.cert, config.key);
        let reason = "you must specify key and cert file if one is specified";
        return Err(failed(reason, &present)(None));
    }
    let pair = "could not load server key pair";
    let chain = certificates(&config.cert, pair)?;
    let key = PrivateKeyDer::from_pem_file(Path::new(&config.key));
    let key = key.map_err(|error| failed(pair, &config.key)(Some(error.into())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(pair, &config.cert)(Some(error.into())))?;
    let verified = if config.ca.is_empty() {
        versions.with_no_client_auth()
    } else {
        let wrong = "could not read ca certificate";
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&config.ca, wrong)? {
            let added = roots.add(certificate);
            added.map_err(|error| failed(wrong, &config.ca)(Some(error.into())))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(|error| failed(wrong, &config.ca)(Some(error.into())))?;
        versions.with_client_cert_verifier(verifier)
    };
    let mut server = verified
        .with_single_cert(chain, key)
        .map_err(|error| failed(pair, &config.cert)(Some(error.into())))?;
    server.alpn_protocols.push(PROTOCOL.to_vec());
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

/// All certificates of a file; one at least.
fn certificates(
    path: &str,
    attempt: &'static str,
) -> Result<Vec<CertificateDer<'static>>, DaemonError> {
    let read = CertificateDer::pem_file_iter(Path::new(path));
    let all: Result<Vec<_>, _> = read.and_then(Iterator::collect);
    let all = all.map_err(|error| failed(attempt, path)(Some(error.into())))?;
    if all.is_empty() {
        return Err(failed(attempt, path)(Some(
            "there is no certificate in it".into(),
        )));
    }
    Ok(all)
}

type Cause = Option<Box<dyn Error + Send + Sync>>;

fn failed(attempt: &'static str, path: &str) -> impl FnOnce(Cause) -> DaemonError {
    move |source| DaemonError::Tls {
        attempt,
        path: path.into(),
        source,
    }
}
