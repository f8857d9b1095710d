//! A program that is its own frontend, for the cases that need one.

use std::time::Duration;

use cooper_client::{ClientError, Solve};
use cooper_llb::build::{MarshalOptions, State};
use cooper_proto::control::SolveResponse;
use cooper_proto::gateway::exec_message::Input;
use cooper_proto::gateway::llb_bridge_client::LlbBridgeClient;
use cooper_proto::gateway::{self as api, ExecMessage, result::Result as Refs};
use cooper_proto::{pb, rpc};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::client::Bench;

#[derive(Clone)]
pub(crate) struct Named(pub(crate) AsciiMetadataValue);

impl tonic::service::Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("buildkit-controlapi-buildid", self.0.clone());
        Ok(request)
    }
}

/// The bridge of one build.
#[derive(Clone)]
pub(crate) struct Gateway(pub(crate) LlbBridgeClient<InterceptedService<Channel, Named>>);

/// A connection to the daemon.
pub(crate) async fn channel(bench: &Bench) -> Channel {
    let address = bench.daemon.address();
    let path = address.trim_start_matches("unix://").to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connect).await.unwrap()
}

pub(crate) async fn gateway(bench: &Bench, id: &str) -> Gateway {
    Gateway(LlbBridgeClient::with_interceptor(
        channel(bench).await,
        Named(id.parse().unwrap()),
    ))
}

/// What a frontend gives back.
pub(crate) type Outcome = Result<api::Result, Status>;

/// Builds with `frontend`.
pub(crate) fn build(
    bench: &Bench,
    mut solve: Solve,
    frontend: impl AsyncFnOnce(Gateway) -> Outcome,
) -> Result<SolveResponse, ClientError> {
    let id = format!("gateway-{:x}", std::ptr::from_ref(bench) as usize);
    let id = format!(
        "{id}-{}",
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    );
    solve.request.r#ref = id.clone();
    bench.rt.block_on(async {
        let mut discard = |_| ();
        let solving = Box::pin(bench.client.solve(solve, &mut discard));
        let building = async {
            let mut gateway = gateway(bench, &id).await;
            let outcome = frontend(gateway.clone()).await;
            let mut request = api::ReturnRequest::default();
            match outcome {
                Ok(result) => request.result = Some(result),
                Err(status) => {
                    request.error = Some(rpc::Status {
                        code: status.code() as i32,
                        message: status.message().to_owned(),
                        details: rpc::Status::decode(status.details())
                            .unwrap_or_default()
                            .details,
                    });
                }
            }
            gateway.0.r#return(request).await.unwrap();
        };
        let both = async { tokio::join!(solving, building).0 };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        both.expect("the build ends in time")
    })
}

