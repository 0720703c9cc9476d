//! The device as a driver sees it, on a tap in a network namespace of the test's own.

mod guest;
mod misuse;
mod namespace;
mod paced;
mod pairs;
mod traffic;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use self::guest::{GUEST, Guest, HOST, RECEIVE, TRANSMIT, frame, tcp_frame, tcp_header};
use self::namespace::{TAP, in_namespace, in_namespace_of, make_tap, remove_tap, set_mtu, set_up};
use super::header::HEADER_BYTES;
use super::tap::{QueuePairs, TapError};
use super::*;
use crate::devices::virtio::testing::wait_for;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Checksums and segmentation of frames that the guest sends.
const SEND_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
/// Those of frames that it receives.
const RECEIVE_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
/// `num_buffers` of a frame in one buffer, behind a header that says nothing.
const PLAIN: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The only pair of queues of a tap.
fn open(name: &str) -> Result<Tap, TapError> {
    Ok(open_pairs(name, QueuePairs::UpTo(1))?.remove(0))
}

fn open_pairs(name: &str, pairs: QueuePairs) -> Result<Vec<Tap>, TapError> {
    Tap::open(name, pairs)
}
