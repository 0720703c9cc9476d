//! Waiting without burning the host's CPU: an idle probe halts until the console, the network or
//! the timer interrupts. The handlers do nothing; who waited looks at the devices.

use core::sync::atomic::{AtomicBool, Ordering};

use super::faults::{DEVICE_VECTOR, SPURIOUS_VECTOR};
use super::gate;

const IOAPIC: u64 = 0xfec0_0000;
const IOAPIC_WINDOW: u64 = IOAPIC + 0x10;
/// First redirection entry; two registers each.
const REDIRECTION: u32 = 0x10;
const LINES: u32 = 24;

const LAPIC: u64 = 0xfee0_0000;
const LAPIC_SPURIOUS: u64 = LAPIC + 0xf0;
const LAPIC_ENABLE: u32 = 0x100;
const LAPIC_TIMER: u64 = LAPIC + 0x320;
const LAPIC_TIMER_INITIAL: u64 = LAPIC + 0x380;
const LAPIC_TIMER_DIVIDE: u64 = LAPIC + 0x3e0;
const DIVIDE_BY_1: u32 = 0xb;

/// Line of COM1.
pub const SERIAL_LINE: u32 = 4;

static LAPIC_READY: AtomicBool = AtomicBool::new(false);
static NETWORK_LINES: AtomicBool = AtomicBool::new(false);

fn write(address: u64, value: u32) {
    // SAFETY: only the interrupt controllers' registers are passed; both are at their
    // architectural places, mapped for user mode.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Lets an interrupt line end waits; as an edge, at the first CPU, which is what the upper half of
/// the entry says after a reset.
pub fn enable_line(line: u32) {
    enable_lapic();
    write(IOAPIC, REDIRECTION + 2 * line);
    write(IOAPIC_WINDOW, DEVICE_VECTOR.into());
}

/// Lets the lines of virtio devices end waits. Which one is whose is written in ACPI tables;
/// taking all of them is easier.
pub fn enable_virtio_lines() {
    if !NETWORK_LINES.swap(true, Ordering::Relaxed) {
        (SERIAL_LINE + 1..LINES).for_each(enable_line);
    }
}

fn enable_lapic() {
    if !LAPIC_READY.swap(true, Ordering::Relaxed) {
        write(LAPIC_SPURIOUS, LAPIC_ENABLE | u32::from(SPURIOUS_VECTOR));
        write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
        write(LAPIC_TIMER, DEVICE_VECTOR.into());
    }
}

/// Halts until an interrupt, at most about `nanoseconds`: KVM's local APIC counts those. May
/// return early, for an interrupt that came before.
pub fn wait(nanoseconds: u64) {
    enable_lapic();
    let count = nanoseconds.clamp(1, u32::MAX.into()) as u32;
    write(LAPIC_TIMER_INITIAL, count);
    gate::wait_for_interrupt();
}
