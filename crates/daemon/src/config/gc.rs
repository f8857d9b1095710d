//! What workers prune by themselves (BuildKit, `cmd/buildkitd/config/gcpolicy.go`).

use std::path::Path;
use std::time::Duration;

use cooper_worker::GcPolicy as Policy;

use super::{DiskSpace, GcPolicy, WorkerConfig};

const HOUR: Duration = Duration::from_secs(3600);
const GB: u64 = 1_000_000_000;
/// What an unknown disk is worth, in bytes (BuildKit's value).
const UNKNOWN: u64 = 2 * GB;

/// The parts of the disk that the cache may have when nobody says anything, and the bytes that
/// bound them.
const RESERVED: (u64, u64) = (10, 10 * GB);
const MAX_USED: (u64, u64) = (80, 100 * GB);
const MIN_FREE: u64 = 20;

/// The file system that a worker keeps its files on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// All its bytes; 0 when that is not known.
    pub(crate) total: u64,
}

impl Disk {
    /// The one that `root` is on.
    pub(crate) fn of(root: &Path) -> Self {
        match rustix::fs::statvfs(root) {
            Ok(stat) => Self {
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
            },
            Err(error) => {
                tracing::warn!(root = %root.display(), %error, "the size of the disk is not known");
                Self::default()
            }
        }
    }

    /// A part of it in bytes, rounded up to the next billion.
    fn part(self, percentage: u64) -> u64 {
        match self.total {
            0 => UNKNOWN,
            total => {
                let part = u128::from(total) * u128::from(percentage) / 100;
                u64::try_from(part / (1 << 30) + 1)
                    .unwrap_or(u64::MAX)
                    .saturating_mul(GB)
            }
        }
    }

    /// A space on it in bytes.
    pub(crate) fn bytes(self, space: DiskSpace) -> u64 {
        match (space.bytes, space.percentage) {
            (0, 0) => 0,
            (0, percentage) => self.part(percentage),
            (bytes, _) => bytes,
        }
    }
}

/// The policies of a worker; none when it does not prune by itself.
pub(crate) fn policies(config: &WorkerConfig, disk: Disk) -> Vec<Policy> {
    if config.gc == Some(false) {
        return Vec::new();
    }
    let policy = |one: &GcPolicy| Policy {
        all: one.all,
        filters: one.filters.clone(),
        keep_duration: one.keep_duration.0,
        reserved_space: match one.reserved_space.is_set() {
            true => disk.bytes(one.reserved_space),
            // Its older name.
            false => disk.bytes(one.keep_bytes),
        },
        max_used_space: disk.bytes(one.max_used_space),
        min_free_space: disk.bytes(one.min_free_space),
    };
    match config.gcpolicy.as_slice() {
        [] => defaults(config, disk),
        policies => policies.iter().map(policy).collect(),
    }
}

/// First what is easily had again and was not used for two days, then what was not used for two
/// months, then anything that is too much, and at last what the daemon needs for itself.
fn defaults(config: &WorkerConfig, disk: Disk) -> Vec<Policy> {
    let said = [
        config.reserved_space,
        config.max_used_space,
        config.min_free_space,
        config.gckeepstorage,
    ];
    let bounds = if said.iter().any(DiskSpace::is_set) {
        let newer = &said[..3];
        Policy {
            reserved_space: match newer.iter().any(DiskSpace::is_set) {
                true => disk.bytes(config.reserved_space),
                false => disk.bytes(config.gckeepstorage),
            },
            max_used_space: disk.bytes(config.max_used_space),
            min_free_space: disk.bytes(config.min_free_space),
            ..Policy::default()
        }
    } else {
        let bounded = |(part, most)| disk.part(part).min(most);
        Policy {
            reserved_space: bounded(RESERVED),
            max_used_space: bounded(MAX_USED),
            min_free_space: disk.part(MIN_FREE),
            ..Policy::default()
        }
    };
    let kinds = ["source.local", "exec.cachemount", "source.git.checkout"];
    vec![
        Policy {
            filters: kinds.map(|kind| format!("type=={kind}")).to_vec(),
            keep_duration: 48 * HOUR,
            max_used_space: 512_000_000,
            ..Policy::default()
        },
        Policy {
            keep_duration: 60 * 24 * HOUR,
            ..bounds.clone()
        },
        bounds.clone(),
        Policy {
            all: true,
            ..bounds
        },
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Config;

    const DISK: Disk = Disk { total: 1000 << 30 };

    fn of(text: &str) -> Vec<Policy> {
        let config = Config::parse(&format!("[worker.oci]\n{text}")).unwrap();
        policies(&config.worker.oci, DISK)
    }

    #[test]
    fn without_a_word_the_usual_bounds_hold() {
        let all = of("");
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].filters.len(), 3);
        assert_eq!(all[0].keep_duration, Duration::from_secs(172_800));
        for bounded in &all[1..] {
            assert_eq!(bounded.reserved_space, 10 * GB);
            assert_eq!(bounded.max_used_space, 100 * GB);
            assert_eq!(bounded.min_free_space, 201 * GB);
        }
        assert_eq!(all[1].keep_duration, Duration::from_secs(5_184_000));
        assert!(all[3].all && !all[2].all);
        // On a small disk the parts count.
        let small = Disk { total: 20 << 30 };
        let all = policies(&WorkerConfig::default(), small);
        assert_eq!(all[2].reserved_space, 2 * GB + GB);
        assert_eq!(all[2].max_used_space, 17 * GB);
    }

    #[test]
    fn what_is_said_goes_before_the_usual() {
        assert_eq!(of("gc = false"), []);
        let all = of("gckeepstorage = 5000000000");
        assert_eq!((all[2].reserved_space, all[2].max_used_space), (5 * GB, 0));
        let all = of("gckeepstorage = 5000000000\nmaxUsedSpace = \"60%\"");
        assert_eq!(
            (all[2].reserved_space, all[2].max_used_space),
            (0, 601 * GB)
        );
        let own = "[[worker.oci.gcpolicy]]\nkeepBytes = 7\nkeepDuration = \"1h\"\n\
                   filters = [ \"type==regular\" ]\n[[worker.oci.gcpolicy]]\nall = true\n\
                   reservedSpace = 8\nminFreeSpace = 9";
        let all = of(own);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].reserved_space, all[0].keep_duration), (7, HOUR));
        assert_eq!((all[1].reserved_space, all[1].min_free_space), (8, 9));
        assert!(all[1].all);
    }
}
