//! The back channel of clients: what the daemon asks of them, and clients that answer oddly.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use cooper_llb::build::{Local, MarshalOptions, SecretSpec, State};
use cooper_proto::control::{BytesMessage, SolveRequest};
use cooper_proto::exporter::exporter_server::{Exporter as Exporters, ExporterServer};
use cooper_proto::exporter::{
    ExporterRequest, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest,
    FindExportersResponse,
};
use cooper_proto::filesync::BytesMessage as Piece;
use cooper_proto::filesync::file_send_server::{FileSend, FileSendServer};
use cooper_proto::secrets::secrets_server::{Secrets, SecretsServer};
use cooper_proto::secrets::{GetSecretRequest, GetSecretResponse};
use cooper_proto::{control, pb};
use cooper_session::serve::{self, Output, Services};
use cooper_session::{Tree, Tunnel};
use cooper_testkit::{Client, Context as Files_, Daemon, Registry, leak, push_busybox};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Bench, Files, exporter, mkfile, request, sh, with_dir};
use crate::{Out, read};

const ID: &str = "x-docker-expose-session-uuid";
const METHOD: &str = "x-docker-expose-session-grpc-method";
const HEALTH: &str = "x-buildkit-session-health-custom-timeout";

/// A tunnel to the daemon with these headers, nobody at this end of it yet.
fn tunnel(bench: &Bench, headers: &[(&'static str, &str)]) -> Tunnel<BytesMessage> {
    let (outgoing, messages) = Tunnel::<BytesMessage>::sender();
    let mut call = Request::new(messages);
    for (name, value) in headers {
        call.metadata_mut().append(*name, value.parse().unwrap());
    }
    let mut control = bench.client.control();
    let incoming = futures::stream::once(async move { control.session(call).await })
        .map_ok(Response::into_inner)
        .try_flatten()
        .boxed();
    Tunnel::join(incoming, outgoing)
}

/// The client's end with services of its own choice.
struct End(Tunnel<BytesMessage>);

impl Connected for End {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A client that serves something.
struct Served {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    /// Hangs up.
    async fn close(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Serves `routes` and nothing else: no health service either.
fn serve(tunnel: Tunnel<BytesMessage>, routes: Routes) -> Served {
    let one = futures::stream::iter([Ok::<_, std::io::Error>(End(tunnel))]);
    let incoming = one.chain(futures::stream::pending());
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let task = tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_routes(routes);
        let _ = server.serve_with_incoming_shutdown(incoming, stopped).await;
    });
    Served { stop, task }
}

struct Word;

#[tonic::async_trait]
impl Secrets for Word {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        match request.into_inner().id.as_str() {
            "word" => Ok(Response::new(GetSecretResponse {
                data: b"sesame".to_vec(),
            })),
            other => Err(Status::not_found(format!("secret {other} not found"))),
        }
    }
}

/// A step that needs the secret `word`; `number` makes it another step.
fn needy(bench: &Bench, number: usize) -> State {
    let mut exec = sh(&format!(
        "[ $(cat /run/secrets/word) = sesame ]; echo {number}"
    ));
    exec.secrets.push(SecretSpec {
        target: Some("/run/secrets/word".into()),
        env: None,
        options: pb::SecretOpt {
            id: "word".into(),
            mode: 0o400,
            ..pb::SecretOpt::default()
        },
    });
    bench.image().run(exec)
}

fn plain(state: &State, name: &str, session: &str) -> SolveRequest {
    SolveRequest {
        r#ref: name.into(),
        session: session.into(),
        definition: Some(state.marshal(&MarshalOptions::default())),
        ..SolveRequest::default()
    }
}

async fn solve(bench: &Bench, request: SolveRequest) -> Result<control::SolveResponse, Status> {
    let mut control = bench.client.control();
    let solving = control.solve(request);
    let solved = tokio::time::timeout(Duration::from_secs(50), solving).await;
    solved
        .expect("the build ends in time")
        .map(Response::into_inner)
}

/// The names of methods count whatever their case, a session may be named with a prefix, and a
/// client without a health service is one as well.
#[test]
fn ses01_ctl06_slv05_a_session_serves_what_it_says_whatever_else_it_lacks() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let method = "/MOBY.buildkit.secrets.v1.SECRETS/getsecret";
        let headers = [(ID, "plain"), (METHOD, method), (HEALTH, "1000")];
        let client = serve(
            tunnel(&bench, &headers),
            Routes::new(SecretsServer::new(Word)),
        );
        solve(&bench, plain(&needy(&bench, 1), "a", "plain"))
            .await
            .unwrap();
        solve(&bench, plain(&needy(&bench, 2), "b", "some:plain"))
            .await
            .unwrap();
        // Longer than it takes to find out that nobody is there.
        tokio::time::sleep(Duration::from_secs(4)).await;
        solve(&bench, plain(&needy(&bench, 3), "c", "plain"))
            .await
            .unwrap();

        // A service that the client did not name is not asked for.
        let local = State::local("context", Local::default(), Default::default());
        let error = solve(&bench, plain(&local, "d", "plain"))
            .await
            .unwrap_err();
        assert!(
            error.message().contains("no local sources enabled"),
            "{error}"
        );

        // Two of one name cannot be told apart.
        let mut second = tunnel(&bench, &headers);
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut second, &mut byte).await;
        assert!(read.is_err(), "{read:?}");
        let mut nameless = tunnel(&bench, &[(METHOD, method)]);
        let read = tokio::io::AsyncReadExt::read(&mut nameless, &mut byte).await;
        assert!(read.is_err(), "{read:?}");

        client.close().await;
        let gone = solve(&bench, plain(&needy(&bench, 4), "e", "plain"))
            .await
            .unwrap_err();
        assert!(gone.message().contains("no active session"), "{gone}");
    });
    bench.end();
}

