//! I/O ports; user mode may use them (IOPL 3).

use core::arch::asm;

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: ports of this machine's devices do not touch memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: see `read8`.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Writes two bytes.
pub fn write16(port: u16, value: u16) {
    // SAFETY: see `read8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags));
    }
}

/// Enters S5 through ACPI's PM1a control register: sleep type 5, sleep enable.
pub fn power_off() {
    write16(0x604, 0x3400);
}

/// Resets through the keyboard controller.
pub fn reset() {
    write8(0x64, 0xfe);
}

/// Resets through ACPI's reset register.
pub fn reset_through_acpi() {
    write8(0x606, 1);
}
