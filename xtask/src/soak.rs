//! The end-to-end cases that do much of the same, as long as is promised, and those of the cache
//! alone.

use anyhow::{Context, Result, bail};

use crate::run::{cargo, check};
use crate::test;

/// The names of the runs. A name is also the module of its cases.
const RUNS: &[&str] = &["steps", "cancel", "kill", "cuts"];

/// The run of the cache alone: 1,000 cycles of builds, prunes and restarts, 1,000 kills.
const DISK: &str = "disk";

/// Makes the runs that are named, else all.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (disk, args): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| arg == DISK);
    let (args, seed) = parse(&args)?;
    let named = args
        .iter()
        .any(|arg| arg.starts_with("soak::") && arg != "soak::");
    if !disk.is_empty() || !named {
        cache(args.contains(&"--release".to_owned()), seed)?;
    }
    if !disk.is_empty() && !named {
        return Ok(());
    }
    let mut variables = vec![("COOPER_SOAK", "1".to_owned())];
    variables.extend(seed.map(|seed| ("COOPER_SOAK_SEED", seed.to_string())));
    // What they found is the point of it.
    test::e2e_with(&args, &variables, &["--nocapture"])
}

/// The cases of the cache alone.
fn cache(release: bool, seed: Option<u64>) -> Result<()> {
    let mut command = cargo(&["test", "--package", "cooper-cache"]);
    if release {
        command.arg("--release");
    }
    command
        .args(["--test", "cycles", "--test", "kill", "--", "--nocapture"])
        .env("COOPER_SOAK", "1")
        .envs(seed.map(|seed| ("COOPER_SOAK_SEED", seed.to_string())));
    check(&mut command)
}

/// What the end-to-end cases are to be asked for, and the seed.
fn parse(args: &[String]) -> Result<(Vec<String>, Option<u64>)> {
    let (mut rest, mut seed, mut named) = (Vec::new(), None, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seed" => {
                let number = args.next().context("--seed: no number follows")?;
                let number = number.parse();
                seed = Some(number.context("--seed: it is a number without a sign")?);
            }
            "--release" => rest.push(arg.clone()),
            "--runtime" | "--worker" => {
                let name = args
                    .next()
                    .with_context(|| format!("{arg}: no name follows"))?;
                rest.extend([arg.clone(), name.clone()]);
            }
            name if RUNS.contains(&name) => {
                named = true;
                rest.push(format!("soak::{name}::"));
            }
            other => bail!(
                "{other}: {}, {DISK}, --seed, --release, --runtime and --worker are known",
                RUNS.join(", ")
            ),
        }
    }
    if !named {
        rest.push("soak::".to_owned());
    }
    Ok((rest, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Result<(Vec<String>, Option<u64>)> {
        parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn runs_are_named_or_all_and_choices_repeated() {
        let (args, seed) = of(&["kill", "--runtime", "builtin", "--seed", "7"]).unwrap();
        assert_eq!(args, ["soak::kill::", "--runtime", "builtin"]);
        assert_eq!(seed, Some(7));
        assert_eq!(of(&["--release"]).unwrap().0, ["--release", "soak::"]);
        for wrong in [
            &["walk"][..],
            &["--seed"],
            &["--seed", "-1"],
            &["--runtime"],
        ] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