/// A client that hangs is found out, and its build with it.
#[test]
fn ses01_a_client_that_does_not_answer_is_given_up() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let method = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
        let headers = [(ID, "silent"), (METHOD, method), (HEALTH, "1000")];
        let mut tunnel = tunnel(&bench, &headers);
        let silent = tokio::spawn(async move {
            // Reads and says nothing.
            let mut bytes = [0; 1024];
            while tokio::io::AsyncReadExt::read(&mut tunnel, &mut bytes)
                .await
                .is_ok_and(|read| read > 0)
            {}
        });
        let begin = Instant::now();
        solve(&bench, plain(&needy(&bench, 1), "a", "silent"))
            .await
            .unwrap_err();
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            begin.elapsed()
        );
        // The daemon hung up.
        tokio::time::timeout(Duration::from_secs(10), silent)
            .await
            .unwrap()
            .unwrap();
    });
    bench.end();
}

/// A build may begin before its session is there, for so long; and any session that can answer
/// serves a step that two builds share.
#[test]
fn ses02_sessions_are_waited_for_and_any_of_several_answers() {
    let bench = Bench::start();
    bench.rt.block_on(async {
        let method = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
        let open = |id: &str| {
            let tunnel = tunnel(&bench, &[(ID, id), (METHOD, method)]);
            serve(tunnel, Routes::new(SecretsServer::new(Word)))
        };
        let late = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            open("late")
        };
        let (solved, client) =
            tokio::join!(solve(&bench, plain(&needy(&bench, 1), "a", "late")), late);
        solved.unwrap();
        client.close().await;

        let begin = Instant::now();
        let error = solve(&bench, plain(&needy(&bench, 2), "b", "never"))
            .await
            .unwrap_err();
        assert!(
            error.message().contains("no active session for never"),
            "{error}"
        );
        let took = begin.elapsed();
        assert!(
            took > Duration::from_secs(4) && took < Duration::from_secs(25),
            "{took:?}"
        );

        // The first client of the step has no secrets, the second has.
        let base = bench.image().run(sh("sleep 2"));
        let mut exec = sh("[ $(cat /run/secrets/word) = sesame ]");
        exec.secrets.push(SecretSpec {
            target: Some("/run/secrets/word".into()),
            env: None,
            options: pb::SecretOpt {
                id: "word".into(),
                mode: 0o400,
                ..Default::default()
            },
        });
        let shared = base.run(exec);
        let poor = tunnel(&bench, &[(ID, "poor")]);
        let poor = serve(poor, Routes::new(tonic_health::server::health_reporter().1));
        let rich = open("rich");
        let second = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            solve(&bench, plain(&shared, "d", "rich")).await
        };
        let (first, second) = tokio::join!(solve(&bench, plain(&shared, "c", "poor")), second);
        first.unwrap();
        second.unwrap();
        poor.close().await;
        rich.close().await;
    });
    bench.end();
}

