//! Opening the store, reading it, and handing writes to the writer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::oneshot;

use crate::damage::{self, Salvaged};
use crate::log::{Folder, LOG_KEPT, LOG_PAGES, Log, Sync};
use crate::table::{Read, Write, as_sql};
use crate::writer::{Call, Message, Writer};
use crate::{Seq, StoreError};

/// The format of the file, raised when an older program could not read it. Rows have checksums
/// since 2.
const VERSION: i64 = 2;
const WITHOUT_SUMS: i64 = 1;
/// No format has a higher number: one that has is damage.
const FORMATS: i64 = 1000;
/// The schema.
const TABLES: &str = "CREATE TABLE IF NOT EXISTS kv (
         tbl TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL,
         sum INTEGER, PRIMARY KEY (tbl, key)) WITHOUT ROWID;
     CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
     CREATE TABLE IF NOT EXISTS kept (
         tbl TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL,
         until INTEGER NOT NULL, sum INTEGER, PRIMARY KEY (tbl, key, seq)) WITHOUT ROWID;
     CREATE TABLE IF NOT EXISTS dropped (
         tbl TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID;";
/// Bytes of the file beside the log that connections share (`-shm`), at least.
const INDEX: u64 = 32 << 10;
/// Each connection is used by one thread at a time.
const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE
    .union(OpenFlags::SQLITE_OPEN_CREATE)
    .union(OpenFlags::SQLITE_OPEN_NO_MUTEX);
/// Idle connections for reading that are kept.
const READERS: usize = 4;

/// The store. Clones share it; the last one to go waits until all writes are done.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    location: Location,
    readers: Mutex<Vec<Connection>>,
    // For a store in memory: the database lives as long as a connection to it.
    _anchor: Mutex<Option<Connection>>,
    writer: Writer,
    _folder: Option<Folder>,
    // After all connections.
    log: Option<Arc<Log>>,
}

#[derive(Debug)]
enum Location {
    File(PathBuf),
    Memory(String),
}

/// A row that was dropped at opening, because the machine had died before it was durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Its table.
    pub table: String,
    /// Its key.
    pub key: String,
}

impl Store {
    /// Opens the store in the file `path`, made when it is missing. `boot` is the identity of
    /// this boot of the machine: when the last checkpoint was made in another one, the rows
    /// above the watermark are as they were then, and those that were not there are dropped and
    /// returned. They are returned again until a [`Store::checkpoint`] or a [`Store::flush`], so
    /// that what follows from it for others can be made durable with it.
    ///
    /// # Errors
    /// When the file is damaged, or of another format; the file is left as it is.
    pub fn open(path: &Path, boot: &str) -> Result<(Self, Vec<Dropped>), StoreError> {
        Self::start(Location::File(path.to_owned()), boot, File::sync_data)
    }

