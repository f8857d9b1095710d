//! Contexts that were made to do harm, or by accident do.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;

use cooper_testkit::{Client, Context, Daemon, leak, run};

use crate::Out;

#[test]
fn src02_links_lead_nowhere_outside() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new().file("inside/file", "inside");
    let path = context.path();
    symlink("b", path.join("a")).unwrap();
    symlink("a", path.join("b")).unwrap();
    symlink("../../../../../../../../etc/hostname", path.join("up")).unwrap();
    symlink("/etc/hostname", path.join("absolute")).unwrap();
    symlink("..", path.join("inside/parent")).unwrap();
    symlink("inside", path.join("folder")).unwrap();
    let out = Out::new();
    for client in Client::of(&daemon) {
        // All of it, links as links.
        context.write("Dockerfile", "FROM scratch\nCOPY . /\n");
        client.build(&context, &[&out.local("all")]).success();
        let link = std::fs::read_link(out.path("all/up")).unwrap();
        assert!(link.starts_with("../.."), "{link:?}");
        assert_eq!(
            std::fs::read_link(out.path("all/a")).unwrap(),
            OsStr::new("b")
        );
        // Through a folder that is a link, inside.
        context.write("Dockerfile", "FROM scratch\nCOPY folder/file /\n");
        client.build(&context, &[&out.local("one")]).success();
        assert_eq!(out.read("one/file"), "inside");
        for name in ["up", "absolute"] {
            // BuildKit's clients and daemons stop at the root of the context.
            context.write("Dockerfile", format!("FROM scratch\nCOPY {name}/x /\n"));
            let ran = client.build(&context, &[&out.local(name)]);
            ran.fails_with(&["Dockerfile:2"]);
        }
        context.write("Dockerfile", "FROM scratch\nCOPY a/x /\n");
        client
            .build(&context, &[&out.local("loop")])
            .fails_with(&["Dockerfile:2"]);
    }
    drop((daemon, out, context));
    watch.check();
}

#[test]
fn ses13_a_name_that_is_no_text_is_told_and_not_fatal() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY . /\n");
    let name = OsStr::from_bytes(b"bad-\xff\xfe.txt");
    std::fs::write(context.path().join(name), "x").unwrap();
    let fine = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    for client in Client::of(&daemon) {
        let ran = client.build(&context, &["--output=type=cacheonly"]);
        if ran.code != 0 {
            let text = ran.output.to_lowercase();
            assert!(text.contains("utf-8") || text.contains("utf8"), "{text}");
            // By its place among the others, or as well as it can be shown; BuildKit does not say
            // which it is.
            assert!(
                daemon.engine().is_some()
                    || text.contains("after \"dockerfile\"")
                    || text.contains("bad-"),
                "{text}"
            );
        }
        assert!(daemon.is_running(), "{}", daemon.log());
        client.build(&fine, &["--output=type=cacheonly"]).success();
    }
    drop((daemon, context, fine));
    watch.check();
}

#[test]
fn ses13_exp04_special_files_and_a_result_over_a_link_do_no_harm() {
    let watch = leak::Watch::begin();
    let daemon = Daemon::start();
    let context = Context::new()
        .file("Dockerfile", "FROM scratch\nCOPY . /\n")
        .file("file", "new");
    let fifo = context.path().join("fifo");
    run(Command::new("mkfifo").arg(&fifo)).success();
    let out = Out::new();
    let client = Client::buildx(&daemon);
    // A pipe has nobody at its other end: who opens it waits for ever.
    client
        .build(&context, &["--output=type=cacheonly"])
        .success();
    std::fs::remove_file(&fifo).unwrap();
    std::fs::create_dir(out.path("x")).unwrap();
    std::fs::write(out.path("precious"), "old").unwrap();
    symlink("../precious", out.path("x/file")).unwrap();
    client.build(&context, &[&out.local("x")]).success();
    assert_eq!(out.read("precious"), "old");
    assert_eq!(out.read("x/file"), "new");
    drop((client, daemon, out, context));
    watch.check();
}
