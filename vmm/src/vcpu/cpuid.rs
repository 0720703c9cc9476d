//! What each vCPU answers to the CPUID instruction: what the host's KVM supports, with the guest's
//! own topology (one socket, as many cores as vCPUs, one thread each).
//!
//! KVM's own leaves (0x40000000: signature, kvm-clock) come with what it supports. Leaves of the
//! frequencies (0x15, 0x16) stay as KVM has them: guests take the frequency from kvm-clock.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::software_kvm::{self, Platform};

/// Why there is no CPUID for a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM didn't tell what it supports.
    #[error("KVM_GET_SUPPORTED_CPUID: {0}")]
    Supported(#[source] kvm_ioctls::Error),
    /// More leaves than KVM takes.
    #[error("CPUID has {0} leaves, more than KVM takes")]
    TooManyLeaves(usize),
}

/// CPUID for the vCPU `index` (also its APIC id) of `count`.
pub fn build(kvm: &Kvm, index: u8, count: u8, platform: Platform) -> Result<CpuId, CpuidError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(CpuidError::Supported)?;
    let mut leaves = supported.as_slice().to_vec();
    set_features(&mut leaves, kvm.check_extension(Cap::TscDeadlineTimer));
    if platform == Platform::Software {
        software_kvm::adjust_cpuid(&mut leaves);
    }
    set_topology(&mut leaves, index, count);
    CpuId::from_entries(&leaves).map_err(|_| CpuidError::TooManyLeaves(leaves.len()))
}

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;

fn set_features(leaves: &mut [kvm_cpuid_entry2], has_tsc_deadline: bool) {
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ecx |= HYPERVISOR;
        // An idle guest is to halt, so that its thread sleeps.
        leaf.ecx &= !MONITOR;
        // KVM supports the timer with its in-kernel local APIC, and leaves the bit to us.
        if has_tsc_deadline {
            leaf.ecx |= TSC_DEADLINE;
        }
    }
}

/// Topology leaves of Intel (4, 0xB, 0x1F) and AMD (0x80000008, 0x8000001D, 0x8000001E); what of
/// them the host doesn't have is not added, but for 0xB, which all kernels look for.
fn set_topology(leaves: &mut Vec<kvm_cpuid_entry2>, index: u8, count: u8) {
    let apic_id = u32::from(index);
    let cores = u32::from(count);
    // Bits of an APIC id that number the cores of a socket.
    let core_bits = cores.next_power_of_two().trailing_zeros();
    let last_core_id = (1 << core_bits) - 1;

    let has_leaf_1f = leaves
        .iter()
        .any(|leaf| leaf.function == 0x1f && leaf.ebx != 0);
    // 0x80000026 would tell of complexes of the host's cores.
    leaves.retain(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026));

    for leaf in leaves.iter_mut() {
        match leaf.function {
            0 => leaf.eax = leaf.eax.max(0xb),
            1 => {
                let clflush_size = leaf.ebx & 0xffff;
                leaf.ebx = apic_id << 24 | (1 << core_bits) << 16 | clflush_size;
                leaf.edx = if count > 1 {
                    leaf.edx | HTT
                } else {
                    leaf.edx & !HTT
                };
            }
            4 | 0x8000_001d => share_cache(leaf, last_core_id),
            0x8000_0008 => leaf.ecx = core_bits << 12 | (cores - 1),
            0x8000_001e => {
                leaf.eax = apic_id;
                leaf.ebx = apic_id;
                leaf.ecx = 0;
                leaf.edx = 0;
            }
            _ => {}
        }
    }
    for function in [0xb, 0x1f] {
        if function == 0x1f && !has_leaf_1f {
            continue;
        }
        const SMT: u32 = 1;
        const CORE: u32 = 2;
        let level = |index: u32, bits: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: bits,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: apic_id,
            ..Default::default()
        };
        leaves.push(level(0, 0, 1, SMT));
        leaves.push(level(1, core_bits, cores, CORE));
        leaves.push(level(2, 0, 0, 0));
    }
}

