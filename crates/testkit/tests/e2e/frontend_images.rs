//! Frontends that run as containers. The program in the image passes its input and output on to
//! the case, which is the frontend.

use cooper_llb::build::State;
use cooper_proto::gateway as api;
use cooper_proto::gateway::llb_bridge_client::LlbBridgeClient;
use cooper_proto::rpc;
use cooper_testkit::{Client, Context};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::Out;
use crate::client::{bind, sh};
use crate::client_frontend::{Gateway, Named, nothing, single};
use crate::dockerfile_words::Kit;

/// A Dockerfile, if it can be called so, that is for this frontend.
fn context(frontend: &str) -> Context {
    Context::new().file(
        "Dockerfile",
        format!("# syntax={frontend} two words\nhello\n"),
    )
}

impl Kit {
    /// Pushes a frontend whose program is this script.
    #[track_caller]
    fn push(&self, name: &str, script: &str, more: &str) -> String {
        let name = format!("{}/{name}:1", self.registry.host());
        let entrypoint = serde_json::json!(["/bin/sh", "-c", script]);
        let text = format!("FROM {}\n{more}ENTRYPOINT {entrypoint}\n", self.base);
        let output = format!("--output=type=image,name={name},push=true");
        let context = Context::new().file("Dockerfile", text);
        let client = Client::cooper(&self.daemon);
        client.build(&context, &[output.as_str()]).success();
        name
    }

    #[track_caller]
    fn refuses(&self, frontend: &str, args: &[&str], parts: &[&str]) {
        for client in Client::of(&self.daemon) {
            let args: Vec<_> = args
                .iter()
                .copied()
                .chain(["--output=type=cacheonly"])
                .collect();
            client.build(&context(frontend), &args).fails_with(parts);
        }
    }

    /// Pushes a frontend whose program passes its input and output on to who listens, and then goes
    /// on as `after` says.
    #[track_caller]
    fn push_relay(&self, name: &str, after: &str) -> (std::net::TcpListener, String) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let frontend = self.push(name, &format!("nc 127.0.0.1 {port}{after}"), "");
        (listener, frontend)
    }
}

/// Runs a build and is its frontend; gives what the build said.
fn serve<T>(listener: &std::net::TcpListener, frontend: impl AsyncFnOnce(Gateway) -> T) -> T {
    listener.set_nonblocking(true).unwrap();
    let listener = listener.try_clone().unwrap();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        frontend(gateway(stream).await).await
    })
}