/// What the daemon sent of one exporter: its metadata and the sizes of the pieces.
type Sent = Arc<Mutex<Vec<(Vec<(String, String)>, Vec<usize>, Vec<u8>)>>>;

struct Receiver(Sent);

#[tonic::async_trait]
impl FileSend for Receiver {
    type DiffCopyStream =
        Pin<Box<dyn futures::Stream<Item = Result<Piece, Status>> + Send + 'static>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Piece>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let metadata = request.metadata().clone().into_headers();
        let metadata = metadata
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let metadata = metadata.collect();
        let (mut sizes, mut bytes) = (Vec::new(), Vec::new());
        let mut pieces = request.into_inner();
        while let Some(piece) = pieces.message().await? {
            sizes.push(piece.data.len());
            bytes.extend_from_slice(&piece.data);
        }
        self.0.lock().unwrap().push((metadata, sizes, bytes));
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }
}

#[test]
fn ses05_streams_come_in_pieces_with_what_they_are() {
    let bench = Bench::start();
    let sent = Sent::default();
    bench.rt.block_on(async {
        let headers = [
            (ID, "receiver"),
            (METHOD, "/moby.filesync.v1.FileSend/DiffCopy"),
        ];
        let service =
            FileSendServer::new(Receiver(sent.clone())).max_decoding_message_size(16 << 20);
        let client = serve(tunnel(&bench, &headers), Routes::new(service));
        let random = "head -c 9000000 /dev/urandom > /random";
        let state = bench.image().run(sh(random));
        let mut request = plain(&state, "a", "receiver");
        request
            .exporters
            .push(exporter("oci", &[("name", "example.com/x:1")]));
        request.exporters.push(exporter("tar", &[]));
        solve(&bench, request).await.unwrap();
        client.close().await;
    });
    let mut sent = std::mem::take(&mut *sent.lock().unwrap());
    let of = |metadata: &[(String, String)], name: &str| {
        let found = metadata.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone())
    };
    sent.sort_by_key(|(metadata, ..)| of(metadata, "buildkit-attachable-exporter-id"));
    assert_eq!(sent.len(), 2);
    for (number, (metadata, sizes, bytes)) in sent.iter().enumerate() {
        let id = of(metadata, "buildkit-attachable-exporter-id");
        assert_eq!(id.as_deref(), Some(number.to_string().as_str()));
        assert!(sizes.iter().all(|size| *size <= 3 << 20), "{sizes:?}");
        assert!(bytes.len() > 9_000_000);
        crate::client::Archive::read(bytes);
    }
    let digest = of(&sent[0].0, "exporter-md-containerimage.digest");
    assert!(
        digest.is_some_and(|digest| digest.starts_with("sha256:")),
        "{:?}",
        sent[0].0
    );
    assert_eq!(of(&sent[1].0, "exporter-md-containerimage.digest"), None);
    bench.end();
}

/// Names a tar, once it has seen the result.
#[derive(Clone, Default)]
struct Late {
    asked: Arc<Mutex<Vec<FindExportersRequest>>>,
    told: Arc<Mutex<Vec<FinalizeExportRequest>>>,
}

#[tonic::async_trait]
impl Exporters for Late {
    async fn find_exporters(
        &self,
        request: Request<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        let found = ExporterRequest {
            r#type: "tar".into(),
            ..ExporterRequest::default()
        };
        let exporters = vec![found];
        Ok(Response::new(FindExportersResponse { exporters }))
    }

