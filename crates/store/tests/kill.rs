//! A process that is killed at a random moment has lost nothing that it had acknowledged.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use cooper_store::{Store, Table};

const T: Table<u64> = Table::new("t");
const CHILD: &str = "COOPER_STORE_KILL_CHILD";

/// Writes for ever and says on standard output what was acknowledged.
fn child(path: &str) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (store, _) = Store::open(path.as_ref(), "boot").unwrap();
    let begin = store.read(|tx| Ok(tx.scan(&T, "")?.len() as u64)).unwrap();
    for number in begin.. {
        let write = store.write(move |tx| tx.put(&T, &format!("{number:020}"), &number));
        runtime.block_on(write).unwrap();
        println!("{number}");
    }
    unreachable!("the parent kills this process")
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    if let Ok(path) = std::env::var(CHILD) {
        child(&path);
    }
    let rounds = std::env::var("COOPER_KILL_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(8);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut acknowledged = None;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_killed_process_loses_nothing_acknowledged",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(40 + round * 17 % 90));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        for line in output.lines() {
            if let Ok(number) = line.unwrap_or_default().parse::<u64>() {
                acknowledged = Some(number);
            }
        }
        killer.join().unwrap();
        let (store, dropped) = Store::open(&path, "boot").unwrap();
        assert_eq!(dropped, []);
        let rows = store.read(|tx| tx.scan(&T, "")).unwrap();
        if let Some(last) = acknowledged {
            assert!(
                rows.len() as u64 > last,
                "{last} was acknowledged, {} rows are there",
                rows.len()
            );
        }
        let whole = rows
            .iter()
            .enumerate()
            .all(|(index, (_, value))| index as u64 == *value);
        assert!(whole, "a row is missing in the middle");
    }
    assert!(acknowledged.is_some(), "no child wrote anything");
}
