//! Writing the file that takes the place of two layers.

use crate::disk::image::{Format, open_layer};
use crate::error::{IoContext, Result};
use crate::layer::CLUSTER_BYTES;
use crate::layer::chain::Link;
use crate::layer::create::write_empty_layer;
use imago::{FormatAccess, ShallowMapping};
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};

/// Read and written at once, in bytes.
const STEP_BYTES: u64 = 1 << 20;

/// Guest bytes of one L2 table: a zeroing must not go past it.
const L2_SPAN: u64 = CLUSTER_BYTES * (CLUSTER_BYTES / 8);

/// What a range of a layer is, without the layers below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    /// Reads as zero, whatever is below.
    Zero,
    /// Left to the layers below.
    Below,
}

/// A copy of two layers into one.
pub(super) struct Copy<'a> {
    child: Format,
    parent: Format,
    merged: Format,
    file: &'a File,
    /// There is a layer below both, which zeroes have to hide.
    hides: bool,
    copied: u64,
    buffer: Vec<u8>,
}

impl<'a> Copy<'a> {
    /// `file` is empty.
    pub fn new(child: &Link, parent: &Link, file: &'a File) -> Result<Self> {
        let below = parent.parent.as_ref();
        write_empty_layer(file, child.header.size, below)?;
        // Without what is below them, the layers show what is in each.
        let open = |link: &Link, file: &File, writable| {
            open_layer(&link.id, file, writable, None).map(FormatAccess::new)
        };
        Ok(Copy {
            child: open(child, &child.file, false)?,
            parent: open(parent, &parent.file, false)?,
            merged: open(child, file, true)?,
            file,
            hides: below.is_some(),
            copied: 0,
            buffer: Vec::new(),
        })
    }

    /// Copies everything and syncs the file, unless `progress`, which gets the number of bytes
    /// copied so far, stops it.
    pub fn run(
        mut self,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let merging = || "merging layers".into();
        let size = self.child.size();
        let mut at = 0;
        while at < size {
            let (kind, length) = kind_at(&self.child, at..size).context(merging)?;
            let range = at..at + length;
            at = range.end;
            let flow = match kind {
                Kind::Data => self.data(Side::Child, range, progress),
                Kind::Zero => self.zero(range).map(ControlFlow::Continue),
                Kind::Below => self.from_parent(range, progress),
            };
            if flow.context(merging)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.merged
            .flush()
            .and_then(|()| self.file.sync_all())
            .context(|| "writing a merged layer".into())?;
        Ok(progress(self.copied))
    }

    /// A range that the child leaves to the layers below it. Behind the parent's end everything
    /// reads as zero: a layer is never smaller than the one below it.
    fn from_parent(
        &mut self,
        range: Range<u64>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let end = range.end.min(self.parent.size());
        let mut at = range.start;
        while at < end {
            let (kind, length) = kind_at(&self.parent, at..end)?;
            let piece = at..at + length;
            at = piece.end;
            match kind {
                Kind::Data => {
                    if self.data(Side::Parent, piece, progress)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Kind::Zero => self.zero(piece)?,
                Kind::Below => (),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn data(
        &mut self,
        side: Side,
        range: Range<u64>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        for at in range.clone().step_by(STEP_BYTES as usize) {
            if progress(self.copied).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let length = STEP_BYTES.min(range.end - at);
            self.buffer.resize(length as usize, 0);
            let from = match side {
                Side::Child => &self.child,
                Side::Parent => &self.parent,
            };
            from.read(&mut self.buffer[..], at)?;
            self.merged.write(&self.buffer[..], at)?;
            self.copied += length;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        if !self.hides {
            return Ok(());
        }
        // The parent may end inside of a cluster; what follows reads as zero as well.
        let end = range
            .end
            .next_multiple_of(CLUSTER_BYTES)
            .min(self.merged.size());
        let (done_from, done) = self
            .merged
            .inner_mut()
            .discard_to_zero(range.start, end - range.start)?;
        if (done_from, done) != (range.start, end - range.start) {
            return Err(io::Error::other(
                "the qcow2 library left out a part of a zeroing",
            ));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Side {
    Child,
    Parent,
}

/// What a layer has at the start of a range, and how far that goes; not past one L2 table.
fn kind_at(layer: &Format, range: Range<u64>) -> io::Result<(Kind, u64)> {
    let table_end = range.start - range.start % L2_SPAN + L2_SPAN;
    let most = range.end.min(table_end) - range.start;
    let (mapping, length) = layer.get_shallow_mapping(range.start, most)?;
    let kind = match mapping {
        ShallowMapping::Raw { .. } => Kind::Data,
        ShallowMapping::Zero { explicit: true, .. } => Kind::Zero,
        ShallowMapping::Zero { .. } => Kind::Below,
        _ => return Err(io::Error::other("a mapping that no layer of ours has")),
    };
    match length {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok((kind, length)),
    }
}
