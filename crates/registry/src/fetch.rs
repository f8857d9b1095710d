//! Blobs from a registry, resumed where a connection broke.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cooper_content::{ContentError, Fetch};
use cooper_session::Group;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::{ACCEPT, CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use oci_spec::image::Descriptor;
use tokio::io::AsyncRead;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::StreamReader;

use crate::host::Endpoint;
use crate::resolve::scope;
use crate::transport::{Answer, Call, failed, may_pass};
use crate::{Reference, Registry, RegistryError};

/// A server that sends nothing for so long is taken for lost.
const SILENCE: Duration = Duration::from_secs(60);
/// How often one blob is asked for again without having got a byte in between, and in all.
const FRUITLESS: u32 = 3;
const RESUMES: u32 = 16;

/// Fetches blobs that a reference names.
#[derive(Clone, Debug)]
pub struct BlobFetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    reference: Reference,
    sessions: Group,
    scopes: Vec<String>,
}

impl Registry {
    /// A source of the blobs of a repository. Each fetch asks mirrors first, and resumes by
    /// itself when the connection breaks.
    pub fn fetcher(&self, reference: &Reference, sessions: &Group) -> BlobFetcher {
        BlobFetcher {
            inner: Arc::new(Inner {
                registry: self.clone(),
                reference: reference.clone(),
                sessions: sessions.clone(),
                scopes: vec![scope(reference.repository(), "pull")],
            }),
        }
    }
}

