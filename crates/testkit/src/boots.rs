//! What a machine keeps when it dies, as the metadata of a daemon tells it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::leak::entries;
use crate::run::wait_until;

/// A checkpoint is due some seconds after something was written, and a slow machine takes its time
/// for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until all that a daemon with this root has written by now survives the machine.
#[track_caller]
pub fn wait_durable(root: &Path) {
    for database in databases(root) {
        let read = |sql: &str| -> i64 {
            let connection = rusqlite::Connection::open(&database).unwrap();
            let number = connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
            number.unwrap().unwrap_or(0)
        };
        let last = read("SELECT MAX(seq) FROM kv");
        wait_until("what was written is durable", PATIENCE, || {
            read("SELECT MAX(CAST(value AS INTEGER)) FROM meta WHERE name = 'watermark'") >= last
        });
    }
}

/// Lets a daemon that was killed find that the machine has been booted since: all that no
/// checkpoint covered may be anything.
pub fn another_boot(root: &Path) {
    for database in databases(root) {
        let connection = rusqlite::Connection::open(&database).unwrap();
        let write = |sql: &str| assert_eq!(connection.execute(sql, []).unwrap(), 1, "{sql}");
        write("UPDATE meta SET value = 'before' WHERE name = 'boot'");
        write("UPDATE kv SET value = '\"before\"' WHERE tbl = 'cache-meta' AND key = 'boot'");
    }
}

fn databases(root: &Path) -> impl Iterator<Item = PathBuf> {
    let workers = entries(root).into_iter();
    let databases = workers.map(|worker| worker.join("metadata.db"));
    databases.filter(|database| database.exists())
}
