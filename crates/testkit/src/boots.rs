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
    let written = Written::now(root);
    wait_until("what was written is durable", PATIENCE, || {
        written.is_durable()
    });
}

/// What daemons with a root have written: the last commit of each of their databases.
#[derive(Debug)]
pub struct Written(Vec<(PathBuf, i64)>);

impl Written {
    /// By now.
    pub fn now(root: &Path) -> Self {
        let last = |database: PathBuf| {
            let last = read(&database, "SELECT MAX(seq) FROM kv");
            (database, last)
        };
        Self(databases(root).map(last).collect())
    }

    /// Whether it survives the machine.
    pub fn is_durable(&self) -> bool {
        let sql = "SELECT MAX(CAST(value AS INTEGER)) FROM meta WHERE name = 'watermark'";
        self.0
            .iter()
            .all(|(database, last)| read(database, sql) >= *last)
    }
}

fn read(database: &Path, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    let number = connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
    number.unwrap().unwrap_or(0)
}

/// Lets a daemon that was killed find that the machine has been booted since: all that no
/// checkpoint covered may be anything.
pub fn another_boot(root: &Path) {
    for database in databases(root) {
        let connection = rusqlite::Connection::open(&database).unwrap();
        let write = |sql: &str| assert_eq!(connection.execute(sql, []).unwrap(), 1, "{sql}");
        write("UPDATE meta SET value = 'before' WHERE name = 'boot'");
        // As a row of an earlier format, which has no checksum.
        write(
            "UPDATE kv SET value = '\"before\"', sum = NULL \
             WHERE tbl = 'cache-meta' AND key = 'boot'",
        );
    }
    let history = root.join("history.db");
    if history.exists() {
        let connection = rusqlite::Connection::open(&history).unwrap();
        let sql = "UPDATE meta SET value = 'before' WHERE name = 'boot'";
        assert_eq!(connection.execute(sql, []).unwrap(), 1);
    }
}

fn databases(root: &Path) -> impl Iterator<Item = PathBuf> {
    let workers = entries(root).into_iter();
    let databases = workers.map(|worker| worker.join("metadata.db"));
    databases.filter(|database| database.exists())
}
