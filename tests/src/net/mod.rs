//! Packets: making them, sending them from guests, from the outside and from the host itself, and
//! seeing where they arrive.
//!
//! A [`Lab`] holds all the ends. A guest's end is the probe's command `relay`, which lends its card
//! to the test; the outside is a network namespace of its own behind the host's uplink, in which
//! nothing answers by itself; the host sends and receives by raw sockets.

mod fragments;
mod guest_end;
mod header;
mod host_end;
mod lab;
mod outside;
pub mod packet;
mod random;
pub mod setting;
mod wire;

pub use guest_end::{GuestEnd, relayed};
pub use lab::{Arrival, End, Lab};
pub use outside::{HOST4, HOST6, OUTSIDE4, OUTSIDE6, Outside};
pub use packet::{Body, Cut, Packet, Seen};
pub use random::Random;
pub use wire::Wire;

/// The host's side of every tap.
pub const HOST_MAC: [u8; 6] = [2, 0x68, 0x74, 0x68, 0, 1];

/// An Ethernet address from how it is written.
///
/// # Errors
/// When it is none.
pub fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let mut bytes = text.split(':').map(|it| u8::from_str_radix(it, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next().unwrap_or(Ok(0))?;
    }
    Ok(mac)
}
