//! Devices: a file each for the small ones, a folder for virtio.

pub mod i8042;
pub mod ioapic;
pub mod serial;
pub mod virtio;
