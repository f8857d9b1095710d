//! Leases: what keeps from containerd's collector what nothing refers to yet.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cooper_content::Digest;
use cooper_proto::containerd::services::leases::v1 as wire;
use prost_types::Timestamp;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::Containerd;

/// The label of a lease that says when it ends by itself.
const EXPIRES: &str = "containerd.io/gc.expire";

/// The header by which what a request makes belongs to a lease.
const HEADER: &str = "containerd-lease";

/// How long a lease lasts when nobody is left who ends it: as long as with containerd's own
/// client.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease. One that is dropped without being ended expires.
pub(crate) struct Lease {
    containerd: Containerd,
    id: MetadataValue<Ascii>,
}

impl Lease {
    /// `purpose`, letters and marks, is a part of its id.
    pub(crate) async fn new(containerd: &Containerd, purpose: &str) -> Result<Self, Status> {
        let id = format!("cooper-{purpose}-{}", Uuid::new_v4().simple());
        let header = id.parse();
        let header = header.map_err(|_| Status::internal("the id of a lease is no header"))?;
        let expires = Timestamp::from(SystemTime::now() + EXPIRY).to_string();
        let labels = BTreeMap::from([(EXPIRES.to_owned(), expires)]);
        let request = wire::CreateRequest { id, labels };
        containerd.leases().create(request).await?;
        Ok(Self {
            containerd: containerd.clone(),
            id: header,
        })
    }

    fn id(&self) -> String {
        self.id.to_str().unwrap_or_default().to_owned()
    }

    /// A request whose outcome belongs to it.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, self.id.clone());
        request
    }

    /// Keeps a blob, if it is there.
    pub(crate) async fn keep(&self, blob: &Digest) -> Result<(), Status> {
        let request = wire::AddResourceRequest {
            id: self.id(),
            resource: Some(wire::Resource {
                id: blob.to_string(),
                r#type: "content".to_owned(),
            }),
        };
        let added = self.containerd.leases().add_resource(request).await;
        added.map(drop)
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        if let Err(error) = self.delete(false).await {
            tracing::debug!(%error, "a lease ends by itself");
        }
    }

    /// Ends it, and returns when containerd's collector has run.
    pub(crate) async fn end_and_collect(self) -> Result<(), Status> {
        self.delete(true).await
    }

    async fn delete(self, sync: bool) -> Result<(), Status> {
        let id = self.id();
        let request = wire::DeleteRequest { id, sync };
        self.containerd.leases().delete(request).await.map(drop)
    }
}
