//! What happens, in order, and watching it without a gap.
//!
//! Events are appended in the transaction of the change they tell of ([`crate::db::Tx`]) and
//! broadcast after its commit. A watcher starts to listen first and reads the kept ones second:
//! what was committed before is in the database, what is committed after comes live, and
//! sequence numbers tell which of the two is already known. One that lags too far behind the
//! broadcast goes back to the database.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    context::Context,
    db::{self, Db, DbError, DbResult},
    error::{ApiError, ApiResult, Reason},
    time::Millis,
};

/// How many kept events are read at once.
const BATCH: u32 = 500;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub sequence: i64,
    pub time: Millis,
    /// `instance.state`, ...
    pub kind: String,
    /// The account whose object it is about.
    pub owner: String,
    pub resource_id: String,
    pub previous_state: String,
    pub state: String,
    pub reason_code: String,
    pub message: String,
}

/// An event that is not committed yet.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub kind: &'static str,
    pub owner: String,
    pub resource_id: String,
    pub previous_state: String,
    pub state: String,
    pub reason_code: String,
    pub message: String,
}

impl NewEvent {
    /// A change of state; `previous` is empty for what is new.
    pub fn state(
        kind: &'static str,
        owner: &str,
        resource_id: &str,
        previous: &str,
        state: &str,
    ) -> Self {
        Self {
            kind,
            owner: owner.to_owned(),
            resource_id: resource_id.to_owned(),
            previous_state: previous.to_owned(),
            state: state.to_owned(),
            reason_code: String::new(),
            message: String::new(),
        }
    }

    /// Says why.
    pub fn because(mut self, code: &str, message: &str) -> Self {
        self.reason_code = code.to_owned();
        self.message = message.to_owned();
        self
    }

    /// As it was committed.
    pub fn at(self, sequence: i64, time: Millis) -> Event {
        Event {
            sequence,
            time,
            kind: self.kind.to_owned(),
            owner: self.owner,
            resource_id: self.resource_id,
            previous_state: self.previous_state,
            state: self.state,
            reason_code: self.reason_code,
            message: self.message,
        }
    }
}

/// One watcher's position.
pub struct Watcher {
    db: Db,
    live: broadcast::Receiver<Event>,
    /// Sequence of the last event given out (or skipped).
    last: i64,
    kept: VecDeque<Event>,
    /// The database may hold events after `last` that the broadcast no longer has.
    behind: bool,
}

impl Watcher {
    /// Starts after the event `after`, or with the next new one.
    ///
    /// # Errors
    /// `EventsOutOfRange` when events after `after` were already dropped, or `after` is yet to
    /// come.
    pub async fn start(db: Db, after: Option<u64>) -> ApiResult<Self> {
        let live = db.live_events();
        let (oldest, newest) = db.read(db::events::bounds).await?;
        let (last, behind) = match after {
            None => (newest, false),
            Some(after) => {
                let known = oldest - 1..=newest;
                match i64::try_from(after)
                    .ok()
                    .filter(|after| known.contains(after))
                {
                    Some(after) => (after, after < newest),
                    None => return Err(out_of_range(after, oldest, newest)),
                }
            }
        };
        Ok(Self {
            db,
            live,
            last,
            kept: VecDeque::new(),
            behind,
        })
    }

    /// The next event; waits for it. `None` when the database is gone.
    pub async fn next(&mut self) -> DbResult<Option<Event>> {
        loop {
            if let Some(event) = self.kept.pop_front() {
                self.last = event.sequence;
                return Ok(Some(event));
            }
            if self.behind {
                let last = self.last;
                self.kept = self
                    .db
                    .read(move |c| db::events::after(c, last, BATCH))
                    .await?
                    .into();
                self.behind = !self.kept.is_empty();
                continue;
            }
            match self.live.recv().await {
                Ok(event) if event.sequence > self.last => {
                    self.last = event.sequence;
                    return Ok(Some(event));
                }
                // Already read from the database.
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }
}

fn out_of_range(after: u64, oldest: i64, newest: i64) -> ApiError {
    ApiError::field(
        Reason::EventsOutOfRange,
        "after_sequence",
        format!("events after {after} cannot be given: kept are {oldest} to {newest}"),
    )
    .with("oldest", oldest.to_string())
    .with("newest", newest.to_string())
}

/// Stores an event that changes no state. A guest's disk most often fails because the host's is
/// full, and then the database can't grow either: what is asked of the instance must not wait.
pub async fn store_when_possible(context: Arc<Context>, event: NewEvent) {
    const TRIES: u32 = 600;
    for _ in 0..TRIES {
        let event = event.clone();
        let written = context.db.write(move |tx| {
            tx.event(event);
            Ok::<_, DbError>(())
        });
        match written.await {
            Ok(()) => return,
            Err(error) => tracing::error!(%error, "an event is not stored yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::DbError;

    async fn happen(db: &Db, count: usize) {
        db.write(move |tx| {
            for _ in 0..count {
                tx.event(NewEvent::state(
                    "volume.state",
                    "local",
                    "vol-1",
                    "",
                    "creating",
                ));
            }
            Ok::<_, DbError>(())
        })
        .await
        .expect("write");
    }

    fn open(dir: &tempfile::TempDir) -> Db {
        Db::open(&dir.path().join("db")).expect("open")
    }

    async fn sequences(watcher: &mut Watcher, count: usize) -> Vec<i64> {
        let mut seen = Vec::new();
        for _ in 0..count {
            seen.push(watcher.next().await.expect("read").expect("event").sequence);
        }
        seen
    }

    #[tokio::test]
    async fn a_watch_taken_up_again_has_neither_gap_nor_twin() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = open(&dir);
        happen(&db, 10).await;
        let mut watcher = Watcher::start(db.clone(), Some(4)).await.expect("start");
        happen(&db, 10).await;
        assert_eq!(
            sequences(&mut watcher, 16).await,
            (5..=20).collect::<Vec<_>>()
        );
        drop(db);
        // Sequences go on after a restart.
        let db = open(&dir);
        let mut watcher = Watcher::start(db.clone(), Some(20)).await.expect("start");
        happen(&db, 2).await;
        assert_eq!(sequences(&mut watcher, 2).await, [21, 22]);
    }

    #[tokio::test]
    async fn a_watch_without_a_sequence_gives_only_new_events() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = open(&dir);
        happen(&db, 3).await;
        let mut watcher = Watcher::start(db.clone(), None).await.expect("start");
        happen(&db, 1).await;
        assert_eq!(sequences(&mut watcher, 1).await, [4]);
    }

    #[tokio::test]
    async fn a_watcher_that_lags_behind_the_broadcast_reads_the_rest_from_the_database() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = open(&dir);
        let mut watcher = Watcher::start(db.clone(), Some(0)).await.expect("start");
        happen(&db, 10_000).await;
        assert_eq!(
            sequences(&mut watcher, 10_000).await,
            (1..=10_000).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn events_that_were_dropped_or_are_yet_to_come_are_out_of_range() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = open(&dir);
        happen(&db, 101_500).await;
        let (oldest, newest) = db.read(db::events::bounds).await.expect("bounds");
        assert_eq!((oldest, newest), (1_001, 101_500));
        for bad in [0, 999, 101_501, u64::MAX] {
            let error = Watcher::start(db.clone(), Some(bad))
                .await
                .err()
                .expect("out of range");
            assert_eq!(error.reason(), Reason::EventsOutOfRange);
        }
        let mut watcher = Watcher::start(db, Some(1_000))
            .await
            .expect("the oldest kept");
        assert_eq!(sequences(&mut watcher, 1).await, [1_001]);
    }
}
