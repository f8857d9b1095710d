//! Tokens that the client fetches, from a server that speaks as registries' do.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use cooper_client::{DockerConfig, RegistryTls};
use cooper_proto::auth::FetchTokenRequest;
use cooper_session::serve::AuthProvider;
use cooper_testkit::Certificates;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server that gives one answer by the method, and remembers what it was asked.
struct Server {
    realm: String,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(get: &'static str, post: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let realm = format!(
            "http://{}/token?secret=in-url",
            listener.local_addr().unwrap()
        );
        let asked = Arc::new(Mutex::new(Vec::new()));
        let into = asked.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut io, _) = listener.accept().await.unwrap();
                let request = read(&mut io).await;
                let answer = if request.starts_with("GET ") {
                    get
                } else {
                    post
                };
                into.lock().unwrap().push(request);
                io.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { realm, asked, task }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request with its body.
async fn read(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = io.read(&mut buffer).await.unwrap();
        text.extend_from_slice(&buffer[..count]);
        let shown = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = shown.split_once("\r\n\r\n") else {
            assert_ne!(count, 0, "{shown}");
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return shown;
        }
    }
}

macro_rules! answer {
    ($status:literal, $body:literal) => {
        concat!(
            "HTTP/1.1 ",
            $status,
            "\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n",
            $body
        )
    };
}

const GRANTED: &str = answer!(
    "200 OK",
    r#"{"access_token": "granted", "expires_in": 300}"#
);
const PLAIN: &str = answer!(
    "200 OK",
    r#"{"token": "plain", "issued_at": "2020-01-02T03:04:05.678Z"}"#
);
const NO_POST: &str = answer!("405 Method Not Allowed", "{}");
const DENIED: &str = answer!("401 Unauthorized", r#"{"details": "sesame is wrong"}"#);

fn config(auths: &str) -> (tempfile::TempDir, DockerConfig) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, format!("{{\"auths\": {auths}}}")).unwrap();
    let config = DockerConfig::read(&path).unwrap();
    (dir, config)
}

fn request(server: &Server) -> FetchTokenRequest {
    FetchTokenRequest {
        client_id: "somebody".to_owned(),
        host: "registry.example".to_owned(),
        realm: server.realm.clone(),
        service: "the registry".to_owned(),
        scopes: vec![
            "repository:a/b:pull".to_owned(),
            "repository:c:pull,push".to_owned(),
        ],
    }
}

const PASSWORD: &str = r#"{"registry.example": {"username": "someone", "password": "se&same"}}"#;
const IDENTITY: &str = r#"{"registry.example": {"identitytoken": "id-token"}}"#;

#[tokio::test]
async fn a_password_is_posted_to_the_token_server() {
    let server = Server::start(PLAIN, GRANTED).await;
    let (_dir, config) = config(PASSWORD);
    let token = config.fetch_token(&request(&server)).await.unwrap();
    assert_eq!((&*token.token, token.expires_in), ("granted", 300));
    assert!(token.issued_at > 1_700_000_000);
    let asked = server.asked().remove(0);
    let body = asked.split("\r\n\r\n").nth(1).unwrap();
    for part in [
        "scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull%2Cpush",
        "service=the+registry",
        "client_id=buildkit-client",
        "grant_type=password",
        "username=someone",
        "password=se%26same",
    ] {
        assert!(body.contains(part), "no {part} in {body}");
    }
}

