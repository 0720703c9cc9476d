//! Packets in pieces.

use super::{
    header::{self, Fragment},
    packet::{Cut, Packet},
};

/// The IP packets that a packet goes in, by its [`Cut`].
pub(super) fn pieces(packet: &Packet, transport: Vec<u8>) -> Vec<Vec<u8>> {
    let size = match packet.cut {
        Cut::Whole => return vec![header::ip(packet, transport, None)],
        Cut::Fragments(size) | Cut::Backwards(size) | Cut::WithoutFirst(size) => size,
    };
    let count = transport.len().div_ceil(size);
    let parts = transport.chunks(size).enumerate();
    let mut pieces: Vec<_> = parts
        .map(|(index, part)| {
            let fragment = Fragment {
                offset: index * size,
                more: index + 1 < count,
                id: packet.tag,
            };
            header::ip(packet, part.to_vec(), Some(fragment))
        })
        .collect();
    match packet.cut {
        Cut::Backwards(_) => pieces.reverse(),
        Cut::WithoutFirst(_) => drop(pieces.remove(0)),
        Cut::Whole | Cut::Fragments(_) => {}
    }
    pieces
}
