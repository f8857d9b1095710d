//! One request: its client, its redirects, its credentials, and what is tried again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cooper_session::Group;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Body, Client, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::auth::Tokens;
use crate::challenge::challenges;
use crate::host::{self, Endpoint, HostConfig, Scheme};
use crate::{Reference, RegistryError};

/// How often a request is sent again after a failure that may pass.
const RETRIES: u32 = 3;
/// The pause before the first of them; it doubles. (BuildKit gives up after about as long.)
const BACKOFF: Duration = Duration::from_secs(1);
/// A server may ask for a longer pause, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a 401 is answered within one request: a challenge, and a token that has expired.
const CHALLENGES: u32 = 2;
const REDIRECTS: u32 = 10;
/// Blobs under way to or from one host (BuildKit's default for `maxRegistryConcurrency`).
const CONCURRENCY: usize = 4;
/// Of an error's body so much is read.
const MAX_ERROR_BODY: usize = 64 << 10;
const MAX_DETAIL: usize = 1 << 10;

/// A client of all registries. A clone is the same client: it shares connections and tokens.
///
/// Nothing is made before it is needed: one that was never asked holds no connection pool and
/// no certificates.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    insecure: bool,
}

struct Inner {
    hosts: BTreeMap<String, HostConfig>,
    backoff: Duration,
    concurrency: usize,
    clients: Mutex<Vec<(ClientKey, Client)>>,
    /// Hosts that were found to speak plain HTTP only.
    plain: Mutex<HashSet<String>>,
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
    tokens: Tokens,
}

/// What makes one client another.
#[derive(PartialEq)]
enum ClientKey {
    Plain,
    Tls(HostConfig),
}

impl Registry {
    /// A client with what is known of hosts, by domain.
    pub fn new(hosts: BTreeMap<String, HostConfig>) -> Self {
        Self::with_limits(hosts, CONCURRENCY, BACKOFF)
    }