    /// A store that is gone with its last clone.
    pub fn in_memory() -> Result<Self, StoreError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "file:store{}?mode=memory&cache=shared",
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Ok(Self::start(Location::Memory(name), "memory", File::sync_data)?.0)
    }

    fn start(
        location: Location,
        boot: &str,
        sync: Sync,
    ) -> Result<(Self, Vec<Dropped>), StoreError> {
        let path = location.path();
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            // SQLite's message for it is that something went wrong.
            Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure)
                if is_full(&path) =>
            {
                StoreError::Full { path: path.clone() }
            }
            Some(code) if is_of_system(code) => StoreError::Open {
                path: path.clone(),
                source,
            },
            // The statements are always the same: where they fail the schema is another.
            _ => StoreError::Corrupt {
                path: path.clone(),
                detail: source.to_string(),
            },
        };
        let cut = match &location {
            // SQLite leaves out what is behind a damaged place of the log, and truncates it.
            Location::File(path) => damage::find_in_log(path).map_err(StoreError::Durable)?,
            Location::Memory(_) => None,
        };
        if let Some(detail) = cut
            && let Location::File(path) = &location
            && is_of_boot(path, boot)
        {
            let path = path.clone();
            return Err(StoreError::Corrupt { path, detail });
        }
        let mut connection = location.connect().map_err(failed)?;
        let log = match &location {
            Location::File(path) => Some(Arc::new(Log::open(path, sync))),
            Location::Memory(_) => None,
        };
        let anchor = match &location {
            Location::Memory(_) => Some(location.connect().map_err(failed)?),
            Location::File(_) => None,
        };
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(failed)?;
        if !(0..FORMATS).contains(&found) {
            let detail = format!("its format has the number {found}");
            return Err(StoreError::Corrupt { path, detail });
        }
        if found != 0 && found != VERSION && found != WITHOUT_SUMS {
            return Err(StoreError::Version {
                path,
                found,
                known: VERSION,
            });
        }
        if found != VERSION {
            prepare(&connection, found).map_err(failed)?;
        }
        if let Some(log) = &log {
            if let Some(detail) = damage::find(&connection).map_err(failed)? {
                return Err(StoreError::Corrupt { path, detail });
            }
            if found == WITHOUT_SUMS {
                add_sums(&mut connection).map_err(failed)?;
            }
            log.shorten(&connection);
        }
        let dropped = drop_lost(&mut connection, boot).map_err(failed)?;
        let seq: i64 = connection
            .query_row("SELECT COALESCE(MAX(seq), 0) FROM kv", [], |row| row.get(0))
            .map_err(failed)?;
        let watermark = read_meta(&connection, "watermark").map_err(failed)?;
        let watermark: Seq = watermark.and_then(|text| text.parse().ok()).unwrap_or(0);
        let seq = Seq::try_from(seq).unwrap_or(0).max(watermark);
        let (mut folder, mut watch) = (None, None);
        if let Some(log) = &log {
            log.reserve();
            let started = Folder::start(log.clone()).map_err(StoreError::Durable)?;
            watch = Some(started.watch(&mut connection).map_err(failed)?);
            folder = Some(started);
        }
        let writer =
            Writer::start(connection, seq, watermark, watch).map_err(StoreError::Durable)?;
        let readers = Mutex::new(Vec::new());
        let inner = Inner {
            location,
            readers,
            _anchor: Mutex::new(anchor),
            writer,
            _folder: folder,
            log,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            dropped,
        ))
    }

    /// Makes a store in the file `path`, which is not there, of what was salvaged of another.
    pub(crate) fn refill(path: &Path, salvaged: Salvaged) -> Result<(), StoreError> {
        let failed = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Location::File(path.to_owned()).connect().map_err(failed)?;
        let mut fill = || {
            prepare(&connection, 0)?;
            let tx = connection.transaction()?;
            for ((table, key), (value, seq)) in &salvaged.rows {
                let sum = damage::sum(table, key, value, *seq);
                let row = (table, key, value, seq, sum);
                let sql = "INSERT INTO kv (tbl, key, value, seq, sum) VALUES (?1, ?2, ?3, ?4, ?5)";
                tx.execute(sql, row)?;
            }
            for ((table, key, seq), (value, until)) in &salvaged.kept {
                let sum = damage::sum(table, key, value, *seq);
                let row = (table, key, value, seq, until, sum);
                let sql = "INSERT INTO kept (tbl, key, value, seq, until, sum) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                tx.execute(sql, row)?;
            }
            for (table, key) in &salvaged.dropped {
                let row = (table, key);
                tx.execute("INSERT INTO dropped (tbl, key) VALUES (?1, ?2)", row)?;
            }
            let mut meta = salvaged.meta.clone();
            if !meta.contains_key("boot") || !meta.contains_key("watermark") {
                // It is not known what of it was durable, so nothing counts as that.
                meta.insert("boot".to_owned(), "unknown".to_owned());
                meta.insert("watermark".to_owned(), "0".to_owned());
            }
            for row in &meta {
                tx.execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", row)?;
            }
            tx.commit()
        };
        fill().map_err(failed)
    }

    /// Runs `function` in a transaction and returns when it is committed: what it wrote
    /// survives the death of the process. When it fails or panics, nothing of it is kept.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the transaction back: it has been handed over when
    /// the future is first polled.
    pub async fn write<T, F>(&self, function: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.submit(function)?
            .await
            .map_err(|_| StoreError::Closed)?
    }

    /// Hands a transaction over and does not wait for it. Transactions are committed in the
    /// order in which they were handed over. For `Drop` and other places that cannot wait.
    pub fn submit<T, F>(
        &self,
        function: F,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Write<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let call = Call {
            function: Some(function),
            result: None,
            reply,
        };
        self.inner.writer.send(Message::Job(Box::new(call)))?;
        Ok(receiver)
    }

    /// Runs `function` on a consistent view. It sees every acknowledged write, waits for
    /// nobody, and takes microseconds when it reads by key: fit for an async thread.
    pub fn read<T>(
        &self,
        function: impl FnOnce(&Read<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = |source| StoreError::Sql {
            table: "kv",
            source,
        };
        let idle = self
            .inner
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.inner.location.connect().map_err(failed)?,
        };
        let result = {
            let transaction = connection.transaction().map_err(failed)?;
            function(&Read {
                connection: &transaction,
            })
        };
        let mut readers = self
            .inner
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS {
            readers.push(connection);
        }
        result
    }

    /// Makes everything that is committed now survive the death of the machine: calls `sync`
    /// where it may block, which has to make the files durable that the rows speak of, then
    /// writes the watermark, which `sync` is told, with a synced commit. Returns the watermark.
    /// Writers go on meanwhile; what they write is above the watermark, and what `sync` hands
    /// over survives with it.
    pub async fn checkpoint(
        &self,
        boot: &str,
        sync: impl FnOnce(Seq) -> std::io::Result<()> + Send + 'static,
    ) -> Result<Seq, StoreError> {
        let (done, receiver) = oneshot::channel();
        self.inner.writer.send(Message::Fix(done))?;
        let seq = receiver.await.map_err(|_| StoreError::Closed)?;
        // The files first: a row that survives must not speak of a file that did not.
        let synced = tokio::task::spawn_blocking(move || sync(seq)).await;
        synced
            .map_err(std::io::Error::other)
            .and_then(|result| result)
            .map_err(StoreError::Durable)?;
        self.durable(Some((boot.to_owned(), seq))).await?;
        self.on_log(|log| log.fold()).await?;
        Ok(seq)
    }

    /// Makes the rows that are committed now survive the death of the machine, without a word
    /// on files: the watermark stays where it is. For a deletion that has to be durable before
    /// what the row stood for is changed.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.durable(None).await
    }

    /// Who commits meanwhile does not wait for the sync.
    async fn durable(&self, watermark: Option<(String, Seq)>) -> Result<(), StoreError> {
        let (done, receiver) = oneshot::channel();
        self.inner.writer.send(Message::Mark { watermark, done })?;
        receiver.await.map_err(|_| StoreError::Closed)??;
        let synced = self.on_log(Log::sync).await?;
        synced.unwrap_or(Ok(())).map_err(StoreError::Durable)
    }

    /// Works on the log where it may block. A store in memory has none.
    async fn on_log<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Log) -> T + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let Some(log) = self.inner.log.clone() else {
            return Ok(None);
        };
        let done = tokio::task::spawn_blocking(move || work(&log)).await;
        let done = done.map_err(|error| StoreError::Durable(std::io::Error::other(error)))?;
        Ok(Some(done))
    }
}

