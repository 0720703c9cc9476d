//! The serial console: what the guest wrote, and the line to it.

pub mod output;
pub mod session;