impl BlobFetcher {
    /// Opens the blob at `offset` bytes. The bytes are not verified; their number is.
    ///
    /// # Cancel safety
    /// Dropping the future or the reader ends the download.
    pub async fn open(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, RegistryError> {
        let (body, endpoint, slot) = self.inner.open(descriptor, offset).await?;
        let download = Download {
            inner: self.inner.clone(),
            descriptor: descriptor.clone(),
            endpoint,
            offset,
            body,
            fruitless: 0,
            resumes: 0,
            _slot: slot,
        };
        let chunks = stream::try_unfold(download, |mut download| async move {
            match download.next().await {
                Ok(Some(chunk)) => Ok(Some((chunk, download))),
                Ok(None) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            }
        });
        Ok(StreamReader::new(Box::pin(chunks)))
    }
}

#[async_trait]
impl Fetch for BlobFetcher {
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, ContentError> {
        match self.open(descriptor, offset).await {
            Ok(reader) => Ok(Box::new(reader)),
            Err(error) => Err(ContentError::Backend {
                attempt: format!(
                    "fetch {} from {}",
                    descriptor.digest(),
                    self.inner.reference
                ),
                source: error.into(),
            }),
        }
    }
}

type Body = BoxStream<'static, reqwest::Result<Bytes>>;

impl Inner {
    /// Asks each host in turn.
    async fn open(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Body, Endpoint, Option<OwnedSemaphorePermit>), RegistryError> {
        let endpoints = self.registry.endpoints(&self.reference);
        let count = endpoints.len();
        let mut worst: Option<RegistryError> = None;
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let slot = self.registry.slot(&endpoint.host).await;
            match self
                .ask(descriptor, offset, &endpoint, index + 1 == count)
                .await
            {
                Ok(body) => return Ok((body, endpoint, slot)),
                Err(error) => {
                    tracing::debug!(host = endpoint.host, error = error.chain(), "not fetched");
                    // That a mirror lacks it says less than what went wrong elsewhere.
                    if worst.as_ref().is_none_or(RegistryError::is_not_found) {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| self.not_found(descriptor)))
    }

    fn not_found(&self, descriptor: &Descriptor) -> RegistryError {
        RegistryError::ContentNotFound {
            reference: self.reference.to_string(),
            digest: descriptor.digest().clone(),
            media_type: descriptor.media_type().to_string(),
        }
    }

    /// The body from `offset` on.
    async fn ask(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        endpoint: &Endpoint,
        patient: bool,
    ) -> Result<Body, RegistryError> {
        let path = format!("blobs/{}", descriptor.digest());
        let mut call = Call::new(Method::GET, endpoint, &self.reference, path, &self.scopes)
            .header(ACCEPT, &format!("{}, */*", descriptor.media_type()));
        call.patient = patient;
        if offset > 0 {
            call = call.header(RANGE, &format!("bytes={offset}-"));
        }
        let answer = match self.registry.send(&call, &self.sessions).await {
            Err(error @ RegistryError::Unauthorized { .. }) => {
                return Err(RegistryError::PullDenied {
                    reference: self.reference.to_string(),
                    source: Box::new(error),
                });
            }
            result => result?,
        };
        match answer.status() {
            StatusCode::OK => skip(answer, offset).await,
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(CONTENT_RANGE).unwrap_or_default();
                if !range.starts_with(&format!("bytes {offset}-")) {
                    return Err(RegistryError::Answer {
                        problem: format!("unhandled content range in response: {range}"),
                        url: answer.url,
                    });
                }
                Ok(answer.response.bytes_stream().boxed())
            }
            StatusCode::NOT_FOUND => Err(self.not_found(descriptor)),
            _ => Err(answer.into_error().await),
        }
    }
}

/// For a server that does not know ranges: drops what is there already.
async fn skip(mut answer: Answer, mut offset: u64) -> Result<Body, RegistryError> {
    let mut rest = Bytes::new();
    while offset > 0 {
        let chunk = answer.response.chunk().await;
        let chunk = chunk.map_err(|error| failed(&answer.method, &answer.url, error))?;
        let Some(mut chunk) = chunk else {
            return Err(RegistryError::Answer {
                url: answer.url,
                problem: "unable to discard to offset".into(),
            });
        };
        let length = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        rest = chunk.split_off(length);
        offset -= length as u64;
    }
    let first = stream::iter((!rest.is_empty()).then_some(Ok(rest)));
    Ok(first.chain(answer.response.bytes_stream()).boxed())
}

/// A blob on its way.
struct Download {
    inner: Arc<Inner>,
    descriptor: Descriptor,
    endpoint: Endpoint,
    offset: u64,
    body: Body,
    fruitless: u32,
    resumes: u32,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Download {
    /// The next bytes; none is the end of a body of the right length.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let size = self.descriptor.size();
        loop {
            let error = match tokio::time::timeout(SILENCE, self.body.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Ok(Some(Ok(chunk))) => {
                    self.offset += chunk.len() as u64;
                    self.fruitless = 0;
                    if self.offset > size {
                        return Err(RegistryError::Answer {
                            url: self.endpoint.host.clone(),
                            problem: format!(
                                "{} has more than {size} bytes",
                                self.descriptor.digest()
                            ),
                        });
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) if self.offset >= size => return Ok(None),
                Ok(None) => self.truncated(),
                Ok(Some(Err(error))) if may_pass(&error) => {
                    tracing::debug!(error = %error.without_url(), "the connection broke");
                    self.truncated()
                }
                Ok(Some(Err(error))) => {
                    return Err(failed(&Method::GET, &self.endpoint.host, error));
                }
                Err(_) => self.truncated(),
            };
            self.fruitless += 1;
            self.resumes += 1;
            if self.fruitless > FRUITLESS || self.resumes > RESUMES {
                return Err(error);
            }
            tokio::time::sleep(self.inner.registry.backoff() * self.fruitless).await;
            tracing::debug!(digest = %self.descriptor.digest(), offset = self.offset, "resuming");
            let ask = self
                .inner
                .ask(&self.descriptor, self.offset, &self.endpoint, true);
            self.body = ask.await?;
        }
    }

    fn truncated(&self) -> RegistryError {
        RegistryError::Truncated {
            reference: self.inner.reference.to_string(),
            digest: self.descriptor.digest().clone(),
            found: self.offset,
            expected: self.descriptor.size(),
        }
    }
}
