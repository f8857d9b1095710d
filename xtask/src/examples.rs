//! The programs under `examples/`: others' in all but place, with a workspace of their own. And
//! those of crates that are for others, too, each of which uses that crate alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, check};
use crate::workspace;

/// Programs that fail when what they show is not so: the crate, and the program.
const OF_CRATES: [(&str, &str); 3] = [
    ("cooper-solver", "make"),
    ("cooper-solver", "explain"),
    ("cooper-cache", "states"),
];

/// The most lines that running a command in a container may take.
const LINES: usize = 30;

/// Compiles the programs and runs them, with the runtime that is installed and, as on a machine
/// with none, with the built-in one.
pub(crate) fn run() -> Result<()> {
    let text = workspace::root().join("examples/run-a-command/src/main.rs");
    let text =
        std::fs::read_to_string(&text).with_context(|| format!("read {}", text.display()))?;
    let lines = text.lines().count();
    ensure!(
        lines <= LINES,
        "run-a-command has {lines} lines, at most {LINES} are promised"
    );
    let command = compile("run-a-command")?;
    let image = compile("run-an-image")?;
    check(&mut cargo(&["build", "--package", "cooper-cli"]))?;

    let scratch = workspace::target_dir().join("examples");
    let _ = std::fs::remove_dir_all(&scratch);
    let folder = scratch.join("folder");
    std::fs::create_dir_all(folder.join("bin"))
        .with_context(|| format!("make {}", folder.display()))?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.iter().find(|path| path.exists());
    let busybox = busybox.context("busybox is not installed")?;
    std::fs::copy(busybox, folder.join("bin/busybox")).context("copy busybox")?;
    let layout = make_image(&scratch, busybox)?;

    // Without a PATH no runtime is found.
    for path in [
        std::env::var_os("PATH").unwrap_or_default(),
        "/nonexistent".into(),
    ] {
        let said = said_by(
            Command::new(&command)
                .env("PATH", &path)
                .arg(&folder)
                .args(["/bin/busybox", "sh", "-c"])
                .arg("read line; echo \"$line from $$\"; exit 7"),
            7,
        )?;
        // The first process of its own process namespace.
        ensure!(said == "hello from 1\n", "run-a-command says {said:?}");
        let said = said_by(Command::new(&image).env("PATH", &path).arg(&layout), 0)?;
        ensure!(
            said == "hello from /made as 7\n",
            "run-an-image says {said:?}"
        );
        let other = ["/bin/busybox ls /"];
        let said = said_by(
            Command::new(&image)
                .env("PATH", &path)
                .arg(&layout)
                .args(other),
            0,
        )?;
        ensure!(
            said.lines().any(|line| line == "made") && !said.contains("removed"),
            "the image's layers are {said:?}"
        );
    }
    for (package, name) in OF_CRATES {
        check(&mut cargo(&[
            "run",
            "--package",
            package,
            "--example",
            name,
        ]))?;
    }
    eprintln!("examples: all run, those with containers also with the built-in runtime");
    Ok(())
}

/// Compiles a program and returns where it is. What it has in common with the workspace is
/// compiled once: it has the same versions, the same folder and the same profile.
fn compile(name: &str) -> Result<PathBuf> {
    let dir = workspace::root().join("examples").join(name);
    let lock = "Cargo.lock";
    std::fs::copy(workspace::root().join(lock), dir.join(lock))
        .with_context(|| format!("give {name} the workspace's versions"))?;
    let manifest = workspace::root().join("Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).context("read Cargo.toml")?;
    let mut manifest: toml::Table = manifest.parse().context("understand Cargo.toml")?;
    manifest.retain(|key, _| key == "profile");
    let target = workspace::target_dir();
    std::fs::create_dir_all(&target)?;
    let profile = target.join("examples-profile.toml");
    std::fs::write(&profile, manifest.to_string())?;
    let mut build = cargo(&["build", "--manifest-path"]);
    build
        .arg(dir.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    // A version that is missing here was not the workspace's.
    build.arg("--offline").arg("--config").arg(&profile);
    check(&mut build)?;
    Ok(target.join("debug").join(name))
}

/// An image of two layers in an OCI layout, made by `cooper build`.
fn make_image(scratch: &Path, busybox: &Path) -> Result<PathBuf> {
    let context = scratch.join("context");
    std::fs::create_dir_all(&context)?;
    std::fs::copy(busybox, context.join("busybox")).context("copy busybox")?;
    let dockerfile = r#"
        FROM scratch
        COPY busybox /bin/busybox
        COPY busybox /removed
        RUN ["/bin/busybox", "rm", "/removed"]
        WORKDIR /made
        ENV NAME=hello
        USER 7:8
        ENTRYPOINT ["/bin/busybox", "sh", "-c"]
        CMD ["echo $NAME from $(/bin/busybox pwd) as $(/bin/busybox id -u)"]
    "#;
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    let layout = scratch.join("layout");
    let mut build = Command::new(workspace::target_dir().join("debug/cooper"));
    build
        .args(["build", "--progress=plain", "--root"])
        .arg(scratch.join("root"));
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    check(build.arg("--output").arg(output).arg(&context))?;
    Ok(layout)
}

/// What a program says that has `hello` to read and ends with `code`.
fn said_by(command: &mut Command, code: i32) -> Result<String> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that reads nothing may be gone already.
        let _ = input.write_all(b"hello\n");
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("await {shown}"))?;
    ensure!(
        output.status.code() == Some(code),
        "{shown} failed: {}",
        output.status
    );
    String::from_utf8(output.stdout).context("what it says is no text")
}
