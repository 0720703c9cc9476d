//! Discard and write-zeroes.
//!
//! Both run with no other request in flight. Freeing a cluster while a write to it is on its way
//! would let that write land in whatever the cluster is used for next; and `imago`'s own
//! `write_zeroes` turns a cluster into a zero cluster when the rest of it *looked* zero a moment
//! before, which loses a write that another queue makes to that rest.
//!
//! After each step the L2 tables are written back before anything else may allocate: `imago`
//! writes a new L2 table and the L1 entry for it at once, also into a cluster that was freed a
//! moment ago, while the L2 entry that gave the cluster up may still be in memory only. Killed in
//! between, the file would have two owners for that cluster.

use super::Disk;
use super::image::Image;
use crate::layer::CLUSTER_BYTES;
use imago::Mapping;
use imago::io_buffers::IoVector;
use rustix::fs::{FallocateFlags, fallocate};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is written where zeroes must be stored.
static ZEROES: [u8; CLUSTER_BYTES as usize] = [0; CLUSTER_BYTES as usize];

/// Guest bytes of one L2 table.
const L2_SPAN: u64 = CLUSTER_BYTES * (CLUSTER_BYTES / 8);

impl Disk {
    /// Makes a range read as zeroes. With `may_unmap` its clusters are given back to the host;
    /// without, clusters that are allocated stay so.
    pub fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        self.check_range(offset, length)?;
        self.refuse_read_only()?;
        let mut image = self.image_alone()?;
        let end = offset + length;

        let first_whole = offset.next_multiple_of(CLUSTER_BYTES).min(end);
        // Behind the disk's end there is nothing: its last cluster counts as whole.
        let last_whole = if end == self.size_bytes() {
            end
        } else {
            (end - end % CLUSTER_BYTES).max(first_whole)
        };
        self.store_zeroes(&image, offset, first_whole)?;
        self.zero_clusters(&mut image, first_whole, last_whole, may_unmap)?;
        self.store_zeroes(&image, last_whole, end)
    }

    /// Gives the clusters of a range back to the host; the whole range reads as zeroes then.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length, true)
    }

    /// Writes zeroes as data, where the range does not read as zero anyway.
    fn store_zeroes(&self, image: &Image, start: u64, end: u64) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let (mapping, length) = image.format.get_mapping(at, end - at)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let is_zero = matches!(mapping, Mapping::Zero { .. });
            let length = length.min(CLUSTER_BYTES);
            if !is_zero {
                let zeroes = IoVector::from(&ZEROES[..length as usize]);
                self.write_buffers(image, zeroes, at)?;
            }
            at += length;
        }
        Ok(())
    }

    /// Zeroes whole clusters.
    fn zero_clusters(
        &self,
        image: &mut Image,
        start: u64,
        end: u64,
        may_unmap: bool,
    ) -> io::Result<()> {
        let mut at = start;
        while at < end {
            // One step never goes past one L2 table, because the next one may have to be made.
            let table_end = (at - at % L2_SPAN) + L2_SPAN;
            let (mapping, length) = image.format.get_mapping(at, end.min(table_end) - at)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // A layer below may end inside of a cluster; what follows reads as zero there.
            let step_end = (at + length).next_multiple_of(CLUSTER_BYTES).min(end);
            let host_range = match mapping {
                // Never written, or zeroed before: nothing to do, and no table is made for it.
                Mapping::Zero { .. } => {
                    at += length;
                    continue;
                }
                Mapping::Raw {
                    writable: true,
                    offset,
                    ..
                } => Some((offset, length)),
                // In a layer below.
                _ => None,
            };
            if host_range.is_some() && !may_unmap {
                self.store_zeroes(image, at, step_end)?;
            } else {
                self.unmap(image, at, step_end, host_range)?;
            }
            at = step_end;
        }
        Ok(())
    }

    /// Turns the clusters of a range inside of one L2 table into zero clusters without data.
    fn unmap(
        &self,
        image: &mut Image,
        start: u64,
        end: u64,
        host_range: Option<(u64, u64)>,
    ) -> io::Result<()> {
        // A new L2 table may be needed, and may be put where a discard freed a cluster.
        self.settle_freed(image, start, end - start)?;
        let (done_from, done) = Arc::get_mut(&mut image.format)
            .ok_or_else(|| io::Error::other("somebody else has the top layer"))?
            .inner_mut()
            .discard_to_zero(start, end - start)?;
        if done_from != start || done != end - start {
            return Err(io::Error::other(
                "the qcow2 library left out a part of a discard",
            ));
        }
        if host_range.is_some() {
            image.top.freed.fetch_add(1, Ordering::AcqRel);
        }
        self.write_back(image)?;
        if let Some((host_offset, length)) = host_range {
            // Only gives space back; what the range reads as is settled by now, and a file system
            // that cannot do this keeps the space for the next allocation.
            let whole = length.next_multiple_of(CLUSTER_BYTES);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = fallocate(&*image.top.file, flags, host_offset, whole) {
                tracing::debug!("cannot give back space at {host_offset:#x}: {error}");
            }
        }
        Ok(())
    }
}
