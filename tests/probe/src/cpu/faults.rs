//! The interrupt table, and what a fault prints before it ends the guest.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use super::{gate, ports};
use crate::serial;

const VECTORS: usize = 64;
const FAULTS: usize = 32;
const INVALID_OPCODE: usize = 6;
const GENERAL_PROTECTION: usize = 13;
/// Interrupts of devices and of the timer: they only end a wait.
pub const DEVICE_VECTOR: u8 = 0x30;
/// The local APIC's interrupt without a cause; it gets no end-of-interrupt.
pub const SPURIOUS_VECTOR: u8 = 0x3f;

const KERNEL_CODE: u64 = 0x10;
/// Present, interrupt gate of 64 bits.
const GATE: u64 = 0x8e00;

/// Bytes between the stubs of two vectors.
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    static mut interrupt_table: [[u64; 2]; VECTORS];
    static fault_record: [u64; 5];
    fn fault_stubs();
    fn invalid_opcode_entry();
    fn protection_fault_entry();
    fn interrupt_entry();
    fn spurious_entry();
}

static FAULTED: AtomicBool = AtomicBool::new(false);

/// Fills the interrupt table, of which the CPU knows only the place so far.
pub fn install() {
    for vector in 0..FAULTS {
        set(
            vector,
            fault_stubs as *const () as u64 + STUB_BYTES * vector as u64,
        );
    }
    set(INVALID_OPCODE, invalid_opcode_entry as *const () as u64);
    set(
        GENERAL_PROTECTION,
        protection_fault_entry as *const () as u64,
    );
    set(DEVICE_VECTOR.into(), interrupt_entry as *const () as u64);
    set(SPURIOUS_VECTOR.into(), spurious_entry as *const () as u64);
}

fn set(vector: usize, entry: u64) {
    let low = (entry & 0xffff) | KERNEL_CODE << 16 | GATE << 32 | (entry >> 16 & 0xffff) << 48;
    // SAFETY: the table is only written here, before anything can interrupt; the CPU reads it.
    unsafe { (&raw mut interrupt_table[vector]).write_volatile([low, entry >> 32]) };
}

/// A text of limited length; what is more is dropped. Works without the heap.
struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length < self.bytes.len() - 3 {
                self.bytes[self.length] = match byte {
                    b'"' | b'\\' => b'\'',
                    0..0x20 => b' ',
                    other => other,
                };
                self.length += 1;
            }
        }
        Ok(())
    }
}

/// Prints one line and ends the guest. `text` must not need quoting.
fn end(text: fmt::Arguments<'_>) -> ! {
    if FAULTED.swap(true, Ordering::Relaxed) {
        gate::triple_fault();
    }
    let mut line = Line {
        bytes: [0; 512],
        length: 0,
    };
    // Never fails.
    let _ = line.write_fmt(text);
    serial::write(b"{\"fault\":\"");
    serial::write(&line.bytes[..line.length]);
    serial::write(b"\"}\n");
    loop {
        ports::power_off();
        ports::reset();
    }
}

/// Where `gate.s` goes on after a fault, in user mode and on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn report_fault() -> ! {
    // SAFETY: written by the assembly that brought us here, and by nothing afterwards.
    let [vector, code, rip, cs, address] = unsafe { (&raw const fault_record).read_volatile() };
    let level = cs & 3;
    end(format_args!(
        "exception {vector} code {code:#x} at {rip:#x} level {level} address {address:#x}"
    ))
}

/// What a panic does.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    end(format_args!("{info}"))
}
