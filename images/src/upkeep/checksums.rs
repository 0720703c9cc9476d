//! Digests of layers that nobody writes to, made in the background.
//!
//! Sealing a layer takes constant time, so that its digests come later: [`Store::seal_checksums`]
//! makes those that are missing. They are never made anew for a sealed layer, for that would
//! declare damage to be right. The top layer of a volume at rest has digests too, which hold
//! until it is written to again: what no structure shows, a flipped bit of data, is found there
//! as well.
//!
//! No lock is held while a layer is read. A layer that was written to meanwhile shows that by its
//! modification time: it is never less than [`SETTLED`] in the past when digests are made, so
//! that a later write cannot have the same.

use super::graph::{Graph, Layer};
use super::sum_file::{self, SumFile};
use crate::Store;
use crate::error::{ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::chain;
use crate::layer::header::Header;
use crate::store::Layout;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

/// How long ago the last write to a layer must be. Much longer than the kernel's clock tick.
const SETTLED: Duration = Duration::from_secs(2);

/// What [`Store::seal_checksums`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumsMade {
    /// Layers whose digests were made.
    pub layers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Layers that could not be read; [`Store::check`] says why.
    pub failed: u64,
    /// Whether `stop` ended it before all was done.
    pub stopped: bool,
}

impl Store {
    /// Makes the digests that are missing, one layer after the other: of sealed layers, and of
    /// the top layers of volumes that are at rest. Meant for the background: `stop` is called
    /// with the number of bytes after each MiB that was read, may take its time, and ends the
    /// work by returning `true`.
    pub fn seal_checksums(&self, mut stop: impl FnMut(u64) -> bool) -> Result<ChecksumsMade> {
        let layout = self.layout();
        let graph = Graph::read(layout)?;
        let tops = graph.tops();
        let users = graph.users();
        let mut made = ChecksumsMade::default();
        for (id, layer) in &graph.layers {
            let is_top = tops.contains_key(id);
            if !users.contains_key(id) || !is_wanted(layout, id, layer, is_top) {
                continue;
            }
            match make(layout, id, is_top, &mut stop) {
                Ok(None) => (),
                Ok(Some(bytes)) => {
                    made.layers += 1;
                    made.bytes += bytes;
                }
                Err(error) if error.kind() == ErrorKind::Stopped => {
                    made.stopped = true;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
                // It may be gone by now, or damaged.
                Err(error) => {
                    tracing::debug!("no checksums of layer {id}: {error}");
                    made.failed += 1;
                }
            }
        }
        Ok(made)
    }
}

/// Whether a layer has no digests that hold, as far as its metadata tells.
fn is_wanted(layout: &Layout, id: &LayerId, layer: &Layer, is_top: bool) -> bool {
    let Ok(head) = &layer.head else {
        return false;
    };
    let Ok(metadata) = fs::metadata(layout.layer_path(id)) else {
        return false;
    };
    // What is neither a top nor sealed is being sealed at the moment.
    if (!is_top && !layer.read_only) || !has_settled(&metadata) {
        return false;
    }
    match SumFile::read(layout, id) {
        Ok(Some(sum)) => match sum.modified {
            Some(modified) => !is_top || modified != sum_file::modified(&metadata),
            None => is_top || sum.is_of_another_file(&metadata, head.parent.as_ref()),
        },
        Ok(None) => true,
        // A damaged file is for the check to find.
        Err(_) => false,
    }
}

/// The last write to a file was long enough ago.
pub(super) fn has_settled(metadata: &Metadata) -> bool {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    sum_file::modified(metadata) + SETTLED.as_nanos() as i128 <= now.as_nanos() as i128
}

/// Makes the digests of a layer; `None` if it turns out not to be at rest.
fn make(
    layout: &Layout,
    id: &LayerId,
    is_top: bool,
    stop: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<u64>> {
    let link = chain::open_link(&layout.layers, id.clone())?;
    let context = || format!("layer {id}");
    let before = link.file.metadata().context(context)?;
    if link.header.is_dirty() || !has_settled(&before) {
        return Ok(None);
    }
    let earlier = SumFile::read(layout, id)?;
    let mut sum = SumFile::of(&link.file, link.parent.as_ref(), stop)?;
    sum.modified = is_top.then(|| sum_file::modified(&before));

    // Whoever replaces or removes a layer has the names locked.
    let _names = layout.lock_names()?;
    let after = fs::metadata(layout.layer_path(id)).context(context)?;
    if after.ino() != before.ino()
        || after.len() != before.len()
        || sum_file::modified(&after) != sum_file::modified(&before)
        || Header::read(&link.file)?.is_dirty()
    {
        return Ok(None);
    }
    if let Some(earlier) = earlier
        && earlier.modified == Some(sum_file::modified(&after))
        && earlier.sha256 != sum.sha256
    {
        // Damaged between the volume's last write and its sealing: the old digests tell.
        return Ok(None);
    }
    sum.write(layout, id)?;
    Ok(Some(sum.length))
}

/// To be called, with the names locked, before another file takes the place of a layer's.
/// New digests are made in the background.
pub(crate) fn forget(layout: &Layout, id: &LayerId) -> Result<()> {
    sum_file::remove(layout, id)
}

/// Whether a file in the folder of layers keeps the digests of a layer, and of which.
pub(crate) fn layer_of_file(name: &str) -> Option<LayerId> {
    sum_file::layer_of(name)
}
