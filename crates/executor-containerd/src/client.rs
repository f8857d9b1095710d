//! The connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cooper_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use cooper_proto::containerd::services::diff::v1::diff_client::DiffClient;
use cooper_proto::containerd::services::images::v1::images_client::ImagesClient;
use cooper_proto::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use cooper_proto::containerd::services::introspection::v1::{Plugin, PluginsRequest};
use cooper_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use cooper_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use cooper_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use cooper_proto::containerd::services::version::v1::VersionResponse;
use cooper_proto::containerd::services::version::v1::version_client::VersionClient;
use cooper_proto::content::content_client::ContentClient;
use cooper_proto::{MAX_HEADER_SIZE, MAX_MESSAGE_SIZE};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::ContainerdError;

/// The header that names the namespace of a request.
const NAMESPACE: &str = "containerd-namespace";

/// A containerd and a namespace in it. Cheap to clone.
///
/// It connects when something is asked, and again when the connection was lost: a request
/// meanwhile fails, the next one tries anew.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
    namespace: InNamespace,
    address: Arc<Path>,
}

/// Says in each request which namespace it is about.
#[derive(Clone, Debug)]
pub(crate) struct InNamespace(MetadataValue<Ascii>);

pub(crate) type Service = InterceptedService<Channel, InNamespace>;

impl Interceptor for InNamespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NAMESPACE, self.0.clone());
        Ok(request)
    }
}

impl Containerd {
    /// The containerd that listens on the socket `address`. Does not connect yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(address: impl Into<PathBuf>, namespace: &str) -> Result<Self, ContainerdError> {
        let address: Arc<Path> = address.into().into();
        // containerd's own rule (`pkg/identifiers`): words joined by single marks.
        let words = |mut part: std::str::Split<'_, [char; 3]>| {
            part.all(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric()))
        };
        if namespace.len() > 76 || !words(namespace.split(['.', '_', '-'])) {
            let namespace = namespace.to_owned();
            return Err(ContainerdError::Namespace { namespace });
        }
        let value = namespace.parse().expect("letters, digits and marks");
        let path = address.clone();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .http2_max_header_list_size(MAX_HEADER_SIZE)
            .connect_with_connector_lazy(dial);
        Ok(Self {
            channel,
            namespace: InNamespace(value),
            address,
        })
    }

    /// The socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.0.to_str().unwrap_or_default()
    }

    /// Asks what it is, which shows whether it is there.
    pub async fn version(&self) -> Result<VersionResponse, ContainerdError> {
        let answer = VersionClient::new(self.service()).version(()).await;
        Ok(answer.map_err(self.failed())?.into_inner())
    }

    /// The id that this containerd keeps as long as its root folder.
    pub async fn uuid(&self) -> Result<String, ContainerdError> {
        let answer = IntrospectionClient::new(self.service()).server(()).await;
        Ok(answer.map_err(self.failed())?.into_inner().uuid)
    }

    /// The snapshotter `name`, if it is there and works.
    pub(crate) async fn snapshotter(&self, name: &str) -> Result<Plugin, ContainerdError> {
        let plugins = self.plugins("io.containerd.snapshotter.v1").await?;
        let message = match plugins.into_iter().find(|plugin| plugin.id == name) {
            Some(plugin) => match &plugin.init_err {
                None => return Ok(plugin),
                Some(error) => format!("snapshotter {name}: {}", error.message),
            },
            None => format!("snapshotter {name}: not known to containerd"),
        };
        Err(ContainerdError::Refused {
            code: tonic::Code::NotFound,
            message,
        })
    }

    /// Its plug-ins of a type.
    pub(crate) async fn plugins(&self, kind: &str) -> Result<Vec<Plugin>, ContainerdError> {
        let request = PluginsRequest {
            filters: vec![format!("type=={kind}")],
        };
        let mut client = IntrospectionClient::new(self.service());
        let answer = client.plugins(request).await;
        Ok(answer.map_err(self.failed())?.into_inner().plugins)
    }

    pub(crate) fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.namespace.clone())
    }

    pub(crate) fn containers(&self) -> ContainersClient<Service> {
        ContainersClient::new(self.service())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    pub(crate) fn tasks(&self) -> TasksClient<Service> {
        TasksClient::new(self.service())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    pub(crate) fn diff(&self) -> DiffClient<Service> {
        DiffClient::new(self.service())
    }

    pub(crate) fn images(&self) -> ImagesClient<Service> {
        ImagesClient::new(self.service())
    }

    pub(crate) fn leases(&self) -> LeasesClient<Service> {
        LeasesClient::new(self.service())
    }

    pub(crate) fn content(&self) -> ContentClient<Service> {
        ContentClient::new(self.service())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Service> {
        SnapshotsClient::new(self.service())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// What a status means.
    pub(crate) fn failed(&self) -> impl Fn(Status) -> ContainerdError + '_ {
        |status| ContainerdError::new(&self.address, status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn namespaces_are_checked_and_nobody_there_is_an_error() {
        for bad in ["", "a b", "-a", "a--b", "a/b", "a\nb", &"x".repeat(77)] {
            assert!(Containerd::new("/nowhere", bad).is_err(), "{bad}");
        }
        let nobody = Containerd::new("/nowhere/containerd.sock", "build.kit-1_a").unwrap();
        let error = nobody.version().await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/containerd.sock"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}
