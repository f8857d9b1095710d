//! A daemon that is killed at any moment of a build.

use std::time::{Duration, Instant};

use cooper_llb::build::{Exec, MountKind, State};
use cooper_proto::pb;
use cooper_testkit::{leak, wait_until};

use super::{Choices, Step, Told, rounds, solve};
use crate::client::{Bench, Files, copy, mount, request, sh};
use crate::read;

/// Steps of the long chain, and of the one beside it that begins in the middle of it.
const LONG: usize = 8;
const SHORT: usize = 4;

/// Keys are written beside the next steps, which do not wait for it. This is the time of some
/// hundred of these writes.
const WRITTEN: Duration = Duration::from_millis(20);

/// One of the builds. Their steps have nothing in common.
struct Build {
    state: State,
    /// How the names of the steps end, in the order of the lines in `ids`, and in that order the
    /// steps of the short chain.
    long: Vec<String>,
    short: Vec<String>,
}

impl Build {
    fn new(bench: &Bench, round: usize) -> Self {
        let mark = |chain: &str, number: usize| format!(": step {round}.{chain}.{number}");
        let long: Vec<_> = (0..LONG).map(|number| mark("a", number)).collect();
        let short: Vec<_> = (0..SHORT).map(|number| mark("b", number)).collect();
        let (mut left, mut right) = (bench.image(), bench.image());
        for (number, mark) in long.iter().enumerate() {
            if number == LONG - SHORT {
                right = left.clone();
            }
            left = left.run(step(mark));
        }
        for mark in &short {
            right = right.run(step(mark));
        }
        let state = State::scratch()
            .copy(copy(&left, "/ids", "/long"))
            .copy(copy(&right, "/ids", "/short"))
            .copy(copy(&left, "/halves", "/halves"))
            .copy(copy(&right, "/halves", "/more-halves"));
        Self { state, long, short }
    }

    fn marks(&self) -> impl Iterator<Item = &String> {
        self.long.iter().chain(&self.short)
    }

    /// The steps of each file, in the order of its lines.
    fn files(&self) -> [(&str, Vec<&String>); 2] {
        let beginning = &self.long[..LONG - SHORT];
        [
            ("long", self.long.iter().collect()),
            ("short", beginning.iter().chain(&self.short).collect()),
        ]
    }
}

/// Writes a name that nobody can guess, says it, and has something half made in between: in its
/// own files, and in a cache that all steps have in common.
fn step(mark: &str) -> Exec {
    let script = format!(
        "id=$(cat /proc/sys/kernel/random/uuid); echo half > /half; echo half > /c/$id; \
         head -c 65536 /dev/zero > /zeros; echo $id >> /ids; mv /c/$id /c/whole; rm /half; ls / | grep -c half >> /halves || true; echo $id {mark}"
    );
    let kind = MountKind::Cache {
        id: "kept".into(),
        sharing: pb::CacheSharingOpt::Shared,
    };
    let mut exec = sh(&script);
    let cache = mount("/c", &State::scratch(), kind);
    exec.mounts = vec![cache];
    exec
}

/// What a step has said its name is.
fn id(step: &Step) -> Option<&str> {
    step.log.split_whitespace().next()
}

/// Kills the daemon after `delay`; what the client had heard by then, and when that was.
fn killed(bench: &mut Bench, build: &Build, delay: Duration) -> (Told, Instant) {
    let mut told = Told::default();
    let Bench {
        rt, client, daemon, ..
    } = bench;
    let at = rt.block_on(async {
        let mut solving = Box::pin(solve(client, request(&build.state), &mut told));
        let ended = tokio::time::timeout(delay, &mut solving).await;
        let at = Instant::now();
        daemon.kill();
        if ended.is_err() {
            let rest = tokio::time::timeout(Duration::from_secs(10), solving).await;
            let _ = rest.expect("a client is told that its daemon is gone");
        }
        at
    });
    (told, at)
}

#[test]
fn cm05_a_daemon_that_is_killed_at_any_moment_goes_on_with_what_was_there() {
    let mut bench = Bench::start();
    let mut choices = Choices::new();
    // As long as a build takes when it is left alone: the longest of some.
    let mut most = Duration::ZERO;
    for round in 0..3 {
        let build = Build::new(&bench, 1_000_000 + round);
        let begin = Instant::now();
        bench.solve(&build.state);
        most = most.max(begin.elapsed());
    }
    let rounds = rounds(6, 200);
    let (mut kept, mut anew) = (0, 0);
    for round in 0..rounds {
        let build = Build::new(&bench, round);
        let delay = choices.moment(most);
        let (before, at) = killed(&mut bench, &build, delay);
        bench.restart();
        let context = format!("round {round}, killed after {delay:?}");
        // Nothing of it is on the machine or in the root.
        bench.check_steps();
        let root = bench.daemon.root();
        wait_until(&context, Duration::from_secs(5), || {
            let left = leak::in_root(&root);
            if !left.is_empty() {
                eprintln!("{context}: left in the root: {left:?}");
            }
            left.is_empty()
        });
        // The same again: what the client was told is done is not done again, and all is whole.
        let mut after = Told::default();
        let out = bench.folder();
        let to = cooper_session::serve::Output::Dir(out.path().to_owned());
        let again = crate::client::solve_to(request(&build.state), "local", &[], to);
        bench
            .rt
            .block_on(solve(&bench.client, again, &mut after))
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        for mark in build.marks() {
            let told = before.step(mark).and_then(|step| step.completed);
            let ago = told.map(|told| at.saturating_duration_since(told));
            let again = after.step(mark).and_then(id);
            if ago.is_some_and(|ago| ago > WRITTEN) {
                kept += 1;
                assert_eq!(again, None, "{context}:{mark} was done {ago:?} before");
            } else if ago.is_some() && again.is_some() {
                eprintln!("{context}:{mark} was done {ago:?} before, and again");
            }
            anew += usize::from(again.is_some());
        }
        for (file, marks) in build.files() {
            let text = read(&out.path().join(file));
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), marks.len(), "{context}: {file}: {text}");
            for (line, mark) in lines.iter().zip(marks) {
                let told = [&before, &after].map(|told| told.step(mark).and_then(id));
                // A step may have been committed before the client heard of its end.
                assert!(
                    told.contains(&Some(*line)) || told == [None, None],
                    "{context}: {mark}: {line} is not of {told:?}"
                );
            }
        }
        for file in ["halves", "more-halves"] {
            let text = read(&out.path().join(file));
            assert!(text.lines().all(|line| line == "0"), "{context}: {text}");
        }
        drop(out);
        if round % 20 == 19 {
            eprintln!(
                "{} rounds: {kept} steps kept, {anew} carried out anew",
                round + 1
            );
        }
    }
    eprintln!("{rounds} kills within {most:?}: {kept} steps kept, {anew} carried out anew");
    bench.end();
}
