//! Global state of a program with one thread.

use core::cell::{RefCell, RefMut};

/// A global that is borrowed for a while; borrowing it twice at once panics.
pub struct Global<T>(RefCell<T>);

// SAFETY: one vCPU runs Rust code, one thread of it; interrupt handlers are assembly that
// touches no such value.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A global with its first value.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Borrows it.
    pub fn borrow(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
}
