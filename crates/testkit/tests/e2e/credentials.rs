//! Credentials where people keep them, and proxies.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cooper_testkit::{Client, Context, Daemon, Ran, Registry, leak, run};

use crate::Out;

/// What the registry of the kit lets in, as Docker's clients write it: `someone:sesame`.
const LOGIN: &str = "c29tZW9uZTpzZXNhbWU=";

/// A helper that keeps it for one registry, and answers to `get` only.
fn helper(dir: &Path, host: &str) {
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r key\necho asked for $key >> {}\n\
         [ \"$key\" = {host} ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
         echo '{{\"ServerURL\": \"\", \"Username\": \"someone\", \"Secret\": \"sesame\"}}'\n",
        dir.join("asked").display()
    );
    let path = dir.join("docker-credential-kit");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A build with this configuration file, which finds the helpers in `dir`.
fn with_config(client: &Client, context: &Context, args: &[&str], dir: &Path, json: &str) -> Ran {
    let config = tempfile::tempdir_in(dir).unwrap();
    std::fs::write(config.path().join("config.json"), json).unwrap();
    let mut path = dir.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    run(client
        .command(context.path(), args)
        .env("DOCKER_CONFIG", config.path())
        .env("PATH", path))
}

#[test]
fn ses06_credentials_come_from_where_people_keep_them() {
    let watch = leak::Watch::begin();
    let registry = Registry::with_login();
    let host = registry.host();
    let daemon = Daemon::start();
    let dir = Out::new();
    helper(dir.0.path(), &host);
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let places = [
        format!(r#"{{"auths": {{"{host}": {{"auth": "{LOGIN}"}}}}}}"#),
        format!(
            r#"{{"auths": {{"http://{host}/v2/": {{"username": "someone", "password": "sesame"}}}}}}"#
        ),
        r#"{"credsStore": "kit"}"#.to_owned(),
        format!(r#"{{"credHelpers": {{"{host}": "kit"}}, "credsStore": "none-of-that-name"}}"#),
    ];
    let clients = [Client::cooper(&daemon), Client::alone()];
    for client in &clients {
        for (number, json) in places.iter().enumerate() {
            let image = format!("{host}/{}:{number}", client.name().replace([' ', '-'], ""));
            let args = ["--push", "--tag", &image];
            with_config(client, &context, &args, dir.0.path(), json).success();
            // What is pulled is asked for anew.
            let dockerfile = format!("FROM {image}\nCOPY Dockerfile /pulled\n");
            let pulling = Context::new().file("Dockerfile", dockerfile);
            let to = dir.local(&format!("{}-{number}", client.name()));
            with_config(client, &pulling, &["--pull", &to], dir.0.path(), json).success();
        }
        // Nobody, and somebody with another password.
        let image = format!("{host}/refused:1");
        let wrong = format!(
            r#"{{"auths": {{"{host}": {{"username": "someone", "password": "open-up"}}}}}}"#
        );
        for json in ["{}", &wrong] {
            let args = ["--push", "--tag", &image];
            let ran = with_config(client, &context, &args, dir.0.path(), json);
            let ran = ran.fails_with(&["failed to push", "401 Unauthorized"]);
            assert!(!ran.output.contains("open-up"), "{}", ran.output);
        }
        let ran = with_config(
            client,
            &context,
            &["--push", "--tag", &image],
            dir.0.path(),
            r#"{"credsStore": "none-of-that-name"}"#,
        );
        ran.fails_with(&["docker-credential-none-of-that-name"]);
    }
    assert!(dir.read("asked").contains(&format!("asked for {host}")));
    for secret in ["sesame", LOGIN, "open-up"] {
        assert!(!daemon.log().contains(secret), "{}", daemon.log());
    }
    drop((clients, daemon, registry, context, dir));
    watch.check();
}

#[test]
fn ses06_a_broken_configuration_is_named_and_not_shown() {
    let watch = leak::Watch::begin();
    let client = Client::alone();
    let dir = Out::new();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let json = r#"{"auths": {"x": {"auth": ["c2VjcmV0"]}}}"#;
    let ran = with_config(&client, &context, &[], dir.0.path(), json);
    let ran = ran.fails_with(&["config.json"]);
    assert!(!ran.output.contains("c2VjcmV0"), "{}", ran.output);
    drop((client, context, dir));
    watch.check();
}

/// Notes the first line of every request, and refuses it.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let into = asked.clone();
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for io in listener.incoming() {
                let mut io = io.unwrap();
                io.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut buffer = [0; 1024];
                let count = io.read(&mut buffer).unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                let line = text.lines().next().unwrap_or_default().to_owned();
                into.lock().unwrap().push(line);
                let _ = io.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn without_proxies(command: &mut Command) -> &mut Command {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

#[test]
fn proxies_of_the_environment_are_used_but_for_what_they_are_not_for() {
    let watch = leak::Watch::begin();
    let proxy = Proxy::start();
    let client = Client::alone();
    let context = Context::new().file("Dockerfile", "FROM registry.invalid/image\n");
    for (variables, reached) in [
        (&[("HTTPS_PROXY", "ADDRESS")] as &[_], true),
        (&[("https_proxy", "http://ADDRESS")], true),
        (
            &[("HTTPS_PROXY", "ADDRESS"), ("NO_PROXY", "other.invalid")],
            true,
        ),
        (
            &[("HTTPS_PROXY", "ADDRESS"), ("no_proxy", ".invalid")],
            false,
        ),
        (&[("HTTP_PROXY", "ADDRESS")], false),
    ] {
        let mut command = client.command(context.path(), &["--output=type=cacheonly"]);
        without_proxies(&mut command);
        for (name, value) in variables {
            command.env(name, value.replace("ADDRESS", &proxy.address));
        }
        run(&mut command).fails_with(&["registry.invalid/image"]);
        let asked = proxy.asked();
        let found = asked
            .iter()
            .any(|line| line.starts_with("CONNECT registry.invalid:443 "));
        assert_eq!(found, reached, "{variables:?}: {asked:?}");
    }
    drop(context);
    // This machine is no stranger.
    let registry = Registry::start();
    let image = format!("{}/image:1", registry.host());
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let mut command = client.command(context.path(), &["--push", "--tag", &image]);
    let proxy_url = format!("http://{}", proxy.address);
    run(without_proxies(&mut command).env("HTTP_PROXY", proxy_url)).success();
    assert_eq!(proxy.asked(), [""; 0]);
    drop((client, context, registry));
    watch.check();
}

#[test]
fn builds_are_told_of_the_proxies_of_the_configuration() {
    let watch = leak::Watch::begin();
    let client = Client::alone();
    let dir = Out::new();
    let context = Context::new()
        .file(
            "Dockerfile",
            "FROM scratch\nARG HTTP_PROXY\nARG no_proxy\nCOPY file /${HTTP_PROXY}-${no_proxy}\n",
        )
        .file("file", "x");
    let json = r#"{"proxies": {"default": {"httpProxy": "upper", "noProxy": "lower"}}}"#;
    let to = dir.local("out");
    with_config(&client, &context, &[&to], dir.0.path(), json).success();
    assert_eq!(dir.read("out/upper-lower"), "x");
    // What is said on the command line counts more.
    let to = dir.local("own");
    let args = [&*to, "--build-arg=HTTP_PROXY=own"];
    with_config(&client, &context, &args, dir.0.path(), json).success();
    assert_eq!(dir.read("own/own-lower"), "x");
    drop((client, context, dir));
    watch.check();
}
