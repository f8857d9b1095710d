//! Commands, users and folders, and those that are not there.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::{Fixture, shell};
use crate::{ContainerSpec, ExecError, Process};

/// Runs what cannot be run and returns what is said about it: by the executor, or by the
/// runtime on standard error.
async fn complaint(fixture: &Fixture, container: ContainerSpec, mut process: Process) -> String {
    let written = super::Written::default();
    process.stdout = written.output();
    process.stderr = written.output();
    let text = match fixture.executor.start(container, process).await {
        Err(error) => {
            let source = std::error::Error::source(&error);
            let source = source.map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        }
        Ok(running) => {
            let exit = running.wait().await.unwrap();
            assert!(!exit.success() && !exit.oom, "{exit}: {}", written.text());
            written.text()
        }
    };
    text.to_lowercase()
}

fn file(fixture: &Fixture, name: &str, text: &str, mode: u32) {
    let path = fixture.path("rootfs").join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub(super) async fn a_missing_command_is_named(fixture: &Fixture) {
    for program in ["/no/such/program", "no-such-program"] {
        let process = Process {
            env: vec!["PATH=/bin".into()],
            ..Process::new([program])
        };
        let text = complaint(fixture, fixture.container(), process).await;
        assert!(text.contains(program), "{text}");
        let reason = ["no such file or directory", "executable file not found"];
        assert!(reason.iter().any(|reason| text.contains(reason)), "{text}");
    }
}

pub(super) async fn a_command_is_looked_up_in_the_path_of_its_environment(fixture: &Fixture) {
    std::fs::create_dir(fixture.path("rootfs/own")).unwrap();
    file(fixture, "own/program", "#!/bin/sh\necho own $1\n", 0o755);
    let process = Process {
        env: vec!["PATH=/nowhere:/own:/bin".into()],
        ..Process::new(["program", "word"])
    };
    let (_, text) = fixture.run(fixture.container(), process).await;
    assert_eq!(text, "own word\n");
}

pub(super) async fn a_command_that_is_not_executable_is_named(fixture: &Fixture) {
    file(fixture, "tmp/plain", "#!/bin/sh\n", 0o644);
    std::fs::create_dir(fixture.path("rootfs/tmp/folder")).unwrap();
    for program in ["/tmp/plain", "/tmp/folder"] {
        let process = Process::new([program]);
        let text = complaint(fixture, fixture.container(), process).await;
        let named = text.contains(program) || fixture.quirks.hides_program;
        assert!(named, "{text}");
        let reason = ["permission denied", "is a directory"];
        let told = reason.iter().any(|reason| text.contains(reason));
        // Nor does that runtime tell a folder apart.
        let told = told || (fixture.quirks.hides_program && text.contains("not permitted"));
        assert!(told, "{text}");
    }
}

pub(super) async fn a_missing_interpreter_is_an_error(fixture: &Fixture) {
    file(fixture, "tmp/script", "#!/no/such/interpreter\n", 0o755);
    let process = Process::new(["/tmp/script"]);
    let text = complaint(fixture, fixture.container(), process).await;
    assert!(text.contains("no such file or directory"), "{text}");
}

pub(super) async fn a_file_that_is_no_program_is_an_error(fixture: &Fixture) {
    file(fixture, "tmp/no-program", "neither a script\n", 0o755);
    let process = Process::new(["/tmp/no-program"]);
    let text = complaint(fixture, fixture.container(), process).await;
    assert!(text.contains("exec format error"), "{text}");
}

pub(super) async fn arguments_are_as_given(fixture: &Fixture) {
    let odd = ["", " ", "a b", "\"'\\$x`", "new\nline", "ü€", "-n", "*"];
    let mut process = shell("for word in \"$@\"; do printf '<%s>' \"$word\"; done");
    process.args.push("sh".into());
    process.args.extend(odd.map(str::to_owned));
    let (_, text) = fixture.run(fixture.container(), process).await;
    let expected: String = odd.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(text, expected);
}

pub(super) async fn arguments_can_be_long(fixture: &Fixture) {
    // The kernel takes 128 KiB each (execve(2)).
    let mut process = shell("echo ${#1} ${#2}");
    process.args.push("sh".into());
    process
        .args
        .extend(["x".repeat(120_000), "y".repeat(130_000)]);
    process.env.push(format!("LONG={}", "z".repeat(100_000)));
    let (exit, text) = fixture.run(fixture.container(), process).await;
    assert_eq!((exit.code, text.as_str()), (0, "120000 130000\n"));
}

pub(super) async fn a_working_directory_that_is_a_file_is_named(fixture: &Fixture) {
    file(fixture, "tmp/plain", "", 0o644);
    for cwd in ["/tmp/plain", "/tmp/plain/below"] {
        let process = Process {
            cwd: cwd.into(),
            ..shell("true")
        };
        let text = complaint(fixture, fixture.container(), process).await;
        assert!(text.contains(cwd), "{text}");
        assert!(text.contains("not a directory"), "{text}");
    }
}

pub(super) async fn a_working_directory_can_be_a_link(fixture: &Fixture) {
    symlink("/tmp/made", fixture.path("rootfs/link")).unwrap();
    let process = Process {
        cwd: "/link/deep".into(),
        ..shell("/bin/pwd -P")
    };
    let (exit, text) = fixture.run(fixture.container(), process).await;
    assert_eq!((exit.code, text.as_str()), (0, "/tmp/made/deep\n"));
    assert!(fixture.path("rootfs/tmp/made/deep").is_dir());
}

pub(super) async fn a_working_directory_is_not_made_outside(fixture: &Fixture) {
    let outside = fixture.folder("outside");
    symlink(&outside, fixture.path("rootfs/absolute")).unwrap();
    symlink("../outside", fixture.path("rootfs/relative")).unwrap();
    for cwd in ["/absolute/a", "/relative/b", "/../outside/c"] {
        let process = Process {
            cwd: cwd.into(),
            ..shell("true")
        };
        let _ = fixture.run(fixture.container(), process).await;
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{cwd}");
    }
}

pub(super) async fn a_missing_user_or_group_is_named(fixture: &Fixture) {
    let cases = [
        (
            "nobody",
            "unable to find user nobody: no matching entries in passwd file",
        ),
        (
            "app:none",
            "unable to find group none: no matching entries in group file",
        ),
        ("-1", "uids and gids must be in range 0-2147483647"),
        ("4294967296", "uids and gids must be in range 0-2147483647"),
    ];
    for (user, expected) in cases {
        let process = Process {
            user: user.into(),
            ..shell("true")
        };
        let error = fixture.executor.start(fixture.container(), process).await;
        assert_eq!(error.err().unwrap().to_string(), expected);
    }
}

pub(super) async fn users_need_no_files(fixture: &Fixture) {
    for name in ["etc/passwd", "etc/group"] {
        std::fs::remove_file(fixture.path("rootfs").join(name)).unwrap();
    }
    for (user, expected) in [("", "0 0"), ("7", "7 0"), ("7:8", "7 8"), ("0:9", "0 9")] {
        let process = Process {
            user: user.into(),
            ..shell("echo $(id -u) $(id -g)")
        };
        let (_, text) = fixture.run(fixture.container(), process).await;
        assert_eq!(text.trim(), expected, "{user}");
    }
}

pub(super) async fn further_groups_are_those_of_the_file(fixture: &Fixture) {
    let group = "root:x:0:\napp:x:1001:\none:x:21:app,root\ntwo:x:22:other\nthree:x:23:app\n";
    std::fs::write(fixture.path("rootfs/etc/group"), group).unwrap();
    let process = Process {
        user: "app".into(),
        ..shell("id -G")
    };
    let (_, text) = fixture.run(fixture.container(), process).await;
    let mut found: Vec<u32> = text
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    found.sort_unstable();
    assert_eq!(found, [21, 23, 1001]);
}

pub(super) async fn a_process_without_arguments_is_refused(fixture: &Fixture) {
    let start = fixture
        .executor
        .start(fixture.container(), Process::default());
    assert!(matches!(start.await.err(), Some(ExecError::NoArgs)));
}

pub(super) async fn ids_that_are_paths_are_refused(fixture: &Fixture) {
    let long = "x".repeat(200);
    for id in ["", ".", "..", "../x", "a/b", "a\nb", "a\0b", &long] {
        let container = ContainerSpec {
            id: Some(id.into()),
            ..fixture.container()
        };
        let start = fixture.executor.start(container, shell("true")).await;
        assert!(
            matches!(start.err(), Some(ExecError::InvalidId { .. })),
            "{id:?}"
        );
    }
}
