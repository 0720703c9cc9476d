//! The database: what is wanted, durable before it is done.
//!
//! SQLite in WAL mode with full synchronization. One thread writes, one thread reads, so that
//! nobody who serves the API waits on a disk, and a listing does not wait for a commit. A change
//! of an object and the event that tells of it are one transaction ([`Tx`]); events go out to
//! watchers after the commit, in the order of commits.

pub mod addresses;
pub mod events;
pub mod flow_logs;
pub mod images;
pub mod instances;
pub mod interfaces;
pub mod key_pairs;
pub mod networks;
pub mod pending_cuts;
pub mod permissions;
pub mod port_forwards;
pub mod prefix_lists;
mod schema;
pub mod security_groups;
pub mod snapshots;
mod states;
pub mod tap_services;
pub mod tokens;
pub mod volumes;

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc,
    thread,
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};

#[cfg(test)]
pub(crate) use schema::migrate;
pub(crate) use states::state_names;

use crate::events::{Event, NewEvent};

/// How many events a watcher may lag behind before it reads them from the database again.
const BROADCAST_EVENTS: usize = 4096;

/// What the database could not do.
#[derive(Debug, Error)]
pub enum DbError {
    /// SQLite's own words.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file is from a newer Hearth.
    #[error(
        "the database has schema version {found}, this hearthd knows up to {known}: use a newer one"
    )]
    NewerSchema {
        /// Version in the file.
        found: u32,
        /// Newest that this program knows.
        known: u32,
    },
    /// A row that this program would not have written.
    #[error("the database holds {0}")]
    Malformed(String),
    /// The work panicked, or the thread is gone.
    #[error("the database thread did not answer")]
    NoAnswer,
    /// No thread could be started.
    #[error("starting the database thread: {0}")]
    Thread(std::io::Error),
}

impl DbError {
    /// Whether the file system is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::DiskFull),
            _ => false,
        }
    }
}

/// Result of database work.
pub type DbResult<T> = Result<T, DbError>;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Handle to the database; cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: mpsc::Sender<Job>,
    reader: mpsc::Sender<Job>,
    live: broadcast::Sender<Event>,
}

/// A transaction that changes things.
pub struct Tx<'c> {
    inner: Transaction<'c>,
    events: Vec<NewEvent>,
}

impl Tx<'_> {
    /// Adds an event to the transaction.
    pub fn event(&mut self, event: NewEvent) {
        self.events.push(event);
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.inner
    }
}

impl Db {
    /// Opens the file, makes or updates its tables, starts the two threads.
    ///
    /// # Errors
    /// [`DbError`]; the file is left as it was.
    pub fn open(path: &Path) -> DbResult<Self> {
        let mut writer = connect(path)?;
        schema::migrate(&mut writer)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self {
            writer: serve("db-writer", writer)?,
            reader: serve("db-reader", reader)?,
            live: broadcast::channel(BROADCAST_EVENTS).0,
        })
    }

    /// Runs `work` in a transaction: committed and durable when it returns `Ok`, undone when
    /// it returns `Err`. Runs to its end even when the caller stops waiting.
    pub async fn write<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let live = self.live.clone();
        ask(&self.writer, move |connection| {
            let inner = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(DbError::from)?;
            let mut tx = Tx {
                inner,
                events: Vec::new(),
            };
            let value = work(&mut tx)?;
            let Tx { inner, events } = tx;
            let events = events::append(&inner, events)?;
            inner.commit().map_err(DbError::from)?;
            for event in events {
                // Nobody listening is fine.
                let _ = live.send(event);
            }
            Ok(value)
        })
        .await
    }

    /// Runs `work` on one consistent view of what is committed.
    pub async fn read<T, E>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        ask(&self.reader, move |connection| {
            let view = connection.transaction().map_err(DbError::from)?;
            work(&view)
        })
        .await
    }

    /// Events as they are committed, from now on.
    pub fn live_events(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}

