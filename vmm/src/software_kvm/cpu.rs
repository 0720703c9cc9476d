//! What an instruction works on: the seam between what instructions do (tested on plain data) and
//! a vCPU of KVM.

/// Flags (Intel SDM volume 1, 3.4.3).
pub(super) mod flags {
    pub const CARRY: u64 = 1 << 0;
    pub const PARITY: u64 = 1 << 2;
    pub const ADJUST: u64 = 1 << 4;
    pub const ZERO: u64 = 1 << 6;
    pub const SIGN: u64 = 1 << 7;
    pub const OVERFLOW: u64 = 1 << 11;
    pub const ALIGNMENT_CHECK: u64 = 1 << 18;
    /// The six that arithmetic sets.
    pub const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
}

/// Control register bits.
pub(super) mod control {
    pub const CR0_PROTECTION: u64 = 1 << 0;
    pub const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
    pub const CR0_TASK_SWITCHED: u64 = 1 << 3;
    pub const CR0_WRITE_PROTECT: u64 = 1 << 16;
    pub const CR0_PAGING: u64 = 1 << 31;
    pub const CR4_PAGE_GLOBAL: u64 = 1 << 7;
    pub const CR4_LA57: u64 = 1 << 12;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
}

/// General registers by their numbers in instructions (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI,
/// R8 to R15), RIP and RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RBX: usize = 3;

impl Registers {
    pub fn set_flag(&mut self, flag: u64, on: bool) {
        if on {
            self.rflags |= flag;
        } else {
            self.rflags &= !flag;
        }
    }

    pub fn has_flag(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// Control registers, and the base and limit of the global descriptor table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Control {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt_base: u64,
    pub gdt_limit: u16,
}

/// An exception of the guest (Intel SDM volume 3, 6.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    pub vector: u8,
    pub error_code: Option<u32>,
    /// CR2, for page faults.
    pub address: Option<u64>,
}

impl Exception {
    pub const DEBUG: Self = Self::plain(1);
    pub const BREAKPOINT: Self = Self::plain(3);
    pub const INVALID_OPCODE: Self = Self::plain(6);
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    pub const X87: Self = Self::plain(16);
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error_code: Some(0),
        address: None,
    };

    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            address: None,
        }
    }
}

/// Why an instruction did not complete.
#[derive(Debug)]
pub(super) enum Stop {
    /// It raised this exception instead, as the CPU would.
    Exception(Exception),
    /// Nothing here does what it does; in words.
    Unsupported(&'static str),
    /// KVM refused a call.
    Kvm(&'static str, kvm_ioctls::Error),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// x87, SSE and further state in the standard format of XSAVE (Intel SDM volume 1, 13.4), with the
/// host CPU's offsets.
pub(super) type ExtendedState = Box<[u8; 4096]>;

/// A CPU at privilege level 0. Addresses are linear.
pub(super) trait Cpu {
    fn registers(&mut self) -> &mut Registers;
    fn segment_base(&self, segment: Segment) -> u64;
    fn set_segment_base(&mut self, segment: Segment, base: u64) -> Result<(), Stop>;
    fn control(&self) -> Control;
    /// Reads or writes as the guest would, page faults included.
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Stop>;
    /// Writes nothing if any page of it faults.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Stop>;
    /// Atomic among all vCPUs. `address` is a multiple of 16. Returns what was there.
    fn compare_exchange(&mut self, address: u64, old: u128, new: u128) -> Result<u128, Stop>;
    fn msr(&mut self, index: u32) -> Result<u64, Stop>;
    fn xcr0(&mut self) -> Result<u64, Stop>;
    fn extended_state(&mut self) -> Result<ExtendedState, Stop>;
    fn set_extended_state(&mut self, state: ExtendedState) -> Result<(), Stop>;
    fn flush_tlb(&mut self) -> Result<(), Stop>;
}
