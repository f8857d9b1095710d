//! Much of the same: long builds, builds that are given up, a daemon that is killed, and power that is
//! cut, at moments that nobody has chosen. Among the other cases they are short; `cargo xtask soak` makes them long.

mod cancel;
mod cuts;
mod kill;
mod steps;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use cooper_client::{Client, ClientError, Solve};
use cooper_llb::build::State;
use cooper_proto::control::StatusResponse;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::client::request;

/// Set when the cases are to be as long as is promised.
const LONG: &str = "COOPER_SOAK";
/// A seed, to have the choices of an earlier run.
const SEED: &str = "COOPER_SOAK_SEED";

/// `long` with `cargo xtask soak`, else `short`.
fn rounds(short: usize, long: usize) -> usize {
    match std::env::var_os(LONG) {
        Some(_) => long,
        None => short,
    }
}

/// Whoever chooses the moments. The seed is printed.
struct Choices(StdRng);

impl Choices {
    #[track_caller]
    fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().expect("a seed is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.unwrap().as_millis() as u64
            }
        };
        eprintln!("seed {seed}");
        Self(StdRng::seed_from_u64(seed))
    }

    /// A part of `most`, which may be all of it.
    fn moment(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.part())
    }

    /// A part of a whole, which may be all of it.
    fn part(&mut self) -> f64 {
        self.0.random_range(0.0..=1.0)
    }

    /// Any number.
    fn number(&mut self) -> u64 {
        self.0.random()
    }

    /// Yes so often.
    fn in_hundred(&mut self, times: u32) -> bool {
        self.0.random_range(0..100) < times
    }
}

/// What a client has seen of the steps of a build, by their names.
#[derive(Debug, Default)]
struct Told {
    steps: BTreeMap<String, Step>,
    by_digest: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Step {
    /// When it was told that it has ended without an error.
    completed: Option<Instant>,
    /// What it wrote. Nothing: it was not carried out.
    log: String,
}

impl Told {
    fn hear(&mut self, response: StatusResponse) {
        for vertex in response.vertexes {
            let step = self.steps.entry(vertex.name.clone()).or_default();
            if vertex.completed.is_some() && vertex.error.is_empty() {
                step.completed.get_or_insert_with(Instant::now);
            }
            self.by_digest.insert(vertex.digest, vertex.name);
        }
        for log in response.logs {
            let name = self.by_digest.get(&log.vertex);
            let name = name.cloned().unwrap_or_default();
            let text = String::from_utf8_lossy(&log.msg);
            self.steps.entry(name).or_default().log.push_str(&text);
        }
    }

    /// The step whose name ends in `mark`.
    fn step(&self, mark: &str) -> Option<&Step> {
        let mut steps = self.steps.iter();
        steps
            .find(|(name, _)| name.ends_with(mark))
            .map(|(_, step)| step)
    }
}

/// Solves and listens.
async fn solve(client: &Client, solve: Solve, told: &mut Told) -> Result<(), ClientError> {
    let mut hear = |response| told.hear(response);
    let solving = Box::pin(client.solve(solve, &mut hear));
    solving.await.map(drop)
}

/// A request that is given up when the token is cancelled.
fn request_with(state: &State, cancelled: &tokio_util::sync::CancellationToken) -> Solve {
    Solve {
        cancelled: cancelled.clone(),
        ..request(state)
    }
}
