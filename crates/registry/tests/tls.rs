//! A real registry behind TLS: whose certificates are trusted, and who shows one.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cooper_registry::{HostConfig, KeyPair, Reference, Registry};
use cooper_session::Group;

struct Secured {
    child: Child,
    host: String,
    dir: tempfile::TempDir,
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .expect("openssl comes with the system's certificates");
    assert!(output.status.success(), "{output:?}");
}

/// A certificate that vouches for itself, for the server and the client alike.
fn certificate(dir: &Path, name: &str) {
    let (key, cert) = (format!("{name}.key"), format!("{name}.crt"));
    let subject = format!("/CN={name}");
    openssl(
        dir,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &key,
            "-out",
            &cert,
        ],
    );
}

impl Secured {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificate(dir.path(), "server");
        certificate(dir.path(), "client");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n  tls: {{certificate: {}, key: {}, clientcas: [{}]}}\n",
            at("storage"),
            at("server.crt"),
            at("server.key"),
            at("client.crt"),
        );
        std::fs::write(at("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        cooper_testkit::wait_until("docker-registry listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            child,
            host: format!("127.0.0.1:{port}"),
            dir,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What comes of asking for an image that is not there.
    async fn ask(&self, config: HostConfig) -> String {
        let registry = Registry::new(BTreeMap::from([(self.host.clone(), config)]));
        let reference: Reference = format!("{}/x", self.host).parse().unwrap();
        let error = registry
            .resolve(&reference, &Group::none())
            .await
            .unwrap_err();
        error.chain()
    }
}

#[tokio::test]
async fn certificates_are_trusted_as_the_configuration_says() {
    let server = Secured::start();
    let pair = KeyPair {
        cert: server.file("client.crt"),
        key: server.file("client.key"),
    };
    let missing = format!("{}/x:latest: not found", server.host);
    let base = HostConfig {
        http: Some(false),
        keypairs: vec![pair],
        ..HostConfig::default()
    };
    let trusting = HostConfig {
        ca: vec![server.file("server.crt")],
        ..base.clone()
    };
    assert_eq!(server.ask(trusting.clone()).await, missing);
    let insecure = HostConfig {
        insecure: Some(true),
        ..base.clone()
    };
    assert_eq!(server.ask(insecure).await, missing);
    let folder = server.file("certs");
    std::fs::create_dir(&folder).unwrap();
    for (from, to) in [
        ("server.crt", "ca.crt"),
        ("client.crt", "me.cert"),
        ("client.key", "me.key"),
    ] {
        std::fs::copy(server.file(from), folder.join(to)).unwrap();
    }
    let by_folder = HostConfig {
        http: Some(false),
        tls_dirs: vec![folder],
        ..HostConfig::default()
    };
    assert_eq!(server.ask(by_folder).await, missing);

    let refused = server.ask(base).await;
    assert!(
        refused.starts_with("failed to do request: Head"),
        "{refused}"
    );
    assert!(refused.contains("certificate"), "{refused}");
    let anonymous = HostConfig {
        keypairs: Vec::new(),
        ..trusting
    };
    let refused = server.ask(anonymous).await;
    assert!(
        refused.starts_with("failed to do request: Head"),
        "{refused}"
    );
}
