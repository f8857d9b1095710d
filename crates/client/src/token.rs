//! Tokens that are fetched on this side, so that a daemon is given no passwords (distribution's
//! "Token Authentication" and "OAuth2 Token Authentication").

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cooper_proto::auth::{FetchTokenRequest, FetchTokenResponse};
use cooper_session::Proxies;
use cooper_session::auth::Credentials;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, NoProxy, Proxy, RequestBuilder, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use crate::RegistryTls;

/// What the token server is told of who asks (BuildKit's value).
const CLIENT_ID: &str = "buildkit-client";
/// How long a token lasts that does not say so, in seconds (BuildKit's value).
const DEFAULT_LIFE: i64 = 60;
/// One request may take so long, and connecting so long of it.
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECTING: Duration = Duration::from_secs(10);
/// The largest answer, in bytes.
const MOST: usize = 1 << 20;
/// So many redirects are followed (Go's value).
const REDIRECTS: usize = 10;

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    token: String,
    /// The same by OAuth's name.
    access_token: String,
    expires_in: i64,
    issued_at: String,
}

enum Failure {
    /// The server answered with this status.
    Status(StatusCode, String),
    Other(String),
}

impl Failure {
    fn text(self) -> String {
        match self {
            Self::Status(_, text) | Self::Other(text) => text,
        }
    }
}

/// A token that somebody has written down, which nobody knows the end of.
pub(crate) fn known(token: &str) -> FetchTokenResponse {
    FetchTokenResponse {
        token: token.to_owned(),
        expires_in: DEFAULT_LIFE,
        issued_at: now(),
    }
}

/// Fetches a token with `credentials`; for nobody in particular when they are empty. With `tls`
/// its files are read each time.
///
/// # Errors
/// In BuildKit's words; neither what was sent nor what was answered is in them.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn fetch(
    request: &FetchTokenRequest,
    credentials: &Credentials,
    tls: Option<&RegistryTls>,
) -> io::Result<FetchTokenResponse> {
    let (anonymous, kind) = match credentials.secret.is_empty() {
        true => (true, "anonymous"),
        false => (false, "oauth"),
    };
    let failed = |failure: Failure| {
        io::Error::other(format!("failed to fetch {kind} token: {}", failure.text()))
    };
    let realm = realm(&request.realm).map_err(failed)?;
    let own;
    let http = match tls {
        Some(tls) if realm.scheme() == "https" => {
            own = make(false, tls).map_err(|error| failed(Failure::Other(error)))?;
            &own
        }
        _ => client(&realm).map_err(failed)?,
    };
    let answer = if anonymous {
        get(http, &realm, request, None).await
    } else {
        match post(http, &realm, request, credentials).await {
            // Servers that know no POST say so in several ways.
            Err(Failure::Status(status, _))
                if status == StatusCode::NOT_FOUND
                    || status == StatusCode::UNAUTHORIZED
                    || (status == StatusCode::METHOD_NOT_ALLOWED
                        && !credentials.username.is_empty()) =>
            {
                get(http, &realm, request, Some(credentials)).await
            }
            answer => answer,
        }
    };
    response(answer.map_err(failed)?).map_err(failed)
}

fn realm(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| Failure::Other("invalid token auth challenge realm".to_owned()))
}

/// Without what may be secret in it.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}"));
    let port = port.unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// The client for the realm, made once for each of the two schemes. The one for `https` reads the
/// system's certificates.
fn client(realm: &Url) -> Result<&'static Client, Failure> {
    static PLAIN: OnceLock<Result<Client, String>> = OnceLock::new();
    static SAFE: OnceLock<Result<Client, String>> = OnceLock::new();
    let plain = realm.scheme() == "http";
    let made = if plain { &PLAIN } else { &SAFE };
    let made = made.get_or_init(|| make(plain, &RegistryTls::default()));
    made.as_ref().map_err(|text| Failure::Other(text.clone()))
}

