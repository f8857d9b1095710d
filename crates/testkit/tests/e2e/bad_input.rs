//! Input that no program of good will sends, beyond what `mistakes`, `graphs`, `contexts` and
//! `registries` try: each is answered with an error that says what is wrong, the daemon goes on,
//! and nothing is left.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cooper_llb::build::State;
use cooper_proto::control::{ListWorkersRequest, SolveRequest};
use cooper_proto::fsutil::{Stat, packet::PacketType};
use cooper_proto::pb;
use cooper_session::stat::mode;
use cooper_testkit::{Client, Context, Daemon, leak, run, wait_until};
use prost::Message;

use crate::Out;
use crate::client::{Bench, Files, copy, local, mkfile, read_only, sh};
use crate::rogue::{self, Act, data, file, kind, last, stat};

const NOTHING: &str = "--output=type=cacheonly";

#[test]
fn options_that_make_no_sense_are_named() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["--build-arg=BUILDKIT_MULTI_PLATFORM=perhaps"],
            &["multi-platform", "perhaps"],
        ),
        (
            &["--build-arg=SOURCE_DATE_EPOCH=yesterday"],
            &["SOURCE_DATE_EPOCH", "yesterday"],
        ),
        (
            &["--build-arg=BUILDKIT_DOCKERFILE_CHECK=what=ever"],
            &["BUILDKIT_DOCKERFILE_CHECK"],
        ),
        (&["--platform=one/two/three/four/five"], &["one/two/three"]),
        (&["--platform=linux/amd64,,"], &["invalid"]),
        (&["--target=nowhere"], &["nowhere"]),
        (&["--build-context=extra=nothing://x"], &["nothing://x"]),
        (
            &["--file=no/such/Dockerfile"],
            &["o such file or directory"],
        ),
    ];
    for client in Client::of(&daemon) {
        for (args, parts) in cases {
            let mut all = vec![NOTHING];
            all.extend(args);
            let ran = client.build(&context, &all);
            eprintln!("{} {args:?}: {}", client.name(), last_line(&ran.output));
            ran.fails_with(parts);
        }
        // Odd, and in order: BuildKit and its clients take them.
        for arg in ["a b=c", "\u{e9}=\u{e9}", "x=a\nb", "NONE"] {
            client
                .build(&context, &[NOTHING, "--build-arg", arg])
                .success();
        }
        assert!(daemon.is_running(), "{}", daemon.log());
    }
    drop((daemon, context));
    watch.check();
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or_default()
}

/// A build that reads the client's files, and one of its checks.
fn reads(bench: &Bench, script: &str) -> State {
    let mut exec = sh(script);
    exec.mounts.push(read_only("/in", &local("context")));
    bench.image().run(exec)
}

