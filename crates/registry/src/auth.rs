//! Tokens and credentials: what answers a challenge.
//!
//! A client keeps its passwords: when its session can fetch tokens it is asked for those, and
//! only a client that cannot is asked for the credentials themselves. With no session tokens
//! are fetched for nobody in particular.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cooper_proto::auth::FetchTokenRequest;
use cooper_session::Group;
use cooper_session::auth::{self, Credentials};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::OnceCell;
use url::Url;

use crate::challenge::Challenge;
use crate::host::Endpoint;
use crate::transport::{Answer, failed, lock, shown};
use crate::{Registry, RegistryError};

/// What the token server is told of who asks.
const CLIENT_ID: &str = "buildkit-client";
/// How long a token lasts that does not say so, in seconds.
const DEFAULT_LIFE: u64 = 60;
/// What is not used for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);
const MAX_TOKEN: usize = 1 << 20;

/// The tokens and credentials that were got, by host and sessions.
#[derive(Default)]
pub(crate) struct Tokens {
    known: Mutex<HashMap<Key, Arc<Known>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    host: String,
    /// What one client may, another may not: tokens are not shared.
    sessions: Vec<String>,
}

struct Known {
    way: Way,
    used: Mutex<Instant>,
}

enum Way {
    Basic(HeaderValue),
    Bearer(Bearer),
}

struct Bearer {
    realm: Url,
    service: String,
    /// What the challenge asked for.
    scopes: Vec<String>,
    source: Source,
    tokens: Mutex<HashMap<String, Arc<OnceCell<Token>>>>,
}

enum Source {
    /// The client fetches tokens itself.
    Client,
    Password(Credentials),
    Anonymous,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    expires: Instant,
}

impl Tokens {
    /// The header to send, as far as it is known what the host wants.
    pub(crate) async fn header(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        scopes: &[String],
        sessions: &Group,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let known = lock(&self.known).get(&key(endpoint, sessions)).cloned();
        let Some(known) = known else { return Ok(None) };
        *lock(&known.used) = Instant::now();
        match &known.way {
            Way::Basic(header) => Ok(Some(header.clone())),
            Way::Bearer(bearer) => {
                let token = bearer.token(registry, endpoint, scopes, sessions).await?;
                Ok(Some(token.header))
            }
        }
    }

    /// Learns from a 401 what the host wants, and says whether asking again can help.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
        sessions: &Group,
        challenges: &[Challenge],
        sent: bool,
    ) -> Result<bool, RegistryError> {
        let key = key(endpoint, sessions);
        let host = || endpoint.host.clone();
        for challenge in challenges {
            let way = match challenge.scheme.as_str() {
                "bearer" => {
                    let asked = challenge.get("scope").unwrap_or_default();
                    let mut wanted: Vec<String> = asked.split(' ').map(Into::into).collect();
                    let before = lock(&self.known).remove(&key);
                    if let Some(message) = challenge.get("error")
                        && sent
                        && let Some(Way::Bearer(before)) = before.as_deref().map(|known| &known.way)
                    {
                        let had = normalize(before.scopes.iter().chain(scopes));
                        if message == "insufficient_scope" && covers(&had, &wanted) {
                            // A token for just this was refused: another one will be too.
                            return Err(RegistryError::Unauthorized {
                                host: host(),
                                message: message.to_owned(),
                            });
                        }
                        wanted.extend(before.scopes.iter().cloned());
                    }
                    Way::Bearer(Bearer {
                        realm: realm(endpoint, challenge)?,
                        service: challenge.get("service").unwrap_or_default().to_owned(),
                        scopes: wanted,
                        source: source(&endpoint.host, sessions).await?,
                        tokens: Mutex::default(),
                    })
                }
                // The same credentials again would be refused again.
                "basic" if !sent => match credentials(&endpoint.host, sessions).await? {
                    Some(found) if !found.username.is_empty() && !found.secret.is_empty() => {
                        Way::Basic(basic(&found))
                    }
                    _ => continue,
                },
                _ => continue,
            };
            let known = Arc::new(Known {
                way,
                used: Mutex::new(Instant::now()),
            });
            let mut all = lock(&self.known);
            all.retain(|_, known| lock(&known.used).elapsed() < FORGET);
            all.insert(key, known);
            return Ok(true);
        }
        Ok(false)
    }
}

fn key(endpoint: &Endpoint, sessions: &Group) -> Key {
    Key {
        host: endpoint.host.clone(),
        sessions: sessions.ids().to_vec(),
    }
}

fn realm(endpoint: &Endpoint, challenge: &Challenge) -> Result<Url, RegistryError> {
    let invalid = |problem: &str| RegistryError::Answer {
        url: endpoint.host.clone(),
        problem: problem.to_owned(),
    };
    let realm = challenge
        .get("realm")
        .ok_or_else(|| invalid("no realm specified for token auth challenge"))?;
    let realm = Url::parse(realm).map_err(|_| invalid("invalid token auth challenge realm"))?;
    match realm.scheme() {
        "http" | "https" => Ok(realm),
        _ => Err(invalid("invalid token auth challenge realm")),
    }
}

