//! Blobs and manifests to a registry.

use std::sync::Arc;

use bytes::Bytes;
use cooper_content::{Blob, ContentStore, digest_of};
use cooper_session::Group;
use futures::stream;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode};
use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::Body;

use crate::host::Endpoint;
use crate::resolve::scope;
use crate::transport::{Answer, Call, Target};
use crate::{Reference, Registry, RegistryError};

const DIGEST: &str = "docker-content-digest";
/// How often an upload is begun anew that failed in a way that may pass.
const UPLOADS: u32 = 3;
/// A blob is read in pieces of so many bytes.
const PIECE: usize = 256 << 10;

/// What helps a push.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Images that have the blob too: those of the same registry can lend it.
    pub mount_from: Vec<Reference>,
    /// Called with the number of bytes that are under way or sent, as it grows.
    pub progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl std::fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushOptions")
            .field("mount_from", &self.mount_from)
            .finish_non_exhaustive()
    }
}

/// How a blob came to be in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// It was taken from another repository of the registry.
    Mounted {
        /// That repository.
        from: String,
    },
    /// It was sent.
    Sent,
}

impl Registry {
    /// Puts a blob of `source` into the repository of `reference`: nothing is sent when it is
    /// there, or when another repository of the registry can lend it.
    ///
    /// # Cancel safety
    /// When the future is dropped the blob is there or not, never in part; the registry clears
    /// away what was begun.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: &dyn ContentStore,
        sessions: &Group,
        options: &PushOptions,
    ) -> Result<Pushed, RegistryError> {
        let push = self.pushing(reference, sessions);
        if push.has_blob(descriptor.digest()).await? {
            return Ok(Pushed::Exists);
        }
        let mut begun = None;
        if let Some(from) = push.lender(options) {
            match push.mount(descriptor.digest(), from).await? {
                Mount::Done => {
                    let from = from.repository().to_owned();
                    return Ok(Pushed::Mounted { from });
                }
                Mount::Begun(answer) => begun = Some(*answer),
                Mount::Refused => {}
            }
        }
        let blob = source.open(descriptor.digest()).await;
        let blob: Arc<dyn Blob> = Arc::from(blob.map_err(|source| RegistryError::Content {
            digest: descriptor.digest().clone(),
            source,
        })?);
        let _slot = self.slot(&push.endpoint.host).await;
        let mut left = UPLOADS;
        loop {
            left -= 1;
            let answer = match begun.take() {
                Some(answer) => answer,
                None => push.begin().await?,
            };
            match push.upload(answer, descriptor, &blob, options).await {
                Ok(()) => return Ok(Pushed::Sent),
                Err(error) if left > 0 && is_passing(&error) => {
                    tracing::debug!(error = error.chain(), "upload begins anew");
                    tokio::time::sleep(self.backoff()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets another repository of the same registry lend a blob, without having its bytes.
    /// Says whether it did.
    pub async fn mount_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        from: &Reference,
        sessions: &Group,
    ) -> Result<bool, RegistryError> {
        if from.domain() != reference.domain() {
            return Ok(false);
        }
        let push = self.pushing(reference, sessions);
        if push.has_blob(digest).await? || from.repository() == reference.repository() {
            return Ok(true);
        }
        Ok(matches!(push.mount(digest, from).await?, Mount::Done))
    }

    /// Whether the repository of `reference` has the blob.
    pub async fn has_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        sessions: &Group,
    ) -> Result<bool, RegistryError> {
        self.pushing(reference, sessions).has_blob(digest).await
    }

    /// Puts a manifest or an index into the repository, under the tag of `reference` or, when it
    /// has none, under its digest alone.
    ///
    /// # Cancel safety
    /// When the future is dropped the tag stands for the old or for the new manifest.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        bytes: Bytes,
        media_type: &MediaType,
        sessions: &Group,
    ) -> Result<Descriptor, RegistryError> {
        let digest = digest_of(&bytes);
        let descriptor = Descriptor::new(media_type.clone(), bytes.len() as u64, digest.clone());
        let push = self.pushing(reference, sessions);
        let path = match reference.tag() {
            Some(tag) => format!("manifests/{tag}"),
            None => format!("manifests/{digest}"),
        };
        let head = push
            .call(Method::HEAD, path.clone())
            .header(ACCEPT, &format!("{media_type}, */*"));
        let answer = push.send(&head).await?;
        let same = match reference.tag() {
            Some(_) => answer.header(DIGEST) == Some(digest.as_ref()),
            None => true,
        };
        match answer.status() {
            StatusCode::OK if same => return Ok(descriptor),
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED => {}
            _ => return Err(answer.into_error().await),
        }
        let body = || Body::from(bytes.clone());
        let mut put = push
            .call(Method::PUT, path)
            .header(CONTENT_TYPE, media_type.as_ref());
        put.body = Some(&body);
        let answer = push.send(&put).await?;
        if !answer.status().is_success() {
            return Err(answer.into_error().await);
        }
        push.taken(&answer, &digest)?;
        Ok(descriptor)
    }

    fn pushing<'a>(&'a self, reference: &'a Reference, sessions: &'a Group) -> Push<'a> {
        let endpoint = self.endpoints(reference).pop();
        Push {
            registry: self,
            reference,
            endpoint: endpoint.expect("the registry itself is always among its endpoints"),
            scopes: vec![scope(reference.repository(), "pull,push")],
            sessions,
        }
    }
}

