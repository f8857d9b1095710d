//! What steps may use of the machine, and what they used, for each job.
//!
//! Limits are not a part of what a step is: two builds that ask for the same step with other
//! limits get one step, which has the most relaxed ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cooper_executor::{Resources, Usage};
use cooper_llb as llb;
use cooper_proto::pb;
use cooper_solver::Digest;

/// The period in which a quota counts when nothing is said: the kernel's, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The steps of a job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    limits: HashMap<Digest, Resources>,
    usage: HashMap<Digest, Usage>,
}

impl Steps {
    /// Notes the limits that `graph` asks for.
    pub(crate) fn add(&self, graph: &llb::Graph) {
        let mut known = self.lock();
        for vertex in graph.vertices() {
            if !matches!(vertex.op, llb::Op::Exec(_)) {
                continue;
            }
            let asked = vertex.metadata.linux_resources.as_ref();
            let asked = asked.map(resources).unwrap_or_default();
            let limits = match known.limits.remove(&vertex.digest) {
                Some(other) => relaxed(other, asked),
                None => asked,
            };
            known.limits.insert(vertex.digest.clone(), limits);
        }
    }

    /// The limits of a step; none when nothing was said.
    pub(crate) fn limits(&self, vertex: &Digest) -> Resources {
        self.lock().limits.get(vertex).cloned().unwrap_or_default()
    }

    pub(crate) fn used(&self, vertex: &Digest, usage: Usage) {
        self.lock().usage.insert(vertex.clone(), usage);
    }

    pub(crate) fn usage(&self) -> HashMap<Digest, Usage> {
        self.lock().usage.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one call on a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn resources(asked: &pb::LinuxResources) -> Resources {
    // Less than nothing is nothing; but a quota and swap can be without a bound.
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Resources {
        memory: asked.memory.max(0),
        memory_swap: asked.memory_swap.max(-1),
        cpu_shares: positive(asked.cpu_shares),
        cpu_period: positive(asked.cpu_period),
        cpu_quota: asked.cpu_quota.max(0),
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
    }
}

/// What allows all that either allows.
pub(crate) fn relaxed(one: Resources, other: Resources) -> Resources {
    // Nothing said is no limit.
    let larger = |one: i64, other: i64| match (one, other) {
        (0, _) | (_, 0) => 0,
        (one, other) => one.max(other),
    };
    let union = |one: String, other: String| match (one.as_str(), other.as_str()) {
        ("", _) | (_, "") => String::new(),
        (same, too) if same == too => one,
        // The kernel takes lists whose parts overlap.
        _ => format!("{one},{other}"),
    };
    let share = |of: &Resources| match of.cpu_quota {
        0 => f64::INFINITY,
        quota => {
            let period = Some(of.cpu_period).filter(|period| *period > 0);
            quota as f64 / period.unwrap_or(DEFAULT_PERIOD) as f64
        }
    };
    let time = if share(&one) >= share(&other) {
        (one.cpu_period, one.cpu_quota)
    } else {
        (other.cpu_period, other.cpu_quota)
    };
    Resources {
        memory: larger(one.memory, other.memory),
        memory_swap: match (one.memory_swap, other.memory_swap) {
            (-1, _) | (_, -1) => -1,
            (one, other) => larger(one, other),
        },
        cpu_shares: match (one.cpu_shares, other.cpu_shares) {
            (0, _) | (_, 0) => 0,
            (one, other) => one.max(other),
        },
        cpu_period: time.0,
        cpu_quota: time.1,
        cpuset_cpus: union(one.cpuset_cpus, other.cpuset_cpus),
        cpuset_mems: union(one.cpuset_mems, other.cpuset_mems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_relaxed_limits_win() {
        let tight = Resources {
            memory: 1,
            memory_swap: 2,
            cpu_shares: 3,
            cpu_period: 100,
            cpu_quota: 50,
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
        };
        let loose = Resources {
            memory: 10,
            memory_swap: -1,
            cpu_shares: 30,
            cpu_period: 1000,
            cpu_quota: 900,
            cpuset_cpus: "1-2".into(),
            cpuset_mems: "0".into(),
        };
        let expected = Resources {
            cpuset_cpus: "0,1-2".into(),
            ..loose.clone()
        };
        assert_eq!(relaxed(tight.clone(), loose), expected);
        assert_eq!(relaxed(tight.clone(), tight.clone()), tight);
        let none = Resources::default();
        assert_eq!(relaxed(tight.clone(), none.clone()), none);
        assert_eq!(relaxed(none.clone(), tight), none);
    }

    #[test]
    fn nonsense_is_no_limit() {
        let asked = pb::LinuxResources {
            memory: -5,
            memory_swap: -7,
            cpu_shares: -1,
            cpu_period: -1,
            cpu_quota: -1,
            ..pb::LinuxResources::default()
        };
        let expected = Resources {
            memory_swap: -1,
            ..Resources::default()
        };
        assert_eq!(resources(&asked), expected);
    }
}
