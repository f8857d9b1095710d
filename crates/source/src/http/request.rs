//! Asking a server, with what the client's session gives for it.

use std::sync::Arc;

use cooper_session::{Group, secrets, upload};
use reqwest::header::{AUTHORIZATION, HeaderValue, IF_NONE_MATCH};
use reqwest::{Body, Method, RequestBuilder, Response, Url};
use tokio_util::io::ReaderStream;

use super::Http;
use crate::SourceError;

/// The secrets that are used for a host when none is named.
const HOST_HEADER: &str = "HTTP_AUTH_HEADER_";
const HOST_TOKEN: &str = "HTTP_AUTH_TOKEN_";

impl Http {
    /// The file.
    pub(super) async fn get(&self, sessions: &Group) -> Result<Response, SourceError> {
        if self.url.host_str() == Some(upload::HOST) {
            return self.uploaded(sessions).await;
        }
        let request = self.request(Method::GET, sessions).await?;
        let response = request.send().await.map_err(self.http("get"))?;
        let status = response.status().as_u16();
        if !(200..400).contains(&status) {
            return Err(SourceError::HttpStatus {
                url: self.shown.clone(),
                status,
            });
        }
        Ok(response)
    }

    /// A file that a client streams, as if a server sent it.
    async fn uploaded(&self, sessions: &Group) -> Result<Response, SourceError> {
        let path = self.url.path();
        let file = sessions
            .any(|session| async move { upload::pull(&session, path) })
            .await?;
        let body = Body::wrap_stream(ReaderStream::new(file));
        Ok(Response::from(http::Response::new(body)))
    }

    /// The headers of the file, if it has none of the `tags`.
    pub(super) async fn head(&self, sessions: &Group, tags: &str) -> Result<Response, SourceError> {
        let request = self.request(Method::HEAD, sessions).await?;
        let request = request.header(IF_NONE_MATCH, tags);
        request.send().await.map_err(self.http("get"))
    }

    async fn request(
        &self,
        method: Method,
        sessions: &Group,
    ) -> Result<RequestBuilder, SourceError> {
        let mut request = self.source.client.request(method, self.url.clone());
        for header in &self.headers {
            request = request.header(header.0, &header.1);
        }
        if let Some(value) = self.authorization(sessions).await? {
            let mut value = HeaderValue::try_from(value).map_err(|error| SourceError::Http {
                attempt: "authorize for",
                url: self.shown.clone(),
                source: Arc::new(error),
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn authorization(&self, sessions: &Group) -> Result<Option<String>, SourceError> {
        if !self.auth_secret.is_empty() {
            let missing = || SourceError::Secret {
                id: self.auth_secret.clone(),
            };
            let value = secret(sessions, &self.auth_secret).await?;
            return Ok(Some(value.ok_or_else(missing)?));
        }
        let host = self.url.host_str().unwrap_or_default();
        // What goes wrong with a secret that nobody named does not matter.
        let get = |name: String| async move { secret(sessions, &name).await.ok().flatten() };
        if let Some(token) = get(format!("{HOST_TOKEN}{host}")).await {
            return Ok(Some(format!("Bearer {token}")));
        }
        Ok(get(format!("{HOST_HEADER}{host}")).await)
    }

    /// Adds the address to what went wrong with it.
    pub(super) fn http(
        &self,
        attempt: &'static str,
    ) -> impl FnOnce(reqwest::Error) -> SourceError + use<> {
        let url = self.shown.clone();
        move |error| SourceError::Http {
            attempt,
            url,
            // The address in it may have credentials.
            source: Arc::new(error.without_url()),
        }
    }
}

async fn secret(sessions: &Group, id: &str) -> Result<Option<String>, SourceError> {
    if sessions.is_empty() {
        return Ok(None);
    }
    let value = sessions
        .any(|session| async move { secrets::get(&session, id).await })
        .await?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// An address with its credentials made unreadable.
pub(crate) fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    // Neither fails for an address that has credentials.
    if url.password().is_some() {
        let _ = url.set_password(Some("xxxxx"));
    }
    if !url.username().is_empty() {
        let _ = url.set_username("xxxxx");
    }
    url.into()
}