    /// As [`Registry::new`] with other limits: blobs under way to or from one host at a time,
    /// and the pause before the first retry, which doubles with each of the three.
    pub fn with_limits(
        hosts: BTreeMap<String, HostConfig>,
        concurrency: usize,
        backoff: Duration,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                hosts,
                backoff,
                concurrency: concurrency.max(1),
                clients: Mutex::default(),
                plain: Mutex::default(),
                slots: Mutex::default(),
                tokens: Tokens::default(),
            }),
            insecure: false,
        }
    }

    /// The same client for which every host is insecure: certificates are not verified, and
    /// plain HTTP is tried where HTTPS cannot be had (an exporter's `registry.insecure`).
    #[must_use]
    pub fn insecure(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            insecure: true,
        }
    }

    /// Where to ask for images of a domain, the registry itself last.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        host::endpoints(reference.domain(), |host| {
            let mut config = self.inner.hosts.get(host).cloned().unwrap_or_default();
            if self.insecure {
                (config.http, config.insecure) = (Some(true), Some(true));
            }
            config
        })
    }

    /// The right to move one blob to or from `host`; ends with the value.
    pub(crate) async fn slot(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        let slots = lock(&self.inner.slots)
            .entry(host.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(self.inner.concurrency)))
            .clone();
        // Nobody closes it.
        slots.acquire_owned().await.ok()
    }

    /// The pause before the first retry.
    pub(crate) fn backoff(&self) -> Duration {
        self.inner.backoff
    }

    /// Sends a request and, when it fails in a way that may pass, sends it again.
    ///
    /// # Cancel safety
    /// Dropping the future ends the request; the server may have acted on it.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        sessions: &Group,
    ) -> Result<Answer, RegistryError> {
        let mut pause = self.inner.backoff;
        let mut left = if call.patient { RETRIES } else { 0 };
        loop {
            let result = self.authorized(call, sessions).await;
            let wait = match &result {
                Ok(answer) => answer.pause(pause),
                Err(RegistryError::Request { source, .. }) => may_pass(&**source).then_some(pause),
                Err(_) => None,
            };
            let Some(wait) = wait.filter(|_| left > 0) else {
                return result;
            };
            match &result {
                Ok(answer) => {
                    tracing::debug!(url = answer.url, status = %answer.status(), "retrying")
                }
                Err(error) => tracing::debug!(error = error.chain(), "retrying"),
            }
            drop(result);
            tokio::time::sleep(wait).await;
            (left, pause) = (left - 1, pause * 2);
        }
    }

    async fn authorized(&self, call: &Call<'_>, sessions: &Group) -> Result<Answer, RegistryError> {
        let endpoint = call.endpoint;
        if !call.authorize {
            return self.follow(call, None).await;
        }
        let tokens = &self.inner.tokens;
        let fail = |source| RegistryError::Authorize {
            host: endpoint.host.clone(),
            source: Box::new(source),
        };
        let mut answered = 0;
        loop {
            let sent = tokens
                .header(self, endpoint, call.scopes, sessions)
                .await
                .map_err(fail)?;
            let answer = self.follow(call, sent.as_ref()).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || answer.redirected {
                return Ok(answer);
            }
            let challenges = challenges(answer.headers());
            let again = tokens
                .challenged(endpoint, call.scopes, sessions, &challenges, sent.is_some())
                .await?;
            if !again || answered == CHALLENGES {
                return Ok(answer);
            }
            answered += 1;
        }
    }

    /// Sends a request and follows redirects. Credentials stay with the host they are for.
    async fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut answer = self.first(call, authorization).await?;
        let origin = answer.address.origin();
        for _ in 0..REDIRECTS {
            let Some(next) = answer.redirect(call)? else {
                return Ok(answer);
            };
            let authorization = authorization.filter(|_| next.origin() == origin);
            answer = self.once(call, next, authorization).await?;
            answer.redirected = true;
        }
        Err(RegistryError::Answer {
            url: answer.url,
            problem: format!("stopped after {REDIRECTS} redirects"),
        })
    }

    /// The first request of a chain, by HTTPS or HTTP as the host takes it.
    async fn first(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let endpoint = call.endpoint;
        let address = |plain: bool| match &call.target {
            Target::Path { repository, rest } => {
                let url = endpoint.url(plain, repository, rest);
                Url::parse(&url).map_err(|error| RegistryError::Answer {
                    url,
                    problem: error.to_string(),
                })
            }
            Target::Url(url) => Ok(url.clone()),
        };
        let known = lock(&self.inner.plain).contains(&endpoint.host);
        match endpoint.scheme {
            Scheme::Http => self.once(call, address(true)?, authorization).await,
            Scheme::Either if known => self.once(call, address(true)?, authorization).await,
            Scheme::Https => self.once(call, address(false)?, authorization).await,
            Scheme::Either => match self.once(call, address(false)?, authorization).await {
                Err(RegistryError::Request { source, .. }) if is_connect(&*source) => {
                    let answer = self.once(call, address(true)?, authorization).await?;
                    lock(&self.inner.plain).insert(endpoint.host.clone());
                    Ok(answer)
                }
                result => result,
            },
        }
    }

    async fn once(
        &self,
        call: &Call<'_>,
        address: Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let client = self.client(call.endpoint, address.scheme() == "http")?;
        let url = shown(&address);
        let mut request = client
            .request(call.method.clone(), address.clone())
            .headers(call.headers.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(body) = call.body {
            request = request.body(body());
        }
        tracing::debug!(method = %call.method, url, "request");
        let response = request
            .send()
            .await
            .map_err(|error| failed(&call.method, &url, error))?;
        Ok(Answer {
            method: call.method.clone(),
            url,
            address,
            response,
            redirected: false,
        })
    }

    /// The client for a host, made when it is first needed.
    pub(crate) fn client(&self, endpoint: &Endpoint, plain: bool) -> Result<Client, RegistryError> {
        let key = if plain {
            ClientKey::Plain
        } else {
            // Only what TLS depends on.
            ClientKey::Tls(HostConfig {
                mirrors: Vec::new(),
                http: None,
                ..endpoint.config.clone()
            })
        };
        let mut clients = lock(&self.inner.clients);
        if let Some((_, client)) = clients.iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let client = host::client(&endpoint.host, &endpoint.config, plain)?;
        clients.push((key, client.clone()));
        Ok(client)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("hosts", &self.inner.hosts)
            .finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request to be sent.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) target: Target<'a>,
    pub(crate) headers: HeaderMap,
    /// What a token must allow: `repository:a/b:pull`.
    pub(crate) scopes: &'a [String],
    /// Whether credentials may be sent.
    pub(crate) authorize: bool,
    /// Whether it is tried again after a failure that may pass.
    pub(crate) patient: bool,
    /// Makes the body anew for each time that it is sent.
    pub(crate) body: Option<&'a (dyn Fn() -> Body + Send + Sync)>,
}

