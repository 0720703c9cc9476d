//! The layers below a top layer, which can be exchanged for others of the same contents.
//!
//! The qcow2 library takes the backing layers of a layer once, and gives the layer out only
//! together with them. After a merge, opening the top layer anew would mean to write back and sync
//! everything while the guest waits; so the exchange is done here, below the library.

use super::image::Format;
use imago::FormatAccess;
use imago::file::File as ImagoFile;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The layers below another one. Clones are the same.
#[derive(Clone)]
pub(crate) struct Below(Arc<Cell>);

struct Cell(UnsafeCell<Arc<Format>>);

// SAFETY: `Arc<Format>` is `Send` and `Sync`. The cell is written to by `Below::replace` only,
// whose caller sees to it that nobody else uses it at that time; at all others it is only read.
unsafe impl Sync for Cell {}

impl Below {
    pub fn new(layers: Arc<Format>) -> Self {
        Below(Arc::new(Cell(UnsafeCell::new(layers))))
    }

    /// Puts other layers in the place of these.
    ///
    /// # Safety
    ///
    /// No reference that `deref` has returned may be alive, and none may be made until this
    /// returns: nobody else may use the layer above these.
    pub unsafe fn replace(&self, layers: Arc<Format>) {
        // SAFETY: the caller promises that there is no other reference to the cell's contents.
        unsafe { *self.0.0.get() = layers }
    }
}

impl Deref for Below {
    type Target = Format;

    fn deref(&self) -> &Format {
        // SAFETY: the pointer is valid for as long as `self`; nobody writes while the reference
        // lives, by the contract of `replace`.
        unsafe { &*self.0.0.get() }
    }
}

impl From<FormatAccess<ImagoFile>> for Below {
    fn from(layer: FormatAccess<ImagoFile>) -> Self {
        Below::new(Arc::new(layer))
    }
}

impl fmt::Debug for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
