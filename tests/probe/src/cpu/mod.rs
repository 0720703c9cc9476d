//! The CPU below the commands.

pub mod clock;
pub mod faults;
pub mod gate;
pub mod interrupts;
pub mod ports;