    /// The second time it is not content.
    async fn finalize_export(
        &self,
        request: Request<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        let mut told = self.told.lock().unwrap();
        told.push(request.into_inner());
        match told.len() {
            1 => Ok(Response::new(FinalizeExportResponse {})),
            _ => Err(Status::unknown("not this one")),
        }
    }
}

#[test]
fn ses11_a_client_names_exporters_when_the_result_is_known() {
    let bench = Bench::start();
    let (sent, asked) = (Sent::default(), Late::default());
    bench.rt.block_on(async {
        let headers = [
            (ID, "late"),
            (METHOD, "/moby.filesync.v1.FileSend/DiffCopy"),
            (METHOD, "/moby.exporter.v1.Exporter/FindExporters"),
            (METHOD, "/moby.exporter.v1.Exporter/FinalizeExport"),
        ];
        let services = Routes::new(FileSendServer::new(Receiver(sent.clone())))
            .add_service(ExporterServer::new(asked.clone()));
        let client = serve(tunnel(&bench, &headers), services);
        let state = State::scratch().files(vec![mkfile("/foo", "x")]);
        solve(&bench, plain(&state, "unasked", "late"))
            .await
            .unwrap();
        assert!(asked.asked.lock().unwrap().is_empty());
        assert!(asked.told.lock().unwrap().is_empty());
        let mut request = plain(&state, "asked", "late");
        request.enable_session_exporter = true;
        request.exporters.push(exporter("oci", &[]));
        solve(&bench, request.clone()).await.unwrap();
        request.r#ref = "refused".into();
        let error = solve(&bench, request).await.unwrap_err();
        assert!(error.message().contains("not this one"), "{error}");
        client.close().await;
    });
    let (asked, told) = (asked.asked.lock().unwrap(), asked.told.lock().unwrap());
    assert_eq!((asked.len(), asked[0].refs.len()), (2, 1));
    assert!(told[0].exporter_response["containerimage.digest"].starts_with("sha256:"));
    let mut sent = std::mem::take(&mut *sent.lock().unwrap());
    // Those of the request come first.
    sent.retain(|(metadata, ..)| {
        let id = ("buildkit-attachable-exporter-id".to_owned(), "1".to_owned());
        metadata.contains(&id)
    });
    let [(_, _, bytes), _] = sent.as_slice() else {
        panic!("{} archives", sent.len());
    };
    assert_eq!(crate::client::Archive::read(bytes).entry("foo").data, b"x");
    bench.end();
}

/// Results that a client does not take are a failure that says so.
#[test]
fn ses05_a_result_that_nobody_takes_fails_the_build() {
    let bench = Bench::start();
    let state = State::scratch().files(vec![mkfile("/foo", "x")]);
    for kind in ["local", "tar", "oci"] {
        let mut solve = request(&state);
        solve.request.exporters.push(exporter(kind, &[]));
        let error = bench.try_solve(solve).unwrap_err().to_string();
        assert!(!error.is_empty(), "{kind}");
    }
    // A folder that cannot be written.
    let out = bench.folder();
    let at = out.path().join("file");
    std::fs::write(&at, "x").unwrap();
    let solve = crate::client::solve_to(request(&state), "local", &[], Output::Dir(at.clone()));
    bench.try_solve(solve).unwrap_err();
    assert_eq!(read(&at), "x");
    bench.end();
}