#[test]
fn a_client_that_breaks_the_rules_of_sending_files_is_told_which() {
    let mut bench = Bench::start();
    let state = State::scratch().copy(copy(&local("context"), "/", "/"));
    let special = |path: &str, mode: u32, link: &str| {
        stat(Stat {
            path: path.into(),
            mode,
            linkname: link.into(),
            ..Stat::default()
        })
    };
    let dir = |path: &str| special(path, mode::DIR | 0o755, "");
    let cases: Vec<(Vec<Act>, &str)> = vec![
        // Content that nobody asked for: of no file, of a folder, and of one that has ended.
        (
            vec![file("a", 3), Act::Asked(0), data(7, "abc")],
            "invalid file request 7",
        ),
        (vec![dir("d"), data(0, "abc")], "invalid file request 0"),
        (
            vec![
                file("a", 3),
                Act::Asked(0),
                data(0, "abc"),
                data(0, ""),
                data(0, "abc"),
            ],
            "invalid file request 0",
        ),
        // The same file twice, and others where they cannot be.
        (
            vec![file("a", 0), file("a", 0)],
            "changes out of order: \"a\" \"a\"",
        ),
        (
            vec![dir("d"), file("d/x", 0), dir("d")],
            "changes out of order: \"d\" \"d/x\"",
        ),
        (vec![file("b", 0), file("a", 0)], "changes out of order"),
        (vec![file("d/x", 0)], "changes out of order: \"d/x\""),
        (
            vec![file("a", 0), file("a/x", 0)],
            "changes out of order: \"a/x\"",
        ),
        (
            vec![
                special("link", mode::SYMLINK | 0o777, "/etc"),
                file("link/passwd", 0),
            ],
            "changes out of order: \"link/passwd\"",
        ),
        (
            vec![file("a", 3), last(), file("b", 0)],
            "a file after the last one",
        ),
        // Names that lead elsewhere.
        (vec![file("../a", 0)], "../a"),
        (vec![file("/etc/passwd", 0)], "/etc/passwd"),
        (vec![dir("d"), file("d/../../a", 0)], "d/../../a"),
        (vec![file("a\0b", 0)], "a\\0b"),
        (vec![file("", 0)], "invalid"),
        (
            vec![special("hard", 0o644, "../../etc/passwd")],
            "invalid link hard to unknown path: \"../../etc/passwd\"",
        ),
        (
            vec![special("hard", 0o644, "later"), file("later", 0)],
            "invalid link hard to unknown path: \"later\"",
        ),
        (vec![file(&"n".repeat(300), 0)], "ile name too long"),
        // What a file may not be.
        (
            vec![special(
                "null",
                mode::DEVICE | mode::CHAR_DEVICE | 0o666,
                "",
            )],
            "device null is not allowed",
        ),
        // Ends that are none.
        (
            vec![file("a", 3), Act::Asked(0), kind(PacketType::PacketFin)],
            "the sender ended too early",
        ),
        (
            vec![file("a", 3), Act::Asked(0), Act::Hang],
            "session closed",
        ),
        (
            vec![file("a", 3), Act::Asked(0), Act::Fail("out of paper")],
            "out of paper",
        ),
        // More in one message than a message may have.
        (
            vec![file("a", 3), Act::Asked(0), data(0, vec![0; 16 << 20])],
            "message length too large",
        ),
    ];
    for ((acts, expected), number) in cases.into_iter().zip(1..) {
        let shown = format!("{acts:?}");
        let shown = &shown[..shown.len().min(200)];
        let error = rogue::build(&bench, &state, acts).unwrap_err();
        eprintln!("{error}");
        assert!(error.contains(expected), "{expected}: {error}\n{shown}");
        assert!(bench.daemon.is_running(), "{}", bench.daemon.log());
        // Its next attempt is as good as any, and finds nothing of the last.
        let honest = vec![
            stat(Stat {
                path: "good".into(),
                mode: 0o644,
                size: 4,
                // Another file than that of the attempt before: it has to be asked for.
                mod_time: number,
                ..Stat::default()
            }),
            last(),
            Act::Asked(0),
            data(0, "good"),
            data(0, ""),
        ];
        let check = reads(&bench, "test \"$(ls /in)\" = good");
        rogue::build(&bench, &check, honest).unwrap_or_else(|error| panic!("{error}\n{shown}"));
    }
    bench.end();
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_what_came_of_it() {
    let bench = Bench::start();
    let sent = |content: &[&str]| {
        let mut acts = vec![file("file", 10), last(), Act::Asked(0)];
        acts.extend(content.iter().map(|piece| data(0, *piece)));
        acts.push(data(0, ""));
        acts
    };
    // It grew, it shrank, it vanished: fsutil's senders say nothing of it.
    for pieces in [&["0123456789", "more"][..], &["012"], &[]] {
        let check = format!("test \"$(cat /in/file)\" = \"{}\"", pieces.concat());
        rogue::build(&bench, &reads(&bench, &check), sent(pieces)).unwrap();
    }
    // The daemon does not go by what it was told: the same file, whole again, is asked for.
    let check = "test \"$(cat /in/file)\" = 0123456789";
    rogue::build(&bench, &reads(&bench, check), sent(&["0123456789"])).unwrap();
    bench.end();
}

#[test]
fn a_context_that_changes_all_the_time_is_built_or_refused() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY . /\n");
    let stop = Arc::new(AtomicBool::new(false));
    for client in Client::of(&daemon) {
        stop.store(false, Ordering::Relaxed);
        let (path, stopped) = (context.path().to_owned(), stop.clone());
        let unrest = std::thread::spawn(move || {
            let mut round = 0_usize;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                for name in 0..20 {
                    let file = path.join(format!("file{name}"));
                    let dir = path.join(format!("dir{name}"));
                    match (round + name) % 4 {
                        0 => drop(std::fs::write(&file, vec![b'x'; 300_000])),
                        1 => drop(std::fs::write(&file, "short")),
                        2 => drop(std::fs::remove_file(&file)),
                        _ => {
                            let _ = std::fs::create_dir(&dir);
                            let _ = std::fs::write(dir.join("in"), "x");
                            let _ = std::fs::remove_dir_all(&dir);
                        }
                    }
                }
            }
        });
        for _ in 0..4 {
            let ran = client.build(&context, &[NOTHING]);
            if ran.code != 0 {
                // The client says which file it could not read, or the daemon which is missing.
                let text = last_line(&ran.output);
                assert!(text.contains("file") || text.contains("dir"), "{text}");
            }
            assert!(daemon.is_running(), "{}", daemon.log());
        }
        stop.store(true, Ordering::Relaxed);
        unrest.join().unwrap();
        // At rest, it is taken as it is.
        let out = Out::new();
        client.build(&context, &[&out.local("x")]).success();
        run(Command::new("diff")
            .arg("-r")
            .arg(context.path())
            .arg(out.path("x")))
        .success();
    }
    drop((daemon, context));
    watch.check();
}