fn make(plain: bool, tls: &RegistryTls) -> Result<Client, String> {
    let text = |error: reqwest::Error| error.without_url().to_string();
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()))
    };
    // An error says that there is one already, and that one serves.
    let _chosen_before = rustls::crypto::ring::default_provider().install_default();
    let proxies = Proxies::from_env(|name| std::env::var(name).ok());
    let mut builder = Client::builder()
        .timeout(PATIENCE)
        .connect_timeout(CONNECTING)
        .redirect(Policy::custom(|attempt| {
            // A password does not follow to another host.
            let same = attempt.previous().last().is_some_and(|from| {
                from.host_str() == attempt.url().host_str()
                    && from.scheme() == attempt.url().scheme()
            });
            match same && attempt.previous().len() <= REDIRECTS {
                true => attempt.follow(),
                false => attempt.stop(),
            }
        }))
        .no_proxy();
    let direct = NoProxy::from_string(&proxies.without);
    let proxies = [
        proxies.http.map(Proxy::http),
        proxies.https.map(Proxy::https),
    ];
    for proxy in proxies.into_iter().flatten() {
        builder = builder.proxy(proxy.map_err(text)?.no_proxy(direct.clone()));
    }
    if plain {
        // Without this the system's certificates would be loaded, or missed.
        builder = builder.tls_certs_only([]);
    }
    let mut authorities = Vec::new();
    for path in &tls.authorities {
        authorities.extend(Certificate::from_pem_bundle(&read(path)?).map_err(text)?);
    }
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some((cert, key)) = &tls.pair {
        let mut pem = read(cert)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        builder = builder.identity(Identity::from_pem(&pem).map_err(text)?);
    }
    builder.build().map_err(text)
}

async fn get(
    http: &Client,
    realm: &Url,
    request: &FetchTokenRequest,
    credentials: Option<&Credentials>,
) -> Result<Answer, Failure> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in request.scopes.iter().filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
    }
    let mut call = http.get(url);
    if let Some(credentials) = credentials {
        call = call.basic_auth(&credentials.username, Some(&credentials.secret));
    }
    send(call, "GET", realm).await
}

async fn post(
    http: &Client,
    realm: &Url,
    request: &FetchTokenRequest,
    credentials: &Credentials,
) -> Result<Answer, Failure> {
    let kind = "application/x-www-form-urlencoded; charset=utf-8";
    let call = http.post(realm.clone()).header(CONTENT_TYPE, kind);
    send(call.body(form(request, credentials)), "POST", realm).await
}

fn form(request: &FetchTokenRequest, credentials: &Credentials) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    let scopes = request.scopes.iter().filter(|scope| !scope.is_empty());
    let scopes: Vec<_> = scopes.map(String::as_str).collect();
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
    form.append_pair("service", &request.service)
        .append_pair("client_id", CLIENT_ID);
    if credentials.username.is_empty() {
        form.append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", &credentials.secret);
    } else {
        form.append_pair("grant_type", "password")
            .append_pair("username", &credentials.username)
            .append_pair("password", &credentials.secret);
    }
    form.finish()
}

async fn send(call: RequestBuilder, method: &str, realm: &Url) -> Result<Answer, Failure> {
    let place = shown(realm);
    let broken = |error: reqwest::Error| {
        let mut text = format!("{method} {place}");
        // The error without its URL, which may hold a secret, and what led to it.
        let error = error.without_url();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Failure::Other(text)
    };
    let mut response = call.send().await.map_err(&broken)?;
    let status = response.status();
    if !status.is_success() {
        let text = format!("unexpected status from {method} request to {place}: {status}");
        return Err(Failure::Status(status, text));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(&broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST {
            return Err(Failure::Other(format!(
                "the answer of {place} is too large"
            )));
        }
    }
    // Its error would quote what it could not read.
    serde_json::from_slice(&body)
        .map_err(|_| Failure::Other("unable to decode token response".to_owned()))
}

fn response(answer: Answer) -> Result<FetchTokenResponse, Failure> {
    let token = match answer.token.is_empty() {
        true => answer.access_token,
        false => answer.token,
    };
    if token.is_empty() {
        let text = "authorization server did not include a token in the response";
        return Err(Failure::Other(text.to_owned()));
    }
    let issued = OffsetDateTime::parse(&answer.issued_at, &Rfc3339);
    Ok(FetchTokenResponse {
        token,
        expires_in: match answer.expires_in {
            0 => DEFAULT_LIFE,
            seconds => seconds,
        },
        issued_at: issued.map_or_else(|_| now(), OffsetDateTime::unix_timestamp),
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
