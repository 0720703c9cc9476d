//! COM1: a 16550 UART (vm-superio) between the guest and the [`Console`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::console::{Console, ConsoleWriter};

/// Bytes typed that wait for the guest to read them; what comes beyond is dropped, as on a
/// serial line without flow control.
const MAX_PENDING_INPUT: usize = 64 << 10;

/// An interrupt line, raised through an irqfd.
pub struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The UART.
pub struct SerialPort {
    uart: Serial<IrqLine, NoEvents, ConsoleWriter>,
    pending: VecDeque<u8>,
}

impl SerialPort {
    /// A UART that writes to `console`.
    pub fn new(console: &Arc<Console>) -> io::Result<Self> {
        let irq = IrqLine(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self {
            uart: Serial::new(irq, ConsoleWriter::new(console)),
            pending: VecDeque::new(),
        })
    }

    /// To be registered as irqfd on [`SERIAL_GSI`](crate::machine::layout::SERIAL_GSI).
    pub fn irq_eventfd(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }

    /// Types `bytes` on the line.
    pub fn type_in(&mut self, bytes: &[u8]) {
        let room = MAX_PENDING_INPUT - self.pending.len();
        self.pending.extend(&bytes[..bytes.len().min(room)]);
        self.refill();
    }

    fn refill(&mut self) {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match self.uart.enqueue_raw_bytes(front) {
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.pending.drain(..taken)),
            }
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.uart.read(offset as u8);
        }
        self.refill();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            if let Err(error) = self.uart.write(offset as u8, *byte) {
                tracing::warn!(%error, "serial port");
            }
        }
    }
}
