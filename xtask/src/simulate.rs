//! The solver over random graphs, as many as are asked for.

use anyhow::{Context, Result, bail};

use crate::run::{cargo, check};

/// The test that makes the run.
const TEST: &str = "any_graph_in_any_order_is_built_right_and_leaves_nothing";
/// What is promised.
const GRAPHS: u64 = 100_000;

/// Makes the run, with optimisation.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (graphs, seed) = parse(args)?;
    let words = ["test", "--release", "--package", "cooper-solver", "--lib"];
    let mut command = cargo(&words);
    command.args([TEST, "--", "--nocapture"]);
    command.env("COOPER_SIMULATE_GRAPHS", graphs.to_string());
    command.env("COOPER_SIMULATE_SEED", seed.to_string());
    check(&mut command)
}

/// How many graphs, and the seed of the first.
fn parse(args: &[String]) -> Result<(u64, u64)> {
    let (mut graphs, mut seed) = (GRAPHS, 1);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let number = match arg.as_str() {
            "--graphs" => &mut graphs,
            "--seed" => &mut seed,
            other => bail!("{other}: --graphs N and --seed N are known"),
        };
        let text = args.next();
        let text = text.with_context(|| format!("{arg}: no number follows"))?;
        let parsed = text.parse();
        *number = parsed.with_context(|| format!("{arg}: it is a number without a sign"))?;
    }
    Ok((graphs, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_and_the_seed_may_be_named() {
        let of = |args: &[&str]| parse(&args.iter().map(|arg| (*arg).into()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), (GRAPHS, 1));
        assert_eq!(of(&["--seed", "7", "--graphs", "1"]).unwrap(), (1, 7));
        for wrong in [&["--seed"][..], &["--graphs", "x"], &["7"]] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
