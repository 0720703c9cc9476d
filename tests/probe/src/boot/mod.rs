//! From the first instruction to user mode (`entry.s`), and what the boot protocol told us.

pub mod information;
pub mod smbios;

core::arch::global_asm!(include_str!("entry.s"), options(att_syntax, raw));
