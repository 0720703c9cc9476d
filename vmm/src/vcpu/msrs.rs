//! Model-specific registers that firmware would have set before a kernel runs.
//!
//! A vCPU comes out of reset with the rest as Linux wants it: no system-call entries, PAT as after
//! power-on, TSCs in step with each other.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// Registers and values (Intel SDM volume 4, chapter 2). Without the second, Linux says at each
/// start that the firmware forgot to enable MTRRs.
const BOOT_MSRS: [(u32, u64); 2] = [
    (IA32_MISC_ENABLE, FAST_STRINGS),
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLED | WRITE_BACK),
];

/// Sets them, and returns the indices of those that the host's KVM refused. No kernel needs any of
/// them to boot, so that is not an error.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Vec<u32> {
    // One at a time: KVM stops at the first that it refuses.
    let refused = BOOT_MSRS
        .into_iter()
        .filter(|&(index, data)| !set(vcpu, index, data));
    refused.map(|(index, _)| index).collect()
}

fn set(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    match Msrs::from_entries(&[entry]) {
        Ok(msrs) => vcpu.set_msrs(&msrs).is_ok_and(|written| written == 1),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;

    use super::*;

    #[test]
    fn boot_msrs_read_back_and_an_unknown_one_is_only_refused() {
        let Ok(kvm) = Kvm::new() else {
            println!("skipped: no /dev/kvm");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let refused = set_boot_msrs(&vcpu);
        for (index, data) in BOOT_MSRS {
            if refused.contains(&index) {
                continue;
            }
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut msrs = Msrs::from_entries(&[entry]).unwrap();
            assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
            assert_eq!(msrs.as_slice()[0].data, data, "MSR {index:#x}");
        }
        const NO_SUCH_MSR: u32 = 0x7fff_0000;
        assert!(!set(&vcpu, NO_SUCH_MSR, 1));
    }
}