fn connect(path: &Path) -> DbResult<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn serve(name: &str, mut connection: Connection) -> DbResult<mpsc::Sender<Job>> {
    let (sender, receiver) = mpsc::channel::<Job>();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            for job in receiver {
                // A job that panics drops its transaction (undone) and its answer; the thread
                // goes on for the others.
                if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
                    tracing::error!("work on the database panicked");
                }
            }
        })
        .map_err(DbError::Thread)?;
    Ok(sender)
}

async fn ask<T, E>(
    thread: &mpsc::Sender<Job>,
    work: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
{
    let (answer, wait) = oneshot::channel();
    let job: Job = Box::new(move |connection| {
        // The caller may have gone away; the work is done all the same.
        let _ = answer.send(work(connection));
    });
    thread.send(job).map_err(|_| DbError::NoAnswer)?;
    wait.await.map_err(|_| DbError::NoAnswer)?
}

/// Reads a JSON column.
fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> DbResult<T> {
    serde_json::from_str(text).map_err(|error| DbError::Malformed(format!("{text:?} ({error})")))
}

/// Writes a JSON column.
fn to_json(value: &impl serde::Serialize) -> DbResult<String> {
    serde_json::to_string(value).map_err(|error| DbError::Malformed(error.to_string()))
}

/// Reads a column that holds an address or a range.
fn parsed<T: std::str::FromStr>(text: &str) -> DbResult<T> {
    text.parse()
        .map_err(|_| DbError::Malformed(format!("{text:?}")))
}

/// A size for SQLite, which has no unsigned numbers. No size of ours comes near 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A size from SQLite.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The one column of a query without parameters.
fn strings(connection: &Connection, query: &str) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(query)?;
    Ok(select
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ApiError, Reason};

    fn event(id: &str, state: &str) -> NewEvent {
        NewEvent::state("volume.state", "local", id, "", state)
    }

    #[tokio::test]
    async fn a_refused_change_leaves_neither_row_nor_event() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = Db::open(&dir.path().join("db")).expect("open");
        let mut live = db.live_events();
        let result: Result<(), ApiError> = db
            .write(|tx| {
                tx.event(event("vol-1", "creating"));
                Err(ApiError::new(Reason::VolumeInUse, "no"))
            })
            .await;
        assert_eq!(result.expect_err("refused").reason(), Reason::VolumeInUse);
        let kept: Vec<Event> = db.read(|c| events::after(c, 0, 10)).await.expect("read");
        assert!(kept.is_empty());
        assert!(live.try_recv().is_err());
    }

    #[tokio::test]
    async fn live_events_come_in_the_order_of_commits_and_match_the_kept_ones() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = Db::open(&dir.path().join("db")).expect("open");
        let mut live = db.live_events();
        let writes = (0..50).map(|n| {
            let db = db.clone();
            tokio::spawn(async move {
                db.write(move |tx| {
                    tx.event(event(&format!("vol-{n}"), "creating"));
                    tx.event(event(&format!("vol-{n}"), "available"));
                    Ok::<_, DbError>(())
                })
                .await
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.expect("join").expect("write");
        }
        let kept: Vec<Event> = db.read(|c| events::after(c, 0, 1000)).await.expect("read");
        assert_eq!(kept.len(), 100);
        for event in kept {
            assert_eq!(live.try_recv().expect("live").sequence, event.sequence);
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_undone_and_the_database_goes_on() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = Db::open(&dir.path().join("db")).expect("open");
        let result: DbResult<()> = db
            .write(|tx| {
                tx.event(event("vol-1", "creating"));
                panic!("on purpose")
            })
            .await;
        assert!(matches!(result, Err(DbError::NoAnswer)));
        let kept: Vec<Event> = db.read(|c| events::after(c, 0, 10)).await.expect("read");
        assert!(kept.is_empty());
        db.write(|_| Ok::<_, DbError>(()))
            .await
            .expect("still there");
    }
}
