//! Everything that only hosts with software KVM (`kvm_pvm`: no VMX, no SVM) need.
//!
//! Such a host runs guest code at privilege level 3 natively, and at level 0 in KVM's instruction
//! emulator, a million instructions a second. The emulator lacks many instructions; for them
//! `KVM_RUN` ends with `KVM_EXIT_INTERNAL_ERROR`. Three things help, and hardware KVM needs none:
//!
//! 1. [`complete`] does what the instruction would have done, so that the guest goes on. That costs
//!    20 µs for most, as much as any exit to user space, and 50 to 70 µs for XSAVE and its like.
//! 2. [`adjust_cpuid`] and
//! 3. [`kernel_args`] keep Linux from using what is dear or missing.
//!
//! # What the emulator lacks
//!
//! Measured with Linux 6.18 on an Intel Xeon, each instruction alone at level 0 in long mode. It
//! ends `KVM_RUN` for
//!
//! - `int3`, `int1`, `int n`, `ud1`; `clac`, `stac`; `verr`, `verw`, `lar`, `lsl`; `rdtscp`,
//!   `invpcid`, `sysenter`, `monitor`, `mwait`, `rdpkru`, `wrpkru`, `clwb`, `ptwrite`, `rdssp`;
//! - `cmpxchg16b`, `popcnt`, `crc32`, `movdiri`, `movdir64b`, `adcx`, `adox`, and all of BMI1 and
//!   BMI2 but `tzcnt`;
//! - `xgetbv`, `xsave`, `xsavec`, `xsaveopt`, `xsaves`, `xrstor`, `xrstors`, `ldmxcsr`, `stmxcsr`;
//! - all of x87 and MMX but `fninit`, `fnstcw`, `fnstsw` to memory and loads by `movq`;
//! - all of SSE and AVX but whole-register moves (`movups`, `movaps`, `movdqu`, `movdqa`, `movnt*`).
//!
//! `movbe` and `rdpid` raise #UD in the guest, without any exit. `tzcnt` and `lzcnt` are run
//! as `bsf` and `bsr`: `lzcnt` is wrong, without any exit. Not lacking: `cmpxchg8b`, `fxsave`,
//! `fxrstor`, `rdrand`, `rdseed`, `rdfsbase` and its like, `xsetbv`, `swapgs`, fences, prefetches,
//! `clflush`, `clflushopt`, `rdtsc`, `wbinvd`, string instructions, loads of segments and tables.
//!
//! Arithmetic of SSE, AVX and x87 is not completed: Linux uses it in cryptography and RAID, which
//! choose other code where CPUID or arguments say so.
//!
//! CPUID at level 0 answers partly with what was given to KVM, partly with the host's: leaves 7 and
//! 0xD are the host's; in leaf 1, ECX has the host's bits besides ours for what programs use (SSE3
//! to AVX, POPCNT, XSAVE, RDRAND, ...), while CX16, PCID, X2APIC and the TSC-deadline timer are
//! ours; all else is ours. At level 3, CPUID answers alike (OSXSAVE as the guest has set it), and
//! XGETBV with the host's XCR0, whatever the guest's is. So programs use AVX only if the guest's
//! kernel uses XSAVE, and `noxsave` is safe.

mod cpu;
mod integer;
mod operands;
mod paging;
mod system;
#[cfg(test)]
mod tests;
mod vcpu;
mod x87;
mod xsave;

use std::path::Path;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;

use self::cpu::{Cpu, Stop};
use self::vcpu::KvmCpu;
use crate::config::PlatformChoice;
use crate::memory::GuestMemory;

/// Which kind of KVM the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Intel VMX or AMD SVM.
    Hardware,
    /// `kvm_pvm`.
    Software,
}

/// The host's kind of KVM, unless `choice` says which to take it for.
pub fn detect(choice: PlatformChoice) -> Platform {
    match choice {
        PlatformChoice::Hardware => Platform::Hardware,
        PlatformChoice::Software => Platform::Software,
        PlatformChoice::Auto => {
            platform_of(|module| Path::new("/sys/module").join(module).exists())
        }
    }
}

/// At most one of the three modules serves /dev/kvm at a time.
fn platform_of(is_loaded: impl Fn(&str) -> bool) -> Platform {
    let is_hardware = is_loaded("kvm_intel") || is_loaded("kvm_amd");
    if is_loaded("kvm_pvm") && !is_hardware {
        Platform::Software
    } else {
        Platform::Hardware
    }
}

/// Arguments for a Linux kernel on software KVM. It then uses neither instructions that the
/// emulator lacks where it has a choice, nor what only costs emulated instructions there:
/// patching of lock prefixes, protection of its own text, mitigations (the emulator does not
/// speculate). `softkvm` is a word of Hearth's own kernel, which implies the others and more; other
/// kernels pass it on to their init, which ignores it.
const KERNEL_ARGS: &str = "softkvm noxsave \
    clearcpuid=popcnt,cx16,smap,smep,umip,fsgsbase,invpcid,pcid,rdrand,rdseed,bmi1,bmi2,erms,fsrm,fsrs \
    noreplace-smp rodata=off mitigations=off";

/// What to append to a Linux kernel's arguments on software KVM.
pub fn kernel_args() -> &'static str {
    KERNEL_ARGS
}

