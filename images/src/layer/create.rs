//! Making a new, empty layer.

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BYTES;
use crate::{MAX_DISK_BYTES, SECTOR_BYTES};
use imago::FormatCreateBuilder;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use std::fs::File;

/// Refuses sizes that no disk may have: zero, not a multiple of 512, above [`MAX_DISK_BYTES`].
pub(crate) fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > MAX_DISK_BYTES || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!(
                "size of {size_bytes} bytes; a multiple of {SECTOR_BYTES} up to {MAX_DISK_BYTES} \
                 is needed"
            ),
        ));
    }
    Ok(())
}

/// Writes an empty qcow2 layer into the empty file `file`.
///
/// With a parent, reads fall through to it. The cost does not depend on the parent's contents,
/// and on `size_bytes` only by the L1 table (16 bytes for each GiB).
pub(crate) fn write_empty_layer(
    file: &File,
    size_bytes: u64,
    parent: Option<&LayerId>,
) -> Result<()> {
    check_size(size_bytes)?;
    let storage = file
        .try_clone()
        .and_then(ImagoFile::try_from)
        .context(|| "opening the new layer".into())?;
    let mut builder = Qcow2::<ImagoFile>::create_builder(storage)
        .size(size_bytes)
        .cluster_size(CLUSTER_BYTES as usize);
    if let Some(parent) = parent {
        builder = builder.backing(parent.file_name(), "qcow2".into());
    }
    builder
        .create()
        .context(|| "writing an empty qcow2 layer".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_size_is_accepted_exactly_when_it_is_whole_sectors_up_to_the_maximum(
            size in prop_oneof![any::<u64>(), 0u64..(MAX_DISK_BYTES * 2), (0u64..1 << 40).prop_map(|s| s * 512)]
        ) {
            let expected = size != 0 && size % 512 == 0 && size <= 64 << 40;
            prop_assert_eq!(check_size(size).is_ok(), expected);
        }
    }
}