fn basic(credentials: &Credentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.secret);
    sensitive(&format!("Basic {}", STANDARD.encode(pair))).expect("base64 is fit for a header")
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// How tokens for `host` are got.
async fn source(host: &str, sessions: &Group) -> Result<Source, RegistryError> {
    if sessions.is_empty() {
        return Ok(Source::Anonymous);
    }
    if client_fetches(host, sessions).await? {
        return Ok(Source::Client);
    }
    Ok(match credentials(host, sessions).await? {
        Some(found) if !found.secret.is_empty() => Source::Password(found),
        _ => Source::Anonymous,
    })
}

async fn client_fetches(host: &str, sessions: &Group) -> Result<bool, RegistryError> {
    // The key would tell whether another session speaks for the same user; tokens are not
    // shared between sessions, so any salt does.
    let salt = host.as_bytes();
    let key = sessions
        .any(|session| async move {
            let key = auth::token_authority(&session, host, salt).await;
            key.map_err(RegistryError::from)
        })
        .await?;
    Ok(key.is_some())
}

async fn credentials(host: &str, sessions: &Group) -> Result<Option<Credentials>, RegistryError> {
    if sessions.is_empty() {
        return Ok(None);
    }
    sessions
        .any(|session| async move {
            let found = auth::credentials(&session, host).await;
            found.map_err(RegistryError::from)
        })
        .await
}

impl Bearer {
    /// A token for `scopes`, fetched once however many want it at the same time.
    async fn token(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        scopes: &[String],
        sessions: &Group,
    ) -> Result<Token, RegistryError> {
        let scopes = normalize(self.scopes.iter().chain(scopes));
        let key = scopes.join(" ");
        let cell = {
            let mut tokens = lock(&self.tokens);
            let expired = |cell: &Arc<OnceCell<Token>>| {
                cell.get()
                    .is_some_and(|token| token.expires <= Instant::now())
            };
            tokens.retain(|_, cell| !expired(cell));
            tokens.entry(key).or_default().clone()
        };
        let fetch = || self.fetch(registry, endpoint, &scopes, sessions);
        Ok(cell.get_or_try_init(fetch).await?.clone())
    }

    async fn fetch(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        scopes: &[String],
        sessions: &Group,
    ) -> Result<Token, RegistryError> {
        let named = |kind| {
            move |source| RegistryError::Token {
                kind,
                source: Box::new(source),
            }
        };
        let answer = match &self.source {
            Source::Client => self.ask_client(endpoint, scopes, sessions).await?,
            Source::Anonymous => self
                .get(registry, endpoint, scopes, None)
                .await
                .map_err(named("anonymous"))?,
            Source::Password(credentials) => self
                .with_password(registry, endpoint, scopes, credentials)
                .await
                .map_err(named("oauth"))?,
        };
        answer.into_token(&self.realm)
    }

    async fn ask_client(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
        sessions: &Group,
    ) -> Result<TokenAnswer, RegistryError> {
        let request = FetchTokenRequest {
            client_id: CLIENT_ID.into(),
            host: endpoint.host.clone(),
            realm: self.realm.to_string(),
            service: self.service.clone(),
            scopes: scopes.to_vec(),
        };
        let request = &request;
        let token = sessions
            .any(|session| async move {
                let token = auth::fetch_token(&session, request.clone()).await;
                token.map_err(RegistryError::from)
            })
            .await?;
        Ok(TokenAnswer {
            token: token.token,
            access_token: String::new(),
            expires_in: token.expires_in,
        })
    }

    /// GET first, since the hub knows no POST; then POST, where GET is not known.
    async fn with_password(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        scopes: &[String],
        credentials: &Credentials,
    ) -> Result<TokenAnswer, RegistryError> {
        let header = basic(credentials);
        let error = match self.get(registry, endpoint, scopes, Some(&header)).await {
            Err(error) => error,
            answer => return answer,
        };
        let RegistryError::Status { status, .. } = &error else {
            return Err(error);
        };
        let other = match *status {
            StatusCode::METHOD_NOT_ALLOWED => !credentials.username.is_empty(),
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED => true,
            _ => false,
        };
        if !other {
            return Err(error);
        }
        let client = registry.client(endpoint, self.realm.scheme() == "http")?;
        let request = client
            .post(self.realm.clone())
            .header(
                CONTENT_TYPE,
                "application/x-www-form-urlencoded; charset=utf-8",
            )
            .body(self.form(scopes, credentials));
        answer(
            request,
            Method::POST,
            self.realm.clone(),
            shown(&self.realm),
        )
        .await
    }

    fn query(&self, scopes: &[String]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for scope in scopes {
            query.append_pair("scope", scope);
        }
        if !self.service.is_empty() {
            query.append_pair("service", &self.service);
        }
        query.finish()
    }

