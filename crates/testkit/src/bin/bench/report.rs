//! What was measured, as people read it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cooper_testkit::run;

use crate::builders::Builder;
use crate::works::Work;

/// How long a work took, and the most memory of the daemon in KiB.
type Measured = (Duration, Option<u64>);

/// All that was measured.
pub(crate) struct Figures {
    builders: Vec<&'static str>,
    /// How many of them, the first, are Cooper.
    ours: usize,
    /// By builder and work.
    found: BTreeMap<(usize, &'static str), Vec<Measured>>,
}

impl Figures {
    pub(crate) fn new(builders: &[Builder]) -> Self {
        Self {
            builders: builders.iter().map(Builder::name).collect(),
            ours: builders.iter().filter(|builder| builder.is_ours()).count(),
            found: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, builder: usize, work: Work, took: Duration, peak: Option<u64>) {
        let of = self.found.entry((builder, work.name())).or_default();
        of.push((took, peak));
    }

    /// The tables of times and of memory; of these works, or of all.
    pub(crate) fn table(&self, only: &[Work], versions: &[String], client: &str) -> String {
        let works: Vec<Work> = Work::GROUPS.concat();
        let works: Vec<Work> = works
            .into_iter()
            .filter(|work| only.is_empty() || only.contains(work))
            .collect();
        let runs = self.found.values().map(Vec::len).max().unwrap_or_default();
        let mut text = format!("{runs} runs on {}.\n\n", machine());
        for (name, version) in self.builders.iter().zip(versions) {
            let _ = writeln!(text, "- {name}: {version}");
        }
        let _ = write!(text, "- the client of all but buildah: {client}\n\n");
        text.push_str(&self.times(&works));
        text.push('\n');
        text.push_str(&self.memory(&works));
        text
    }

    /// Medians with the least and the most, and the ratios of the medians.
    fn times(&self, works: &[Work]) -> String {
        let (ours, others) = self.builders.split_at(self.ours);
        let ratios = ours.iter().flat_map(|our| {
            others
                .iter()
                .map(move |other| format!(" {our} to {other} |"))
        });
        let heads = self.builders.iter().map(|name| format!(" {name} |"));
        let heads: Vec<String> = heads.chain(ratios).collect();
        let mut text = format!("| Seconds, median (least to most) |{}\n", heads.concat());
        let _ = writeln!(text, "|---|{}", "---|".repeat(heads.len()));
        for work in works {
            let _ = write!(text, "| {} |", work.title());
            let medians: Vec<_> = (0..self.builders.len())
                .map(|builder| {
                    let times = self.seconds(builder, *work);
                    let (Some(least), Some(most)) = (times.first(), times.last()) else {
                        text.push_str(" |");
                        return None;
                    };
                    let median = median(&times);
                    let _ = write!(text, " {median:.2} ({least:.2} to {most:.2}) |");
                    Some(median)
                })
                .collect();
            let (ours, others) = medians.split_at(self.ours);
            for our in ours {
                for other in others {
                    match (our, other) {
                        (Some(our), Some(other)) => {
                            let _ = write!(text, " {:.2} |", our / other);
                        }
                        _ => text.push_str(" |"),
                    }
                }
            }
            text.push('\n');
        }
        text
    }

    /// Sorted; empty when the builder did not do the work.
    fn seconds(&self, builder: usize, work: Work) -> Vec<f64> {
        let found = self.found.get(&(builder, work.name()));
        let mut times: Vec<_> = found
            .into_iter()
            .flatten()
            .map(|(took, _)| took.as_secs_f64())
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The most memory of the daemons.
    fn memory(&self, works: &[Work]) -> String {
        let peak = |builder: usize, work: Work| {
            let found = self.found.get(&(builder, work.name()))?;
            found.iter().filter_map(|(_, peak)| *peak).max()
        };
        let daemons: Vec<usize> = (0..self.builders.len())
            .filter(|builder| works.iter().any(|work| peak(*builder, *work).is_some()))
            .collect();
        let mut text = "| Most resident memory of the daemon, MiB |".to_owned();
        for builder in &daemons {
            let _ = write!(text, " {} |", self.builders[*builder]);
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(daemons.len()));
        text.push('\n');
        for work in works {
            let _ = write!(text, "| {} |", work.title());
            for builder in &daemons {
                match peak(*builder, *work) {
                    Some(kib) => {
                        let _ = write!(text, " {} |", kib / 1024);
                    }
                    None => text.push_str(" |"),
                }
            }
            text.push('\n');
        }
        text
    }
}

/// The middle of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// What matters of this machine.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = run(Command::new("uname").arg("-r")).success().output;
    let runc = run(Command::new("runc").arg("--version")).success().output;
    format!(
        "{cpus} processors, kernel {}, {}",
        kernel.trim(),
        runc.lines()
            .next()
            .unwrap_or("runc")
            .replace(" version", "")
    )
}

/// The version of the client.
pub(crate) fn client(buildx: &Path) -> String {
    let printed = run(Command::new(buildx).arg("version")).success().output;
    let words: Vec<_> = printed.split_whitespace().take(2).collect();
    words.join(" ")
}

const BEGIN: &str = "<!-- begin: written by `cargo xtask bench` -->\n";
const END: &str = "<!-- end -->\n";

/// Puts `table` between the marks of `docs/performance.md`.
pub(crate) fn write(table: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md");
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, between(&text, table).expect("the page has its marks")).unwrap();
    eprintln!("bench: written into docs/performance.md");
}

fn between(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let old = format!("# Title\n\n{BEGIN}old\n{END}\nThe rest.\n");
        let new = between(&old, "| new |\n").unwrap();
        assert_eq!(
            new,
            format!("# Title\n\n{BEGIN}\n| new |\n\n{END}\nThe rest.\n")
        );
        assert_eq!(between(&new, "| new |\n").unwrap(), new);
        assert_eq!(between("no marks", ""), None);
    }

    #[test]
    fn the_page_has_the_marks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md");
        assert!(between(&std::fs::read_to_string(path).unwrap(), "").is_some());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[1.0, 2.0, 3.0, 9.0]) - 2.5).abs() < 1e-9);
    }
}
