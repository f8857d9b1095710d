//! Another crate registers workers: this one is that other crate.
#![allow(clippy::unwrap_used, missing_docs)]

use cooper_worker::{Context, Controller, WorkerError, WorkerInitializer, WorkersFuture};
use cooper_worker::{inventory, registered};

fn nothing(_: &Context) -> WorkersFuture<'_> {
    Box::pin(async { Ok(Vec::new()) })
}

fn fails(_: &Context) -> WorkersFuture<'_> {
    Box::pin(async {
        Err(WorkerError::Init {
            name: "second".into(),
            source: "it is broken".into(),
        })
    })
}

inventory::submit! { WorkerInitializer { name: "last", priority: 9, init: nothing } }
inventory::submit! { WorkerInitializer { name: "b", priority: 1, init: nothing } }
inventory::submit! { WorkerInitializer { name: "a", priority: 1, init: nothing } }

#[test]
fn initialisers_are_ordered_by_priority_and_name() {
    let names: Vec<_> = registered().iter().map(|known| known.name).collect();
    assert_eq!(names, ["a", "b", "last"]);
}

#[tokio::test]
async fn no_worker_is_an_error_that_says_who_was_asked() {
    let error = Controller::start(&Context::default()).await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with("no worker found: the initialisers a, b, last are registered"),
        "{text}"
    );
    let error = Controller::with(&[], &Context::default())
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("no initialiser is registered"),
        "{error}"
    );
}

#[tokio::test]
async fn a_worker_that_fails_stops_the_start() {
    let second = WorkerInitializer {
        name: "second",
        priority: 2,
        init: fails,
    };
    let error = Controller::with(&[&second], &Context::default())
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("second"), "{error}");
}