/// Caches of levels 1 and 2 belong to one core, deeper ones to all of them.
fn share_cache(leaf: &mut kvm_cpuid_entry2, last_core_id: u32) {
    const KIND: u32 = 0x1f;
    if leaf.eax & KIND == 0 {
        return;
    }
    let level = leaf.eax >> 5 & 7;
    let last_sharer = if level <= 2 { 0 } else { last_core_id };
    leaf.eax = leaf.eax & 0x3fff | last_sharer << 14;
    // Bits 31:26: the last core id of the socket; AMD's leaf has them reserved.
    if leaf.function == 4 {
        leaf.eax |= last_core_id << 26;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let mut found = leaves
            .iter()
            .filter(|l| l.function == function && l.index == index);
        let leaf = found.next().unwrap();
        assert!(
            found.next().is_none(),
            "leaf {function:#x}.{index} is there twice"
        );
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xd, 1, 2, 3]),
            leaf(1, 0, [0xa0671, 0x1708_0800, 0, 0]),
            leaf(4, 0, [0xfc00_c121, 7, 8, 9]),
            leaf(4, 3, [0xfc00_c163, 7, 8, 9]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(0xb, 0, [1, 2, 0x100, 0x17]),
            leaf(0x1f, 0, [1, 2, 0x100, 0x17]),
            leaf(0x8000_0008, 0, [0x3930, 0, 0x7fff, 0]),
            leaf(0x8000_001e, 0, [0x17, 0x101, 0x3, 0]),
            leaf(0x8000_0026, 0, [1, 2, 3, 4]),
        ]
    }

    #[test]
    fn a_guest_is_one_socket_of_cores_with_one_thread_each() {
        let mut leaves = host();
        set_topology(&mut leaves, 2, 3);
        assert_eq!(find(&leaves, 1, 0), [0xa0671, 0x0204_0800, 0, HTT]);
        for function in [0xb, 0x1f] {
            assert_eq!(find(&leaves, function, 0), [0, 1, 0x100, 2]);
            assert_eq!(find(&leaves, function, 1), [2, 3, 0x201, 2]);
            assert_eq!(find(&leaves, function, 2), [0, 0, 2, 2]);
        }
        assert_eq!(find(&leaves, 0x8000_0008, 0)[2], 0x2002);
        assert_eq!(find(&leaves, 0x8000_001e, 0), [2, 2, 0, 0]);
        assert!(!leaves.iter().any(|leaf| leaf.function == 0x8000_0026));
    }

    #[test]
    fn inner_caches_are_private_and_the_last_one_is_shared() {
        let mut leaves = host();
        set_topology(&mut leaves, 0, 4);
        assert_eq!(find(&leaves, 4, 0), [3 << 26 | 0x121, 7, 8, 9]);
        assert_eq!(find(&leaves, 4, 3), [3 << 26 | 3 << 14 | 0x163, 7, 8, 9]);
        assert_eq!(find(&leaves, 4, 4), [0; 4]);
    }

    #[test]
    fn one_vcpu_needs_no_bit_for_its_core() {
        let mut leaves = host();
        set_topology(&mut leaves, 0, 1);
        assert_eq!(find(&leaves, 1, 0), [0xa0671, 0x0001_0800, 0, 0]);
        assert_eq!(find(&leaves, 0xb, 1), [0, 1, 0x201, 0]);
        assert_eq!(find(&leaves, 4, 3)[0], 0x163);
    }

    #[test]
    fn the_leaf_0xb_is_added_where_the_host_lacks_it_and_0x1f_is_not() {
        let mut leaves = vec![leaf(0, 0, [1, 0, 0, 0]), leaf(1, 0, [0; 4])];
        set_topology(&mut leaves, 1, 32);
        assert_eq!(find(&leaves, 0, 0)[0], 0xb);
        assert_eq!(find(&leaves, 0xb, 1), [5, 32, 0x201, 1]);
        assert!(!leaves.iter().any(|leaf| leaf.function == 0x1f));
    }

    #[test]
    fn the_guest_knows_that_it_is_one_and_is_not_invited_to_wait_by_mwait() {
        let mut leaves = vec![leaf(1, 0, [0, 0, MONITOR, 0])];
        set_features(&mut leaves, true);
        assert_eq!(leaves[0].ecx, HYPERVISOR | TSC_DEADLINE);
        let mut leaves = vec![leaf(1, 0, [0; 4])];
        set_features(&mut leaves, false);
        assert_eq!(leaves[0].ecx, HYPERVISOR);
    }

    #[test]
    fn this_hosts_kvm_takes_what_is_built_for_each_vcpu() {
        let Ok(kvm) = Kvm::new() else {
            println!("skipped: no /dev/kvm");
            return;
        };
        let platform = software_kvm::detect(crate::config::PlatformChoice::Auto);
        let vm = kvm.create_vm().unwrap();
        for index in 0..3 {
            let cpuid = build(&kvm, index, 3, platform).unwrap();
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            assert_eq!(find(cpuid.as_slice(), 1, 0)[1] >> 24, u32::from(index));
            assert_eq!(
                &find(cpuid.as_slice(), 0x4000_0000, 0)[1..],
                kvm_signature()
            );
        }
    }

    fn kvm_signature() -> [u32; 3] {
        [*b"KVMK", *b"VMKV", *b"M\0\0\0"].map(u32::from_le_bytes)
    }
}
