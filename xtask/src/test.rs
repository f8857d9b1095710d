//! The tests, in the order in which they fail soonest.

use std::time::Instant;

use anyhow::{Context, Result, bail};

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

/// What a run of the end-to-end tests is told.
#[derive(Debug, Default)]
struct Choice {
    /// Whether the programs are built as users have them.
    release: bool,
    /// The OCI runtime of the daemons.
    runtime: Option<String>,
    /// The worker of the daemons, if not that of runc.
    worker: Option<String>,
    /// Parts of the names of cases.
    filter: Vec<String>,
}

impl Choice {
    fn parse(args: &[String]) -> Result<Self> {
        let mut choice = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--release" => choice.release = true,
                "--runtime" => {
                    let runtime = args.next().context("--runtime: no name follows")?;
                    choice.runtime = Some(runtime.clone());
                }
                "--worker" => match args.next().map(String::as_str) {
                    Some(worker @ ("runc" | "containerd")) => {
                        choice.worker = Some(worker.to_owned());
                    }
                    _ => bail!("--worker: runc or containerd follows"),
                },
                _ => choice.filter.push(arg.clone()),
            }
        }
        Ok(choice)
    }
}

/// The end-to-end tests, one at a time: each checks that it left nothing on the machine.
pub(crate) fn e2e(args: &[String]) -> Result<()> {
    let Choice {
        release,
        runtime,
        worker,
        filter,
    } = Choice::parse(args)?;
    let (profile, folder) = match release {
        true => ("release", "release"),
        false => ("dev", "debug"),
    };
    let programs = ["--package", "cooper-daemon", "--package", "cooper-cli"];
    check(cargo(&["build", "--bins", "--profile", profile]).args(programs))?;
    let mut command = cargo(&["test", "--package", "cooper-testkit", "--features", "e2e"]);
    command
        .args(["--test", "e2e", "--", "--test-threads=1"])
        .args(filter);
    if let Some(worker) = worker {
        command.env("COOPER_WORKER", worker);
    }
    if let Some(runtime) = runtime {
        command.env("COOPER_TEST_RUNTIME", runtime);
    }
    check(command.env(
        "COOPER_BIN_DIR",
        crate::workspace::target_dir().join(folder),
    ))
}
