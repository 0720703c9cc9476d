//! The guest's memory: anonymous pages of this process, given to KVM as memory slots.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::machine::layout;

/// The guest's memory, as every part of the VMM sees it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Why a guest's memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host gives no address space of this size.
    #[error("the host has no {bytes} bytes for the guest's memory: {source}")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What mmap said.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refused a slot.
    #[error("KVM refuses the memory slot at {start:#x}: {source}")]
    Slot {
        /// Guest-physical start.
        start: u64,
        /// What the ioctl said.
        source: kvm_ioctls::Error,
    },
}

/// Maps `bytes` of guest memory, with the hole below 4 GiB. Pages are taken from the host as the
/// guest touches them.
pub fn allocate(bytes: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    let ranges: Vec<_> = layout::memory_ranges(bytes)
        .into_iter()
        .map(|(start, length)| (GuestAddress(start), length as usize))
        .collect();
    GuestMemory::from_ranges(&ranges)
        .map(Arc::new)
        .map_err(|source| MemoryError::Map { bytes, source })
}

/// Gives `memory` to `vm`. Before any interrupt controller exists this takes 0.15 ms on software
/// KVM, after it 5 ms.
///
/// The caller keeps `memory` for as long as `vm` has vCPUs that run.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr().0;
        let kvm_region = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is a mapping of `region.len()` bytes that belongs to `memory`, which
        // outlives the vCPUs (see above); regions do not overlap, by their construction.
        unsafe { vm.set_user_memory_region(kvm_region) }
            .map_err(|source| MemoryError::Slot { start, source })?;
    }
    Ok(())
}
