//! The probe: a bare-metal guest that boots in milliseconds and uses every device of a micro-VM
//! when told to, by commands on the serial console. See README.md for the commands.
//!
//! - [`boot`]: from the first instruction to user mode, and what the boot protocol told.
//! - [`cpu`]: faults, privileged instructions, clock, interrupts, ports.
//! - [`memory`]: heap, memory above 4 GiB, DMA.
//! - [`serial`]: the console. [`command`]: what is asked on it, and the answers.
//! - [`virtio`]: finding devices, and a virtqueue that can also be misused.
//! - [`disk`], [`net`]: what the commands do with them.
//!
//! The probe runs in user mode (privilege level 3), as software KVM emulates level 0 a thousand
//! times slower. It has one thread, and interrupts only end its waits.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod cell;
mod command;
mod cpu;
mod disk;
mod histogram;
mod json;
mod memory;
mod misuse;
mod net;
mod pattern;
mod random;
mod serial;
mod virtio;

/// Printed as the first thing.
const READY: &[u8] = b"{\"probe\":\"ready\",\"version\":1}\n";

/// First function in user mode.
#[unsafe(no_mangle)]
extern "C" fn probe_main() -> ! {
    cpu::faults::install();
    serial::init();
    serial::write(READY);
    cpu::clock::note_ready();
    memory::heap::init();
    command::serve()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    cpu::faults::panicked(info)
}
