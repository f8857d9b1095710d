//! Development tasks of the workspace: `cargo xtask <task>`.
//!
//! The tasks need nothing but cargo, and on Debian the package manager: what a task
//! needs beyond that, `setup` installs, saying so.
#![forbid(unsafe_code)]

mod bench;
mod coverage;
mod demo;
mod examples;
mod fuzz;
mod layers;
mod run;
mod setup;
mod simulate;
mod soak;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use setup::Purpose;

const HELP: &str = "\
usage: cargo xtask <task>

  setup      install what a fresh Debian machine lacks, by its package manager
  demo       build examples/hello with `cooper build` and show the result
  test       everything that CI runs: format, lints, house rules, unit, property,
             conformance and end-to-end tests
  test-e2e   only the end-to-end tests; further arguments filter cases, and with
             --release the programs are built as users have them; --runtime NAME runs
             the steps with that OCI runtime (`builtin`, `crun`, …), and
             --worker containerd on the worker that goes through a containerd; --peers
             runs the cases again with the newest buildx, --builder docker those that
             make sense there on Docker's engine (both from Debian unstable, unpacked)
  soak       long runs of steps, cancels, kills and disk (all or the named ones); --seed N
             has the choices of an earlier run; --release, --runtime and --worker as above
  simulate   the solver over random graphs, 100,000 or --graphs N; a failing one is named by
             its seed, and --seed N begins with that
  examples   compile and run the programs under examples/
  test-vm    the tests of steps in a virtual machine with control groups of version 2,
             AppArmor and systemd, and cuts of its power; further arguments name cases,
             --cuts N and --seed N are for the cuts, and words after -- go to the test
             programs instead of the cases' own
  bench      Cooper beside Docker's engine and buildah; --runs N, --only WORK,
             --without docker|buildah
  coverage   the end-to-end cases of each row of docs/coverage.md; fails when a row has none
  fuzz       look for inputs that break parsers; names of targets (fuzz/seeds), and
             --seconds N for each
  layers     check who may depend on whom
  tidy       check the house rules that a compiler does not know
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match task.as_str() {
        "setup" => setup::run(Purpose::Tests),
        "demo" => setup::run(Purpose::Demo).and_then(|()| demo::run()),
        "test" => setup::run(Purpose::Tests).and_then(|()| test::all()),
        "test-e2e" => setup::run(Purpose::Tests).and_then(|()| test::e2e(&rest)),
        "soak" => setup::run(Purpose::Tests).and_then(|()| soak::run(&rest)),
        "simulate" => simulate::run(&rest),
        "examples" => setup::run(Purpose::Tests).and_then(|()| examples::run()),
        "test-vm" => setup::run(Purpose::Tests).and_then(|()| vm::run(&rest)),
        "bench" => setup::run(Purpose::Tests).and_then(|()| bench::run(&rest)),
        "coverage" => coverage::run(),
        "fuzz" => fuzz::run(&rest),
        "layers" => layers::run(),
        "tidy" => tidy::run(),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("unknown task `{other}`\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
