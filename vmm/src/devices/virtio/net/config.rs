//! Features and configuration space of a network device (virtio 1.2 sections 5.1.3 and 5.1.4).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::mac::MacAddress;

/// Entries of a queue of frames.
pub const QUEUE_SIZE: u16 = 256;

/// Entries of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 64;

/// Bytes before the payload of a frame: two addresses and the type.
pub const ETHERNET_HEADER_BYTES: usize = 14;

/// Bytes of an 802.1Q tag.
const VLAN_TAG_BYTES: usize = 4;

/// What an interface may carry when nothing is said of its MTU.
const DEFAULT_MTU: u16 = 1500;

/// Bytes of the configuration space up to `mtu`.
const CONFIG_BYTES: usize = 12;

/// What the driver may know of the device.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest's address.
    pub mac: MacAddress,
    /// The largest payload of a frame that isn't segmented, if the driver is told of it.
    pub mtu: Option<u16>,
    /// Pairs of queues, at least 1. The driver has to ask for those behind the first.
    pub pairs: u16,
}

impl Config {
    /// Largest size of each queue: receive and transmit in turns, and behind them the control
    /// queue of a device with several pairs (section 5.1.2).
    pub fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.pairs)];
        if self.pairs > 1 {
            sizes.push(CONTROL_QUEUE_SIZE);
        }
        sizes
    }

    /// Feature bits of the device type.
    pub fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.pairs > 1 {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        }
        features
    }

    /// `struct virtio_net_config`, little endian. Fields of features that aren't offered are
    /// zeroes.
    pub fn to_bytes(&self, link_up: bool) -> [u8; CONFIG_BYTES] {
        let status = if link_up {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.mac.bytes()); // mac
        put(6, &status.to_le_bytes()); // status
        if self.pairs > 1 {
            put(8, &self.pairs.to_le_bytes()); // max_virtqueue_pairs
        }
        put(10, &self.mtu.unwrap_or(0).to_le_bytes()); // mtu
        bytes
    }

    /// Most bytes of a frame that isn't segmented.
    pub fn max_plain_frame(&self) -> usize {
        let mtu = self.mtu.unwrap_or(DEFAULT_MTU);
        usize::from(mtu) + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
    }
}

/// Most bytes of any frame: an IP packet of 65535 bytes behind a tagged Ethernet header.
pub const MAX_FRAME_BYTES: usize = u16::MAX as usize + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_has_address_status_and_mtu() {
        let mac = "02:01:02:03:04:05".parse().unwrap();
        let config = Config {
            mac,
            mtu: Some(9001),
            pairs: 4,
        };
        assert_eq!(
            config.to_bytes(true),
            [2, 1, 2, 3, 4, 5, 1, 0, 4, 0, 0x29, 0x23]
        );
        assert_eq!(config.to_bytes(false)[6..8], [0, 0]);
        assert_ne!(config.features() & (1 << VIRTIO_NET_F_MTU), 0);
        assert_eq!(config.max_plain_frame(), 9019);

        let config = Config {
            mac,
            mtu: None,
            pairs: 1,
        };
        assert_eq!(config.to_bytes(true)[8..], [0; 4]);
        assert_eq!(config.features() & (1 << VIRTIO_NET_F_MQ), 0);
        assert_eq!(config.features() & (1 << VIRTIO_NET_F_MTU), 0);
        assert_eq!(config.max_plain_frame(), 1518);
    }
}
