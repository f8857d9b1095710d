//! Keeps two builds and lists them: `cargo run -p cooper-history --example history [FOLDER]`.
//! With a folder, the builds of earlier runs are there, too.

use std::sync::Arc;

use cooper_history::{End, History, Limits, Record};
use cooper_progress::{Collect, STDOUT, VertexProgress};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let root = std::env::args_os()
        .nth(1)
        .map_or(temporary.path().to_owned(), Into::into);
    std::fs::create_dir_all(&root)?;
    let history = History::open(&root, Limits::default()).await?;
    let mut news = history.listen().news;
    for number in 1..=2 {
        let name = format!("build-{}-{number}", std::process::id());
        let mut recording = history.begin(Record {
            r#ref: name.clone(),
            ..Record::default()
        });
        let sink = Arc::new(Collect::default());
        let progress =
            VertexProgress::new(VertexProgress::discard().digest().clone(), sink.clone());
        progress.log(STDOUT, format!("hello from {name}\n").into());
        recording.end(End::default());
        let seen = sink.take().into_iter().map(Arc::new).collect();
        recording.keep(seen, None);
        println!("{:?}", news.next().await.is_some());
    }
    history.settled("").await;
    for record in history.records("").await? {
        print!("{}: ", record.r#ref);
        let Some(mut log) = history.log(&record.r#ref).await? else {
            continue;
        };
        while let Some(message) = log.next().await {
            for log in message?.logs {
                print!("{}", String::from_utf8_lossy(&log.msg));
            }
        }
    }
    history.close().await;
    Ok(())
}