/// Changes the CPUID given to KVM so that the guest's kernel avoids what is dear (CMPXCHG16B) or
/// wrong (LZCNT).
pub fn adjust_cpuid(leaves: &mut [kvm_cpuid_entry2]) {
    const CMPXCHG16B: u32 = 1 << 13;
    const LZCNT: u32 = 1 << 5;
    for leaf in leaves {
        match leaf.function {
            1 => leaf.ecx &= !CMPXCHG16B,
            0x8000_0001 => leaf.ecx &= !LZCNT,
            _ => {}
        }
    }
}

/// How an instruction was completed. Either way the vCPU can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It had its effect; RIP is at the next one.
    Done,
    /// It raised this exception, which the guest takes next.
    Exception(u8),
}

/// Why an instruction could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exit was another one.
    #[error("KVM internal error {0}")]
    NotEmulation(u32),
    /// It was at privilege level 1 to 3, where the CPU runs instructions itself; KVM emulates there
    /// only what touches a device.
    #[error("an instruction that touches a device at privilege level {0}")]
    Privilege(u8),
    /// Nothing here knows it, or one of its operands.
    #[error("{instruction} ({bytes}): {what}")]
    Unsupported {
        /// Its name.
        instruction: String,
        /// Its bytes, hexadecimal.
        bytes: String,
        /// What is not known.
        what: &'static str,
    },
    /// Its bytes could not be read.
    #[error("the instruction's bytes can't be read: {0}")]
    Fetch(&'static str),
    /// KVM refused a call.
    #[error("{0}: {1}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
}

/// Completes the instruction at which `KVM_RUN` ended with `KVM_EXIT_INTERNAL_ERROR`. Nothing has
/// changed if this fails.
pub fn complete(vcpu: &mut VcpuFd, memory: &GuestMemory) -> Result<Completion, Error> {
    let known_bytes = bytes_from_exit(vcpu)?;
    let failed = |stop| match stop {
        Stop::Kvm(call, source) => Error::Kvm(call, source),
        Stop::Unsupported(what) => Error::Fetch(what),
        Stop::Exception(_) => Error::Fetch("it lies where the guest has no memory"),
    };
    let mut cpu = KvmCpu::new(vcpu, memory).map_err(failed)?;
    if cpu.privilege_level() != 0 {
        return Err(Error::Privilege(cpu.privilege_level()));
    }
    let bits = cpu.code_bits();
    let (instruction, bytes) = fetch(&mut cpu, bits, &known_bytes).map_err(failed)?;
    let result = execute(&mut cpu, &instruction);
    let finished = match result {
        Ok(()) => {
            cpu.finish();
            Ok(Completion::Done)
        }
        Err(Stop::Exception(exception)) => cpu
            .finish_with(exception)
            .map(|()| Completion::Exception(exception.vector)),
        Err(stop) => Err(stop),
    };
    finished.map_err(|stop| match stop {
        Stop::Unsupported(what) => Error::Unsupported {
            instruction: format!("{:?}", instruction.mnemonic()).to_lowercase(),
            bytes: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            what,
        },
        stop => failed(stop),
    })
}

/// Longest instruction.
const MAX_LENGTH: usize = 15;

/// The bytes at RIP, as far as KVM had read them (`emulation_failure`, KVM API 5); none on kernels
/// that don't tell.
fn bytes_from_exit(vcpu: &mut VcpuFd) -> Result<Vec<u8>, Error> {
    const HAS_INSTRUCTION_BYTES: u64 = 1;
    // SAFETY: the exit reason, which the caller has seen, says that KVM filled this member of the
    // union; all of its bits are valid whatever they are.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Err(Error::NotEmulation(internal.suberror));
    }
    // data[0] holds flags, data[1] and data[2] the count and the bytes.
    if internal.ndata < 3 || internal.data[0] & HAS_INSTRUCTION_BYTES == 0 {
        return Ok(Vec::new());
    }
    let [count, first @ ..] = internal.data[1].to_le_bytes();
    let bytes = [&first[..], &internal.data[2].to_le_bytes()].concat();
    Ok(bytes[..usize::from(count).min(MAX_LENGTH)].to_vec())
}

/// Decodes what is at RIP; reads more than `known` only if that is not enough.
fn fetch(cpu: &mut impl Cpu, bits: u32, known: &[u8]) -> Result<(Instruction, Vec<u8>), Stop> {
    let mut bytes = known.to_vec();
    loop {
        let mut decoder = Decoder::with_ip(bits, &bytes, cpu.registers().rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if decoder.last_error() != DecoderError::NoMoreBytes || bytes.len() == MAX_LENGTH {
            bytes.truncate(instruction.len());
            return Ok((instruction, bytes));
        }
        // One at a time: those behind the instruction may not be there.
        let start = cpu
            .segment_base(cpu::Segment::Cs)
            .wrapping_add(cpu.registers().rip);
        let mut byte = [0];
        cpu.read(start.wrapping_add(bytes.len() as u64), &mut byte)?;
        bytes.push(byte[0]);
    }
}

/// Does what `instruction` does, and moves RIP behind it unless it faults.
fn execute(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    // These are traps: the guest's handler finds RIP behind them.
    if matches!(instruction.mnemonic(), Mnemonic::Int1 | Mnemonic::Int3) {
        cpu.registers().rip = instruction.next_ip();
    }
    let is_done = system::execute(cpu, instruction)?
        || integer::execute(cpu, instruction)?
        || x87::execute(cpu, instruction)?
        || xsave::execute(cpu, instruction)?;
    if !is_done {
        return Err(Stop::Unsupported("nothing here completes it"));
    }
    cpu.registers().rip = instruction.next_ip();
    Ok(())
}
