//! The yardstick: Cooper beside other builders.

use anyhow::Result;

use crate::run::{cargo, check};
use crate::workspace;

/// Builds the programs as users have them and compares them.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let programs = ["--package", "cooper-daemon", "--package", "cooper-cli"];
    check(cargo(&["build", "--bins", "--release"]).args(programs))?;
    // The bench itself waits for programs: how it is compiled does not matter.
    let bench = ["run", "--package", "cooper-testkit", "--bin", "bench", "--"];
    let mut command = cargo(&bench);
    let programs = workspace::target_dir().join("release");
    check(command.args(args).env("COOPER_BIN_DIR", programs))
}
