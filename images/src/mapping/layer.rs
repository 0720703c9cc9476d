//! The tables of one layer.

use crate::check::tables::{self, OwnTarget, own_l2_table, own_target};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BYTES;
use crate::layer::chain::Link;
use crate::layer::header::file_len;
use std::io;
use std::os::unix::fs::FileExt;

/// One layer, with its L1 table in memory: 16 bytes for each GiB of the disk.
#[derive(Debug)]
pub(super) struct LayerMap {
    link: Link,
    file_len: u64,
    /// Offsets of the L2 tables, 0 where there is none.
    l2_offsets: Vec<u64>,
}

impl LayerMap {
    pub fn open(link: Link) -> Result<LayerMap> {
        let file_len = file_len(&link.file)?;
        let header = &link.header;
        let l1 = tables::read_table(&link.file, header.l1_offset, header.l1_entries * 8)?;
        let l2_offsets = l1
            .into_iter()
            .map(|entry| {
                let offset = own_l2_table(entry)?;
                check_cluster(offset, file_len, true)?;
                Ok(offset)
            })
            .collect::<Result<_>>()
            .map_err(|error: Error| error.of_layer(&link.id))?;
        Ok(LayerMap {
            link,
            file_len,
            l2_offsets,
        })
    }

    pub fn id(&self) -> &LayerId {
        &self.link.id
    }

    /// Size of the layer's virtual disk in bytes.
    pub fn size(&self) -> u64 {
        self.link.header.size
    }

    pub fn has_table(&self, span: u64) -> bool {
        self.l2_offset(span) != 0
    }

    fn l2_offset(&self, span: u64) -> u64 {
        usize::try_from(span)
            .ok()
            .and_then(|span| self.l2_offsets.get(span))
            .copied()
            .unwrap_or(0)
    }

    /// The L2 table of a span, not judged yet.
    pub fn table(&self, span: u64) -> Result<Option<Vec<u64>>> {
        match self.l2_offset(span) {
            0 => Ok(None),
            offset => tables::read_table(&self.link.file, offset, CLUSTER_BYTES).map(Some),
        }
    }

    /// Judges an entry of a table.
    pub fn target(&self, entry: u64) -> Result<OwnTarget> {
        let judge = || {
            let target = own_target(entry)?;
            if let OwnTarget::Data(offset) = target {
                check_cluster(offset, self.file_len, false)?;
            }
            Ok(target)
        };
        judge().map_err(|error: Error| error.of_layer(&self.link.id))
    }

    /// Reads data; the file may end inside of its last cluster, which reads as zeroes from there.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match (self.link.file).read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => {
                    buffer[filled..].fill(0);
                    break;
                }
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    return Err(error)
                        .context(|| format!("reading layer {} at {offset:#x}", self.link.id));
                }
            }
        }
        Ok(())
    }
}

/// A cluster that an entry points to: aligned, not the header's, and starting inside of the file;
/// a table must also end there.
fn check_cluster(offset: u64, file_len: u64, whole: bool) -> Result<()> {
    if !offset.is_multiple_of(CLUSTER_BYTES) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("a cluster at offset {offset:#x}"),
        ));
    }
    let needed = if whole { CLUSTER_BYTES } else { 1 };
    if offset != 0 && offset + needed > file_len {
        return Err(Error::new(
            ErrorKind::Truncated,
            format!("the cluster at {offset:#x} is behind the end of the file"),
        ));
    }
    Ok(())
}
