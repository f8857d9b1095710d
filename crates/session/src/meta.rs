//! Who a session is: what the client says when it opens the tunnel.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::SessionError;

const ID: HeaderName = HeaderName::from_static("x-docker-expose-session-uuid");
const NAME: HeaderName = HeaderName::from_static("x-docker-expose-session-name");
const SHARED_KEY: HeaderName = HeaderName::from_static("x-docker-expose-session-sharedkey");
const METHOD: HeaderName = HeaderName::from_static("x-docker-expose-session-grpc-method");
const HEALTH: HeaderName = HeaderName::from_static("x-buildkit-session-health-custom-timeout");

/// What a client says of its session, in the headers of `Control.Session`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionMeta {
    /// The id that a solve names.
    pub id: String,
    /// The client's name for it; shown, never compared.
    pub name: String,
    /// What tells one client's folders from another's when copies are kept for the next build.
    pub shared_key: String,
    /// The methods that the client serves, `/service/Method`.
    pub methods: Vec<String>,
    /// Interval and timeout of health checks, when the client wants its own.
    pub health_timeout: Option<Duration>,
}

impl SessionMeta {
    /// Reads the headers of a request (`MetadataMap::into_headers` of a gRPC one).
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, SessionError> {
        let text = |name: &HeaderName| {
            let value = headers.get(name).map(HeaderValue::as_bytes);
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        let id = text(&ID);
        if id.is_empty() {
            return Err(SessionError::NoId);
        }
        let methods = headers.get_all(&METHOD).iter();
        let health = text(&HEALTH).parse().ok().filter(|ms: &u64| *ms > 0);
        Ok(Self {
            id,
            name: text(&NAME),
            shared_key: text(&SHARED_KEY),
            methods: methods
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect(),
            // Never more often than each second, whatever the client asks for.
            health_timeout: health.map(|ms| Duration::from_millis(ms.max(1000))),
        })
    }

    /// The headers that say all this. What cannot stand in a header is left out.
    pub fn to_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: &HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(name, value);
            }
        };
        add(&ID, &self.id);
        add(&NAME, &self.name);
        add(&SHARED_KEY, &self.shared_key);
        for method in &self.methods {
            add(&METHOD, method);
        }
        if let Some(timeout) = self.health_timeout {
            add(&HEALTH, &timeout.as_millis().to_string());
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_they_are_read_as() {
        let meta = SessionMeta {
            id: "abc".into(),
            name: "app".into(),
            shared_key: "key".into(),
            methods: vec!["/a.B/C".into(), "/a.B/D".into()],
            health_timeout: Some(Duration::from_secs(2)),
        };
        let headers = meta.to_headers();
        assert_eq!(headers["x-docker-expose-session-uuid"], "abc");
        assert_eq!(SessionMeta::from_headers(&headers).unwrap(), meta);
        assert!(SessionMeta::from_headers(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_health_interval_is_at_least_a_second() {
        let mut headers = HeaderMap::new();
        headers.insert(ID, HeaderValue::from_static("x"));
        headers.insert(HEALTH, HeaderValue::from_static("5"));
        let meta = SessionMeta::from_headers(&headers).unwrap();
        assert_eq!(meta.health_timeout, Some(Duration::from_secs(1)));
    }
}
