//! The tests, in the order in which they fail soonest.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, check};
use crate::{coverage, examples, layers, tidy};

/// Everything that CI runs.
pub(crate) fn all() -> Result<()> {
    let begin = Instant::now();
    check(&mut cargo(&["fmt", "--all", "--check"]))?;
    layers::run()?;
    tidy::run()?;
    coverage::run()?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        // The end-to-end cases are behind it.
        "--features",
        "cooper-testkit/e2e",
        "--",
        "--deny",
        "warnings",
    ];
    check(&mut cargo(&lints))?;
    check(&mut cargo(&["test", "--workspace"]))?;
    examples::run()?;
    e2e(&[])?;
    eprintln!("test: all passed in {} s", begin.elapsed().as_secs());
    Ok(())
}

/// What the end-to-end cases are asked for besides a filter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    release: bool,
    /// Again with the newest buildx, and on the worker with containerd with the newest of these.
    peers: bool,
    /// On Docker's engine and not on Cooper.
    docker: bool,
    /// The OCI runtime of the daemons.
    runtime: Option<String>,
    /// The worker of the daemons, if not that of runc.
    worker: Option<String>,
    /// Parts of the names of cases.
    filter: Vec<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--release" => options.release = true,
                "--runtime" => {
                    let runtime = args.next().context("--runtime: no name follows")?;
                    options.runtime = Some(runtime.clone());
                }
                "--peers" => options.peers = true,
                "--builder" => match args.next().map(String::as_str) {
                    Some("docker") => options.docker = true,
                    Some("cooper") => options.docker = false,
                    other => bail!("--builder is `cooper` or `docker`, not {other:?}"),
                },
                "--worker" => match args.next().map(String::as_str) {
                    Some(worker @ ("runc" | "containerd")) => {
                        options.worker = Some(worker.to_owned());
                    }
                    _ => bail!("--worker: runc or containerd follows"),
                },
                _ => options.filter.push(arg.clone()),
            }
        }
        Ok(options)
    }
}

/// The cases that make sense on Docker's engine: those that ask a builder for nothing but builds.
/// Its Dockerfile frontend has neither what is in `labs` only nor `COPY --parents`, and its image
/// exporter neither pushes by digest nor chooses media types: the cases of these are not among
/// them.
const OF_BUILDERS: &[&str] = &[
    "caching::df14_",
    "contexts::",
    "dockerfile::",
    "dockerfile_git::",
    "dockerfile_words::",
    "first_build::a_compiler",
    "mistakes::",
    "outputs::a_tar_of_files",
    "outputs::an_epoch",
    "sharing::",
];

/// The end-to-end tests, one at a time: each checks that it left nothing on the machine.
pub(crate) fn e2e(args: &[String]) -> Result<()> {
    e2e_with(args, &[], &[])
}

/// The same with more variables for the cases, and more arguments for the program that runs them.
pub(crate) fn e2e_with(args: &[String], variables: &[(&str, String)], more: &[&str]) -> Result<()> {
    let options = Options::parse(args)?;
    let (profile, folder) = match options.release {
        true => ("release", "release"),
        false => ("dev", "debug"),
    };
    let folder = crate::workspace::target_dir().join(folder);
    let programs = ["--package", "cooper-daemon", "--package", "cooper-cli"];
    check(cargo(&["build", "--bins", "--profile", profile]).args(programs))?;
    let cases = |filter: &[&str], variable: Option<(&str, &str)>| {
        let mut command = cargo(&["test", "--package", "cooper-testkit", "--features", "e2e"]);
        command
            .args(["--test", "e2e", "--", "--test-threads=1"])
            .args(more)
            .args(filter)
            .envs(variable)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .envs(
                options
                    .runtime
                    .iter()
                    .map(|name| ("COOPER_TEST_RUNTIME", name)),
            )
            .envs(options.worker.iter().map(|name| ("COOPER_WORKER", name)))
            .env("COOPER_BIN_DIR", &folder);
        check(&mut command)
    };
    let filter: Vec<_> = options.filter.iter().map(String::as_str).collect();
    if options.docker {
        let Some(tree) = peer("docker", &folder)? else {
            return Ok(());
        };
        let filter = match filter.is_empty() {
            true => OF_BUILDERS,
            false => &filter,
        };
        return cases(filter, Some(("COOPER_TEST_ENGINE", &tree)));
    }
    cases(&filter, None)?;
    if options.peers
        && let Some(program) = peer("buildx", &folder)?
    {
        cases(&filter, Some(("COOPER_TEST_BUILDX", &program)))?;
    }
    if options.peers
        && options.worker.as_deref() == Some("containerd")
        && let Some(tree) = peer("docker", &folder)?
    {
        // Docker's engine comes with a newer containerd, and that with its shim.
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{tree}/usr/bin:{path}");
        cases(&filter, Some(("PATH", &path)))?;
    }
    Ok(())
}

/// Fetches a program of others and says which it is; `None` when it cannot be had.
pub(crate) fn peer(kind: &str, folder: &Path) -> Result<Option<String>> {
    let mut command = cargo(&["run", "--quiet", "--package", "cooper-testkit"]);
    command
        .args(["--bin", "peers", kind])
        .env("COOPER_BIN_DIR", folder)
        .stderr(Stdio::inherit());
    let output = command.output().context("start `peers`")?;
    match output.status.code() {
        Some(0) => {
            let path = String::from_utf8(output.stdout).context("a path is text")?;
            Ok(Some(path.trim().to_owned()))
        }
        Some(3) => {
            eprintln!("nothing is run with it");
            Ok(None)
        }
        _ => bail!("`peers {kind}` failed: {}", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_stand_among_filters() {
        let options = parse(&["a", "--builder", "docker", "--release", "b"]).unwrap();
        assert!(options.docker && options.release && !options.peers);
        assert_eq!(options.filter, ["a", "b"]);
        let options = parse(&["--runtime", "crun", "c"]).unwrap();
        assert_eq!(options.runtime.as_deref(), Some("crun"));
        assert_eq!(options.filter, ["c"]);
        assert_eq!(parse(&["--builder", "cooper"]).unwrap(), Options::default());
        for wrong in [&["--builder"][..], &["--builder", "kaniko"], &["--runtime"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
