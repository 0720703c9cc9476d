//! Features and configuration space of a block device (virtio 1.2 sections 5.2.3 and 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Unit of every offset and length that virtio-blk speaks of.
pub const SECTOR_BYTES: u64 = 512;

/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most data segments of a request: what a queue holds beside header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// The storage is best written in blocks of 4 KiB: 2³ sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const MIN_IO_SECTORS: u16 = 1 << PHYSICAL_BLOCK_EXP;

/// Most sectors of one segment of a discard or write-zeroes request (1 GiB): bounds how long
/// other requests of the queue wait.
pub const MAX_ZERO_SECTORS: u32 = 1 << 21;

/// Most segments of a discard or write-zeroes request.
pub const MAX_ZERO_SEGMENTS: u32 = 16;

/// Smaller discards free nothing: the cluster of a qcow2 layer, 64 KiB.
const DISCARD_ALIGNMENT_SECTORS: u32 = 128;

/// Bytes of the configuration space up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// What the driver may know of the device.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest may not write.
    pub read_only: bool,
    /// Number of queues.
    pub queues: u16,
}

impl Config {
    /// Feature bits of the device type.
    pub fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
            | if self.read_only {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    /// `struct virtio_blk_config` of a disk of so many sectors, little endian. Fields of features
    /// that aren't offered are zeroes.
    pub fn to_bytes(&self, sectors: u64) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &sectors.to_le_bytes()); // capacity
        put(12, &SEGMENTS_MAX.to_le_bytes()); // seg_max
        put(20, &(SECTOR_BYTES as u32).to_le_bytes()); // blk_size
        put(24, &[PHYSICAL_BLOCK_EXP]); // topology.physical_block_exp
        put(26, &MIN_IO_SECTORS.to_le_bytes()); // topology.min_io_size
        put(34, &self.queues.to_le_bytes()); // num_queues
        if !self.read_only {
            put(36, &MAX_ZERO_SECTORS.to_le_bytes()); // max_discard_sectors
            put(40, &MAX_ZERO_SEGMENTS.to_le_bytes()); // max_discard_seg
            put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes()); // discard_sector_alignment
            put(48, &MAX_ZERO_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
            put(52, &MAX_ZERO_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
            put(56, &[1]); // write_zeroes_may_unmap
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let config = Config {
            read_only: true,
            queues: 2,
        };
        let has = |bit: u32| config.features() & (1 << bit) != 0;
        assert!(has(VIRTIO_BLK_F_RO) && has(VIRTIO_BLK_F_MQ) && has(VIRTIO_BLK_F_FLUSH));
        assert!(!has(VIRTIO_BLK_F_DISCARD) && !has(VIRTIO_BLK_F_WRITE_ZEROES));
        assert_eq!(config.to_bytes(2048)[36..], [0; 24]);
    }

    #[test]
    fn the_fields_are_where_the_driver_looks() {
        use std::mem::offset_of;
        use virtio_bindings::virtio_blk::virtio_blk_config;
        let bytes = Config {
            read_only: false,
            queues: 4,
        }
        .to_bytes(1 << 21);
        assert_eq!(bytes[..8], (1u64 << 21).to_le_bytes());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(u32_at(offset_of!(virtio_blk_config, seg_max)), SEGMENTS_MAX);
        assert_eq!(u32_at(offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(
            bytes[offset_of!(virtio_blk_config, physical_block_exp)],
            PHYSICAL_BLOCK_EXP
        );
        assert_eq!(bytes[offset_of!(virtio_blk_config, min_io_size)], 8);
        assert_eq!(bytes[offset_of!(virtio_blk_config, num_queues)], 4);
        for (offset, value) in [
            (
                offset_of!(virtio_blk_config, max_discard_sectors),
                MAX_ZERO_SECTORS,
            ),
            (
                offset_of!(virtio_blk_config, max_discard_seg),
                MAX_ZERO_SEGMENTS,
            ),
            (
                offset_of!(virtio_blk_config, discard_sector_alignment),
                DISCARD_ALIGNMENT_SECTORS,
            ),
            (
                offset_of!(virtio_blk_config, max_write_zeroes_sectors),
                MAX_ZERO_SECTORS,
            ),
            (
                offset_of!(virtio_blk_config, max_write_zeroes_seg),
                MAX_ZERO_SEGMENTS,
            ),
        ] {
            assert_eq!(u32_at(offset), value);
        }
        assert_eq!(
            bytes[offset_of!(virtio_blk_config, write_zeroes_may_unmap)],
            1
        );
    }
}