/// The other end of a program's input and output.
async fn gateway(stream: TcpStream) -> Gateway {
    let mut stream = Some(stream);
    let connect = tower::service_fn(move |_| {
        let stream = stream.take();
        async move {
            let lost = || std::io::Error::other("there is one connection");
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream.ok_or_else(lost)?))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await.unwrap();
    // A frontend in a container has one build, and names none.
    let named = Named("of-nobody".parse().unwrap());
    Gateway(LlbBridgeClient::with_interceptor(channel, named))
}

async fn give_back(gateway: &mut Gateway, result: api::Result) {
    let request = api::ReturnRequest {
        result: Some(result),
        ..api::ReturnRequest::default()
    };
    gateway.0.r#return(request).await.unwrap();
}

#[test]
fn fe01_fe02_an_image_reads_the_file_that_names_it() {
    let kit = Kit::start();
    let (listener, frontend) = kit.push_relay("made", "");
    for client in Client::of(&kit.daemon) {
        let out = Out::new();
        let local = out.local("x");
        let context = context(&frontend);
        let building = client.start(&context, &[local.as_str()]);
        serve(&listener, async |mut gateway: Gateway| {
            let pong = gateway.0.ping(api::PingRequest::default()).await.unwrap();
            let pong = pong.into_inner();
            assert_eq!(pong.workers.len(), 1);
            assert!(
                pong.frontend_api_caps
                    .iter()
                    .any(|cap| cap.id == "solve.base")
            );
            let inputs = gateway.0.inputs(api::InputsRequest {}).await.unwrap();
            assert!(inputs.into_inner().definitions.is_empty());
            // It builds as any client does: a step, and a look at what it made.
            let image = State::image(
                &kit.base,
                cooper_llb::build::Image::default(),
                cooper_llb::build::Constraints::default(),
            );
            let mut step = sh("echo by an image > /o/out");
            step.mounts.push(bind("/o", &State::scratch()));
            let made = image.run_mounted(step, "/o");
            let made = gateway.solve(&made.unwrap(), true).await.unwrap();
            assert_eq!(gateway.read(&made, "/out").await.unwrap(), "by an image\n");
            // And in containers of its own.
            let root = gateway.solve(&image, false).await.unwrap();
            gateway
                .container("c", vec![crate::client_frontend::at("/", &root)])
                .await
                .unwrap();
            let Ok(result) = single(made) else {
                unreachable!()
            };
            give_back(&mut gateway, result).await;
        });
        building.finish().success();
        assert_eq!(out.read("x/out"), "by an image\n");
    }
    kit.end();
}

#[test]
fn fe02_what_a_frontend_is_told_and_what_is_told_of_it() {
    let kit = Kit::start();
    let telling = "env | sort | grep -e ^BUILDKIT -e ^OWN >&2; pwd >&2; exit 3";
    let frontend = kit.push("telling", telling, "WORKDIR /work\nENV OWN=1\n");
    let cmdline = format!("=cmdline={frontend} two words");
    let source = format!("=source={frontend}");
    let parts = [
        "exit code: 3",
        "BUILDKIT_EXPORTEDPRODUCT=cooper",
        "BUILDKIT_SESSION_ID=",
        "BUILDKIT_WORKERS=[{\"ID\":\"",
        "\"Platforms\":[{\"architecture\":\"",
        "BUILDKIT_FRONTEND_OPT_0=",
        "=build-arg:X=of a client",
        &cmdline,
        &source,
        "OWN=1",
        "/work",
        // The line that names it.
        "Dockerfile:1",
    ];
    kit.refuses(&frontend, &["--build-arg=X=of a client"], &parts);
    // The argument is stronger than the line.
    let line = kit.push("quiet", "exit 0", "");
    let argument = format!("--build-arg=BUILDKIT_SYNTAX={frontend} of an argument");
    let cmdline = format!("=cmdline={frontend} of an argument");
    kit.refuses(&line, &[&argument], &["exit code: 3", &cmdline]);
    kit.refuses(&line, &[], &["no result for incomplete build"]);
    let garbage = kit.push("garbage", "echo why >&2; echo garbage; sleep 1000", "");
    kit.refuses(
        &garbage,
        &[],
        &["frontend grpc server closed unexpectedly: why"],
    );
    let missing = format!("{}/missing:1", kit.registry.host());
    kit.refuses(&missing, &[], &["missing:1", "not found"]);
    kit.refuses("INVALID:name:", &[], &["invalid reference format"]);
    kit.end();
}

#[test]
fn fe02_an_error_that_a_frontend_returns_is_the_builds() {
    let kit = Kit::start();
    let (listener, frontend) = kit.push_relay("fails", "; exit 7");
    let returned = [
        (Some("it is not to be built"), "it is not to be built"),
        // How it ended goes before success.
        (None, "exit code: 7"),
    ];
    for (returned, expected) in returned {
        let client = Client::cooper(&kit.daemon);
        let context = context(&frontend);
        let building = client.start(&context, &["--output=type=cacheonly"]);
        serve(&listener, async |mut gateway: Gateway| match returned {
            Some(message) => {
                let request = api::ReturnRequest {
                    error: Some(rpc::Status {
                        code: Code::FailedPrecondition as i32,
                        message: message.into(),
                        details: Vec::new(),
                    }),
                    ..api::ReturnRequest::default()
                };
                gateway.0.r#return(request).await.unwrap();
            }
            None => {
                let Ok(result) = nothing() else {
                    unreachable!()
                };
                give_back(&mut gateway, result).await;
            }
        });
        building.finish().fails_with(&[expected]);
    }
    kit.end();
}

#[test]
fn fe02_capabilities_and_networks_are_those_of_the_labels() {
    let kit = Kit::start();
    let script = "ls /sys/class/net >&2; exit 5";
    let labels = "LABEL moby.buildkit.frontend.network.none=true\n";
    let frontend = kit.push("alone", script, labels);
    kit.refuses(&frontend, &[], &["exit code: 5: lo"]);
    // What the client makes of the capability that the error names.
    let lacks = ["current frontend does not support --build-context"];
    let named = ["--build-context=other=docker-image://busybox"];
    let client = Client::buildx(&kit.daemon);
    let args = [named[0], "--output=type=cacheonly"];
    client.build(&context(&frontend), &args).fails_with(&lacks);
    let labels = "LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.contexts\n";
    let frontend = kit.push("able", script, labels);
    client
        .build(&context(&frontend), &args)
        .fails_with(&["exit code: 5"]);
    drop(client);
    kit.end();
}

#[test]
fn fe02_images_come_from_where_they_may() {
    let kit = Kit::with_config(
        "[frontend.\"gateway.v0\"]\nallowedRepositories = [\"docker.io/some/frontend\"]\n",
    );
    let frontend = kit.push("refused", "exit 0", "");
    let refused = format!("'{frontend}' is not an allowed gateway source");
    kit.refuses(&frontend, &[], &[&refused]);
    kit.end();
    let kit = Kit::with_config("[frontend.\"gateway.v0\"]\nenabled = false\n");
    let frontend = kit.push("off", "exit 0", "");
    kit.refuses(
        &frontend,
        &[],
        &["gateway.v0 is not supported by this builder"],
    );
    // What is built in is there, whatever version of it is asked for.
    let context = Context::new().file(
        "Dockerfile",
        format!(
            "# syntax=docker/dockerfile:1.99-labs\nFROM {}\nRUN true\n",
            kit.base
        ),
    );
    for client in Client::of(&kit.daemon) {
        client
            .build(&context, &["--output=type=cacheonly"])
            .success();
    }
    drop(context);
    kit.end();
}

#[test]
fn fe02_a_build_that_is_given_up_takes_its_frontend_along() {
    let kit = Kit::start();
    let (listener, frontend) = kit.push_relay("waits", "");
    let client = Client::cooper(&kit.daemon);
    let context = context(&frontend);
    let building = client.start(&context, &["--output=type=cacheonly"]);
    let (mut stream, _) = listener.accept().unwrap();
    building.signal(nix::sys::signal::Signal::SIGINT);
    // The program is gone: its end of the connection, too.
    let limit = std::time::Duration::from_secs(30);
    stream.set_read_timeout(Some(limit)).unwrap();
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    building.finish();
    drop((client, context));
    kit.end();
}