impl Location {
    fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Memory(_) => PathBuf::from(":memory:"),
        }
    }

    fn connect(&self) -> Result<Connection, rusqlite::Error> {
        match self {
            Self::File(path) => connect_file(path),
            Self::Memory(name) => {
                let flags = FLAGS | OpenFlags::SQLITE_OPEN_URI;
                let connection = set_up(Connection::open_with_flags(name, flags)?)?;
                // A shared cache locks tables; readers look past uncommitted writes instead of
                // failing.
                connection.pragma_update(None, "read_uncommitted", true)?;
                Ok(connection)
            }
        }
    }
}

pub(crate) fn connect_file(path: &Path) -> Result<Connection, rusqlite::Error> {
    set_up(Connection::open_with_flags(path, FLAGS)?)
}

fn set_up(connection: Connection) -> Result<Connection, rusqlite::Error> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // Folding the log syncs, and whoever commits when it is due would wait for that: it is done
    // beside the writer.
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", as_sql(LOG_KEPT))?;
    // KiB for each connection: an idle daemon is small.
    connection.pragma_update(None, "cache_size", -512)?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(connection)
}

/// Whether the file system has no space for a page of the index that goes with the log.
fn is_full(path: &Path) -> bool {
    let free = rustix::fs::statvfs(path).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    free.is_ok_and(|free| free < INDEX)
}

