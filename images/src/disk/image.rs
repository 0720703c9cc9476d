//! The open layers of a volume.

use crate::error::{Error, ErrorKind, Result};
use crate::id::LayerId;
use crate::layer::chain::{Link, imago_storage};
use crate::store::Locked;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// One layer and those below it, as the qcow2 library has them.
pub(super) type Format = FormatAccess<ImagoFile>;

/// A layer of which those below it can be shared.
pub(super) type Layer = Qcow2<ImagoFile, Arc<Format>>;

/// What guest I/O works on.
#[derive(Debug)]
pub(super) struct Image {
    pub format: Arc<Format>,
    /// The layers below the top; `format` has them too.
    pub backing: Option<Arc<Format>>,
    pub top: Arc<Top>,
    pub closed: bool,
}

/// The top layer's file, and what is known of what is durable in it.
#[derive(Debug)]
pub(crate) struct Top {
    pub id: LayerId,
    /// Its lock, its dirty bit, syncs and hole punching.
    pub file: Locked,
    /// Clusters were allocated whose data and refcounts may not be on the disk yet.
    pub allocated: AtomicBool,
    /// Counts the discards that freed clusters, and how many of them the disk knows of. Until it
    /// knows, the freed clusters must not be used again.
    pub freed: AtomicU64,
    pub freed_synced: AtomicU64,
}

impl Top {
    pub fn new(id: LayerId, file: Locked) -> Self {
        Top {
            id,
            file,
            allocated: AtomicBool::new(false),
            freed: AtomicU64::new(0),
            freed_synced: AtomicU64::new(0),
        }
    }
}

/// Opens layers, nearest first, one on top of the other.
pub(super) fn open_below(ancestors: &[Link]) -> Result<Option<Arc<Format>>> {
    let mut backing = None;
    for link in ancestors.iter().rev() {
        let layer = open_layer(&link.id, &link.file, false, backing)?;
        backing = Some(Arc::new(FormatAccess::new(layer)));
    }
    Ok(backing)
}

/// Opens one layer, whose header was judged and whose dirty bit is not set.
pub(super) fn open_layer(
    id: &LayerId,
    file: &File,
    writable: bool,
    backing: Option<Arc<Format>>,
) -> Result<Layer> {
    let mut layer = Layer::builder(imago_storage(file)?)
        .write(writable)
        .backing(None::<Arc<Format>>)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(|source| match source.kind() {
            // The header was judged before, so that what is left is in the tables.
            io::ErrorKind::InvalidData => {
                Error::new(ErrorKind::Corrupt, format!("layer {id}: {source}"))
            }
            _ => Error::io(format!("opening layer {id}"), source),
        })?;
    layer.set_backing(backing);
    Ok(layer)
}
