//! The layer that an import makes.

use crate::error::{IoContext, Result};
use crate::layer::chain::imago_storage;
use crate::layer::create::write_empty_layer;
use crate::layer::{CLUSTER_BYTES, header};
use imago::file::File as ImagoFile;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Writes the clusters of a new layer, zeroes left out.
pub(super) struct LayerWriter<'a> {
    file: &'a File,
    image: FormatAccess<ImagoFile>,
}

impl<'a> LayerWriter<'a> {
    /// Starts a layer of `size` bytes in an empty file.
    pub fn new(file: &'a File, size: u64) -> Result<Self> {
        write_empty_layer(file, size, None)?;
        let image = Qcow2::<ImagoFile>::builder(imago_storage(file)?)
            .write(true)
            .backing(None)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .context(|| "opening the new layer".into())?;
        Ok(LayerWriter {
            file,
            image: FormatAccess::new(image),
        })
    }

    /// Writes `data` at a cluster-aligned offset. Clusters of zeroes are not stored.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        let clusters: Vec<&[u8]> = data.chunks(CLUSTER_BYTES as usize).collect();
        let mut at = 0;
        for run in clusters.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let length: usize = run.iter().map(|cluster| cluster.len()).sum();
            if !is_zero(run[0]) {
                self.image
                    .write(&data[at..at + length], offset + at as u64)
                    .context(|| "writing the new layer".into())?;
            }
            at += length;
        }
        Ok(())
    }

    /// Makes the disk larger while its end is not known yet.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        self.image
            .resize_grow(size, PreallocateMode::None)
            .context(|| "growing the new layer".into())
    }

    /// Current size in bytes.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Writes everything back, sets the final size, and syncs the file. A smaller size than
    /// before must not cut off anything that was written.
    pub fn finish(mut self, size: u64) -> Result<()> {
        if size > self.size() {
            self.grow(size)?;
        }
        self.image
            .flush()
            .context(|| "writing the new layer".into())?;
        let shrink = size < self.size();
        drop(self.image);
        if shrink {
            // The size field of the header is all that changes: there is nothing behind it.
            self.file
                .write_all_at(&size.to_be_bytes(), header::SIZE_OFFSET)
                .context(|| "setting the size of the new layer".into())?;
        }
        self.file
            .sync_all()
            .context(|| "syncing the new layer".into())
    }
}

fn is_zero(data: &[u8]) -> bool {
    // Branch-free inside of a piece, so that it is vectorized.
    data.chunks(512)
        .all(|piece| piece.iter().fold(0, |bits, byte| bits | byte) == 0)
}
