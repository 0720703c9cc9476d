//! Changes of one thing, one after the other.
//!
//! What the firewall enforces is changed in two steps: the rows are committed, then the firewall
//! gets what the rows say. Both steps are taken within one turn of every object whose part of the
//! policy changes, so that the order of commits is the order in which the firewall learns of
//! them, and the last committed is what is in force. Changes of different objects do not wait for
//! each other.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as Turnstile, OwnedMutexGuard};

/// Whose turn it is, by ids of objects.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Weak<Turnstile<()>>>>);

/// It is this one's turn until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Turn(#[allow(dead_code, reason = "held")] Vec<OwnedMutexGuard<()>>);

impl Turns {
    /// Waits for the turn of all of these. They are taken in the order of their ids, so that two
    /// calls never wait for each other.
    pub async fn take(&self, ids: impl IntoIterator<Item = impl Into<String>>) -> Turn {
        let ids: BTreeSet<String> = ids.into_iter().map(Into::into).collect();
        let mut guards = Vec::with_capacity(ids.len());
        for id in ids {
            guards.push(self.turnstile(id).lock_owned().await);
        }
        Turn(guards)
    }

    fn turnstile(&self, id: String) -> Arc<Turnstile<()>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turnstile) = waiting.get(&id).and_then(Weak::upgrade) {
            return turnstile;
        }
        waiting.retain(|_, turnstile| turnstile.strong_count() > 0);
        let turnstile = Arc::new(Turnstile::new(()));
        waiting.insert(id, Arc::downgrade(&turnstile));
        turnstile
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_a_time_has_the_turn_and_nobody_waits_forever() {
        let turns = Arc::new(Turns::default());
        let inside = Arc::new(AtomicU32::new(0));
        let tasks = (0..200).map(|n| {
            let (turns, inside) = (turns.clone(), inside.clone());
            tokio::spawn(async move {
                let others = [format!("x{}", n % 7), "a".to_owned(), format!("b{}", n % 3)];
                let turn = turns.take(others).await;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(turn);
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("join");
        }
        drop(turns.take(["last"]).await);
        let left = turns.0.lock().expect("lock").len();
        assert!(left <= 1, "{left} are kept");
    }

    #[tokio::test]
    async fn different_objects_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let _first = turns.take(["a"]).await;
        let _second = turns.take(["b"]).await;
    }
}