#[test]
fn devices_and_sockets_of_a_context_do_no_harm() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY . /\n");
    let at = |name: &str| context.path().join(name);
    let socket = UnixListener::bind(at("socket")).unwrap();
    for client in Client::of(&daemon) {
        let out = Out::new();
        client.build(&context, &[&out.local("x")]).success();
        // As fsutil sends it: a file with nothing in it.
        assert_eq!(out.path("x/socket").metadata().unwrap().len(), 0);
    }
    for (name, kind) in [("null", "c"), ("disk", "b")] {
        run(Command::new("mknod").arg(at(name)).args([kind, "1", "3"])).success();
        for client in Client::of(&daemon) {
            let ran = client.build(&context, &[NOTHING]);
            ran.fails_with(&[&format!("device {name} is not allowed"), "ignore file"]);
            assert!(daemon.is_running(), "{}", daemon.log());
            // As the error says.
            context.write(".dockerignore", name);
            client.build(&context, &[NOTHING]).success();
            std::fs::remove_file(at(".dockerignore")).unwrap();
        }
        std::fs::remove_file(at(name)).unwrap();
    }
    drop((daemon, context, socket));
    watch.check();
}

/// Kind, name, target of a link.
type RawEntry = (tar::EntryType, &'static str, &'static str);

