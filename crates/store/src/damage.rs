//! Damage to the file: found at opening, put aside, and what is whole brought over.
//!
//! SQLite tells when the structure of a file is broken, and nothing of a byte that changed within
//! a value, or of a log that is cut short by one. So each row has a checksum, and the log is
//! read to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags, Row};

use crate::{Dropped, Store, StoreError};

/// Rows that do not have their checksum and are named in the message, at most.
const NAMED: usize = 3;
/// What a file that was put aside is called: this and the seconds since 1970.
const ASIDE: &str = ".damaged-";
/// A log begins with this, but for the last bit, which says in which order its checksums take
/// bytes (sqlite.org, "WAL File Format").
const LOG_MAGIC: u32 = 0x377f_0682;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A store that was opened, and what had happened to it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Rows that were dropped, because the machine had died before they were durable.
    pub dropped: Vec<Dropped>,
    /// What was wrong with the file, when it was made anew.
    pub rebuilt: Option<Rebuilt>,
}

/// A store that was damaged and made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was wrong.
    pub detail: String,
    /// Where the damaged file is kept.
    pub aside: PathBuf,
    /// Rows that were whole and brought over.
    pub rows: usize,
}

impl Store {
    /// As [`Store::open`]. A file that is damaged is kept beside its place under another name,
    /// and a new one begins with all rows of it that are whole.
    ///
    /// # Errors
    /// When the file is of a later format, or there can be no store in its place at all.
    pub fn open_or_rebuild(path: &Path, boot: &str) -> Result<Opened, StoreError> {
        let detail = match Self::open(path, boot) {
            Ok((store, dropped)) => {
                return Ok(Opened {
                    store,
                    dropped,
                    rebuilt: None,
                });
            }
            Err(StoreError::Corrupt { detail, .. }) => detail,
            Err(error) => return Err(error),
        };
        let failed = |source| StoreError::Rebuild {
            path: path.to_owned(),
            source,
        };
        let aside = set_aside(path).map_err(failed)?;
        let salvaged = salvage(&aside).map_err(failed)?;
        let rows = salvaged.rows.len();
        // Made whole under another name: who dies here begins with an empty store, not a part.
        Self::refill(path, salvaged)?;
        let (store, dropped) = Self::open(path, boot)?;
        Ok(Opened {
            store,
            dropped,
            rebuilt: Some(Rebuilt {
                detail,
                aside,
                rows,
            }),
        })
    }
}

/// The checksum of a row.
pub(crate) fn sum(table: &str, key: &str, value: &str, seq: i64) -> i64 {
    let mut hash = crc32fast::Hasher::new();
    for part in [table, key, value] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.update(&seq.to_le_bytes());
    hash.finalize().into()
}

/// What is wrong with the rows of an open store; `None` when nothing is.
pub(crate) fn find(connection: &Connection) -> Result<Option<String>, rusqlite::Error> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Ok(Some(verdict));
    }
    let (mut wrong, mut named) = (0_usize, Vec::new());
    for table in ["kv", "kept"] {
        let sql = format!("SELECT tbl, key, value, seq, sum FROM {table}");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if !is_whole(row) {
                wrong += 1;
                if named.len() < NAMED {
                    let text = |index| row.get::<_, String>(index).unwrap_or_default();
                    named.push(format!("{}/{}", text(0), text(1)));
                }
            }
        }
    }
    let named = named.join(", ");
    Ok((wrong > 0).then(|| format!("{wrong} rows do not have their checksum, such as {named}")))
}

fn is_whole(row: &Row<'_>) -> bool {
    let checked = || -> Result<bool, rusqlite::Error> {
        let (table, key): (String, String) = (row.get(0)?, row.get(1)?);
        let (value, seq): (String, i64) = (row.get(2)?, row.get(3)?);
        Ok(match row.get::<_, Option<i64>>(4)? {
            Some(found) => found == sum(&table, &key, &value, seq),
            // Of a row of an earlier format no more than its shape is known.
            None => serde_json::from_str::<serde::de::IgnoredAny>(&value).is_ok(),
        })
    };
    // What cannot be read as text is not whole.
    checked().unwrap_or(false)
}

