//! Cooper beside Docker's engine and buildah, in one run and alternating.
//!
//! Started by `cargo xtask bench`, which builds the programs first.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod builders;
mod report;
mod turns;
mod works;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use builders::{Builder, Output};
use cooper_testkit::{Buildx, bin, leak, memory};
use report::Figures;
use works::{Contexts, Work};

/// What the command line says.
struct Options {
    runs: usize,
    only: Vec<Work>,
    without: Vec<String>,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => bench(&options),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        only: Vec::new(),
        without: Vec::new(),
    };
    let works: Vec<Work> = Work::GROUPS.concat();
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("`{word}` needs a value"))?;
        match word.as_str() {
            "--runs" => match value.parse() {
                Ok(runs @ 1..=1000) => options.runs = runs,
                _ => return Err(format!("--runs {value}: not a number from 1 to 1000")),
            },
            "--only" => match works.iter().find(|work| work.name() == value) {
                Some(work) => options.only.push(*work),
                None => {
                    let names: Vec<_> = works.iter().map(|work| work.name()).collect();
                    return Err(format!("--only {value}: not one of {}", names.join(", ")));
                }
            },
            "--without" if ["docker", "buildah"].contains(&value.as_str()) => {
                options.without.push(value);
            }
            "--without" => return Err(format!("--without {value}: neither docker nor buildah")),
            _ => return Err(format!("unknown option `{word}`")),
        }
    }
    Ok(options)
}

fn bench(options: &Options) -> ExitCode {
    let dir = bin("testkit").join("bench");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let begin = Instant::now();
    // End-to-end tests that run at the same time would take the daemons for theirs.
    let alone = leak::alone();
    let (builders, client) = builders(options, &dir);
    drop(alone);
    let contexts = Contexts::make(&dir.join("contexts"));
    let mut figures = Figures::new(&builders);
    for run in 0..options.runs {
        for group in Work::GROUPS {
            if !options.only.is_empty() && !group.iter().any(|work| options.only.contains(work)) {
                continue;
            }
            let doing: Vec<_> = (0..builders.len())
                .filter(|number| builders[*number].does(group[0]))
                .collect();
            for turn in turns::order(doing.len(), run) {
                let number = doing[turn];
                eprintln!(
                    "bench: run {} of {}, {}, {}",
                    run + 1,
                    options.runs,
                    group[0].title(),
                    builders[number].name()
                );
                let alone = leak::alone();
                let place = Place {
                    dir: &dir,
                    contexts: &contexts,
                    nonce: nonce(),
                };
                for work in *group {
                    let (took, peak) = place.work(&builders[number], *work);
                    figures.add(number, *work, took, peak);
                }
                place.clear();
                drop(alone);
            }
        }
    }
    let versions: Vec<_> = builders.iter().map(Builder::version).collect();
    let alone = leak::alone();
    drop(builders);
    std::fs::remove_dir_all(&dir).unwrap();
    drop(alone);
    let table = figures.table(&options.only, &versions, &client);
    print!("\n{table}");
    // A part of it would take the rest away.
    if options.only.is_empty() && options.without.is_empty() {
        report::write(&table);
    }
    eprintln!("bench: {} s", begin.elapsed().as_secs());
    ExitCode::SUCCESS
}

/// The builders that there are, and the client's version. One that cannot be had is named.
fn builders(options: &Options, dir: &Path) -> (Vec<Builder>, String) {
    let buildx = Buildx::newest().unwrap_or_else(|error| panic!("no client: {error}"));
    let mut builders: Vec<_> = [false, true]
        .map(|built_in| Builder::cooper(&buildx, built_in))
        .into();
    let wanted = |name: &str| !options.without.iter().any(|without| without == name);
    let mut add = |made: Result<Builder, String>| match made {
        Ok(builder) => builders.push(builder),
        Err(error) => eprintln!("bench: left out, because it could not be had: {error}"),
    };
    if wanted("docker") {
        add(Builder::docker(&buildx));
    }
    if wanted("buildah") {
        add(Builder::buildah(dir));
    }
    for builder in &builders {
        eprintln!("bench: {}: {}", builder.name(), builder.version());
    }
    (builders, report::client(&buildx))
}

/// Where one builder does one group of works.
struct Place<'a> {
    dir: &'a Path,
    contexts: &'a Contexts,
    nonce: String,
}

impl Place<'_> {
    /// Does the work and returns how long it took and how much memory the daemon had at most,
    /// in KiB.
    fn work(&self, builder: &Builder, work: Work) -> (Duration, Option<u64>) {
        let build = |context: PathBuf, output: Output<'_>| {
            // What was written before is not a part of what is measured now.
            nix::unistd::sync();
            for pid in builder.pids() {
                memory::forget_peak(pid).unwrap();
            }
            let took = builder.build(&context, &self.nonce, output);
            (took, builder.peak(work))
        };
        let export = self.contexts.fixed("export");
        match work {
            Work::Steps | Work::Cached => build(self.contexts.fixed("steps"), Output::Nothing),
            Work::Stages => build(self.contexts.fixed("stages"), Output::Nothing),
            Work::Files => build(self.contexts.files(&self.nonce), Output::Nothing),
            Work::Changed => {
                let root = self.files();
                self.contexts.change(&root);
                build(root, Output::Nothing)
            }
            Work::Archive => {
                builder.build(&export, &self.nonce, Output::Prepared);
                build(export, Output::Archive(&self.dir.join("out.tar")))
            }
            Work::Folder => build(export, Output::Folder(&self.dir.join("out"))),
        }
    }

    fn files(&self) -> PathBuf {
        self.contexts.fixed(&format!("files-{}", self.nonce))
    }

    /// Removes what only this group had.
    fn clear(&self) {
        let _ = std::fs::remove_file(self.dir.join("out.tar"));
        for folder in [self.dir.join("out"), self.files()] {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A word that was never used before.
fn nonce() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("the clock is right").as_nanos().to_string()
}