/// A tar of entries that a packer would not make.
fn archive(entries: &[RawEntry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        let content: &[u8] = match (*kind, *name) {
            (tar::EntryType::Regular, "Dockerfile") => b"FROM scratch\nCOPY . /\n",
            (tar::EntryType::Regular, _) => b"content",
            _ => b"",
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Archives that lead out of where they are unpacked, and what is said of them. Where nothing
/// is, what leads out stays inside.
type Escape = (&'static [RawEntry], Option<&'static str>, &'static str);

const ESCAPES: &[Escape] = {
    use tar::EntryType::{Char, Link, Regular, Symlink};
    &[
        (
            &[(Regular, "../escaped", "")],
            Some("archive path \"../escaped\" is outside extraction root"),
            "",
        ),
        (
            &[(Regular, "a/../../../../../../../../escaped", "")],
            Some("is outside extraction root"),
            "",
        ),
        (
            &[(Symlink, "up", "../../.."), (Regular, "up/escaped", "")],
            Some("archive path \"up/escaped\" points outside extraction root"),
            "",
        ),
        (
            &[(Link, "hard", "../../../../../../etc/passwd")],
            Some("is outside extraction root"),
            "",
        ),
        (
            &[(Link, "hard", "/etc/hostname")],
            Some("hard: no such file or directory"),
            "",
        ),
        (&[(Regular, "/escaped", "")], None, "escaped"),
        (
            &[(Symlink, "abs", "/elsewhere"), (Regular, "abs/escaped", "")],
            None,
            "elsewhere/escaped",
        ),
        (&[(Char, "null", ""), (Regular, "plain", "")], None, "plain"),
    ]
};

#[test]
fn archives_that_lead_out_stay_inside_or_are_refused_as_add() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    for (entries, error, made) in ESCAPES {
        let context = Context::new()
            .file("Dockerfile", "FROM scratch\nADD a.tar /to/\n")
            .file("a.tar", archive(entries));
        for client in Client::of(&daemon) {
            let out = Out::new();
            let ran = client.build(&context, &[&out.local("x")]);
            match error {
                Some(error) => {
                    drop(ran.fails_with(&[
                        "Dockerfile:2",
                        ">>> ADD a.tar /to/",
                        "failed to unpack a.tar",
                        error,
                    ]));
                }
                None => {
                    ran.success();
                    let made = out.path("x/to").join(made);
                    assert_eq!(std::fs::read_to_string(made).unwrap(), "content");
                    assert!(!out.path("x/to/null").exists());
                }
            }
            assert!(daemon.is_running(), "{}", daemon.log());
        }
    }
    assert!(!Path::new("/escaped").exists());
    drop(daemon);
    watch.check();
}

#[test]
fn archives_that_lead_out_stay_inside_or_are_refused_as_contexts() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    for (entries, error, made) in ESCAPES {
        let mut all = vec![(tar::EntryType::Regular, "Dockerfile", "")];
        all.extend(*entries);
        let context = Context::new().file("context.tar", archive(&all));
        let server = Server::start(archive(&all));
        for client in Client::of(&daemon) {
            for from in [From::Stdin, From::Http] {
                let out = Out::new();
                let to = out.local("x");
                let args = [to.as_str()];
                let ran = match from {
                    From::Stdin => {
                        let command = client.command(Path::new("-"), &args);
                        run(&mut fed(command, &context.path().join("context.tar")))
                    }
                    From::Http => run(&mut client.command(Path::new(&server.url), &args)),
                };
                match error {
                    Some(error) => drop(ran.fails_with(&[error])),
                    None => {
                        ran.success();
                        let made = out.path("x").join(made);
                        assert_eq!(std::fs::read_to_string(made).unwrap(), "content");
                        assert!(!out.path("x/null").exists());
                    }
                }
                assert!(daemon.is_running(), "{}", daemon.log());
            }
        }
    }
    // Neither an archive nor a Dockerfile, and an archive that breaks off.
    let whole = archive(&[
        (tar::EntryType::Regular, "Dockerfile", ""),
        (tar::EntryType::Regular, "file", ""),
    ]);
    let torn = whole[..1540].to_vec();
    let context = Context::new()
        .file("noise", vec![0xff; 100_000])
        .file("torn", torn);
    for client in Client::of(&daemon) {
        for name in ["noise", "torn"] {
            let command = client.command(Path::new("-"), &[NOTHING]);
            let ran = run(&mut fed(command, &context.path().join(name)));
            eprintln!("{name}: {}", last_line(&ran.output));
            ran.fails_with(&[]);
            assert!(daemon.is_running(), "{}", daemon.log());
        }
    }
    drop((daemon, context));
    watch.check();
}

enum From {
    Stdin,
    Http,
}

/// The command with a file as its standard input, which `run` would make empty.
fn fed(command: Command, file: &Path) -> Command {
    let mut fed = Command::new("sh");
    fed.args(["-c", "exec \"$@\" < \"$INPUT\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("INPUT", file);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            fed.env(name, value);
        }
    }
    fed
}

/// A server of one file.
struct Server {
    url: String,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}/context.tar", listener.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut lines = lines.map_while(Result::ok);
                let head = lines.next().is_some_and(|line| line.starts_with("HEAD"));
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let length = content.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                if !head {
                    let _ = stream.write_all(&content);
                }
            }
        });
        Self { url, stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let host = self.url.split('/').nth(2).unwrap_or_default();
        let _ = std::net::TcpStream::connect(host);
    }
}