/// Gives all rows of an earlier format, which are whole, their checksums.
pub(crate) fn add_sums(connection: &Connection) -> Result<(), rusqlite::Error> {
    for table in ["kv", "kept"] {
        let sql = format!("UPDATE {table} SET sum = ?4 WHERE tbl = ?1 AND key = ?2 AND seq = ?3");
        let mut update = connection.prepare(&sql)?;
        let sql = format!("SELECT tbl, key, value, seq FROM {table} WHERE sum IS NULL");
        let mut select = connection.prepare(&sql)?;
        let mut sums = Vec::new();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (table, key): (String, String) = (row.get(0)?, row.get(1)?);
            let (value, seq): (String, i64) = (row.get(2)?, row.get(3)?);
            let sum = sum(&table, &key, &value, seq);
            sums.push((table, key, seq, sum));
        }
        for row in sums {
            update.execute(row)?;
        }
    }
    Ok(())
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Gives the file and its log another name; returns the one of the file.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut number = now.unwrap_or_default().as_secs();
    let mut aside = beside(path, &format!("{ASIDE}{number}"));
    while aside.try_exists()? {
        number += 1;
        aside = beside(path, &format!("{ASIDE}{number}"));
    }
    // The log first: without its file it is nothing, and the file without it is older.
    match std::fs::rename(beside(path, "-wal"), beside(&aside, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(path, &aside)?;
    match std::fs::remove_file(beside(path, "-shm")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}

/// What is whole of a damaged file.
#[derive(Debug, Default)]
pub(crate) struct Salvaged {
    /// Value and sequence number by table and key.
    pub(crate) rows: BTreeMap<(String, String), (String, i64)>,
    /// Value, and the commit that changed it, by table, key and sequence number: what rows were
    /// that changed since the last checkpoint.
    pub(crate) kept: BTreeMap<(String, String, i64), (String, i64)>,
    /// Table and key of rows that were dropped.
    pub(crate) dropped: BTreeSet<(String, String)>,
    /// Boot and watermark.
    pub(crate) meta: BTreeMap<String, String>,
}

fn salvage(aside: &Path) -> io::Result<Salvaged> {
    // A copy: SQLite folds a log into its file, and what is kept aside stays as it is.
    let copy = beside(aside, "-copy");
    let files = [
        (aside.to_owned(), copy.clone()),
        (beside(aside, "-wal"), beside(&copy, "-wal")),
    ];
    for (from, to) in &files {
        match std::fs::copy(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let mut found = Salvaged::default();
    if let Err(error) = read_all(&copy, &mut found) {
        tracing::warn!(%error, "not all of the damaged metadata can be read");
    }
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::remove_file(beside(&copy, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(found)
}

fn read_all(path: &Path, found: &mut Salvaged) -> Result<(), rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // A file that is shorter than it says is read as far as it goes.
    connection.pragma_update(None, "writable_schema", true)?;
    let mut worst = Ok(());
    match read_meta(&connection) {
        Ok(meta) => found.meta = meta,
        Err(error) => worst = Err(error),
    }
    // From both ends, up to the damage.
    for order in ["", "ORDER BY tbl DESC, key DESC"] {
        for table in ["kv", "kept"] {
            if let Err(error) = read_rows(&connection, table, order, found) {
                worst = Err(error);
            }
        }
    }
    let mut read_dropped = || {
        let mut statement = connection.prepare("SELECT tbl, key FROM dropped")?;
        for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
            found.dropped.insert(row?);
        }
        Ok(())
    };
    read_dropped().and(worst)
}

fn read_rows(
    connection: &Connection,
    table: &str,
    order: &str,
    found: &mut Salvaged,
) -> Result<(), rusqlite::Error> {
    let has = |column: &str| {
        connection
            .prepare(&format!("SELECT {column} FROM {table} LIMIT 0"))
            .is_ok()
    };
    // Of an earlier format.
    let sum = if has("sum") { "sum" } else { "NULL" };
    let until = if table == "kept" { "until" } else { "0" };
    let sql = format!("SELECT tbl, key, value, seq, {sum}, {until} FROM {table} {order}");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !is_whole(row) {
            continue;
        }
        let (name, key): (String, String) = (row.get(0)?, row.get(1)?);
        let (value, seq): (String, i64) = (row.get(2)?, row.get(3)?);
        if table == "kept" {
            found.kept.insert((name, key, seq), (value, row.get(5)?));
        } else {
            found.rows.insert((name, key), (value, seq));
        }
    }
    Ok(())
}

fn read_meta(connection: &Connection) -> Result<BTreeMap<String, String>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT name, value FROM meta")?;
    let meta = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    meta.collect()
}

/// What is wrong with the log beside the file `path`: commits come after a place that does not
/// have its checksum, so SQLite would leave them out without a word. `None` when nothing is.
pub(crate) fn find_in_log(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(beside(path, "-wal")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut log = BufReader::with_capacity(256 << 10, file);
    let mut header = [0; LOG_HEADER];
    if !fill(&mut log, &mut header)? || header.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let word = |bytes: &[u8], index: usize| {
        let at = index * 4;
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let magic = word(&header, 0);
    let page = word(&header, 2) as usize;
    let mut sums = Sums {
        big_endian: magic & 1 == 1,
        ..Sums::default()
    };
    sums.add(&header[..24]);
    if magic & !1 != LOG_MAGIC
        || !page.is_power_of_two()
        || page > 64 << 10
        || !sums.are(word(&header, 6), word(&header, 7))
    {
        return Ok(Some(
            "the log's begin does not have its checksum".to_owned(),
        ));
    }
    let salts = (word(&header, 4), word(&header, 5));
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut number, mut broken) = (0_u64, None);
    while fill(&mut log, &mut frame)? {
        number += 1;
        // What is behind the end is of an earlier turn of the log.
        if (word(&frame, 2), word(&frame, 3)) != salts {
            if broken.is_none() {
                // Either the end, or damage at just this place.
                broken = Some(number);
            }
            continue;
        }
        match broken {
            None => {
                sums.add(&frame[..8]);
                sums.add(&frame[FRAME_HEADER..]);
                if !sums.are(word(&frame, 4), word(&frame, 5)) {
                    broken = Some(number);
                }
            }
            // Commits have the size of the file in them.
            Some(at) if word(&frame, 1) > 0 => {
                return Ok(Some(format!(
                    "page {at} of the log does not have its checksum, and commits come after it"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

/// Whether all of `buffer` could be read.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// The running checksum of a log (sqlite.org, "WAL File Format", "Checksum Algorithm").
#[derive(Default)]
struct Sums {
    one: u32,
    other: u32,
    big_endian: bool,
}

impl Sums {
    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            match self.big_endian {
                true => u32::from_be_bytes(bytes),
                false => u32::from_le_bytes(bytes),
            }
        };
        let (mut one, mut other) = (self.one, self.other);
        for pair in bytes.chunks_exact(8) {
            one = one.wrapping_add(word(pair)).wrapping_add(other);
            other = other.wrapping_add(word(&pair[4..])).wrapping_add(one);
        }
        (self.one, self.other) = (one, other);
    }

    fn are(&self, one: u32, other: u32) -> bool {
        (self.one, self.other) == (one, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Table;

    const T: Table<String> = Table::new("t");
    const ROWS: usize = 200;

    fn key(number: usize) -> String {
        format!("key {number:04}")
    }

    fn value(number: usize) -> String {
        format!("value {number} {}", "x".repeat(400))
    }

    /// A store with rows, as a process leaves it that is killed: `folded` into its file or in
    /// the log.
    async fn killed(dir: &Path, folded: bool) -> PathBuf {
        let path = dir.join("store.db");
        let (store, _) = Store::open(&path, "boot").unwrap();
        for number in 0..ROWS {
            store
                .write(move |tx| tx.put(&T, &key(number), &value(number)))
                .await
                .unwrap();
        }
        if folded {
            store.checkpoint("boot", |_| Ok(())).await.unwrap();
        }
        // Copied while it is open: closing it would fold the log.
        let copy = dir.join("killed.db");
        for suffix in ["", "-wal"] {
            std::fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
        }
        if folded {
            std::fs::remove_file(beside(&copy, "-wal")).unwrap();
        }
        copy
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 4;
        std::fs::write(path, bytes).unwrap();
    }

    fn find_bytes(path: &Path, wanted: &str) -> usize {
        let bytes = std::fs::read(path).unwrap();
        let mut windows = bytes.windows(wanted.len());
        windows
            .position(|bytes| bytes == wanted.as_bytes())
            .unwrap()
    }

    fn rows(store: &Store) -> Vec<(String, String)> {
        store.read(|tx| tx.scan(&T, "")).unwrap()
    }

    /// All that is read is as it was written.
    fn check(store: &Store, at_least: usize) {
        let rows = rows(store);
        assert!(rows.len() >= at_least, "{} rows", rows.len());
        for (found, text) in rows {
            let number: usize = found[4..].parse().unwrap();
            assert_eq!(text, value(number));
        }
    }

    #[tokio::test]
    async fn a_bit_that_changed_in_a_value_costs_that_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path(), true).await;
        flip(&path, find_bytes(&path, "value 77 ") + 20);
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(
            Store::open(&path, "boot"),
            Err(StoreError::Corrupt { .. })
        ));
        let opened = Store::open_or_rebuild(&path, "boot").unwrap();
        let rebuilt = opened.rebuilt.unwrap();
        assert!(rebuilt.detail.contains("t/key 0077"), "{}", rebuilt.detail);
        let kept = std::fs::read(&rebuilt.aside).unwrap();
        assert!(kept == before, "it is kept as it was");
        assert_eq!(rebuilt.rows, ROWS - 1);
        check(&opened.store, ROWS - 1);
        // It is whole again, and serves.
        opened
            .store
            .write(|tx| tx.put(&T, &key(77), &value(77)))
            .await
            .unwrap();
        drop(opened.store);
        let opened = Store::open_or_rebuild(&path, "boot").unwrap();
        assert_eq!(opened.rebuilt, None);
        check(&opened.store, ROWS);
    }

    #[tokio::test]
    async fn a_page_or_the_end_that_is_lost_costs_some_rows() {
        for cut in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = killed(dir.path(), true).await;
            let mut bytes = std::fs::read(&path).unwrap();
            let length = bytes.len();
            if cut {
                bytes.truncate(length - length / 3);
            } else {
                bytes[length / 2 / 4096 * 4096..][..4096].fill(0xaa);
            }
            std::fs::write(&path, bytes).unwrap();
            let opened = Store::open_or_rebuild(&path, "boot").unwrap();
            assert!(opened.rebuilt.is_some());
            check(&opened.store, if cut { 1 } else { ROWS / 2 });
        }
    }

    #[tokio::test]
    async fn any_byte_that_changed_is_found_or_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        for folded in [true, false] {
            let whole = killed(dir.path(), folded).await;
            let suffix = if folded { "" } else { "-wal" };
            let length = std::fs::metadata(beside(&whole, suffix)).unwrap().len();
            for at in
                (0..usize::try_from(length).unwrap()).step_by(if folded { 1999 } else { 19_997 })
            {
                let path = dir.path().join("flipped.db");
                for suffix in ["", "-wal"] {
                    let (from, to) = (beside(&whole, suffix), beside(&path, suffix));
                    let _ = std::fs::remove_file(&to);
                    if from.exists() {
                        std::fs::copy(from, to).unwrap();
                    }
                }
                flip(&beside(&path, suffix), at);
                let opened = Store::open_or_rebuild(&path, "boot").unwrap();
                // The last commit of a log may as well be one that a kill cut short.
                let least = if folded { ROWS } else { ROWS - 1 };
                let found = rows(&opened.store).len();
                assert!(
                    found >= least || opened.rebuilt.is_some(),
                    "lost without a word at {at}: {found} rows"
                );
                check(&opened.store, 0);
                drop(opened);
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(beside(&path, suffix));
                }
            }
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_log_that_was_cut_short_by_a_kill_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path(), false).await;
        let log = beside(&path, "-wal");
        let mut bytes = std::fs::read(&log).unwrap();
        bytes.truncate(bytes.len() - 2000);
        std::fs::write(&log, bytes).unwrap();
        assert_eq!(find_in_log(&path).unwrap(), None);
        let opened = Store::open_or_rebuild(&path, "boot").unwrap();
        assert_eq!(opened.rebuilt, None);
        check(&opened.store, ROWS - 1);
    }

    #[tokio::test]
    async fn a_file_of_an_earlier_format_becomes_one_of_this() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE kv (tbl TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
                     seq INTEGER NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID;
                 CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
                 INSERT INTO kv VALUES ('t', 'key', '\"text\"', 7);
                 PRAGMA user_version = 1;",
            )
            .unwrap();
        drop(connection);
        for _ in 0..2 {
            let (store, _) = Store::open(&path, "boot").unwrap();
            assert_eq!(
                store.read(|tx| tx.get(&T, "key")).unwrap().as_deref(),
                Some("text")
            );
        }
        flip(&path, find_bytes(&path, "\"text\"") + 2);
        assert!(matches!(
            Store::open(&path, "boot"),
            Err(StoreError::Corrupt { .. })
        ));
    }

    #[tokio::test]
    async fn a_log_that_grew_under_killed_processes_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let (store, _) = Store::open(&path, "boot").unwrap();
        for number in 0..20 {
            let text = "y".repeat(400_000);
            store
                .write(move |tx| tx.put(&T, &key(number), &text))
                .await
                .unwrap();
        }
        let copy = dir.path().join("killed.db");
        for suffix in ["", "-wal"] {
            std::fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
        }
        let length = |path: &Path| std::fs::metadata(beside(path, "-wal")).unwrap().len();
        assert!(length(&copy) > 5 << 20);
        let (again, _) = Store::open(&copy, "boot").unwrap();
        assert!(length(&copy) < 5 << 20, "{}", length(&copy));
        assert_eq!(rows(&again).len(), 20);
    }
}