/// Whether a failure comes from the system and says nothing of the file's content.
fn is_of_system(code: rusqlite::ErrorCode) -> bool {
    use rusqlite::ErrorCode as Code;
    matches!(
        code,
        Code::PermissionDenied
            | Code::OperationAborted
            | Code::DatabaseBusy
            | Code::DatabaseLocked
            | Code::OutOfMemory
            | Code::ReadOnly
            | Code::OperationInterrupted
            | Code::SystemIoFailure
            | Code::DiskFull
            | Code::CannotOpen
            | Code::FileLockingProtocolFailed
            | Code::NoLargeFileSupport
    )
}

/// Makes the tables, or those of an earlier format ones of this.
fn prepare(connection: &Connection, found: i64) -> Result<(), rusqlite::Error> {
    if found == WITHOUT_SUMS {
        // Those that came later. The format stays the earlier one until all rows have their
        // checksums.
        connection.execute_batch(TABLES)?;
        for table in ["kv", "kept"] {
            let sql = "SELECT 1 FROM pragma_table_info(?1) WHERE name = 'sum'";
            if !connection.prepare(sql)?.exists([table])? {
                connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN sum INTEGER"))?;
            }
        }
        return Ok(());
    }
    connection.execute_batch(&format!("{TABLES} PRAGMA user_version = {VERSION};"))
}

fn add_sums(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let tx = connection.transaction()?;
    damage::add_sums(&tx)?;
    tx.execute_batch(&format!("PRAGMA user_version = {VERSION}"))?;
    tx.commit()
}

/// Whether the store was last opened in this boot. Looked at without taking in the log.
fn is_of_boot(path: &Path, boot: &str) -> bool {
    let url = format!("file:{}?immutable=1", path.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(url, flags);
    let last = connection.and_then(|connection| read_meta(&connection, "boot"));
    // Where that cannot be told, the file itself is damaged too.
    last.map_or(true, |last| last.is_none_or(|last| last == boot))
}

fn read_meta(connection: &Connection, name: &str) -> Result<Option<String>, rusqlite::Error> {
    let sql = "SELECT value FROM meta WHERE name = ?1";
    connection
        .query_row(sql, [name], |row| row.get(0))
        .optional()
}

/// After another boot: rows above the watermark may speak of files that never reached the disk.
fn drop_lost(connection: &mut Connection, boot: &str) -> Result<Vec<Dropped>, rusqlite::Error> {
    let last = read_meta(connection, "boot")?;
    let transaction = connection.transaction()?;
    if let Some(last) = last
        && last != boot
    {
        let watermark = read_meta(&transaction, "watermark")?;
        let watermark: Seq = watermark.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mark = [as_sql(watermark)];
        // What was written again since is as the checkpoint found it.
        let back = "kept.seq <= ?1 AND kept.until > ?1";
        let sql = format!(
            "INSERT OR IGNORE INTO dropped (tbl, key) SELECT tbl, key FROM kv WHERE seq > ?1 \
             AND NOT EXISTS (SELECT 1 FROM kept \
             WHERE kept.tbl = kv.tbl AND kept.key = kv.key AND {back})"
        );
        transaction.execute(&sql, mark)?;
        transaction.execute("DELETE FROM kv WHERE seq > ?1", mark)?;
        let sql = format!(
            "INSERT INTO kv (tbl, key, value, seq, sum) \
             SELECT tbl, key, value, seq, sum FROM kept WHERE {back}"
        );
        transaction.execute(&sql, mark)?;
        transaction.execute("DELETE FROM kept", [])?;
    }
    // From now on rows belong to this boot, also before its first checkpoint.
    let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES ('boot', ?1)";
    transaction.execute(sql, [boot])?;
    let dropped = {
        let mut statement = transaction.prepare("SELECT tbl, key FROM dropped")?;
        let rows = statement.query_map([], |row| {
            Ok(Dropped {
                table: row.get(0)?,
                key: row.get(1)?,
            })
        })?;
        rows.collect::<Result<Vec<_>, _>>()?
    };
    transaction.commit()?;
    Ok(dropped)
}

#[cfg(test)]
mod tests;
