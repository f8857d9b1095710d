//! Builds with more steps than an overlay has layers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cooper_client::Solve;
use cooper_llb::build::{Constraints, Image, State};
use cooper_session::serve::Output;

use super::{Told, rounds, solve};
use crate::client::{Bench, Files, mkfile, request, sh, solve_to};

/// What is in the folders `/n` and `/d` after some steps.
#[derive(Default)]
struct Expected {
    n: BTreeSet<String>,
    d: BTreeSet<String>,
}

/// A step that writes and removes, among other things what one long before has made.
fn step(number: usize, expected: &mut Expected) -> String {
    let mut script = format!("mkdir -p /n /d; touch /n/{number}");
    expected.n.insert(number.to_string());
    if number % 7 == 6 {
        let old = number / 2;
        script.push_str(&format!("; rm -f /n/{old}"));
        expected.n.remove(&old.to_string());
    }
    if number.is_multiple_of(50) {
        script.push_str(&format!("; rm -rf /d; mkdir /d; touch /d/{number}"));
        expected.d = BTreeSet::from([number.to_string()]);
    } else if number % 50 == 25 {
        script.push_str(&format!("; touch /d/{number}"));
        expected.d.insert(number.to_string());
    }
    script
}

fn names(folder: &std::path::Path) -> BTreeSet<String> {
    let list = std::fs::read_dir(folder).unwrap();
    list.map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Solves with the patience that so many steps need on a busy machine.
#[track_caller]
fn build(bench: &Bench, request: Solve) {
    let mut told = Told::default();
    let solving = solve(&bench.client, request, &mut told);
    let solved = bench
        .rt
        .block_on(async { tokio::time::timeout(Duration::from_secs(600), solving).await });
    solved.expect("the build ends in time").unwrap();
}

/// Builds and gives the files.
#[track_caller]
fn files_of(bench: &Bench, state: &State) -> tempfile::TempDir {
    let out = bench.folder();
    let to = Output::Dir(out.path().to_owned());
    build(bench, solve_to(request(state), "local", &[], to));
    out
}

#[track_caller]
fn check(bench: &Bench, state: &State, expected: &Expected) {
    let out = files_of(bench, state);
    assert_eq!(names(&out.path().join("n")), expected.n);
    assert_eq!(names(&out.path().join("d")), expected.d);
    assert!(out.path().join("bin/busybox").exists());
}

#[test]
fn snp02_six_hundred_steps_in_a_row_are_built_exported_and_continued() {
    let bench = Bench::start();
    let (commands, files) = (rounds(14, 600), rounds(490, 0));
    let mut expected = Expected::default();
    let mut state = bench.image();
    let begin = Instant::now();
    // Half of the commands on either side of the files.
    for number in 0..commands {
        if number == commands / 2 {
            for file in 0..files {
                let path = format!("/n/file-{file}");
                state = state.files(vec![mkfile(&path, "text")]);
                expected.n.insert(format!("file-{file}"));
            }
        }
        state = state.run(sh(&step(number, &mut expected)));
    }
    build(&bench, request(&state));
    let built = begin.elapsed();
    check(&bench, &state, &expected);
    // As an image, and what is built from that when nothing else is there any more.
    let begin = Instant::now();
    let name = format!("{}/long:latest", bench.registry.host());
    let mut image = request(&state);
    image.request.exporters = vec![crate::client::exporter(
        "image",
        &[("name", &name), ("push", "true")],
    )];
    build(&bench, image);
    let pushed = begin.elapsed();
    bench.check_releasable();
    let begin = Instant::now();
    let mut next = State::image(&name, Image::default(), Constraints::default());
    for number in commands..commands + 10 {
        next = next.run(sh(&step(number, &mut expected)));
    }
    check(&bench, &next, &expected);
    // A folder that was made anew in the middle is one.
    let ls = next.run(sh(
        "test $(ls /d | wc -l) -le 2; rm -rf /n; mkdir /n; touch /n/last",
    ));
    let out = files_of(&bench, &ls);
    assert_eq!(
        names(&out.path().join("n")),
        BTreeSet::from(["last".to_owned()])
    );
    eprintln!(
        "{} layers: built in {built:?}, pushed in {pushed:?}, pulled and continued in {:?}",
        commands + files,
        begin.elapsed()
    );
    drop(out);
    bench.end();
}
