//! The client against a daemon that does nothing but talk.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use cooper_client::{Client, ClientError, Solve};
use cooper_proto::control::control_server::{Control, ControlServer};
use cooper_proto::control::*;
use cooper_proto::types::{BuildkitVersion, WorkerRecord};
use cooper_session::filesync::{self, SyncRequest};
use cooper_session::{Manager, SessionMeta, Tree, Tunnel};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

type Answer<T> = BoxStream<'static, Result<T, Status>>;

#[derive(Clone, Default)]
struct Daemon {
    sessions: Manager,
}

#[async_trait]
impl Control for Daemon {
    type PruneStream = Answer<UsageRecord>;
    type StatusStream = Answer<StatusResponse>;
    type SessionStream = Answer<BytesMessage>;
    type ListenBuildHistoryStream = Answer<BuildHistoryEvent>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let meta = SessionMeta::from_headers(&request.metadata().clone().into_headers()).unwrap();
        assert_eq!(meta.shared_key, "the-key");
        let (tunnel, messages) = Tunnel::new(request.into_inner());
        let sessions = self.sessions.clone();
        let serve = stream::once(async move { sessions.serve(tunnel, meta).await });
        let serve = Box::pin(serve).filter_map(|_| async { None });
        Ok(Response::new(
            stream::select(messages.map(Ok), serve).boxed(),
        ))
    }

    /// Builds by copying the context; the frontend's name is what happens.
    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<SolveResponse>, Status> {
        let request = request.into_inner();
        match request.frontend.as_str() {
            "fail" => return Err(Status::unknown("it went wrong")),
            "fail at length" => {
                let text = vec![b'x'; 200 << 10];
                let message = "it went wrong";
                return Err(Status::with_details(Code::Unknown, message, text.into()));
            }
            "hang" => std::future::pending().await,
            _ => {}
        }
        let session = self
            .sessions
            .get(&request.session, Duration::from_secs(5))
            .await;
        let session = session.map_err(|error| Status::unknown(error.to_string()))?;
        let target = tempfile::tempdir().unwrap();
        let sync = SyncRequest {
            name: "context".into(),
            // As many as an ignore file may have: they go in headers.
            exclude: (0..4000).map(|n| format!("ignored-{n}")).collect(),
            ..SyncRequest::default()
        };
        let synced = filesync::receive(&session, &sync, target.path(), Arc::new(())).await;
        synced.map_err(|error| Status::unknown(error.to_string()))?;
        let text = std::fs::read_to_string(target.path().join("file")).unwrap();
        Ok(Response::new(SolveResponse {
            exporter_response: [("content".to_owned(), text)].into(),
        }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        assert!(!request.into_inner().r#ref.is_empty());
        let response = |name: &str| StatusResponse {
            vertexes: vec![Vertex {
                name: name.into(),
                ..Vertex::default()
            }],
            ..StatusResponse::default()
        };
        let all = [Ok(response("one")), Ok(response("two"))];
        Ok(Response::new(stream::iter(all).boxed()))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            buildkit_version: Some(BuildkitVersion {
                version: "v1".into(),
                ..BuildkitVersion::default()
            }),
        }))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse {
            record: vec![WorkerRecord::default()],
        }))
    }

    async fn disk_usage(
        &self,
        _: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        Ok(Response::new(DiskUsageResponse::default()))
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let record = UsageRecord {
            id: "gone".into(),
            ..UsageRecord::default()
        };
        Ok(Response::new(stream::iter([Ok(record)]).boxed()))
    }

    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented("history"))
    }

    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented("history"))
    }
}

/// Runs `use_it` with a client of a daemon.
async fn with<F: Future<Output = ()>>(use_it: impl FnOnce(Client, Manager) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("daemon.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = Daemon::default();
    let stop = CancellationToken::new();
    let server = tonic::transport::Server::builder()
        .add_service(ControlServer::new(daemon.clone()))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
    let client = async {
        let address = format!("unix://{}", socket.display());
        let client = Client::connect(&address).await.unwrap();
        use_it(client, daemon.sessions.clone()).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(server, client);
    served.unwrap();
}

fn solve(frontend: &str, context: &std::path::Path) -> Solve {
    let mut solve = Solve {
        shared_key: "the-key".into(),
        ..Solve::default()
    };
    solve.request.frontend = frontend.into();
    let tree = Tree::new(context);
    solve.services.dirs.insert("context".into(), tree);
    solve
}

#[tokio::test]
async fn a_solve_has_its_session_and_its_progress() {
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("file"), "hello").unwrap();
    with(async |client, sessions| {
        let mut names = Vec::new();
        let solve = solve("copy", context.path());
        let response = client
            .solve(solve, &mut |status| {
                names.push(status.vertexes[0].name.clone())
            })
            .await
            .unwrap();
        assert_eq!(response.exporter_response["content"], "hello");
        assert_eq!(names, ["one", "two"]);
        let left = async {
            while !sessions.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let left = tokio::time::timeout(Duration::from_secs(5), left).await;
        left.expect("the session ends with the solve");
    })
    .await;
}

#[tokio::test]
async fn a_failure_and_a_cancellation_are_told_apart() {
    let context = tempfile::tempdir().unwrap();
    with(async |client, _| {
        let failed = client
            .solve(solve("fail", context.path()), &mut |_| ())
            .await;
        let error = failed.unwrap_err();
        assert_eq!(error.to_string(), "failed to solve: it went wrong");
        assert!(!error.is_cancelled());
        // With the user's text in its details.
        let failed = client
            .solve(solve("fail at length", context.path()), &mut |_| ())
            .await;
        let error = failed.unwrap_err();
        assert_eq!(error.to_string(), "failed to solve: it went wrong");
        assert_eq!(error.status().unwrap().details().len(), 200 << 10);

        let hanging = solve("hang", context.path());
        let cancelled = hanging.cancelled.clone();
        let mut said = 0;
        let given_up = client
            .solve(hanging, &mut |_| {
                said += 1;
                cancelled.cancel();
            })
            .await;
        assert!(matches!(given_up, Err(ClientError::Cancelled)));
        assert!(said > 0);
    })
    .await;
}

#[tokio::test]
async fn the_other_calls() {
    with(async |client, _| {
        let info = client.info().await.unwrap();
        assert_eq!(info.buildkit_version.unwrap().version, "v1");
        assert_eq!(client.workers(vec![]).await.unwrap().len(), 1);
        let usage = client.disk_usage(DiskUsageRequest::default()).await;
        assert!(usage.unwrap().is_empty());
        let pruned = client.prune(PruneRequest::default()).await.unwrap();
        let pruned: Vec<_> = pruned.collect().await;
        assert_eq!(pruned[0].as_ref().unwrap().id, "gone");
    })
    .await;
}

#[tokio::test]
async fn addresses_that_lead_nowhere() {
    for address in ["", "unix://", "/run/x.sock", "ftp://x", "tcp://"] {
        let error = Client::connect(address).await.unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{address}");
    }
    let error = Client::connect("unix:///nonexistent/x.sock")
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
}
