//! Power cuts: the guest works, the cord is pulled, and what it finds after the next boot has to
//! be right.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::machine::{Boot, End, Machine};
use super::programs;

/// The name of this case.
pub(super) const NAME: &str = "power-cuts";
/// What the guest prints when it has checked what the last cut left, and works again.
const WORKS: &str = "power: works";
/// What it prints when it has made sure what a cut leaves, and before it may be less; two numbers
/// follow that the next boot is told.
const DURABLE: &str = "power: durable ";
/// Milliseconds from then to the cut.
const CUT: std::ops::Range<u64> = 300..10_000;
/// A guest that has neither begun to work nor found a mistake by then hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// How many cuts, and what their moments are drawn from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) cuts: u64,
    pub(super) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            cuts: 50,
            seed: now.map_or(1, |now| now.as_secs()),
        }
    }
}

/// Cuts the power again and again, with a look at the end that ends by itself.
pub(super) fn run(machine: &Machine, dir: &Path, programs: &Path, options: &Options) -> Result<()> {
    println!("power: {} cuts, --seed {}", options.cuts, options.seed);
    let disk = dir.join("cuts.img");
    std::fs::copy(programs, &disk).context("copy the disk")?;
    let mut random = Random(options.seed);
    let mut durable = String::new();
    for cut in 0..=options.cuts {
        let last = cut == options.cuts;
        let after = Duration::from_millis(CUT.start + random.next() % (CUT.end - CUT.start));
        let seed = random.next();
        let script = format!(
            "{}export COOPER_TEST_RUNTIME={} COOPER_POWER_SEED={seed} COOPER_POWER_LAST={} \
             COOPER_POWER_DURABLE='{durable}'\n\
             tests/{} --test-threads=1 --nocapture --exact cuts::goes_on\n",
            programs::ENVIRONMENT,
            if seed.is_multiple_of(2) {
                "runc"
            } else {
                "builtin"
            },
            u8::from(last),
            programs::OWN,
        );
        let boot = Boot {
            systemd: false,
            data: &disk,
            keep: true,
            script,
            limit: LIMIT,
        };
        let mut output = String::new();
        let end = machine.run(&boot, |line| {
            output.push_str(line);
            output.push('\n');
            if let Some(promised) = line.strip_prefix(DURABLE) {
                promised.clone_into(&mut durable);
            } else if line.starts_with("power: ") {
                println!("{cut}: {line}");
            }
            (line == WORKS && !last).then_some(after)
        });
        match end {
            Ok(End::Cut) => println!(
                "{cut}: cut after {} ms, durable: {durable}",
                after.as_millis()
            ),
            Ok(End::Exit(0)) if last => return Ok(()),
            Ok(End::Exit(code)) => bail!("after cut {cut}: exit code {code}\n{output}"),
            Err(error) => bail!("after cut {cut}: {error:#}\n{output}"),
        }
    }
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
