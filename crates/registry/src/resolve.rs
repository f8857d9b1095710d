//! From a name to a manifest.

use bytes::Bytes;
use cooper_content::digest_of;
use cooper_session::Group;
use http::header::{ACCEPT, CONTENT_LENGTH};
use http::{Method, StatusCode};
use oci_spec::image::{Descriptor, Digest, MediaType};

use crate::host::Endpoint;
use crate::transport::{Answer, Call};
use crate::{MAX_MANIFEST, Reference, Registry, RegistryError};

/// What a name may stand for.
const ACCEPTED: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
const DIGEST: &str = "docker-content-digest";

/// `repository:<name>:<actions>`.
pub(crate) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

impl Registry {
    /// What a name stands for now: digest, size and media type of a manifest or an index. A
    /// name with a digest stands for that, and it is only asked whether it is there.
    ///
    /// Mirrors are asked first. When all fail, the error of the one that came furthest is given.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn resolve(
        &self,
        reference: &Reference,
        sessions: &Group,
    ) -> Result<Descriptor, RegistryError> {
        let scopes = [scope(reference.repository(), "pull")];
        let pinned = reference.digest();
        let paths = match (&pinned, reference.tag()) {
            // An artifact may be addressed that is a blob.
            (Some(digest), _) => vec![format!("manifests/{digest}"), format!("blobs/{digest}")],
            (None, Some(tag)) => vec![format!("manifests/{tag}")],
            (None, None) => vec!["manifests/latest".into()],
        };
        let endpoints = self.endpoints(reference);
        let mut worst: Option<(u8, RegistryError)> = None;
        for path in &paths {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let ask = Ask {
                    registry: self,
                    reference,
                    endpoint,
                    scopes: &scopes,
                    path,
                    patient: index + 1 == endpoints.len(),
                    sessions,
                };
                match ask.resolve(pinned.as_ref()).await {
                    Ok(descriptor) => return Ok(descriptor),
                    Err((rank, error)) => {
                        tracing::debug!(
                            host = endpoint.host,
                            error = error.chain(),
                            "not resolved"
                        );
                        if worst.as_ref().is_none_or(|(other, _)| *other < rank) {
                            worst = Some((rank, error));
                        }
                    }
                }
            }
        }
        Err(worst.map_or_else(
            || RegistryError::NotFound {
                reference: reference.to_string(),
            },
            |(_, error)| error,
        ))
    }

    /// The bytes of a manifest or an index, verified, at most [`MAX_MANIFEST`].
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sessions: &Group,
    ) -> Result<Bytes, RegistryError> {
        let too_large = |size| RegistryError::TooLarge {
            reference: reference.to_string(),
            size,
        };
        if descriptor.size() > MAX_MANIFEST {
            return Err(too_large(descriptor.size()));
        }
        let scopes = [scope(reference.repository(), "pull")];
        let digest = descriptor.digest();
        let endpoints = self.endpoints(reference);
        let mut last = None;
        for (index, endpoint) in endpoints.iter().enumerate() {
            for kind in ["manifests", "blobs"] {
                let ask = Ask {
                    registry: self,
                    reference,
                    endpoint,
                    scopes: &scopes,
                    path: &format!("{kind}/{digest}"),
                    patient: index + 1 == endpoints.len(),
                    sessions,
                };
                let accept = format!("{}, */*", descriptor.media_type());
                let answer = match ask.send(Method::GET, &accept).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        last = Some(error);
                        break;
                    }
                };
                match answer.status() {
                    StatusCode::OK => {}
                    StatusCode::NOT_FOUND => {
                        last = Some(RegistryError::ContentNotFound {
                            reference: reference.to_string(),
                            digest: digest.clone(),
                            media_type: descriptor.media_type().to_string(),
                        });
                        continue;
                    }
                    _ => {
                        last = Some(answer.into_error().await);
                        break;
                    }
                }
                match ask.verified(answer, digest).await {
                    Ok(bytes) if bytes.len() as u64 > MAX_MANIFEST => {
                        return Err(too_large(bytes.len() as u64));
                    }
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => {
                        last = Some(error);
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound {
            reference: reference.to_string(),
        }))
    }
}