    /// The body of a request by OAuth (distribution, "Oauth2 Token Authentication").
    fn form(&self, scopes: &[String], credentials: &Credentials) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        form.append_pair("service", &self.service)
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

    async fn get(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        scopes: &[String],
        authorization: Option<&HeaderValue>,
    ) -> Result<TokenAnswer, RegistryError> {
        let query = self.query(scopes);
        // What was added here is no secret, unlike what may stand in the realm itself.
        let url = format!("{}?{query}", shown(&self.realm));
        let mut address = self.realm.clone();
        let query = match address.query() {
            Some(own) => format!("{own}&{query}"),
            None => query,
        };
        address.set_query(Some(&query));
        let client = registry.client(endpoint, address.scheme() == "http")?;
        let mut request = client.get(address.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        answer(request, Method::GET, address, url).await
    }
}

async fn answer(
    request: reqwest::RequestBuilder,
    method: Method,
    address: Url,
    url: String,
) -> Result<TokenAnswer, RegistryError> {
    let response = request
        .send()
        .await
        .map_err(|error| failed(&method, &url, error))?;
    let answer = Answer {
        method,
        url: url.clone(),
        address,
        response,
        redirected: false,
    };
    if !answer.status().is_success() {
        return Err(answer.into_error().await);
    }
    let bytes = answer.bytes(MAX_TOKEN).await?;
    // Its error would quote what it could not read.
    serde_json::from_slice(&bytes).map_err(|_| RegistryError::Answer {
        url,
        problem: "unable to decode token response".into(),
    })
}

/// What a token server answers.
#[derive(serde::Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    /// The same by OAuth's name.
    #[serde(default)]
    access_token: String,
    /// Seconds.
    #[serde(default)]
    expires_in: i64,
}

impl TokenAnswer {
    fn into_token(self, realm: &Url) -> Result<Token, RegistryError> {
        let text = if self.access_token.is_empty() {
            self.token
        } else {
            self.access_token
        };
        let header = sensitive(&format!("Bearer {text}")).filter(|_| !text.is_empty());
        let header = header.ok_or_else(|| RegistryError::Answer {
            url: shown(realm),
            problem: "authorization server did not include a token in the response".into(),
        })?;
        let life = u64::try_from(self.expires_in)
            .ok()
            .filter(|seconds| *seconds > 0)
            .unwrap_or(DEFAULT_LIFE);
        // Nine tenths: a token must not run out on the way.
        let expires = Instant::now() + Duration::from_millis(life.min(1 << 32) * 900);
        Ok(Token { header, expires })
    }
}

/// The same scopes in one order, the actions of one resource together.
fn normalize<'a>(scopes: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut resources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for scope in scopes.flat_map(|scopes| scopes.split(' ')) {
        let mut parts = scope.splitn(3, ':');
        let (Some(kind), Some(name)) = (parts.next(), parts.next()) else {
            continue;
        };
        let actions = parts.next().unwrap_or_default().split(',');
        resources
            .entry(format!("{kind}:{name}"))
            .or_default()
            .extend(actions.filter(|action| !action.is_empty()).map(Into::into));
    }
    resources
        .into_iter()
        .map(|(resource, actions)| {
            let actions: Vec<_> = actions.into_iter().collect();
            format!("{resource}:{}", actions.join(","))
        })
        .collect()
}

/// Whether a token for `had` allows all of `wanted`.
fn covers(had: &[String], wanted: &[String]) -> bool {
    let both = normalize(had.iter().chain(wanted));
    both == normalize(had.iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.into()).collect()
    }

    #[test]
    fn scopes_have_one_form() {
        let scopes = texts(&[
            "repository:b:push,pull",
            "repository:a:pull repository:b:pull",
            "",
            "registry:catalog:*",
        ]);
        assert_eq!(
            normalize(scopes.iter()),
            [
                "registry:catalog:*",
                "repository:a:pull",
                "repository:b:pull,push"
            ]
        );
    }

    #[test]
    fn a_token_covers_what_it_names() {
        let had = texts(&["repository:a:pull,push"]);
        assert!(covers(&had, &texts(&["repository:a:pull"])));
        assert!(covers(&had, &texts(&[""])));
        assert!(!covers(&had, &texts(&["repository:b:pull"])));
        assert!(!covers(&had, &texts(&["repository:a:delete"])));
    }

    #[test]
    fn a_token_has_a_life() {
        let realm = Url::parse("https://auth/token?secret=1").unwrap();
        let answer = |token: &str, access: &str| TokenAnswer {
            token: token.into(),
            access_token: access.into(),
            expires_in: 100,
        };
        let token = answer("t", "a").into_token(&realm).unwrap();
        assert_eq!(token.header, "Bearer a");
        assert!(token.header.is_sensitive());
        let left = token.expires - Instant::now();
        assert!(left <= Duration::from_secs(90) && left > Duration::from_secs(80));
        let error = answer("", "").into_token(&realm).err().unwrap();
        assert!(!error.chain().contains("secret"), "{error}");
    }
}
