//! Images under their names in containerd, and their layers unpacked.

use std::collections::BTreeMap;

use async_trait::async_trait;
use cooper_content::{ContentError, Descriptor, Digest, ImageStore, chain_id};
use cooper_proto::containerd::services::diff::v1 as diff;
use cooper_proto::containerd::services::images::v1 as images;
use cooper_proto::containerd::services::snapshots::v1 as snapshots;
use cooper_proto::containerd::types;
use prost_types::FieldMask;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::lease::Lease;
use crate::{Containerd, ContainerdContentStore};

/// The labels that say which blobs one needs, with a number behind: containerd's collector goes
/// by them.
const CONTENT: &str = "containerd.io/gc.ref.content";

/// The label that says which snapshot one needs, with the snapshotter's name behind.
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";

/// containerd's images in the namespace of the connection: names for what is in its content
/// store, and snapshots for who runs them.
///
/// Snapshots of images have containerd's own names, the ids of the chains of layers, so that
/// whoever uses this containerd finds them; they belong to the images and to no cache.
#[derive(Clone, Debug)]
pub struct ContainerdImageStore {
    containerd: Containerd,
    content: ContainerdContentStore,
    snapshotter: String,
}

impl ContainerdImageStore {
    /// The images whose blobs are in `content`, to be unpacked into the snapshotter of this name.
    pub fn new(
        containerd: Containerd,
        content: ContainerdContentStore,
        snapshotter: impl Into<String>,
    ) -> Self {
        Self {
            containerd,
            content,
            snapshotter: snapshotter.into(),
        }
    }

    /// Makes the snapshots of all layers, and returns the name of the uppermost.
    async fn unpack_layers(
        &self,
        lease: &Lease,
        layers: &[(Descriptor, Digest)],
    ) -> Result<Option<Digest>, ContentError> {
        let mut below: Option<Digest> = None;
        for (layer, diff_id) in layers {
            let chain = chain_id(below.as_ref(), diff_id);
            let failed = |status| {
                let attempt = format!("unpack {}", layer.digest());
                self.content.failed(attempt, status)
            };
            let request = snapshots::StatSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key: chain.to_string(),
            };
            match self.containerd.snapshots().stat(request).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {
                    let making = self.unpack_layer(lease, below.as_ref(), &chain, layer, diff_id);
                    making.await.map_err(failed)?;
                }
                Err(status) => return Err(failed(status)),
            }
            below = Some(chain);
        }
        Ok(below)
    }

    /// Makes the snapshot `chain` of one layer on top of `below`.
    async fn unpack_layer(
        &self,
        lease: &Lease,
        below: Option<&Digest>,
        chain: &Digest,
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(), Status> {
        // containerd's own form: two that unpack the same do not meet.
        let key = format!("extract-{} {chain}", Uuid::new_v4().simple());
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: below.map(Digest::to_string).unwrap_or_default(),
            labels: BTreeMap::new(),
        };
        let mut client = self.containerd.snapshots();
        let prepared = client.prepare(lease.request(request)).await?.into_inner();
        let made = self.fill(lease, &key, prepared.mounts, chain, layer, diff_id);
        let made = made.await;
        let other = matches!(&made, Err(status) if status.code() == Code::AlreadyExists);
        if made.is_err() {
            let request = snapshots::RemoveSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key,
            };
            if let Err(error) = client.remove(request).await {
                tracing::debug!(%error, "what there is of a layer goes with its lease");
            }
        }
        // Somebody else was faster.
        if other { Ok(()) } else { made }
    }

    async fn fill(
        &self,
        lease: &Lease,
        key: &str,
        mounts: Vec<types::Mount>,
        chain: &Digest,
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(), Status> {
        let request = diff::ApplyRequest {
            diff: Some(descriptor(layer)),
            mounts,
            ..Default::default()
        };
        let mut client = self.containerd.diff();
        let applied = client.apply(lease.request(request)).await?.into_inner();
        let applied = applied.applied.map(|applied| applied.digest);
        if applied.as_deref() != Some(diff_id.as_ref()) {
            return Err(Status::data_loss(format!(
                "its content is {}, not {diff_id}",
                applied.unwrap_or_default()
            )));
        }
        let request = snapshots::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: chain.to_string(),
            key: key.to_owned(),
            labels: BTreeMap::new(),
        };
        let mut client = self.containerd.snapshots();
        client.commit(lease.request(request)).await.map(drop)
    }
}

fn descriptor(of: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: of.media_type().to_string(),
        digest: of.digest().to_string(),
        size: of.size().try_into().unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    }
}

#[async_trait]
impl ImageStore for ContainerdImageStore {
    async fn name(
        &self,
        name: &str,
        target: &Descriptor,
        references: &[(Digest, Vec<Digest>)],
    ) -> Result<(), ContentError> {
        let failed = |status| {
            self.content
                .failed(format!("name the image {name}"), status)
        };
        // Before the image is there, so that the collector never sees it without its blobs.
        for (digest, needed) in references {
            let labels = needed.iter().enumerate();
            let labels =
                labels.map(|(number, needed)| (format!("{CONTENT}.{number}"), needed.to_string()));
            let marked = self.content.mark(digest, labels.collect()).await;
            marked.map_err(failed)?;
        }
        let image = images::Image {
            name: name.to_owned(),
            target: Some(descriptor(target)),
            ..Default::default()
        };
        let update = images::UpdateImageRequest {
            image: Some(image.clone()),
            update_mask: Some(FieldMask {
                paths: vec!["target".into()],
            }),
        };
        let mut client = self.containerd.images();
        match client.update(update).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(failed(status)),
        }
        let image = Some(image);
        let create = images::CreateImageRequest { image };
        client.create(create).await.map(drop).map_err(failed)
    }

    async fn unpack(
        &self,
        config: &Digest,
        layers: &[(Descriptor, Digest)],
    ) -> Result<(), ContentError> {
        let failed = |status| self.content.failed("unpack the image", status);
        let lease = Lease::new(&self.containerd, "unpack").await;
        let lease = lease.map_err(failed)?;
        let made = async {
            let Some(top) = self.unpack_layers(&lease, layers).await? else {
                return Ok(());
            };
            let label = (format!("{SNAPSHOT}.{}", self.snapshotter), top.to_string());
            let marked = self.content.mark(config, BTreeMap::from([label])).await;
            marked.map_err(failed)
        };
        let made = made.await;
        lease.end().await;
        made
    }
}
