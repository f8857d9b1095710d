//! Many builds side by side, some of them given up.

use std::cell::Cell;
use std::time::{Duration, Instant};

use cooper_testkit::{leak, memory, wait_until};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Choices, Told, request_with, rounds, solve};
use crate::client::{Bench, sh};

/// Builds at once.
const AT_ONCE: usize = 32;

/// How the builds of a round ended.
#[derive(Debug, Default)]
struct Ends {
    done: usize,
    given_up: usize,
    /// How long those took that were not given up.
    took: Vec<Duration>,
}

impl Ends {
    /// What half of the builds took at most.
    fn median(&mut self) -> Duration {
        self.took.sort();
        self.took[self.took.len() / 2]
    }
}

/// Builds `number` steps, each in a build of its own. Two in five are given up within the time that
/// the others take, before which some of these are done. That is `most` at first and then what it
/// turns out to be: what else runs on the machine changes meanwhile.
fn round(bench: &Bench, choices: &mut Choices, name: &str, number: usize, most: Duration) -> Ends {
    let pace = Cell::new(most);
    let builds: Vec<_> = (0..number)
        .map(|step| {
            let script = format!("echo {name} {step} > /step; sleep 0.0429");
            let give_up = choices.in_hundred(40).then(|| choices.part());
            // By saying so, and by being gone.
            (
                bench.image().run(sh(&script)),
                give_up,
                choices.in_hundred(50),
            )
        })
        .collect();
    bench.rt.block_on(async {
        let builds = futures::stream::iter(builds);
        let pace = &pace;
        let ends = builds.map(|(state, give_up, says_so)| async move {
            let begin = Instant::now();
            let give_up = give_up.map(|part| pace.get().mul_f64(part));
            let token = CancellationToken::new();
            let mut told = Told::default();
            let request = request_with(&state, &token);
            let mut solving = Box::pin(solve(&bench.client, request, &mut told));
            let patience = Duration::from_secs(120);
            let limit = give_up.unwrap_or(patience);
            let ended = match tokio::time::timeout(limit, &mut solving).await {
                Ok(result) => Some(result),
                Err(_) if give_up.is_none() => panic!("a build did not end in {patience:?}"),
                Err(_) if says_so => {
                    token.cancel();
                    let rest = tokio::time::timeout(patience, solving).await;
                    Some(rest.expect("a build that is given up ends"))
                }
                Err(_) => None,
            };
            (give_up, ended, begin.elapsed())
        });
        let mut sum = Ends::default();
        let mut ends = std::pin::pin!(ends.buffer_unordered(AT_ONCE));
        while let Some((give_up, ended, took)) = ends.next().await {
            match ended {
                Some(Ok(())) => {
                    sum.done += 1;
                    if give_up.is_none() {
                        sum.took.push(took);
                        pace.set((pace.get() * 3 + took) / 4);
                    }
                }
                Some(Err(error)) if give_up.is_some() => {
                    assert!(error.is_cancelled(), "{error}");
                    sum.given_up += 1;
                }
                Some(Err(error)) => panic!("a build that nobody gave up: {error}"),
                None => sum.given_up += 1,
            }
        }
        sum
    })
}

/// Nothing of the builds is there any more, also not their results.
fn settle(bench: &Bench) {
    bench.check_steps();
    bench.check_releasable();
    let root = bench.daemon.root();
    wait_until(
        "nothing is left in the root",
        Duration::from_secs(10),
        || leak::in_root(&root).is_empty(),
    );
}

/// What the daemon has open, without its stores: each keeps up to four connections for those who
/// read, and how many of them there are says how many have read at once.
fn descriptors(bench: &Bench) -> Vec<String> {
    let list = std::fs::read_dir(format!("/proc/{}/fd", bench.daemon.pid())).unwrap();
    let links = list.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut links: Vec<_> = links.map(|link| link.display().to_string()).collect();
    for store in ["/metadata.db", "/history.db"] {
        let of_store = links.extract_if(.., |link| link.contains(store));
        let of_store: Vec<_> = of_store.collect();
        // A file, its log and its index for the writer, the first two for each reader.
        assert!(of_store.len() <= 3 + 2 * 4, "{of_store:?}");
    }
    links.sort();
    links
}

#[test]
fn sol09_nothing_stays_of_many_builds_of_which_a_third_is_given_up() {
    let bench = Bench::start();
    let mut choices = Choices::new();
    let number = rounds(96, 1000);
    let resident = || memory::kib(bench.daemon.pid(), "VmRSS").unwrap();
    // How long one takes among as many, and then as much as is looked at afterwards.
    let alone = round(
        &bench,
        &mut choices,
        "first",
        AT_ONCE * 2,
        Duration::MAX / 4,
    )
    .median();
    let mut warm = round(&bench, &mut choices, "warm", number, alone);
    settle(&bench);
    let (before, open) = (resident(), descriptors(&bench));
    let most = warm.median();
    let begin = Instant::now();
    let ends = round(&bench, &mut choices, "again", number, most);
    let took = begin.elapsed();
    settle(&bench);
    let mut now = Vec::new();
    wait_until("descriptors are closed", Duration::from_secs(5), || {
        now = descriptors(&bench);
        if now.len() > open.len() {
            eprintln!("{} open, {} before: {now:?}", now.len(), open.len());
        }
        now.len() <= open.len()
    });
    let after = resident();
    eprintln!(
        "{number} steps, {AT_ONCE} at once, in {took:?}: {} done, {} given up; \
         memory {before} KiB before, {after} KiB after; {} descriptors before, {} after",
        ends.done,
        ends.given_up,
        open.len(),
        now.len(),
    );
    assert!(ends.given_up >= number / 5, "{}", ends.given_up);
    assert!(
        after <= before + before / 10,
        "{before} KiB became {after} KiB"
    );
    bench.end();
}