#[test]
fn a_message_that_is_too_large_is_refused_and_the_connection_lives() {
    let bench = Bench::start();
    const MOST: usize = 16 << 20;
    // A graph of one file, with an option beside it that fills the message up.
    let made = State::scratch().files(vec![mkfile("/file", "content")]);
    let sized = |name: &str, size: usize| {
        let mut request = crate::client::request(&made).request;
        request.r#ref = format!("large-{name}");
        let filler = |length: usize| "x".repeat(length);
        request
            .frontend_attrs
            .insert("filler".into(), filler(size - 1000));
        let missing = size - request.encoded_len();
        request
            .frontend_attrs
            .insert("filler".into(), filler(size - 1000 + missing));
        assert_eq!(request.encoded_len(), size);
        request
    };
    let solve = |request: SolveRequest| {
        let mut control = bench.client.control().max_encoding_message_size(4 * MOST);
        bench.rt.block_on(async {
            let answer = tokio::time::timeout(Duration::from_secs(60), control.solve(request));
            answer.await.expect("an answer").map(drop)
        })
    };
    solve(sized("most", MOST)).unwrap();
    let status = solve(sized("more", MOST + 1)).unwrap_err();
    assert!(status.message().contains("16777217"), "{status:?}");
    assert!(status.message().contains("16777216"), "{status:?}");
    let status = solve(sized("much", 3 * MOST)).unwrap_err();
    assert!(status.message().contains("50331648"), "{status:?}");
    // A definition that is nothing but large.
    let mut request = crate::client::request(&made).request;
    let definition = request
        .definition
        .get_or_insert_with(pb::Definition::default);
    definition.def = vec![vec![0xff_u8; MOST - 4096].into()];
    let status = solve(request).unwrap_err();
    assert!(!status.message().is_empty());
    // On the same connection.
    let mut control = bench.client.control();
    let workers = bench
        .rt
        .block_on(control.list_workers(ListWorkersRequest::default()));
    assert_eq!(workers.unwrap().into_inner().record.len(), 1);
    let peak = bench.daemon.memory_kib("VmHWM");
    assert!(peak < 400 << 10, "{peak} KiB for messages of 16 MiB");
    bench.end();
}

#[test]
fn a_thousand_connections_that_say_nothing_are_in_nobodys_way() {
    let watch = leak::Watch::begin();
    let mut daemon = Daemon::start();
    let context = Context::new().file("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let socket = daemon.address().trim_start_matches("unix://").to_owned();
    let open = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
        descriptors.unwrap().count()
    };
    let before = (open(), daemon.memory_kib("VmRSS"));
    let mut silent: Vec<UnixStream> = (0..1000)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    for (number, stream) in silent.iter_mut().enumerate() {
        // Some say half of a greeting, some something else.
        let said: &[u8] = match number % 4 {
            0 => b"PRI * HTTP/2.0\r\n\r\nSM",
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            2 => b"GET / HTTP/1.1\r\n",
            _ => b"",
        };
        let _ = stream.write_all(said);
    }
    for client in Client::of(&daemon) {
        client.build(&context, &[NOTHING]).success();
    }
    let grown = daemon.memory_kib("VmRSS") - before.1;
    assert!(grown < 96 << 10, "{grown} KiB for a thousand connections");
    drop(silent);
    wait_until("they are closed", Duration::from_secs(5), || {
        open() <= before.0 + 5
    });

    // More than it may have open: it serves whom it has, and the others when it can.
    run(Command::new("prlimit").args([
        format!("--pid={}", daemon.pid()),
        "--nofile=200:200".to_owned(),
    ]))
    .success();
    let silent: Vec<UnixStream> = (0..400)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    wait_until("no more fit", Duration::from_secs(5), || open() >= 199);
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let begun = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks() - begun;
    assert!(spent < 30, "{spent} of 100 ticks spent on waiting");
    drop(silent);
    for client in Client::of(&daemon) {
        client.build(&context, &[NOTHING]).success();
    }
    assert!(daemon.is_running(), "{}", daemon.log());
    drop((daemon, context));
    watch.check();
}
