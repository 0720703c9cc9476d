//! The guest's side: a driver of a network device, with receive buffers.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::namespace::{TAP, wait_for_carrier};
use super::*;
use crate::devices::virtio::testing::{TestDriver, wait_for};

/// The guest's address.
pub const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The address of frames that the host sends.
pub const HOST: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Queues.
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;

/// Where receive buffers are: one slot for each descriptor.
const BUFFERS: u64 = 4 << 20;
const BUFFER_STRIDE: u64 = 128 << 10;

/// Type of frames for local experiments (IEEE 802).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// A frame that is told from others by `number`.
pub fn frame(from: [u8; 6], to: [u8; 6], number: u32, payload: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &EXPERIMENTAL].concat();
    frame.extend((0..payload as u32).map(|i| (number.wrapping_mul(31) + i) as u8));
    frame
}

/// A frame with a TCP/IPv4 packet, whose checksum is for others to finish.
pub fn tcp_frame(from: [u8; 6], to: [u8; 6], payload: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[8, 0]].concat();
    let ip_length = (40 + payload) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(ip_length.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    frame.extend([
        0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame.extend((0..payload).map(|i| (i / 5) as u8));
    frame
}

/// Header of [`tcp_frame`] in segments of `segment` bytes; without `num_buffers`.
pub fn tcp_header(segment: u16) -> [u8; 10] {
    let mut header = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
    header[4..6].copy_from_slice(&segment.to_le_bytes());
    header
}

/// What the device told the agent.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Vec<String>>>);

impl Reports {
    pub fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A driver of a device on the namespace's tap.
pub struct Guest {
    pub driver: TestDriver,
    pub counters: Arc<Counters>,
    pub control: NetControl,
    pub reports: Reports,
    next_slot: u16,
}

impl Guest {
    /// A device whose driver hasn't begun.
    pub fn new(mtu: Option<u16>) -> Self {
        Guest::of(vec![open(TAP).unwrap()], mtu, &NetLimits::default())
    }

    /// One with these pairs of queues, held to these limits.
    pub fn of(taps: Vec<Tap>, mtu: Option<u16>, limits: &NetLimits) -> Self {
        let reports = Reports::default();
        let told = reports.clone();
        let on_error = Arc::new(move |tap: &str, message| {
            assert_eq!(tap, TAP);
            told.0.lock().unwrap().push(message);
        });
        let mac = "02:00:00:00:00:01".parse().unwrap();
        wait_for_carrier(&taps[0]);
        let net = Net::new(taps, TAP, mac, mtu, on_error).with_throttle(NetThrottle::new(limits));
        let control = net.control();
        Guest {
            driver: TestDriver::new(net),
            counters: Arc::clone(&control.counters),
            control,
            reports,
            next_slot: 0,
        }
    }

    pub fn started(features: u64) -> Self {
        let mut guest = Guest::new(None);
        guest.start(features);
        guest
    }

    /// From reset to a device that has thrown away what was in its tap: it does so before it
    /// serves its queues.
    pub fn start(&mut self, features: u64) {
        self.start_queues(features, 2);
    }

    /// [`start`](Self::start) with so many queues, which may include the control queue.
    pub fn start_queues(&mut self, features: u64, queues: u32) {
        self.driver.start(features, queues);
        self.next_slot = 0;
        self.send(&frame([2, 9, 9, 9, 9, 9], HOST, 0, 50));
    }

    /// Sends a frame, with the start of a virtio_net_hdr, and waits until it is done with.
    pub fn send_with(&mut self, header: [u8; 10], frame: &[u8]) {
        let header = [&header[..], &[0, 0]].concat();
        // In two parts, as a driver has headers and pages.
        let (front, back) = frame.split_at(frame.len() / 3);
        let (_, written) = self.driver.request(TRANSMIT, &[&header, front, back], &[]);
        assert_eq!(written, 0);
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.send_with([0; 10], frame);
    }

    /// Gives the device a receive buffer of these parts, together less than 128 KiB.
    pub fn give(&mut self, parts: &[u32]) {
        let mut at = BUFFERS + u64::from(self.next_slot) * BUFFER_STRIDE;
        let chain: Vec<_> = parts
            .iter()
            .map(|&len| {
                let part = (at, len, true);
                at += u64::from(len);
                part
            })
            .collect();
        let ring = &mut self.driver.rings[RECEIVE];
        let head = ring.submit(&self.driver.memory, &chain);
        assert_eq!(head, self.next_slot);
        self.next_slot = (head + parts.len() as u16) % ring.size;
        self.driver.notify(RECEIVE);
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.driver.rings[RECEIVE].take_used(&self.driver.memory)?;
        let at = BUFFERS + u64::from(head) * BUFFER_STRIDE;
        Some(self.driver.bytes(at, len as usize))
    }

    /// The next frame, with its header and the length of each buffer, if one is there.
    pub fn take(&mut self) -> Option<(Vec<u8>, Vec<u8>, Vec<usize>)> {
        let mut header = self.take_buffer()?;
        let mut lengths = vec![header.len()];
        let mut frame = header.split_off(HEADER_BYTES);
        for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
            let more = self
                .take_buffer()
                .expect("a frame's buffers come all at once");
            lengths.push(more.len());
            frame.extend(more);
        }
        Some((header, frame, lengths))
    }

    pub fn receive(&mut self) -> (Vec<u8>, Vec<u8>, Vec<usize>) {
        wait_for("a frame on the guest's side", || self.take())
    }

    /// Whether the driver reads the link as up.
    pub fn link_is_up(&mut self) -> bool {
        let mut status = [0; 2];
        self.driver.transport.read(0x100 + 6, &mut status);
        status == [1, 0]
    }

    /// Overwrites all receive buffers.
    pub fn fill_buffers(&self, byte: u8) {
        let bytes = vec![byte; (16 * BUFFER_STRIDE) as usize];
        self.driver
            .memory
            .write_slice(&bytes, GuestAddress(BUFFERS))
            .unwrap();
    }
}
