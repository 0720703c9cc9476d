//! The console: COM1, a 16550.
//!
//! Every access is an exit to the VMM, so that bytes are read by string instructions, which KVM
//! turns into one exit for many bytes.

use alloc::vec::Vec;

use crate::cpu::{gate, interrupts, ports};

const COM1: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_STATUS: u16 = COM1 + 5;

const RECEIVED_DATA: u8 = 1;
const FIFO_ENABLE: u8 = 1;
const DATA_READY: u8 = 1;

/// Bytes read at a time: what the VMM's FIFO holds.
const FIFO_BYTES: usize = 64;
/// Longest command.
const LINE_MAX: usize = 64 << 10;

/// Enables the FIFO. First of all: that empties it, and who has seen the probe's first line may
/// type.
pub fn init() {
    ports::write8(FIFO_CONTROL, FIFO_ENABLE);
}

/// Writes bytes.
pub fn write(bytes: &[u8]) {
    gate::out_string(bytes);
}

/// Puts bytes together to lines.
pub struct Reader {
    pending: Vec<u8>,
}

impl Reader {
    /// Enables the interrupt for received bytes.
    pub fn new() -> Self {
        ports::write8(INTERRUPT_ENABLE, RECEIVED_DATA);
        interrupts::enable_line(interrupts::SERIAL_LINE);
        Self {
            pending: Vec::new(),
        }
    }

    /// Takes what was typed; a line if it is complete, without its end.
    pub fn poll(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = core::mem::replace(&mut self.pending, rest);
                line.truncate(end);
                return Some(line);
            }
            if ports::read8(LINE_STATUS) & DATA_READY == 0 {
                return None;
            }
            let mut bytes = [0; FIFO_BYTES];
            gate::in_string(&mut bytes);
            // An empty FIFO reads as zeroes.
            let typed = bytes.into_iter().filter(|&byte| byte != 0);
            self.pending
                .extend(typed.map(|byte| if byte == b'\r' { b'\n' } else { byte }));
            if self.pending.len() > LINE_MAX {
                self.pending.clear();
            }
        }
    }
}
