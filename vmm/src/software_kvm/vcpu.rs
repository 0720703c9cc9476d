//! [`Cpu`] on a vCPU of KVM. Registers are read once; changes go back at the end.
//!
//! Each ioctl on a vCPU of software KVM costs 10 to 20 µs, because it loads the vCPU. So after the
//! first completion KVM is asked to leave the registers in `kvm_run` at every exit, and to take
//! them from there at the next entry (`KVM_CAP_SYNC_REGS`).

use std::arch::asm;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::{SyncReg, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::cpu::{
    Control, Cpu, Exception, ExtendedState, Registers, Segment, Stop, control, flags,
};
use super::paging::{Access, PAGE_SIZE, translate};
use crate::memory::GuestMemory;

pub(super) struct KvmCpu<'a> {
    vcpu: &'a mut VcpuFd,
    memory: &'a GuestMemory,
    registers: Registers,
    special: kvm_sregs,
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Stop {
    move |source| Stop::Kvm(call, source)
}

impl<'a> KvmCpu<'a> {
    pub fn new(vcpu: &'a mut VcpuFd, memory: &'a GuestMemory) -> Result<Self, Stop> {
        const BOTH: u64 = SyncReg::Register as u64 | SyncReg::SystemRegister as u64;
        let (general, special) = if vcpu.get_kvm_run().kvm_valid_regs & BOTH == BOTH {
            let synced = vcpu.sync_regs();
            (synced.regs, synced.sregs)
        } else {
            vcpu.set_sync_valid_reg(SyncReg::Register);
            vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
            (
                vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?,
                vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            )
        };
        Ok(Self {
            vcpu,
            memory,
            registers: from_kvm(&general),
            special,
        })
    }

    pub fn privilege_level(&self) -> u8 {
        // Real mode has none, whatever the segment says.
        if self.special.cr0 & control::CR0_PROTECTION == 0 {
            0
        } else {
            self.special.ss.dpl
        }
    }

    /// 16, 32 or 64, as the decoder counts.
    pub fn code_bits(&self) -> u32 {
        let is_long = self.special.efer & control::EFER_LONG_MODE_ACTIVE != 0;
        match (is_long && self.special.cs.l != 0, self.special.cs.db != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }

    /// Hands the registers back: KVM takes them when the vCPU runs on. That also drops the
    /// invalid-opcode exception that KVM has queued for the instruction it could not emulate.
    pub fn finish(self) {
        self.vcpu.sync_regs_mut().regs = to_kvm(&self.registers);
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
    }

    /// Hands the registers back, and makes the guest take `exception` next.
    pub fn finish_with(mut self, exception: Exception) -> Result<(), Stop> {
        if let Some(address) = exception.address {
            self.special.cr2 = address;
            self.vcpu
                .set_sregs(&self.special)
                .map_err(kvm("KVM_SET_SREGS"))?;
        }
        // Now, not when the vCPU runs on: this would drop the exception.
        self.vcpu
            .set_regs(&to_kvm(&self.registers))
            .map_err(kvm("KVM_SET_REGS"))?;
        let mut events = self
            .vcpu
            .get_vcpu_events()
            .map_err(kvm("KVM_GET_VCPU_EVENTS"))?;
        events.flags = 0;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
        self.vcpu
            .set_vcpu_events(&events)
            .map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    fn translate(&self, address: u64, access: Access) -> Result<GuestAddress, Stop> {
        let may_touch_user = self.registers.has_flag(flags::ALIGNMENT_CHECK);
        translate(
            self.memory,
            &self.control(),
            address,
            access,
            may_touch_user,
        )
        .map(GuestAddress)
    }

    /// The pieces of a range, page by page: offset, length, guest-physical address.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<Vec<(usize, usize, GuestAddress)>, Stop> {
        let mut pieces = Vec::with_capacity(2);
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let piece = in_page.min(length - done);
            let physical = self.translate(at, access)?;
            if !self.memory.check_range(physical, piece) {
                return Err(Stop::Unsupported("an operand in device memory"));
            }
            pieces.push((done, piece, physical));
            done += piece;
        }
        Ok(pieces)
    }
}

impl Cpu for KvmCpu<'_> {
    fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        let s = &self.special;
        match segment {
            Segment::Fs => s.fs.base,
            Segment::Gs => s.gs.base,
            // The others have none in 64-bit mode.
            _ if self.code_bits() == 64 => 0,
            Segment::Es => s.es.base,
            Segment::Cs => s.cs.base,
            Segment::Ss => s.ss.base,
            Segment::Ds => s.ds.base,
        }
    }

    fn set_segment_base(&mut self, segment: Segment, base: u64) -> Result<(), Stop> {
        match segment {
            Segment::Fs => self.special.fs.base = base,
            Segment::Gs => self.special.gs.base = base,
            _ => return Err(Stop::Unsupported("setting this segment's base")),
        }
        self.vcpu
            .set_sregs(&self.special)
            .map_err(kvm("KVM_SET_SREGS"))
    }

    fn control(&self) -> Control {
        let s = &self.special;
        Control {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            gdt_base: s.gdt.base,
            gdt_limit: s.gdt.limit,
        }
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Stop> {
        for (offset, length, physical) in self.pieces(address, data.len(), Access::Read)? {
            self.memory
                .read_slice(&mut data[offset..offset + length], physical)
                .map_err(|_| Stop::Unsupported("an operand in device memory"))?;
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Stop> {
        for (offset, length, physical) in self.pieces(address, data.len(), Access::Write)? {
            self.memory
                .write_slice(&data[offset..offset + length], physical)
                .map_err(|_| Stop::Unsupported("an operand in device memory"))?;
        }
        Ok(())
    }

    fn compare_exchange(&mut self, address: u64, old: u128, new: u128) -> Result<u128, Stop> {
        let physical = self.translate(address, Access::Write)?;
        let slice = self
            .memory
            .get_slice(physical, 16)
            .map_err(|_| Stop::Unsupported("an operand in device memory"))?;
        if !address.is_multiple_of(16) || !std::is_x86_feature_detected!("cmpxchg16b") {
            return Err(Stop::Unsupported("CMPXCHG16B"));
        }
        let guard = slice.ptr_guard_mut();
        // SAFETY: the pointer is to 16 bytes of guest memory that the guard keeps mapped. It is a
        // multiple of 16: `address` is, pages are, and memory is mapped in whole pages. The CPU has
        // the instruction. The guest may access the bytes at the same time, as it could on a real
        // machine; nothing in this process holds a reference to them.
        Ok(unsafe { cmpxchg16b(guard.as_ptr().cast(), old, new) })
    }

    fn msr(&mut self, index: u32) -> Result<u64, Stop> {
        const REFUSED: Stop = Stop::Unsupported("a register that KVM doesn't give");
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| REFUSED)?;
        match self.vcpu.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))? {
            1 => Ok(msrs.as_slice()[0].data),
            _ => Err(REFUSED),
        }
    }

    fn xcr0(&mut self) -> Result<u64, Stop> {
        let xcrs = self.vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        let xcr0 = xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0);
        Ok(xcr0.map_or(1, |xcr| xcr.value))
    }

    fn extended_state(&mut self) -> Result<ExtendedState, Stop> {
        let xsave = self.vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?;
        let mut state = Box::new([0; 4096]);
        for (bytes, word) in state.chunks_exact_mut(4).zip(xsave.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Ok(state)
    }

    fn set_extended_state(&mut self, state: ExtendedState) -> Result<(), Stop> {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(state.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // SAFETY: the vCPU has no features enabled with arch_prctl that would make KVM read beyond
        // the 4096 bytes.
        unsafe { self.vcpu.set_xsave(&xsave) }.map_err(kvm("KVM_SET_XSAVE"))
    }

    /// Changing CR4.PGE makes KVM forget its translations, as it does on a CPU.
    fn flush_tlb(&mut self) -> Result<(), Stop> {
        let mut other = self.special;
        other.cr4 ^= control::CR4_PAGE_GLOBAL;
        for special in [&other, &self.special] {
            self.vcpu.set_sregs(special).map_err(kvm("KVM_SET_SREGS"))?;
        }
        Ok(())
    }
}

fn from_kvm(r: &kvm_regs) -> Registers {
    Registers {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn to_kvm(registers: &Registers) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = registers.gpr;
    let Registers { rip, rflags, .. } = *registers;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// The instruction itself, by hand: the intrinsic of `core::arch` may become a call of a library
/// function that nothing links. Returns what was in memory.
///
/// # Safety
///
/// `destination` is valid for reads and writes of 16 bytes and a multiple of 16; the CPU has the
/// instruction; nothing in this process holds a reference to these bytes.
unsafe fn cmpxchg16b(destination: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: as the caller promises. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{destination}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            destination = in(reg) destination,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    (u128::from(high) << 64) | u128::from(low)
}
