//! Cooper in a virtual machine: Debian's own kernel with control groups of version 2 alone,
//! AppArmor, systemd, and a power cord.
//!
//! The guest has a Debian of this machine's release, so that programs that are compiled here run
//! there: the test programs of the workspace are copied to its second disk.

mod image;
mod machine;
mod power;
mod programs;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::have;
use crate::workspace;
use image::Image;
use machine::{Boot, End, Machine};
use programs::OWN;

/// What this needs of the machine, and the package that it is in.
const NEEDED: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("debootstrap", "debootstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("busybox", "busybox-static"),
    ("setpriv", "util-linux"),
];

/// The folders of runs are called so, with the number of the process.
const RUN: &str = "vm-run.";

/// What is run in the guest, and how.
struct Case {
    name: &'static str,
    systemd: bool,
    /// The OCI runtime of the daemons that it starts.
    runtime: &'static str,
    /// One of the workspace's test programs ([`programs::name`]), and its arguments.
    program: &'static str,
    filter: &'static [&'static str],
    minutes: u64,
}

impl Case {
    const fn new(
        name: &'static str,
        runtime: &'static str,
        program: &'static str,
        filter: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            systemd: false,
            runtime,
            program,
            filter,
            minutes: 40,
        }
    }

    const fn with_systemd(mut self) -> Self {
        self.systemd = true;
        self
    }
}

/// The end-to-end cases about steps, as many as take bearable time in an emulated machine. It has
/// no network, so none of those that install packages.
const STEPS: &[&str] = &[
    "client_mounts::",
    "client_steps::",
    "exec_bad_input::",
    "spec::",
    "written_mounts::",
    "lifecycle::",
];

const CASES: &[Case] = &[
    Case::new("mounts", "", "sys", &[]),
    Case::new("snapshots", "", "snapshot", &[]),
    Case::new("groups", "", "oci-runtime-containers", &[]),
    Case::new(
        "suite-runc",
        "",
        "executor-runc-conformance",
        &["runc_conforms"],
    ),
    Case::new("suite-builtin", "", "executor-runc-builtin", &[]),
    Case::new(
        "suite-crun",
        "",
        "executor-runc-conformance",
        &["crun_conforms"],
    ),
    Case::new("killed-runc", "runc", "executor-runc-killed", &[]),
    Case::new("killed-crun", "crun", "executor-runc-killed", &[]),
    Case::new("limits-runc", "runc", OWN, &["limits::"]),
    Case::new("limits-builtin", "builtin", OWN, &["limits::"]),
    Case::new("limits-crun", "crun", OWN, &["limits::"]),
    Case::new("apparmor-runc", "runc", OWN, &["apparmor::"]),
    Case::new("apparmor-builtin", "builtin", OWN, &["apparmor::"]),
    Case::new("users", "", "testkit-e2e", &["rootless::"]),
    Case::new("users-limits", "", OWN, &["users::"]).with_systemd(),
    Case::new("systemd-runc", "runc", OWN, &["systemd::"]).with_systemd(),
    Case::new("systemd-builtin", "builtin", OWN, &["systemd::"]).with_systemd(),
    Case::new("steps-runc", "runc", "testkit-e2e", STEPS),
    Case::new("steps-builtin", "builtin", "testkit-e2e", STEPS),
];

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Parts of the names of cases.
    names: Vec<String>,
    /// Instead of the cases' own arguments.
    filter: Option<Vec<String>>,
    power: power::Options,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            names: Vec::new(),
            filter: None,
            power: power::Options::default(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || {
                let number = args
                    .next()
                    .with_context(|| format!("{arg}: no number follows"))?;
                number
                    .parse::<u64>()
                    .with_context(|| format!("{arg} {number}"))
            };
            match arg.as_str() {
                "--cuts" => options.power.cuts = number()?,
                "--seed" => options.power.seed = number()?,
                "--" => {
                    options.filter = Some(args.cloned().collect());
                    break;
                }
                option if option.starts_with('-') => bail!("unknown option {option}"),
                name => options.names.push(name.to_owned()),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }
}

/// `cargo xtask test-vm [--cuts N] [--seed N] [CASE…] [-- WORD…]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    let cases: Vec<_> = CASES
        .iter()
        .filter(|case| options.wants(case.name))
        .collect();
    let power = options.wants(power::NAME);
    if cases.is_empty() && !power {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        bail!(
            "no such case; there are {}, {}",
            names.join(", "),
            power::NAME
        );
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(program, _)| !have(program))
        .collect();
    if !missing.is_empty() {
        let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        bail!(
            "this machine lacks what a virtual machine needs: \
             apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    let image = Image::get()?;
    // Another run of this has one of its own.
    let dir = workspace::target_dir().join(format!("{RUN}{}", std::process::id()));
    remove_left()?;
    let dir = Folder::make(dir)?;
    let disk = programs::disk(&dir.0)?;
    let machine = Machine::new(image, &dir.0);
    let mut results = Vec::new();
    for case in cases {
        let begin = Instant::now();
        println!("test-vm: {}", case.name);
        let result = machine.run(&case.boot(&options, &disk), |line| {
            println!("{line}");
            None
        });
        let result = match result {
            Ok(End::Exit(0)) => Ok(()),
            Ok(End::Exit(code)) => Err(format!("exit code {code}")),
            Ok(End::Cut) => Err("cut off".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        };
        results.push((case.name, begin.elapsed(), result));
    }
    if power {
        let begin = Instant::now();
        println!("test-vm: {}", power::NAME);
        let result = power::run(&machine, &dir.0, &disk, &options.power);
        let result = result.map_err(|error| format!("{error:#}"));
        results.push((power::NAME, begin.elapsed(), result));
    }
    report(&results)
}

fn report(results: &[(&str, Duration, Result<(), String>)]) -> Result<()> {
    let mut failed = 0;
    for (name, took, result) in results {
        let seconds = took.as_secs();
        match result {
            Ok(()) => println!("test-vm: {name}: ok, {seconds} s"),
            Err(error) => {
                println!("test-vm: {name}: FAILED, {seconds} s: {error}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} cases failed", results.len());
    }
    Ok(())
}

impl Case {
    fn boot<'a>(&self, options: &Options, disk: &'a Path) -> Boot<'a> {
        let filter: Vec<_> = match &options.filter {
            Some(words) => words.iter().map(String::as_str).collect(),
            None => self.filter.to_vec(),
        };
        let words: Vec<_> = filter.iter().map(|word| format!("'{word}'")).collect();
        // One at a time, and what they print in the order in which they run.
        let script = format!(
            "{}export COOPER_TEST_RUNTIME='{}'\ntests/{} --test-threads=1 --color=never {}\n",
            programs::ENVIRONMENT,
            self.runtime,
            self.program,
            words.join(" ")
        );
        Boot {
            systemd: self.systemd,
            data: disk,
            keep: false,
            script,
            limit: Duration::from_secs(60 * self.minutes),
        }
    }
}

/// Removes what runs left that were killed.
fn remove_left() -> Result<()> {
    for entry in std::fs::read_dir(workspace::target_dir())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(RUN)) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let path = entry.path();
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// A folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn cases_and_words_for_them_are_told_apart() {
        let options = parse(&["suite", "--cuts", "3", "--", "--exact", "x"]).unwrap();
        assert!(options.wants("suite-runc") && !options.wants("limits"));
        assert_eq!(options.power.cuts, 3);
        assert_eq!(options.filter.unwrap(), ["--exact", "x"]);
        assert!(parse(&[]).unwrap().wants("limits"));
        for wrong in [&["--cuts"][..], &["--cuts", "x"], &["--filter"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
