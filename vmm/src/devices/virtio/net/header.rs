//! `struct virtio_net_hdr` (virtio 1.2 section 5.1.6): what a driver says of a frame that it
//! sends, judged before the host's kernel obeys it.
//!
//! ```text
//! 0 flags   1 gso_type   2 hdr_len   4 gso_size   6 csum_start   8 csum_offset   10 num_buffers
//! ```
//!
//! The tap takes the same structure and checks it, too, but for the kernel's sake only: it knows
//! nothing of what was negotiated, and lets a guest ask for a packet to be cut into tens of
//! thousands.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::config::{ETHERNET_HEADER_BYTES, MAX_FRAME_BYTES};

/// Bytes of the header, with `num_buffers`, which is always there in virtio 1.
pub const HEADER_BYTES: usize = 12;

/// Fewest bytes of a segment: what is left of the smallest MSS that Linux keeps to (48) when all
/// TCP options (40) are in use.
const MIN_GSO_SIZE: u16 = 8;

/// A header as it lies in memory.
pub type HeaderBytes = [u8; HEADER_BYTES];

/// What a driver may ask of the device for frames that it sends.
#[derive(Clone, Copy, Debug)]
pub struct Permitted {
    checksum: bool,
    tso4: bool,
    tso6: bool,
}

/// Why a frame isn't sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Less than an Ethernet header, or more than a device can have to send.
    FrameLength,
    /// An offload that wasn't negotiated or isn't known.
    NotNegotiated,
    /// A checksum that doesn't lie in the frame behind its Ethernet header.
    Checksum,
    /// Segments without a checksum, too small, or headers longer than the frame.
    Segmentation,
}

impl Permitted {
    /// What `features` permit.
    pub fn new(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        Permitted {
            checksum: has(VIRTIO_NET_F_CSUM),
            tso4: has(VIRTIO_NET_F_HOST_TSO4),
            tso6: has(VIRTIO_NET_F_HOST_TSO6),
        }
    }

    /// Checks the header of a frame of `frame_bytes`. Returns what the tap gets in its place: the
    /// same without flags and fields that mean nothing.
    pub fn check(self, header: &HeaderBytes, frame_bytes: usize) -> Result<HeaderBytes, BadHeader> {
        if !(ETHERNET_HEADER_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
            return Err(BadHeader::FrameLength);
        }
        let mut checked = HeaderBytes::default();
        let needs_checksum = header[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 != 0;
        if needs_checksum {
            if !self.checksum {
                return Err(BadHeader::NotNegotiated);
            }
            let start = usize::from(u16_at(header, 6));
            let end = start + usize::from(u16_at(header, 8)) + 2;
            if start < ETHERNET_HEADER_BYTES || end > frame_bytes {
                return Err(BadHeader::Checksum);
            }
            checked[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            checked[6..10].copy_from_slice(&header[6..10]);
        }
        let permitted = match u32::from(header[1]) {
            VIRTIO_NET_HDR_GSO_NONE => return Ok(checked),
            VIRTIO_NET_HDR_GSO_TCPV4 => self.tso4,
            VIRTIO_NET_HDR_GSO_TCPV6 => self.tso6,
            _ => false,
        };
        if !permitted {
            return Err(BadHeader::NotNegotiated);
        }
        let header_bytes = usize::from(u16_at(header, 2));
        if !needs_checksum || header_bytes > frame_bytes || u16_at(header, 4) < MIN_GSO_SIZE {
            return Err(BadHeader::Segmentation);
        }
        checked[1..6].copy_from_slice(&header[1..6]);
        Ok(checked)
    }
}

fn u16_at(header: &HeaderBytes, at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
    const TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;

    /// A TCP/IPv4 frame in segments of 1448 bytes.
    fn tcp() -> HeaderBytes {
        [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]
    }

    #[test]
    fn what_was_negotiated_passes_unchanged() {
        let permitted = Permitted::new(CSUM | TSO4);
        assert_eq!(permitted.check(&tcp(), 60_000), Ok(tcp()));
        let plain = [0; 12];
        assert_eq!(Permitted::new(0).check(&plain, 60), Ok(plain));
    }

    #[test]
    fn what_means_nothing_is_cleared() {
        let noisy = [0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(Permitted::new(CSUM).check(&noisy, 60), Ok([0; 12]));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let refused = Err(BadHeader::NotNegotiated);
        assert_eq!(Permitted::new(0).check(&tcp(), 60_000), refused);
        assert_eq!(Permitted::new(CSUM).check(&tcp(), 60_000), refused);
        let permitted = Permitted::new(CSUM | TSO4);
        for gso_type in [2, 3, 4, 5, 0x81, 0xff] {
            let mut header = tcp();
            header[1] = gso_type;
            assert_eq!(permitted.check(&header, 60_000), refused, "{gso_type}");
        }
    }

    #[test]
    fn offsets_outside_the_frame_are_refused() {
        let permitted = Permitted::new(CSUM | TSO4);
        assert_eq!(permitted.check(&tcp(), 13), Err(BadHeader::FrameLength));
        let too_long = MAX_FRAME_BYTES + 1;
        assert_eq!(
            permitted.check(&tcp(), too_long),
            Err(BadHeader::FrameLength)
        );
        // The checksum's last byte is byte 34 + 16 + 1.
        assert_eq!(permitted.check(&tcp(), 51), Err(BadHeader::Checksum));
        assert_eq!(permitted.check(&tcp(), 53), Err(BadHeader::Segmentation));
        assert!(permitted.check(&tcp(), 54).is_ok());
        for (at, value, error) in [
            (6, 0x0d, BadHeader::Checksum),     // csum_start before the payload
            (7, 0xff, BadHeader::Checksum),     // csum_start past the end
            (9, 0xff, BadHeader::Checksum),     // csum_offset past the end
            (3, 0xff, BadHeader::Segmentation), // hdr_len past the end
            (0, 0, BadHeader::Segmentation),    // segments without a checksum
        ] {
            let mut header = tcp();
            header[at] = value;
            assert_eq!(permitted.check(&header, 60_000), Err(error), "{at}");
        }
        for (size, ok) in [(0, false), (7, false), (8, true), (u16::MAX, true)] {
            let mut header = tcp();
            header[4..6].copy_from_slice(&u16::to_le_bytes(size));
            assert_eq!(permitted.check(&header, 60_000).is_ok(), ok, "{size}");
        }
    }
}
