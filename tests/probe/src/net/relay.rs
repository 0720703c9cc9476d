//! Lends cards to the machine at the other end of another card: what comes in at them goes to it as
//! it is, and what it sends goes out. Serial commands are too slow for thousands of frames, and a
//! peer that sees the frames themselves judges better than one that is told of them.
//!
//! Messages are frames of the other card. After their Ethernet header: one byte, which is the kind
//! in its lower half and the place of the lent card (from 0) in its upper half; four of a number;
//! then frames, each after two bytes of length. All numbers are big-endian.

use alloc::vec::Vec;

use super::card::Card;
use crate::command::Failure;
use crate::cpu::{clock, interrupts};

/// Type of messages (IEEE 802, local experimental).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HEADER_BYTES: usize = 14;

/// To us: these frames are to go out.
const SEND: u8 = 1;
/// To us: that is all, of all cards.
const END: u8 = 2;
/// From us: frames that have come in.
const RECEIVED: u8 = 3;
/// From us: all frames of the message with this number are out.
const SENT: u8 = 4;

/// Most bytes of a message.
const MESSAGE_BYTES: usize = 2000;
/// How long the device may take to send what it has been given, in nanoseconds.
const SEND_TIMEOUT_NS: u64 = 10_000_000_000;
/// How long to look for more before the CPU is given up, in nanoseconds.
const SPIN_NS: u64 = 100_000;
/// Longest sleep, should an interrupt be lost, in nanoseconds.
const SLEEP_NS: u64 = 20_000_000;

/// What was carried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    /// Frames that came in at the card.
    pub received: u64,
    /// Frames that went out of it.
    pub sent: u64,
}

/// Carries frames between `cards` and `control` until the message that ends it.
pub fn run(cards: &[&Card], control: &Card) -> Result<Carried, Failure> {
    let mut carried = Carried::default();
    let mut active = clock::now();
    loop {
        let mut happened = false;
        while let Some(message) = control.receive_frame() {
            happened = true;
            let Some((kind, number, frames)) = parse(&message) else {
                continue;
            };
            let (place, kind) = (kind >> 4, kind & 15);
            if kind == END {
                say(control, (place, SENT), number, &[])?;
                control.flush();
                return Ok(carried);
            }
            if kind == SEND {
                let card = cards.get(usize::from(place)).ok_or("no such card is lent")?;
                carried.sent += send(card, frames)?;
                say(control, (place, SENT), number, &[])?;
            }
        }
        for (place, card) in (0..).zip(cards) {
            happened |= give(card, place, control, &mut carried)?;
        }
        control.flush();
        if happened {
            active = clock::now();
        } else if clock::now() - active >= SPIN_NS {
            sleep(cards, control);
        }
    }
}

/// Kind, number and frames of a message to us.
fn parse(frame: &[u8]) -> Option<(u8, u32, &[u8])> {
    if frame.get(12..HEADER_BYTES)? != ETHERTYPE {
        return None;
    }
    let (kind, rest) = frame[HEADER_BYTES..].split_first()?;
    let (number, frames) = rest.split_first_chunk()?;
    Some((*kind, u32::from_be_bytes(*number), frames))
}

/// Sends frames, and waits until the device has taken the last one.
fn send(card: &Card, mut frames: &[u8]) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some((length, rest)) = frames.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        // Padding of a short message ends the list, too.
        if length == 0 {
            break;
        }
        let frame = rest.get(..length).ok_or("a frame is cut off")?;
        card.send_frame(frame)?;
        count += 1;
        frames = &rest[length..];
    }
    card.flush();
    let start = clock::now();
    while !card.has_sent() {
        if clock::now() - start > SEND_TIMEOUT_NS {
            return Err("the card does not send".into());
        }
        core::hint::spin_loop();
    }
    Ok(count)
}

/// Hands over what has come in; whether there was any.
fn give(card: &Card, place: u8, control: &Card, carried: &mut Carried) -> Result<bool, Failure> {
    let mut frames = Vec::new();
    let mut any = false;
    while let Some(frame) = card.receive_frame() {
        any = true;
        carried.received += 1;
        if frames.len() + 2 + frame.len() > MESSAGE_BYTES && !frames.is_empty() {
            say(control, (place, RECEIVED), 0, &frames)?;
            frames.clear();
        }
        frames.extend((frame.len() as u16).to_be_bytes());
        frames.extend(frame);
    }
    if !frames.is_empty() {
        say(control, (place, RECEIVED), 0, &frames)?;
    }
    Ok(any)
}

fn say(
    control: &Card,
    (place, kind): (u8, u8),
    number: u32,
    frames: &[u8],
) -> Result<(), Failure> {
    let mut message = Vec::with_capacity(HEADER_BYTES + 5 + frames.len());
    message.extend([0xff; 6]);
    message.extend(control.mac().0);
    message.extend(ETHERTYPE);
    message.push(place << 4 | kind);
    message.extend(number.to_be_bytes());
    message.extend(frames);
    control.send_frame(&message)
}

/// Gives up the CPU until one of the cards has something.
fn sleep(lent: &[&Card], control: &Card) {
    let all = || lent.iter().copied().chain([control]);
    for card in all() {
        card.set_interrupts(true);
        card.acknowledge();
    }
    if !all().any(|card| card.has_received()) {
        interrupts::wait(SLEEP_NS);
    }
    for card in all() {
        card.set_interrupts(false);
    }
}
