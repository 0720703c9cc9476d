//! Time: the TSC, in nanoseconds if its frequency can be learnt.
//!
//! KVM tells it in its clock page; where there is no KVM clock, CPUID may.

use core::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};

use super::gate;
use crate::boot::information;
use crate::cell::Global;

/// `MSR_KVM_SYSTEM_TIME_NEW` (Documentation/virt/kvm/x86/msr.rst).
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `pvclock_vcpu_time_info`.
#[repr(C, align(64))]
struct ClockPage {
    version: u32,
    _padding: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_multiplier: u32,
    tsc_shift: i8,
    flags: u8,
    _padding_2: [u8; 2],
}

static mut CLOCK_PAGE: ClockPage = ClockPage {
    version: 0,
    _padding: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_multiplier: 0,
    tsc_shift: 0,
    flags: 0,
    _padding_2: [0; 2],
};

/// How TSC ticks become nanoseconds.
#[derive(Clone, Copy)]
struct Scale {
    /// Nanoseconds of 2³² ticks.
    multiplier: u64,
    source: &'static str,
}

static SCALE: Global<Option<Scale>> = Global::new(None);

/// A moment, in TSC ticks.
pub fn ticks() -> u64 {
    // SAFETY: the TSC is readable in user mode: CR4.TSD is zero.
    unsafe { _rdtsc() }
}

/// TSC ticks of a second; `None` if they aren't known, and then a tick is taken for a nanosecond.
pub fn hertz() -> Option<u64> {
    let scale = scale();
    (scale.source != UNKNOWN)
        .then(|| ((1_000_000_000u128 << 32) / u128::from(scale.multiplier)) as u64)
}

/// Who told the frequency.
pub fn source() -> &'static str {
    scale().source
}

/// Nanoseconds in `ticks`.
pub fn nanoseconds(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(scale().multiplier)) >> 32) as u64
}

/// Nanoseconds since the first instruction.
pub fn now() -> u64 {
    nanoseconds(ticks().wrapping_sub(information::first_tsc()))
}

static READY: Global<u64> = Global::new(0);

/// Notes that the first line is printed.
pub fn note_ready() {
    *READY.borrow() = ticks();
}

/// Nanoseconds from the first instruction to the end of the first line.
pub fn ready() -> u64 {
    let ticks = READY.borrow().wrapping_sub(information::first_tsc());
    nanoseconds(ticks)
}

/// A frequency as multiplier.
fn of_hertz(hertz: u64) -> u64 {
    ((1_000_000_000u128 << 32) / u128::from(hertz)) as u64
}

const UNKNOWN: &str = "unknown";

fn scale() -> Scale {
    let mut known = SCALE.borrow();
    *known.get_or_insert_with(learn)
}

fn learn() -> Scale {
    if let Some(multiplier) = kvm_clock() {
        return Scale {
            multiplier,
            source: "kvm_clock",
        };
    }
    if let Some(hertz) = cpuid() {
        return Scale {
            multiplier: of_hertz(hertz),
            source: "cpuid",
        };
    }
    Scale {
        multiplier: 1 << 32,
        source: UNKNOWN,
    }
}

fn kvm_clock() -> Option<u64> {
    let page = &raw mut CLOCK_PAGE;
    // SAFETY: KVM fills the page, which is aligned and used for nothing else, and by which it is
    // told to stop before this returns.
    let (multiplier, shift) = unsafe {
        if !gate::write_msr(KVM_SYSTEM_TIME, page as u64 | 1) {
            return None;
        }
        let filled = page.read_volatile();
        gate::write_msr(KVM_SYSTEM_TIME, 0);
        (filled.tsc_to_system_multiplier, filled.tsc_shift)
    };
    let multiplier = match shift {
        0..=31 => u64::from(multiplier) << shift,
        -31..0 => u64::from(multiplier) >> -shift,
        _ => 0,
    };
    (multiplier != 0).then_some(multiplier)
}

fn cpuid() -> Option<u64> {
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax));
        }
    }
    let hypervisor = __cpuid(0x4000_0000).eax;
    if (0x4000_0010..0x4000_1000).contains(&hypervisor) {
        let kilohertz = __cpuid(0x4000_0010).eax;
        if kilohertz != 0 {
            return Some(u64::from(kilohertz) * 1000);
        }
    }
    if highest >= 0x16 {
        let megahertz = __cpuid(0x16).eax;
        if megahertz != 0 {
            return Some(u64::from(megahertz) * 1_000_000);
        }
    }
    None
}