#[tokio::test]
async fn an_identity_token_is_a_refresh_token() {
    let server = Server::start(PLAIN, GRANTED).await;
    let (_dir, config) = config(IDENTITY);
    config.fetch_token(&request(&server)).await.unwrap();
    let asked = server.asked().remove(0);
    assert!(
        asked.contains("grant_type=refresh_token&refresh_token=id-token"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_server_that_takes_no_posts_is_asked_the_other_way() {
    let server = Server::start(PLAIN, NO_POST).await;
    let (_dir, config) = config(PASSWORD);
    let token = config.fetch_token(&request(&server)).await.unwrap();
    assert_eq!(
        (&*token.token, token.expires_in, token.issued_at),
        ("plain", 60, 1_577_934_245)
    );
    let asked = server.asked().remove(1);
    let line = asked.lines().next().unwrap();
    let query = "secret=in-url&service=the+registry&scope=repository%3Aa%2Fb%3Apull&scope=";
    assert!(
        line.starts_with("GET /token?") && line.contains(query),
        "{line}"
    );
    // someone:se&same
    assert!(
        asked
            .to_lowercase()
            .contains("authorization: basic c29tzw9uztpzzszzyw1l"),
        "{asked}"
    );
}

#[tokio::test]
async fn nobody_in_particular_asks_without_credentials() {
    let server = Server::start(PLAIN, DENIED).await;
    let (_dir, config) = config("{}");
    let token = config.fetch_token(&request(&server)).await.unwrap();
    assert_eq!(token.token, "plain");
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert!(
        !asked[0].to_lowercase().contains("authorization"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_token_that_is_written_down_is_not_fetched() {
    let server = Server::start(DENIED, DENIED).await;
    let (_dir, config) = config(r#"{"registry.example": {"registrytoken": "written"}}"#);
    let token = config.fetch_token(&request(&server)).await.unwrap();
    assert_eq!(token.token, "written");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn what_fails_says_so_and_gives_nothing_away() {
    let server = Server::start(DENIED, DENIED).await;
    let (_dir, some) = config(PASSWORD);
    let failed = some
        .fetch_token(&request(&server))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        failed.starts_with("failed to fetch oauth token: "),
        "{failed}"
    );
    assert!(failed.contains("401 Unauthorized"), "{failed}");
    let (_dir, none) = config("{}");
    let anonymous = none
        .fetch_token(&request(&server))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        anonymous.starts_with("failed to fetch anonymous token: "),
        "{anonymous}"
    );
    let mut elsewhere = request(&server);
    elsewhere.realm = "file:///etc/passwd".to_owned();
    let realm = some.fetch_token(&elsewhere).await.unwrap_err().to_string();
    assert!(
        realm.contains("invalid token auth challenge realm"),
        "{realm}"
    );
    let gone = {
        let server = Server::start(PLAIN, GRANTED).await;
        request(&server)
    };
    tokio::task::yield_now().await;
    let refused = some.fetch_token(&gone).await.unwrap_err().to_string();
    for text in [failed, anonymous, realm, refused] {
        for secret in ["sesame", "se&same", "se%26same", "in-url"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// Lets in who has a certificate of the authority.
fn guarded(certificates: &Certificates) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let read = |file: &str| CertificateDer::from_pem_file(certificates.path(file)).unwrap();
    roots.add(read("ca.pem")).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_file(certificates.path("server-key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![read("server.pem")], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_token_server_is_met_with_the_certificates_for_its_registry() {
    let certificates = Certificates::new();
    let acceptor = guarded(&certificates);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("https://{}/token", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            // Those who are not let in are of interest on the other side.
            if let Ok(mut io) = acceptor.accept(io).await {
                read(&mut io).await;
                io.write_all(GRANTED.as_bytes()).await.unwrap();
                io.shutdown().await.unwrap();
            }
        }
    });
    let request = FetchTokenRequest {
        host: "registry.example".to_owned(),
        realm,
        ..FetchTokenRequest::default()
    };
    let path = |file: &str| certificates.path(file).into();
    let pair = Some((path("client.pem"), path("client-key.pem")));
    let authorities = vec![path("ca.pem")];
    let cases = [
        (
            true,
            "https://registry.example",
            authorities.clone(),
            pair.clone(),
        ),
        (false, "other.example", authorities.clone(), pair.clone()),
        (false, "registry.example", authorities, None),
        (false, "registry.example", Vec::new(), pair.clone()),
        (
            false,
            "registry.example",
            vec!["/no/such/file".into()],
            pair,
        ),
    ];
    for (expected, host, authorities, pair) in cases {
        let (_dir, config) = config(PASSWORD);
        let tls = RegistryTls { authorities, pair };
        let config = config.with_tls([(host.to_owned(), tls)].into());
        let token = config.fetch_token(&request).await;
        assert_eq!(token.is_ok(), expected, "{host}: {token:?}");
    }
    serving.abort();
}

#[tokio::test]
async fn the_key_of_a_user_signs_what_a_daemon_asks_for() {
    let (dir, config) = config(PASSWORD);
    let key = config
        .token_authority("registry.example", b"salt")
        .await
        .unwrap();
    let again = DockerConfig::read(&dir.path().join("config.json")).unwrap();
    assert_eq!(
        key,
        again
            .token_authority("registry.example", b"salt")
            .await
            .unwrap()
    );
    assert_ne!(
        key,
        config
            .token_authority("other.example", b"salt")
            .await
            .unwrap()
    );
    let signed = config
        .sign("registry.example", b"payload", b"salt")
        .await
        .unwrap();
    assert_eq!((key.len(), signed.len()), (32, 64 + 7));
}
