//! Where the daemon listens, and who may speak.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cooper_client::Client as Api;
use cooper_proto::control::SolveRequest;
use cooper_proto::control::control_client::ControlClient;
use cooper_testkit::{Buildx, Certificates, Context, Daemon, Ran, cooper, leak, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Out;

fn context() -> Context {
    Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY file /\n")
        .file("file", "content")
}

/// `cooper build` of the context at `address`.
fn build(context: &Context, address: &str, more: &[&str]) -> Ran {
    let home = Out::new();
    run(cooper(&home.path("home"))
        .args(["build", "--progress=plain", "--output=type=cacheonly"])
        .args(["--addr", address])
        .args(more)
        .arg(context.path()))
}

/// The option of each name, with the path of the file beside it.
fn options(certificates: &Certificates, pairs: &[(&str, &str)]) -> Vec<String> {
    let pairs = pairs.iter();
    pairs
        .map(|(option, file)| format!("--{option}={}", certificates.path(file)))
        .collect()
}

fn texts(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// A daemon that lets in who has a certificate.
fn guarded(certificates: &Certificates) -> Daemon {
    let mut flags = options(
        certificates,
        &[
            ("tlscert", "server.pem"),
            ("tlskey", "server-key.pem"),
            ("tlscacert", "ca.pem"),
        ],
    );
    flags.push("--addr=tcp://127.0.0.1:0".to_owned());
    // The address of the kit is the first one.
    Daemon::with_options("", &texts(&flags))
}

#[test]
fn ctl01_clients_with_certificates_build_over_tcp() {
    let watch = leak::Watch::begin();
    let certificates = Certificates::new();
    let daemon = guarded(&certificates);
    let address = daemon.tcp_addresses().remove(0);
    let (context, out) = (context(), Out::new());
    let file = |name: &str| certificates.path(name);
    let driver = format!(
        "cacert={},cert={},key={},servername=localhost",
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem")
    );
    let buildx = Buildx::with_driver_options(&address, &driver);
    buildx.build(&context, &[&out.local("buildx")]).success();
    assert_eq!(out.read("buildx/file"), "content");

    let own = [
        ("tlscacert", "ca.pem"),
        ("tlscert", "client.pem"),
        ("tlskey", "client-key.pem"),
    ];
    let own = options(&certificates, &own);
    let mut to_folder = texts(&own);
    let local = out.local("cooper");
    to_folder.push(&local);
    build(&context, &address, &to_folder).success();
    assert_eq!(out.read("cooper/file"), "content");
    // By the names that a folder of them has.
    for (from, to) in [("client.pem", "cert.pem"), ("client-key.pem", "key.pem")] {
        std::fs::copy(file(from), file(to)).unwrap();
    }
    let dir = format!("--tlsdir={}", certificates.dir().display());
    build(&context, &address, &[&dir, "--tlsservername=localhost"]).success();
    // Unix sockets stay as they are.
    build(&context, &daemon.address(), &[]).success();
    assert!(
        daemon.log().contains("TLS is disabled for unix://"),
        "{}",
        daemon.log()
    );
    drop((buildx, daemon, context, out, certificates));
    watch.check();
}

#[test]
fn ctl01_nobody_else_is_let_in() {
    let watch = leak::Watch::begin();
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let mut daemon = guarded(&certificates);
    let address = daemon.tcp_addresses().remove(0);
    let context = context();
    let ca = options(&certificates, &[("tlscacert", "ca.pem")]);
    let foreign = [("tlscert", "client.pem"), ("tlskey", "client-key.pem")];
    let foreign = [ca.clone(), options(&others, &foreign)].concat();
    let refuses = |more: &[String], expected: &str| {
        let begin = Instant::now();
        build(&context, &address, &texts(more)).fails_with(&[expected]);
        assert!(begin.elapsed() < Duration::from_secs(15), "{expected}");
    };
    // Without a certificate, with that of another authority, and without TLS.
    refuses(&ca, "failed to");
    refuses(&foreign, "failed to");
    refuses(&[], "failed to");
    // A daemon that another authority vouches for, and one of another name.
    refuses(
        &options(&others, &[("tlscacert", "ca.pem")]),
        "UnknownIssuer",
    );
    let name = "--tlsservername=other.example".to_owned();
    refuses(&[ca[0].clone(), name], "certificate not valid for name");
    refuses(&["--tlscacert=/no/such/file".to_owned()], "/no/such/file");
    refuses(
        &options(&certificates, &[("tlscert", "client.pem")]),
        "needs a key",
    );
    let log = daemon.log();
    assert!(log.contains("the TLS handshake with 127.0.0.1:"), "{log}");
    assert!(daemon.is_running());
    drop((daemon, context, certificates, others));
    watch.check();
}

#[test]
fn ctl01_a_certificate_of_the_server_alone_lets_everybody_in() {
    let watch = leak::Watch::begin();
    let certificates = Certificates::new();
    let (cert, key) = (
        certificates.path("server.pem"),
        certificates.path("server-key.pem"),
    );
    let config = format!("[grpc.tls]\ncert = {cert:?}\nkey = {key:?}\n");
    let daemon = Daemon::with_options(&config, &["--addr=tcp://127.0.0.1:0"]);
    let address = daemon.tcp_addresses().remove(0);
    let context = context();
    let ca = options(&certificates, &[("tlscacert", "ca.pem")]);
    build(&context, &address, &texts(&ca)).success();
    assert!(
        !daemon.log().contains("TLS is not enabled"),
        "{}",
        daemon.log()
    );
    drop((daemon, context, certificates));
    watch.check();
}

#[test]
fn ctl01_several_addresses_with_their_group() {
    let watch = leak::Watch::begin();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/second.sock");
    let second = format!("unix://{}", path.display());
    let options = ["--addr", &second, "--addr=tcp://127.0.0.1:0", "--group=12"];
    let daemon = Daemon::with_options("", &options);
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(
        (metadata.permissions().mode() & 0o777, metadata.gid()),
        (0o660, 12)
    );
    let context = context();
    let tcp = daemon.tcp_addresses().remove(0);
    for address in [&daemon.address(), &second, &tcp] {
        build(&context, address, &[]).success();
    }
    let buildx = Buildx::with_driver_options(&tcp, "");
    buildx
        .build(&context, &["--output=type=cacheonly"])
        .success();
    let log = daemon.log();
    assert!(
        log.contains("TLS is not enabled for tcp://127.0.0.1:0"),
        "{log}"
    );
    drop((buildx, daemon));
    assert!(!path.exists(), "the socket goes with the daemon");
    drop((context, dir));
    watch.check();
}

/// cooperd as a service manager starts it: with these sockets, beginning at descriptor 3.
fn activated(root: &Path, addresses: &[&str], names: &str, sockets: [OwnedFd; 2]) -> Command {
    let [first, second] = sockets;
    let mut command = Command::new("sh");
    // The shell's number becomes the daemon's.
    let script = "LISTEN_PID=$$ exec \"$@\" 3<&0 4<&1 </dev/null >/dev/null";
    command
        .args(["-c", script, "sh"])
        .arg(cooper_testkit::bin("cooperd"))
        .args(["--containerd-worker=false", "--oci-worker-gc=false"])
        .arg("--root")
        .arg(root)
        .args(addresses.iter().map(|address| format!("--addr={address}")))
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", names)
        .stdin(first)
        .stdout(second);
    command
}

#[test]
fn ctl01_sockets_of_a_service_manager() {
    let watch = leak::Watch::begin();
    let context = context();
    for (addresses, tcp_too) in [
        (&["fd://"] as &[&str], true),
        (&["fd://api", "fd://4"], true),
        (&["fd://api"], false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manager.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let sockets = [unix.into(), tcp.into()];
        let mut command = activated(&dir.path().join("root"), addresses, "api:web", sockets);
        let mut child = command.stderr(log).spawn().unwrap();
        // Only the daemon holds them now.
        drop(command);
        // A client may come before the daemon is ready: the sockets wait.
        build(&context, &format!("unix://{}", path.display()), &[]).success();
        if tcp_too {
            build(&context, &format!("tcp://{port}"), &[]).success();
        } else {
            TcpStream::connect(port).expect_err("nobody asked for it");
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let mut status = None;
        wait_until("cooperd stops", Duration::from_secs(20), || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(status.unwrap().success(), "{log}");
        // The manager's file is the manager's.
        assert!(path.exists());
    }
    drop(context);
    watch.check();
}

#[test]
fn ctl01_what_was_not_passed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = || -> [OwnedFd; 2] {
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap().into();
        [tcp(), tcp()]
    };
    let root = dir.path().join("root");
    let ends = |mut command: Command| {
        let ended = command
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output();
        let ended = ended.unwrap();
        assert!(!ended.status.success());
        String::from_utf8(ended.stderr).unwrap()
    };
    let said = ends(activated(&root, &["fd://other"], "api:web", sockets()));
    assert!(
        said.contains("no sockets found via socket activation"),
        "{said}"
    );
    // Variables that are somebody else's: systemd's rule.
    let mut command = activated(&root, &["fd://"], "", sockets());
    let script = "LISTEN_PID=1 exec \"$@\" 3<&0 4<&1 </dev/null >/dev/null";
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut foreign = Command::new("sh");
    foreign
        .args(["-c", script])
        .args(&arguments[2..])
        .env("LISTEN_FDS", "2");
    command.arg("unused");
    let said = ends(foreign);
    assert!(
        said.contains("no sockets found via socket activation"),
        "{said}"
    );
}

/// A Control client with no limits of its own.
async fn unlimited(path: std::path::PathBuf) -> ControlClient<tonic::transport::Channel> {
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let io = tokio::net::UnixStream::connect(path).await;
            io.map(hyper_util::rt::TokioIo::new)
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(dial).await.unwrap();
    ControlClient::new(channel).max_encoding_message_size(usize::MAX)
}

#[test]
fn ctl01_messages_are_taken_up_to_16_mib() {
    use prost::Message;
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let rt = tokio::runtime::Runtime::new().unwrap();
    let path = daemon.address().trim_start_matches("unix://").to_owned();
    let mut control = rt.block_on(unlimited(path.into()));
    // A request of exactly so many bytes; no frontend has its name.
    let request = |size: usize| {
        let of = |fill: usize| SolveRequest {
            r#ref: "large".to_owned(),
            frontend: "none.v0".to_owned(),
            frontend_attrs: [("fill".to_owned(), "x".repeat(fill))].into(),
            ..SolveRequest::default()
        };
        let overhead = of(size).encoded_len() - size;
        let request = of(size - overhead);
        assert_eq!(request.encoded_len(), size);
        request
    };
    let most = 16 << 20;
    let status = rt.block_on(control.solve(request(most))).unwrap_err();
    assert!(
        status.message().contains("none.v0"),
        "it was read: {status}"
    );
    let status = rt.block_on(control.solve(request(most + 1))).unwrap_err();
    assert!(!status.message().contains("none.v0"), "{status}");
    assert!(status.message().contains("16777216"), "{status}");
    // The connection goes on.
    let api = rt.block_on(Api::connect(&daemon.address())).unwrap();
    rt.block_on(api.info()).unwrap();
    drop((api, control, rt, daemon));
    watch.check();
}

#[test]
fn ctl01_a_thousand_connections_that_say_nothing() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let path = daemon.address().trim_start_matches("unix://").to_owned();
    let context = context();
    build(&context, &daemon.address(), &[]).success();
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count()
    };
    let before = open();
    let mut silent: Vec<_> = (0..1000)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    // Some begin to speak and do not go on, or speak something else.
    for (number, io) in silent.iter_mut().enumerate().skip(900) {
        let words: &[u8] = if number % 2 == 0 {
            b"PRI"
        } else {
            b"GET / HTTP/1.1\r\n\r\n"
        };
        let _ = io.write_all(words);
    }
    let begin = Instant::now();
    build(&context, &daemon.address(), &[]).success();
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    assert!(open() < before + 300, "{} of {before}", open());
    // Those that came first were sent away.
    silent[0]
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert!(matches!(silent[0].read(&mut [0]), Ok(0)));
    drop(silent);
    let limit = Duration::from_secs(10);
    wait_until("descriptors are closed", limit, || open() <= before + 5);
    drop((context, daemon));
    watch.check();
}
