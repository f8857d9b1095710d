//! Typed tables and the transactions that see them.

use std::marker::PhantomData;

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Seq, StoreError};

/// The name of a table and the type of its values. Keys are text, ordered by their bytes;
/// values are kept as JSON, so that a later version can read what an earlier one wrote.
#[derive(Debug)]
pub struct Table<V> {
    name: &'static str,
    value: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// Names a table. Two tables of one name and different types do not read each other.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            value: PhantomData,
        }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// A consistent view of the store.
#[derive(Debug)]
pub struct Read<'a> {
    pub(crate) connection: &'a Connection,
}

/// A view that can be changed; all changes are kept, or none.
#[derive(Debug)]
pub struct Write<'a> {
    pub(crate) read: Read<'a>,
    pub(crate) seq: Seq,
    /// The number of the last checkpoint that was begun: what rows up to it say is kept when
    /// they are written again, until a checkpoint covers that too.
    pub(crate) fixed: Seq,
}

impl<'a> std::ops::Deref for Write<'a> {
    type Target = Read<'a>;

    fn deref(&self) -> &Self::Target {
        &self.read
    }
}

impl Read<'_> {
    /// The value of `key`.
    pub fn get<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        key: &str,
    ) -> Result<Option<V>, StoreError> {
        let sql = "SELECT value FROM kv WHERE tbl = ?1 AND key = ?2";
        let text: Option<String> = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement
                    .query_row((table.name, key), |row| row.get(0))
                    .optional()
            })
            .map_err(|source| StoreError::Sql {
                table: table.name,
                source,
            })?;
        text.map(|text| decode(table, key, &text)).transpose()
    }

    /// Whether `key` is there.
    pub fn has<V>(&self, table: &Table<V>, key: &str) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM kv WHERE tbl = ?1 AND key = ?2";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.exists((table.name, key)))
            .map_err(|source| StoreError::Sql {
                table: table.name,
                source,
            })
    }

    /// All entries whose key begins with `prefix`, in the order of their keys.
    pub fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
    ) -> Result<Vec<(String, V)>, StoreError> {
        let failed = |source| StoreError::Sql {
            table: table.name,
            source,
        };
        let sql = "SELECT key, value FROM kv WHERE tbl = ?1 AND key >= ?2 ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query((table.name, prefix)).map_err(failed)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let key: String = row.get(0).map_err(failed)?;
            if !key.starts_with(prefix) {
                break;
            }
            let text: String = row.get(1).map_err(failed)?;
            let value = decode(table, &key, &text)?;
            found.push((key, value));
        }
        Ok(found)
    }
}

impl Write<'_> {
    /// The number of the commit that this transaction will be part of.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Sets the value of `key`. Setting the value that it has changes nothing: the row stays as
    /// durable as it is. Another value takes the place of the one that a checkpoint covers only
    /// with the next checkpoint: when the machine dies before, the old one is back.
    pub fn put<V: Serialize>(
        &mut self,
        table: &Table<V>,
        key: &str,
        value: &V,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(value).map_err(|source| StoreError::Value {
            table: table.name,
            key: key.to_owned(),
            source,
        })?;
        self.put_text(table.name, key, &text)
            .map_err(|source| StoreError::Sql {
                table: table.name,
                source,
            })
    }

    fn put_text(&self, table: &str, key: &str, text: &str) -> Result<(), rusqlite::Error> {
        let known: Option<(i64, bool)> = self
            .connection
            .prepare_cached("SELECT seq, value = ?3 FROM kv WHERE tbl = ?1 AND key = ?2")?
            .query_row((table, key, text), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match known {
            Some((_, true)) => return Ok(()),
            Some((seq, false)) if seq <= as_sql(self.fixed) => {
                let sql = "INSERT INTO kept (tbl, key, value, seq, until, sum) \
                           SELECT tbl, key, value, seq, ?3, sum FROM kv WHERE tbl = ?1 AND key = ?2";
                self.connection
                    .prepare_cached(sql)?
                    .execute((table, key, as_sql(self.seq)))?;
            }
            Some(_) | None => {}
        }
        let sql = "INSERT INTO kv (tbl, key, value, seq, sum) VALUES (?1, ?2, ?3, ?4, ?5) \
                   ON CONFLICT (tbl, key) DO UPDATE SET value = excluded.value, seq = excluded.seq, \
                   sum = excluded.sum";
        let seq = as_sql(self.seq);
        let sum = crate::damage::sum(table, key, text, seq);
        self.connection
            .prepare_cached(sql)?
            .execute((table, key, text, seq, sum))?;
        Ok(())
    }

    /// Removes `key`, whatever it said at a checkpoint included; says whether it was there. Once
    /// this is durable ([`crate::Store::flush`]) it does not come back.
    pub fn delete<V>(&mut self, table: &Table<V>, key: &str) -> Result<bool, StoreError> {
        let run = |sql| {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.execute((table.name, key)))
                .map_err(|source| StoreError::Sql {
                    table: table.name,
                    source,
                })
        };
        let count = run("DELETE FROM kv WHERE tbl = ?1 AND key = ?2")?;
        if count > 0 {
            run("DELETE FROM kept WHERE tbl = ?1 AND key = ?2")?;
        }
        Ok(count > 0)
    }
}

fn decode<V: DeserializeOwned>(table: &Table<V>, key: &str, text: &str) -> Result<V, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Value {
        table: table.name,
        key: key.to_owned(),
        source,
    })
}

/// SQLite's integers are signed; a store does not live for 2^63 commits.
pub(crate) fn as_sql(seq: Seq) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