/// One question to one host.
struct Ask<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    endpoint: &'a Endpoint,
    scopes: &'a [String],
    path: &'a str,
    patient: bool,
    sessions: &'a Group,
}

impl Ask<'_> {
    async fn send(&self, method: Method, accept: &str) -> Result<Answer, RegistryError> {
        let mut call = Call::new(
            method,
            self.endpoint,
            self.reference,
            self.path.to_owned(),
            self.scopes,
        )
        .header(ACCEPT, accept);
        call.patient = self.patient;
        match self.registry.send(&call, self.sessions).await {
            Err(error @ RegistryError::Unauthorized { .. }) => Err(RegistryError::PullDenied {
                reference: self.reference.to_string(),
                source: Box::new(error),
            }),
            result => result,
        }
    }

    /// The descriptor, or an error and how far the question came.
    async fn resolve(&self, pinned: Option<&Digest>) -> Result<Descriptor, (u8, RegistryError)> {
        let near = |error| (1, error);
        let mut answer = self.send(Method::HEAD, ACCEPTED).await.map_err(near)?;
        if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
            // Registries that know no HEAD.
            answer = self.send(Method::GET, ACCEPTED).await.map_err(near)?;
        }
        match answer.status() {
            StatusCode::NOT_FOUND => {
                let reference = self.reference.to_string();
                return Err((2, RegistryError::NotFound { reference }));
            }
            status if status.is_success() => {}
            _ => return Err((3, answer.into_error().await)),
        }
        let far = |error| (4, error);
        let size = answer
            .header(CONTENT_LENGTH)
            .and_then(|length| length.parse().ok());
        let said = match answer.header(DIGEST) {
            Some(text) => Some(text.parse::<Digest>().map_err(|_| {
                far(RegistryError::Answer {
                    url: answer.url.clone(),
                    problem: format!("{text:?} in header not a valid digest"),
                })
            })?),
            None => None,
        };
        let (media_type, digest, size) = match (pinned.cloned().or(said), size) {
            (Some(digest), Some(size)) => (self.media_type(&answer).map_err(far)?, digest, size),
            (known, _) => {
                let answer = self.send(Method::GET, ACCEPTED).await.map_err(far)?;
                if answer.status() != StatusCode::OK {
                    return Err(far(answer.into_error().await));
                }
                let media_type = self.media_type(&answer).map_err(far)?;
                let bytes = match &known {
                    Some(digest) => self.verified(answer, digest).await,
                    None => answer.bytes(limit()).await,
                };
                let bytes = bytes.map_err(far)?;
                let digest = known.unwrap_or_else(|| digest_of(&bytes));
                (media_type, digest, bytes.len() as u64)
            }
        };
        if size > MAX_MANIFEST {
            let reference = self.reference.to_string();
            return Err(far(RegistryError::TooLarge { reference, size }));
        }
        Ok(Descriptor::new(media_type, size, digest))
    }

    fn media_type(&self, answer: &Answer) -> Result<MediaType, RegistryError> {
        match answer.media_type() {
            // Old registries say neither schema nor type.
            "text/plain" | "application/vnd.docker.distribution.manifest.v1+prettyjws" => {
                Err(RegistryError::Answer {
                    url: answer.url.clone(),
                    problem: "manifests of schema 1 are not supported, rebuild the image".into(),
                })
            }
            other => Ok(other.into()),
        }
    }

    async fn verified(&self, answer: Answer, expected: &Digest) -> Result<Bytes, RegistryError> {
        let host = answer.address.authority().to_owned();
        let bytes = answer.bytes(limit()).await?;
        let found = digest_of(&bytes);
        if found != *expected && bytes.len() as u64 <= MAX_MANIFEST {
            return Err(RegistryError::WrongDigest {
                reference: self.reference.to_string(),
                host,
                expected: expected.clone(),
                found,
            });
        }
        Ok(bytes)
    }
}

/// One byte more than is taken, to see that it is too much.
fn limit() -> usize {
    usize::try_from(MAX_MANIFEST + 1).unwrap_or(usize::MAX)
}