/// Names and patterns that are no ASCII go through headers that take no other.
#[test]
fn ses03_names_and_patterns_may_be_of_any_script() {
    let bench = Bench::start();
    let dir = bench.folder();
    for name in ["größe.txt", "klein.txt", "größe %20.md", "日本/語"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let chosen = |include: &[&str], exclude: &[&str]| {
        let strings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let local = Local {
            include: strings(include),
            exclude: strings(exclude),
            ..Local::default()
        };
        let state = State::local("größter", local, Default::default());
        let out = bench.export(with_dir(request(&state), "größter", dir.path()));
        let mut names: Vec<_> = std::fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(chosen(&["grö*"], &["*.md"]), ["größe.txt"]);
    assert_eq!(chosen(&["日本"], &[]), ["日本"]);
    assert_eq!(chosen(&["größe %20*"], &[]), ["größe %20.md"]);
    assert_eq!(chosen(&[], &["größe*"]), ["klein.txt", "日本"]);
    bench.end();
}

/// Only what changed is sent again, to a client that says that it is the same one.
#[test]
fn ses14_cm03_a_directory_is_continued_where_the_last_build_left_it() {
    let bench = Bench::start();
    let dir = bench.folder();
    std::fs::write(dir.path().join("large"), vec![b'x'; 3 << 20]).unwrap();
    std::fs::write(dir.path().join("small"), "one").unwrap();
    let local = Local {
        shared_key_hint: "context".into(),
        ..Local::default()
    };
    let state = State::local("context", local, Default::default());
    let build = |key: &str| {
        let mut solve = with_dir(request(&state), "context", dir.path());
        solve.shared_key = key.into();
        let out = bench.folder();
        let solve =
            crate::client::solve_to(solve, "local", &[], Output::Dir(out.path().to_owned()));
        let mut most = 0;
        let mut progress = |status: control::StatusResponse| {
            for status in status.statuses {
                if status.id.starts_with("transferring context") {
                    most = most.max(status.current);
                }
            }
        };
        let solving = bench.client.solve(solve, &mut progress);
        bench.rt.block_on(Box::pin(solving)).unwrap();
        (most, out)
    };
    let (first, _) = build("mine");
    assert!(first > 3 << 20, "{first}");
    std::fs::write(dir.path().join("small"), "other").unwrap();
    std::fs::write(dir.path().join("new"), "new").unwrap();
    let (second, out) = build("mine");
    assert!(second < 100 << 10, "{second}");
    assert_eq!(read(&out.path().join("small")), "other");
    assert_eq!(read(&out.path().join("new")), "new");
    assert_eq!(out.path().join("large").metadata().unwrap().len(), 3 << 20);
    // What is gone here is gone there.
    std::fs::remove_file(dir.path().join("small")).unwrap();
    let (third, out) = build("mine");
    assert!(third < 100 << 10, "{third}");
    assert!(!out.path().join("small").exists());
    // Another client begins anew.
    let (other, _) = build("yours");
    assert!(other > 3 << 20, "{other}");
    bench.end();
}

/// Times, modes, links and folders as they are; owners are root's.
#[test]
fn ses13_files_are_described_as_they_are() {
    let bench = Bench::start();
    let dir = bench.folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("sticky")).unwrap();
    std::fs::write(at("program"), "x").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::os::unix::fs::symlink("/nowhere/at all", at("link")).unwrap();
    std::fs::hard_link(at("program"), at("same")).unwrap();
    let mode = |name: &str, mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(at(name), mode).unwrap();
    };
    mode("sticky", 0o1777);
    mode("program", 0o6751);
    mode("empty", 0o000);
    std::os::unix::fs::chown(at("program"), Some(1234), Some(5678)).unwrap();
    mode("program", 0o6751);
    let time = std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    std::fs::File::open(at("program"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let state = State::local("context", Local::default(), Default::default());
    let mut exec = sh(
        "cd /in; stat -c '%n %a %u:%g %F' sticky program empty link same > /out; \
         stat -c '%y' program >> /out; readlink link >> /out; \
         [ $(stat -c %i program) = $(stat -c %i same) ]",
    );
    exec.mounts.push(crate::client::read_only("/in", &state));
    let made = bench.image().run(exec);
    let made = State::scratch().copy(crate::client::copy(&made, "/out", "/"));
    let mut solve = request(&made);
    let tree = Tree::new(dir.path()).owned_by_root();
    solve.services.dirs.insert("context".into(), tree);
    let out = bench.export(solve);
    assert_eq!(
        read(&out.path().join("out")),
        "sticky 1777 0:0 directory\nprogram 6751 0:0 regular file\n\
         empty 0 0:0 regular empty file\nlink 777 0:0 symbolic link\nsame 6751 0:0 regular file\n\
         2009-02-13 23:31:30.123456789 +0000\n/nowhere/at all\n"
    );
    bench.end();
}

/// Credentials stay with the client: the daemon asks for them, for pulls and for pushes.
#[test]
fn ses06_exp02_credentials_of_the_client_open_registries() {
    let watch = leak::Watch::begin();
    let open = Registry::start();
    let closed = Registry::with_login();
    let base = push_busybox(&open);
    let daemon = Daemon::start();
    let image = format!("{}/private/one:1", closed.host());
    let first = Files_::new().file("Dockerfile", format!("FROM {base}\nRUN echo one > /one\n"));
    let second = Files_::new().file("Dockerfile", format!("FROM {image}\nRUN cat /one > /two\n"));
    for client in Client::of(&daemon) {
        client
            .build(&first, &["--push", "--tag", &image])
            .fails_with(&["failed to push", &image, "401"]);
        let home = match &client {
            Client::Buildx(buildx) => buildx.config().to_owned(),
            Client::Cooper { home, .. } | Client::Alone { home } => home.path().to_owned(),
        };
        let login = |password: &str| {
            // `someone:PASSWORD` as base64.
            let auth = match password {
                "sesame" => "c29tZW9uZTpzZXNhbWU=",
                _ => "c29tZW9uZTp3cm9uZw==",
            };
            let config = serde_json::json!({ "auths": { closed.host(): { "auth": auth } } });
            std::fs::write(home.join("config.json"), config.to_string()).unwrap();
        };
        login("wrong");
        client
            .build(&first, &["--push", "--tag", &image])
            .fails_with(&[&image, "401"]);
        login("sesame");
        client.build(&first, &["--push", "--tag", &image]).success();
        // From one that needs them to one that does not, and to itself under another name.
        let out = Out::new();
        client.build(&second, &[&out.local("x")]).success();
        assert_eq!(out.read("x/two"), "one\n");
        let (other, third) = (
            format!("{}/public/two:1", open.host()),
            format!("{}/private/three:1", closed.host()),
        );
        client
            .build(&second, &["--push", "--tag", &other, "--tag", &third])
            .success();
        assert_eq!(cooper_testkit::Pulled::registry(&other).layers(), 3);
        std::fs::remove_file(home.join("config.json")).unwrap();
    }
    assert!(!daemon.log().contains("sesame"));
    drop((daemon, open, closed, first, second));
    watch.check();
}

/// Services of a client by its own server: several exporters and directories at once.
#[test]
fn ctl06_a_tunnel_carries_many_calls_at_once() {
    let bench = Bench::start();
    let dirs: Vec<_> = (0..8).map(|_| bench.folder()).collect();
    let mut states = Vec::new();
    let mut services = Services::default();
    for (number, dir) in dirs.iter().enumerate() {
        let name = format!("dir{number}");
        std::fs::write(dir.path().join(&name), vec![b'0'; 1 << 20]).unwrap();
        services.dirs.insert(name.clone(), Tree::new(dir.path()));
        states.push(State::local(&name, Local::default(), Default::default()));
    }
    let all = State::merge(&states, Default::default());
    let out = bench.folder();
    services
        .outputs
        .insert(0, Output::Dir(out.path().to_owned()));
    bench.rt.block_on(async {
        let headers = [
            (ID, "many"),
            (METHOD, "/moby.filesync.v1.FileSync/DiffCopy"),
            (METHOD, "/moby.filesync.v1.FileSend/DiffCopy"),
            (METHOD, "/grpc.health.v1.Health/Check"),
        ];
        let (tunnel, stop) = (tunnel(&bench, &headers), CancellationToken::new());
        let serving = serve::run(tunnel, &services, stop.clone());
        let building = async {
            let mut request = plain(&all, "a", "many");
            request.exporters.push(exporter("local", &[]));
            let solved = solve(&bench, request).await;
            stop.cancel();
            solved
        };
        let (served, solved) = tokio::join!(serving, building);
        solved.unwrap();
        served.unwrap();
    });
    for number in 0..8 {
        let path = out.path().join(format!("dir{number}"));
        assert_eq!(path.metadata().unwrap().len(), 1 << 20);
    }
    bench.end();
}