/// Where a request goes.
pub(crate) enum Target<'a> {
    /// `<repository>/<rest>` at the endpoint.
    Path { repository: &'a str, rest: String },
    /// Where an earlier answer pointed to.
    Url(Url),
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        method: Method,
        endpoint: &'a Endpoint,
        reference: &'a Reference,
        rest: String,
        scopes: &'a [String],
    ) -> Self {
        let rest = if endpoint.mirror {
            // A mirror of several registries has to be told which one is meant.
            format!("{rest}?ns={}", reference.domain())
        } else {
            rest
        };
        Self {
            method,
            endpoint,
            target: Target::Path {
                repository: reference.repository(),
                rest,
            },
            headers: HeaderMap::new(),
            scopes,
            authorize: true,
            patient: true,
            body: None,
        }
    }

    pub(crate) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        // A value that cannot stand in a header is one that the server would not understand.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) method: Method,
    /// For messages: without secrets.
    pub(crate) url: String,
    pub(crate) address: Url,
    pub(crate) response: Response,
    /// Whether another place was asked in the end.
    pub(crate) redirected: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header as text.
    pub(crate) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The media type without parameters.
    pub(crate) fn media_type(&self) -> &str {
        let value = self.header(CONTENT_TYPE).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }

    /// How long to wait before the request is sent again; `None` when that would not help.
    fn pause(&self, default: Duration) -> Option<Duration> {
        let asked = || {
            let seconds = self.header(RETRY_AFTER)?.parse().ok()?;
            Some(Duration::from_secs(seconds).min(MAX_PAUSE))
        };
        match self.status() {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Some(asked().unwrap_or(default))
            }
            StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => None,
            status if status.is_server_error() => Some(asked().unwrap_or(default)),
            _ => None,
        }
    }

    /// Where a redirect leads.
    fn redirect(&self, call: &Call<'_>) -> Result<Option<Url>, RegistryError> {
        let reading = matches!(call.method, Method::GET | Method::HEAD);
        let moved = matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(location) = self.header(LOCATION).filter(|_| reading && moved) else {
            return Ok(None);
        };
        self.join(location).map(Some)
    }

    /// An address relative to this answer's.
    pub(crate) fn join(&self, location: &str) -> Result<Url, RegistryError> {
        let invalid = |problem: String| RegistryError::Answer {
            url: self.url.clone(),
            problem,
        };
        let next = self
            .address
            .join(location)
            .map_err(|error| invalid(format!("unable to parse location: {error}")))?;
        match next.scheme() {
            "http" | "https" => Ok(next),
            other => Err(invalid(format!("location with scheme {other}"))),
        }
    }

    /// Takes the answer as the failure that it is.
    pub(crate) async fn into_error(self) -> RegistryError {
        let (method, url, status) = (self.method.to_string(), self.url.clone(), self.status());
        let body = self.bytes(MAX_ERROR_BODY).await.unwrap_or_default();
        RegistryError::Status {
            method,
            url,
            status,
            detail: detail(&body),
        }
    }

    /// The body, cut at `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: usize) -> Result<Bytes, RegistryError> {
        let mut bytes = Vec::new();
        loop {
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| failed(&self.method, &self.url, error))? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => break,
            }
            if bytes.len() >= limit {
                bytes.truncate(limit);
                break;
            }
        }
        Ok(bytes.into())
    }
}

/// `: denied: requested access to the resource is denied` out of a registry's errors.
fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let mut text = String::new();
    for One { code, message } in errors {
        for part in [code.to_lowercase().replace('_', " "), message] {
            if !part.is_empty() {
                text.push_str(": ");
                text.extend(part.chars().filter(|c| !c.is_control()));
            }
        }
        if text.len() > MAX_DETAIL {
            text.truncate(text.floor_char_boundary(MAX_DETAIL));
            break;
        }
    }
    text
}

/// A URL for messages: user, password, query and fragment can carry secrets.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// An error of the transport, without the URL that may carry secrets.
pub(crate) fn failed(method: &Method, url: &str, error: reqwest::Error) -> RegistryError {
    let lower = method.as_str().to_ascii_lowercase();
    let mut chars = lower.chars();
    let method = chars.next().map_or_else(String::new, |first| {
        first.to_ascii_uppercase().to_string() + chars.as_str()
    });
    RegistryError::Request {
        method,
        url: url.to_owned(),
        source: error.without_url().into(),
    }
}

fn is_connect(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<reqwest::Error>()
        .is_some_and(reqwest::Error::is_connect)
}

/// Whether a lost connection may be had the next time. A refused one, an unknown name and a
/// bad certificate stay what they are.
pub(crate) fn may_pass(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if io.kind() == ErrorKind::InvalidData {
                // TLS: the peer refused, or is not whom it should be.
                return false;
            }
            let passes = matches!(
                io.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::TimedOut
            );
            if passes {
                return true;
            }
        }
        next = error.source();
    }
    // Cut off after it was made: hyper says so without an error of the system.
    error.downcast_ref::<reqwest::Error>().is_some_and(|error| {
        error.is_timeout() || (error.is_request() && !error.is_connect()) || error.is_body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_no_secrets() {
        let url = Url::parse("https://user:pass@host/v2/x?X-Amz-Signature=secret#frag").unwrap();
        assert_eq!(shown(&url), "https://host/v2/x");
    }

    #[test]
    fn a_registrys_own_words_are_shown() {
        let body =
            br#"{"errors":[{"code":"NAME_UNKNOWN","message":"not\u0000 known","detail":{}}]}"#;
        assert_eq!(detail(body), ": name unknown: not known");
        assert_eq!(detail(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "é".repeat(2000));
        assert!(detail(long.as_bytes()).len() <= MAX_DETAIL);
    }

    #[test]
    fn a_client_is_made_when_it_is_needed() {
        let registry = Registry::new(BTreeMap::new());
        assert!(lock(&registry.inner.clients).is_empty());
        let reference = Reference::parse("localhost:1/x").unwrap();
        let endpoint = registry.endpoints(&reference).remove(0);
        registry.client(&endpoint, true).unwrap();
        registry.client(&endpoint, true).unwrap();
        assert_eq!(lock(&registry.inner.clients).len(), 1);
    }
}
