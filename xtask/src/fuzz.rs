//! Fuzzing: the targets of the workspace `fuzz`, one after the other.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::check;
use crate::workspace;

/// Seconds for each target when nothing is said.
const SECONDS: u64 = 60;
/// What libFuzzer wants of the compiler: counters for the edges of the program and for what is
/// compared. No sanitizer: these would need a compiler of another kind, and there is hardly any
/// unsafe code to find something in.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// The program, as a system call: fuzzing writes as root what others made up, and the file
/// system of the machine is out of its reach.
const CONFINED: &str = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/tmp && \
                        mount --bind \"$1\" \"$1\" && mount --bind \"$2\" \"$2\" && \
                        mount -o remount,bind,ro / && shift 2 && exec \"$@\"";

/// `cargo xtask fuzz [TARGET…] [--seconds N]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut names, mut seconds) = (Vec::new(), SECONDS);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let value = args.next().context("--seconds needs a number")?;
            seconds = value.parse().context("--seconds needs a number")?;
        } else {
            names.push(arg.clone());
        }
    }
    let root = workspace::root().join("fuzz");
    let mut known = Vec::new();
    for entry in std::fs::read_dir(root.join("seeds")).context("list the seeds")? {
        known.push(entry?.file_name().to_string_lossy().into_owned());
    }
    known.sort();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        bail!("no target {name}; there are {}", known.join(", "));
    }
    let names = if names.is_empty() { known } else { names };
    let target = workspace::target_dir().join("fuzz");
    let program = build(&root, &target)?;
    for name in &names {
        let seeds = root.join("seeds").join(name);
        let corpus = target.join("corpus").join(name);
        let found = target.join("found");
        for folder in [&corpus, &found] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make {}", folder.display()))?;
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", CONFINED, "sh"]);
        command.arg(&corpus).arg(&found).arg(&program);
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        command.arg(format!("-artifact_prefix={}/{name}-", found.display()));
        command.arg(&corpus).arg(&seeds);
        command.env("COOPER_FUZZ", name).env("TMPDIR", "/mnt/tmp");
        check(&mut command).with_context(|| {
            let found = found.display();
            format!("{name}: the input is in {found}; with what it shows mended it becomes a seed")
        })?;
    }
    Ok(())
}

/// Builds the program with counters.
fn build(root: &std::path::Path, target: &std::path::Path) -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output();
    let version = version.context("ask rustc for the machine's name")?.stdout;
    let version = String::from_utf8_lossy(&version);
    let machine = version.lines().find_map(|line| line.strip_prefix("host: "));
    let machine = machine.context("rustc does not say the machine's name")?;
    // With a target of its own the flags are not for build scripts and macros.
    let mut cargo = crate::run::cargo(&["build", "--release", "--target", machine]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    check(&mut cargo)?;
    Ok(target.join(machine).join("release/cooper-fuzz"))
}