static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Gateway {
    pub(crate) async fn solve(
        &mut self,
        state: &State,
        evaluate: bool,
    ) -> Result<api::Ref, Status> {
        let request = api::SolveRequest {
            definition: Some(state.marshal(&MarshalOptions::default())),
            evaluate,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..api::SolveRequest::default()
        };
        let response = self.0.solve(request).await?.into_inner();
        match response.result.unwrap().result {
            Some(Refs::Ref(found)) => Ok(found),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn container(
        &mut self,
        id: &str,
        mounts: Vec<pb::Mount>,
    ) -> Result<(), Status> {
        let request = api::NewContainerRequest {
            container_id: id.into(),
            mounts,
            ..api::NewContainerRequest::default()
        };
        self.0.new_container(request).await.map(drop)
    }

    pub(crate) async fn release(&mut self, id: &str) -> Result<(), Status> {
        let request = api::ReleaseContainerRequest {
            container_id: id.into(),
        };
        self.0.release_container(request).await.map(drop)
    }

    /// A container of busybox.
    pub(crate) async fn busybox(&mut self, bench: &Bench, id: &str) {
        let image = self.solve(&bench.image(), false).await.unwrap();
        self.container(id, vec![at("/", &image)]).await.unwrap();
    }

    pub(crate) async fn processes(&mut self) -> Processes {
        let (sender, messages) = mpsc::channel(16);
        let answer = self.0.exec_process(ReceiverStream::new(messages)).await;
        Processes {
            sender: Some(sender),
            answers: answer.unwrap().into_inner(),
        }
    }

    pub(crate) async fn read(
        &mut self,
        reference: &api::Ref,
        path: &str,
    ) -> Result<String, Status> {
        let request = api::ReadFileRequest {
            r#ref: reference.id.clone(),
            file_path: path.into(),
            ..api::ReadFileRequest::default()
        };
        let read = self.0.read_file(request).await?;
        Ok(String::from_utf8(read.into_inner().data).unwrap())
    }
}

pub(crate) fn at(dest: &str, reference: &api::Ref) -> pb::Mount {
    pb::Mount {
        dest: dest.into(),
        result_id: reference.id.clone(),
        ..pb::Mount::default()
    }
}

pub(crate) fn single(reference: api::Ref) -> Outcome {
    Ok(api::Result {
        result: Some(Refs::Ref(reference)),
        ..api::Result::default()
    })
}

pub(crate) fn nothing() -> Outcome {
    Ok(api::Result::default())
}

/// The stream of processes of a client.
pub(crate) struct Processes {
    pub(crate) sender: Option<mpsc::Sender<ExecMessage>>,
    answers: Streaming<ExecMessage>,
}

/// How a process went.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) output: String,
    pub(crate) errors: String,
    pub(crate) code: u32,
    pub(crate) error: Option<rpc::Status>,
}

impl Processes {
    pub(crate) async fn say(&self, id: &str, input: Input) {
        let message = ExecMessage {
            process_id: id.into(),
            input: Some(input),
        };
        self.sender.as_ref().unwrap().send(message).await.unwrap();
    }

    pub(crate) async fn start(
        &self,
        id: &str,
        container: &str,
        command: &[&str],
        fds: &[u32],
        tty: bool,
    ) {
        let meta = pb::Meta {
            args: command.iter().map(|arg| (*arg).to_owned()).collect(),
            ..pb::Meta::default()
        };
        let init = api::InitMessage {
            container_id: container.into(),
            meta: Some(meta),
            fds: fds.to_vec(),
            tty,
            ..api::InitMessage::default()
        };
        self.say(id, Input::Init(init)).await;
    }

    pub(crate) async fn write(&self, id: &str, data: &str, eof: bool) {
        let file = api::FdMessage {
            fd: 0,
            eof,
            data: data.into(),
        };
        self.say(id, Input::File(file)).await;
    }

    pub(crate) async fn signal(&self, id: &str, name: &str) {
        self.say(id, Input::Signal(api::SignalMessage { name: name.into() }))
            .await;
    }

    /// The next message about a process.
    pub(crate) async fn next(&mut self) -> Result<(String, Input), Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.answers.message()).await;
        let message = next.expect("a message in time")?;
        let message = message.ok_or_else(|| Status::aborted("the stream ended"))?;
        Ok((message.process_id, message.input.unwrap()))
    }

    pub(crate) async fn started(&mut self, id: &str) {
        loop {
            let (of, message) = self.next().await.unwrap();
            if of == id {
                assert!(matches!(message, Input::Started(_)), "{message:?}");
                return;
            }
        }
    }

    /// Listens until the process is done.
    pub(crate) async fn done(&mut self, id: &str) -> Ended {
        let mut ended = Ended::default();
        loop {
            let (of, message) = self.next().await.unwrap();
            if of != id {
                continue;
            }
            match message {
                Input::File(file) => {
                    let text = String::from_utf8_lossy(&file.data);
                    match file.fd {
                        1 => ended.output += &text,
                        _ => ended.errors += &text,
                    }
                }
                Input::Exit(exit) => (ended.code, ended.error) = (exit.code, exit.error),
                Input::Done(_) => return ended,
                _ => {}
            }
        }
    }

    /// Reads output until it holds `part`.
    pub(crate) async fn expect(&mut self, id: &str, part: &str) -> String {
        let mut all = String::new();
        while !all.contains(part) {
            let (of, message) = self.next().await.unwrap();
            if of == id
                && let Input::File(file) = message
            {
                all += &String::from_utf8_lossy(&file.data);
            }
        }
        all
    }

    pub(crate) async fn run(&mut self, container: &str, command: &[&str]) -> Ended {
        let id = format!(
            "p{}",
            NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        );
        self.start(&id, container, command, &[1, 2], false).await;
        self.done(&id).await
    }
}
