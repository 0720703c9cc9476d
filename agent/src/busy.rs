//! Which objects a call of this process is working on, so that reconciliation keeps its hands
//! off them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The set of ids.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<Mutex<HashSet<String>>>);

/// Holds an id in the set until dropped.
#[derive(Debug)]
pub struct BusyGuard {
    set: Busy,
    id: String,
}

impl Busy {
    /// Marks an id.
    #[must_use]
    pub fn mark(&self, id: &str) -> BusyGuard {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned());
        BusyGuard {
            set: self.clone(),
            id: id.to_owned(),
        }
    }

    /// Whether somebody works on it.
    pub fn contains(&self, id: &str) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(id)
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.set
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}
