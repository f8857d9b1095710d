//! The tests, in the order in which they fail soonest.

use std::time::Instant;

use anyhow::Result;

use crate::run::{cargo, check};
use crate::{layers, tidy};

/// Everything that CI runs.
pub(crate) fn all() -> Result<()> {
    let begin = Instant::now();
    check(&mut cargo(&["fmt", "--all", "--check"]))?;
    layers::run()?;
    tidy::run()?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ];
    check(&mut cargo(&lints))?;
    check(&mut cargo(&["test", "--workspace"]))?;
    e2e(&[])?;
    eprintln!("test: all passed in {} s", begin.elapsed().as_secs());
    Ok(())
}

/// The end-to-end tests, one at a time: each checks that it left nothing on the machine.
pub(crate) fn e2e(args: &[String]) -> Result<()> {
    let (release, filter): (Vec<_>, Vec<_>) = args.iter().partition(|arg| *arg == "--release");
    let profile = if release.is_empty() { "dev" } else { "release" };
    let folder = if release.is_empty() {
        "debug"
    } else {
        "release"
    };
    let programs = ["--package", "cooper-daemon", "--package", "cooper-cli"];
    check(cargo(&["build", "--bins", "--profile", profile]).args(programs))?;
    let mut command = cargo(&["test", "--package", "cooper-testkit", "--features", "e2e"]);
    command
        .args(["--test", "e2e", "--", "--test-threads=1"])
        .args(filter);
    check(command.env(
        "COOPER_BIN_DIR",
        crate::workspace::target_dir().join(folder),
    ))
}