/// Whether an upload that failed so is begun anew: the server lost it, or its connection.
fn is_passing(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => {
            status.is_server_error() || *status == StatusCode::NOT_FOUND
        }
        RegistryError::Request { source, .. } => crate::transport::may_pass(&**source),
        _ => false,
    }
}

enum Mount {
    Done,
    /// The registry does not lend it and begins an upload instead.
    Begun(Box<Answer>),
    Refused,
}

struct Push<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    endpoint: Endpoint,
    scopes: Vec<String>,
    sessions: &'a Group,
}

impl Push<'_> {
    fn call(&self, method: Method, rest: String) -> Call<'_> {
        Call::new(method, &self.endpoint, self.reference, rest, &self.scopes)
    }

    async fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        match self.registry.send(call, self.sessions).await {
            Err(error @ RegistryError::Unauthorized { .. }) => Err(RegistryError::PushDenied {
                reference: self.reference.to_string(),
                source: Box::new(error),
            }),
            result => result,
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let call = self.call(Method::HEAD, format!("blobs/{digest}"));
        let answer = self.send(&call).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.into_error().await),
        }
    }

    /// An image of the same registry, in another repository.
    fn lender<'o>(&self, options: &'o PushOptions) -> Option<&'o Reference> {
        options.mount_from.iter().find(|from| {
            from.domain() == self.reference.domain()
                && from.repository() != self.reference.repository()
        })
    }

    async fn mount(&self, digest: &Digest, from: &Reference) -> Result<Mount, RegistryError> {
        let mut scopes = self.scopes.clone();
        scopes.push(scope(from.repository(), "pull"));
        let rest = format!("blobs/uploads/?mount={digest}&from={}", from.repository());
        let call = Call::new(Method::POST, &self.endpoint, self.reference, rest, &scopes);
        let answer = match self.registry.send(&call, self.sessions).await {
            Ok(answer) => answer,
            // The user may not read the other one: it can still be sent.
            Err(RegistryError::Unauthorized { .. } | RegistryError::Authorize { .. }) => {
                return Ok(Mount::Refused);
            }
            Err(error) => return Err(error),
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => Ok(Mount::Begun(Box::new(answer))),
            status if status.is_client_error() => Ok(Mount::Refused),
            _ => Err(answer.into_error().await),
        }
    }

    async fn begin(&self) -> Result<Answer, RegistryError> {
        let call = self.call(Method::POST, "blobs/uploads/".into());
        let answer = self.send(&call).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(answer),
            _ => Err(answer.into_error().await),
        }
    }

    /// Sends the whole blob to where the answer points.
    async fn upload(
        &self,
        begun: Answer,
        descriptor: &Descriptor,
        blob: &Arc<dyn Blob>,
        options: &PushOptions,
    ) -> Result<(), RegistryError> {
        let digest = descriptor.digest();
        let location = begun
            .header(LOCATION)
            .ok_or_else(|| RegistryError::Answer {
                url: begun.url.clone(),
                problem: "no location to upload to".into(),
            })?;
        let mut target = begun.join(location)?;
        target
            .query_pairs_mut()
            .append_pair("digest", digest.as_ref());
        let progress = options.progress.clone();
        let body = || Body::wrap_stream(pieces(blob.clone(), progress.clone()));
        let mut put = self
            .call(Method::PUT, String::new())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, &descriptor.size().to_string());
        // Credentials are for the registry, not for where it may send its uploads.
        put.authorize = target.origin() == begun.address.origin();
        put.target = Target::Url(target);
        // A whole upload is begun anew by the caller, not sent twice to one place.
        put.patient = false;
        put.body = Some(&body);
        let answer = self.send(&put).await?;
        if !answer.status().is_success() {
            return Err(answer.into_error().await);
        }
        self.taken(&answer, digest)
    }

    /// Whether the registry took what was sent for what it is, as far as it says so.
    fn taken(&self, answer: &Answer, digest: &Digest) -> Result<(), RegistryError> {
        match answer.header(DIGEST).map(str::parse::<Digest>) {
            Some(Ok(found)) if found != *digest => Err(RegistryError::WrongDigest {
                reference: self.reference.to_string(),
                host: self.endpoint.host.clone(),
                expected: digest.clone(),
                found,
            }),
            _ => Ok(()),
        }
    }
}

/// The bytes of a blob, read on threads that may block.
fn pieces(
    blob: Arc<dyn Blob>,
    progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let offset = 0u64;
    stream::try_unfold((blob, offset), move |(blob, offset)| {
        let progress = progress.clone();
        async move {
            let reader = blob.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; PIECE];
                let read = reader.read_at(&mut buffer, offset)?;
                buffer.truncate(read);
                Ok::<_, std::io::Error>(buffer)
            });
            let piece = read.await.map_err(std::io::Error::other)??;
            if piece.is_empty() {
                return Ok(None);
            }
            let offset = offset + piece.len() as u64;
            if let Some(progress) = progress {
                progress(offset);
            }
            Ok(Some((Bytes::from(piece), (blob, offset))))
        }
    })
}
