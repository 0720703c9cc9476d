//! The privileged instructions that the probe can't do without (`gate.s`).

core::arch::global_asm!(include_str!("gate.s"), options(att_syntax, raw));

unsafe extern "C" {
    fn privileged_call(function: u32, first: u64, second: u64) -> u64;
}

const OUT_STRING: u32 = 0;
const IN_STRING: u32 = 1;
const IDLE: u32 = 2;
const WRITE_MSR: u32 = 3;
const TRIPLE_FAULT: u32 = 4;

/// Writes bytes to COM1. From level 0, as exits from user mode are dearer on software KVM.
pub fn out_string(bytes: &[u8]) {
    // SAFETY: reads `bytes` only; the port is COM1's transmit register.
    unsafe { privileged_call(OUT_STRING, bytes.as_ptr() as u64, bytes.len() as u64) };
}

/// Reads bytes from COM1.
pub fn in_string(bytes: &mut [u8]) {
    // SAFETY: writes all of `bytes` and nothing else; the port is COM1's receive register.
    unsafe { privileged_call(IN_STRING, bytes.as_mut_ptr() as u64, bytes.len() as u64) };
}

/// Halts until an interrupt comes, or returns at once if one is pending.
pub fn wait_for_interrupt() {
    // SAFETY: the interrupt handlers change nothing.
    unsafe { privileged_call(IDLE, 0, 0) };
}

/// Writes a model-specific register; false if the CPU does not have it.
///
/// # Safety
/// As for the register: what it does to memory and to the CPU must be all right.
pub unsafe fn write_msr(register: u32, value: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { privileged_call(WRITE_MSR, register.into(), value) == 0 }
}

/// Ends the guest with an exception that can't be delivered.
pub fn triple_fault() -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { privileged_call(TRIPLE_FAULT, 0, 0) };
    }
}
