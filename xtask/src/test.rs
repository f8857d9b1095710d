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
pub(crate) fn e2e(filter: &[String]) -> Result<()> {
    for program in ["daemon", "cli"] {
        if crate::workspace::root()
            .join("crates")
            .join(program)
            .exists()
        {
            check(&mut cargo(&[
                "build",
                "--package",
                &format!("cooper-{program}"),
            ]))?;
        }
    }
    let mut command = cargo(&["test", "--package", "cooper-testkit", "--features", "e2e"]);
    command
        .args(["--test", "e2e", "--", "--test-threads=1"])
        .args(filter);
    check(command.env(
        "COOPER_BIN_DIR",
        crate::workspace::target_dir().join("debug"),
    ))
}
