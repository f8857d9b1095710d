//! Registries that do not do what they should.

use std::net::TcpListener;

use cooper_testkit::{BrokenRegistry, Client, Context, Daemon, Fault, leak};

use crate::Out;

fn context(image: &str) -> Context {
    let dockerfile = format!("FROM {image}\nCOPY Dockerfile /copied\n");
    Context::new().file("Dockerfile", dockerfile)
}

#[test]
fn a_registry_that_fails_is_named_with_what_it_did() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let clients = Client::of(&daemon);
    let cases: [(Fault, &[&str]); 6] = [
        (
            Fault::NotFound,
            &[
                "Dockerfile:1",
                "failed to resolve source metadata",
                "not found",
            ],
        ),
        (
            Fault::Unauthorized,
            &[
                "Dockerfile:1",
                "failed to resolve source metadata",
                "401 Unauthorized",
            ],
        ),
        (
            Fault::ServerError,
            &[
                "Dockerfile:1",
                "failed to resolve source metadata",
                "500 Internal Server Error",
            ],
        ),
        (Fault::WrongManifest, &["Dockerfile:1", "digest"]),
        (Fault::WrongLayer, &["LAYER", "digest"]),
        // Last: what came of it is kept, and what is missing would be taken from the next one.
        (Fault::TruncatedLayer, &["LAYER", "unexpected EOF"]),
    ];
    for (fault, parts) in cases {
        for client in &clients {
            let registry = BrokenRegistry::start(fault);
            let image = registry.image();
            let ran = client.build(&context(&image), &["--output=type=cacheonly"]);
            eprintln!("{}: {fault:?} gives code {}", client.name(), ran.code);
            let layer = registry.layer();
            let mut parts: Vec<_> = parts
                .iter()
                .map(|part| if *part == "LAYER" { layer } else { part })
                .collect();
            parts.push(&image);
            ran.fails_with(&parts);
            assert!(daemon.is_running(), "after {fault:?}:\n{}", daemon.log());
        }
    }
    // Nobody at all.
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let image = format!("{}/image:latest", free.local_addr().unwrap());
    drop(free);
    for client in &clients {
        client
            .build(&context(&image), &["--output=type=cacheonly"])
            .fails_with(&["Dockerfile:1", &image, "onnection refused"]);
    }
    // One that does what it should, to the same daemon.
    let registry = BrokenRegistry::start(Fault::Nothing);
    let out = Out::new();
    for client in &clients {
        let ran = client.build(&context(&registry.image()), &[&out.local("x")]);
        ran.success();
        assert_eq!(std::fs::read(out.path("x/file")).unwrap().len(), 200_000);
    }
    drop((clients, daemon, registry, out));
    watch.check();
}

#[test]
fn a_push_that_fails_is_no_success() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    for client in Client::of(&daemon) {
        for (fault, part) in [
            (Fault::Unauthorized, "401 Unauthorized"),
            (Fault::ServerError, "500 Internal Server Error"),
        ] {
            let registry = BrokenRegistry::start(fault);
            let image = registry.image();
            client
                .build(&context, &["--push", "--tag", &image])
                .fails_with(&["failed to push", &image, part]);
        }
    }
    drop((daemon, context));
    watch.check();
}
