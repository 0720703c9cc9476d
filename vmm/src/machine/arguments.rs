//! The kernel's complete arguments: the image's own, and what this machine adds.

use super::layout;
use super::slots::Slot;
use crate::software_kvm::{self, Platform};

/// `given`, then the arguments of software KVM where that is what we run on, then the devices
/// for a kernel that is told not to look at the ACPI tables, which otherwise describe them
/// (Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`).
pub(super) fn complete(given: &str, platform: Platform, slots: &[Slot]) -> String {
    let mut arguments = given.trim().to_string();
    let mut add = |more: &str| {
        if !arguments.is_empty() {
            arguments.push(' ');
        }
        arguments.push_str(more);
    };
    if platform == Platform::Software {
        add(software_kvm::kernel_args());
    }
    if given.split_whitespace().any(|word| word == "acpi=off") {
        for slot in slots.iter().filter(|slot| slot.lock().occupant.is_some()) {
            let size = layout::VIRTIO_MMIO_STRIDE >> 10;
            add(&format!(
                "virtio_mmio.device={size}K@{:#x}:{}",
                slot.base, slot.gsi
            ));
        }
    }
    arguments
}
