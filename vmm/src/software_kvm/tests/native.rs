//! Instructions in small functions that any CPU at any privilege level can run: registers and flags
//! are loaded from a [`Frame`], the instruction runs, and all is stored back.

use std::arch::global_asm;

use crate::software_kvm::cpu::flags;

/// What one of the functions gets and gives back.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rflags: u64,
    unused: [u64; 3],
    pub memory: [u64; 8],
}

impl Frame {
    pub fn new(registers: [u64; 4], status: u64, memory: [u64; 8]) -> Self {
        let [rax, rbx, rcx, rdx] = registers;
        // Bit 1 is always set.
        let rflags = status & flags::STATUS | 2;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rflags,
            unused: [0; 3],
            memory,
        }
    }

    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        // SAFETY: a frame is sixteen numbers without padding.
        unsafe { std::mem::transmute(self) }
    }

    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        // SAFETY: any bytes are sixteen numbers.
        unsafe { std::mem::transmute(*bytes) }
    }

    /// Forgets the flags that the instruction leaves undefined.
    pub fn keep_flags(mut self, mask: u64) -> Self {
        self.rflags &= mask;
        self
    }
}

/// One function.
#[repr(C)]
pub struct Case {
    start: usize,
    body: usize,
    body_end: usize,
    end: usize,
    name: *const std::ffi::c_char,
    /// The status flags that the instruction defines (or leaves alone).
    pub defined_flags: u64,
}

global_asm!(
    r#"
    .macro case name:req, defined_flags:req, instruction:vararg
    .pushsection .text, "ax"
    .balign 16
    1:  push rbx
        mov rax, [rdi]
        mov rbx, [rdi + 8]
        mov rcx, [rdi + 16]
        mov rdx, [rdi + 24]
        push qword ptr [rdi + 32]
        popfq
    2:  \instruction
    3:  pushfq
        pop qword ptr [rdi + 32]
        mov [rdi], rax
        mov [rdi + 8], rbx
        mov [rdi + 16], rcx
        mov [rdi + 24], rdx
        pop rbx
        ret
    4:
    .popsection
    .pushsection .rodata, "a"
    5:  .asciz "\name"
    .popsection
    .pushsection hearth_cases, "awR"
        .quad 1b, 2b, 3b, 4b, 5b, \defined_flags
    .popsection
    .endm

    case "popcnt 64", 0x8d5, popcnt rax, rbx
    case "popcnt 32", 0x8d5, popcnt eax, ebx
    case "popcnt 16", 0x8d5, popcnt ax, bx
    case "popcnt memory", 0x8d5, popcnt rax, [rdi + 64]
    case "popcnt base, index, scale", 0x8d5, popcnt edx, [rdi + 64 + 4*rsi]
    case "andn 64", 0x8c1, andn rax, rbx, rcx
    case "andn 32", 0x8c1, andn eax, ebx, [rdi + 68]
    case "bextr 64", 0x841, bextr rax, rbx, rcx
    case "bextr 32", 0x841, bextr eax, [rdi + 64], ecx
    case "blsi 64", 0x8c1, blsi rax, rbx
    case "blsi 32", 0x8c1, blsi eax, ebx
    case "blsr 64", 0x8c1, blsr rax, rbx
    case "blsr 32", 0x8c1, blsr eax, [rdi + 64]
    case "blsmsk 64", 0x8c1, blsmsk rax, rbx
    case "blsmsk 32", 0x8c1, blsmsk eax, ebx
    case "bzhi 64", 0x8c1, bzhi rax, rbx, rcx
    case "bzhi 32", 0x8c1, bzhi eax, ebx, ecx
    case "shlx 64", 0x8d5, shlx rax, rbx, rcx
    case "shlx 32", 0x8d5, shlx eax, [rdi + 64], ecx
    case "shrx 64", 0x8d5, shrx rax, rbx, rcx
    case "shrx 32", 0x8d5, shrx eax, ebx, ecx
    case "sarx 64", 0x8d5, sarx rax, rbx, rcx
    case "sarx 32", 0x8d5, sarx eax, ebx, ecx
    case "rorx 64", 0x8d5, rorx rax, rbx, 13
    case "rorx 32", 0x8d5, rorx eax, [rdi + 64], 33
    case "mulx 64", 0x8d5, mulx rax, rbx, rcx
    case "mulx 32", 0x8d5, mulx eax, ebx, [rdi + 64]
    case "mulx one target", 0x8d5, mulx rax, rax, rcx
    case "pdep 64", 0x8d5, pdep rax, rbx, rcx
    case "pdep 32", 0x8d5, pdep eax, ebx, ecx
    case "pext 64", 0x8d5, pext rax, rbx, rcx
    case "pext 32", 0x8d5, pext eax, ebx, [rdi + 64]
    case "adcx 64", 0x8d5, adcx rax, rbx
    case "adcx 32", 0x8d5, adcx eax, ebx
    case "adox 64", 0x8d5, adox rax, rbx
    case "adox 32", 0x8d5, adox eax, [rdi + 64]
    case "crc32 byte", 0x8d5, crc32 eax, bl
    case "crc32 high byte", 0x8d5, crc32 eax, bh
    case "crc32 word", 0x8d5, crc32 eax, bx
    case "crc32 dword", 0x8d5, crc32 eax, ebx
    case "crc32 qword", 0x8d5, crc32 rax, qword ptr [rdi + 64]
    case "movbe load 64", 0x8d5, movbe rax, [rdi + 64]
    case "movbe load 32", 0x8d5, movbe eax, [rdi + 64]
    case "movbe load 16", 0x8d5, movbe ax, [rdi + 64]
    case "movbe store 64", 0x8d5, movbe [rdi + 72], rbx
    case "movbe store 16", 0x8d5, movbe [rdi + 72], bx
    case "cmpxchg16b", 0x8d5, cmpxchg16b [rdi + 64]
    case "lock cmpxchg16b", 0x8d5, lock cmpxchg16b [rdi + 80]
    case "lock cmpxchg8b", 0x8d5, lock cmpxchg8b [rdi + 64]
    "#
);

unsafe extern "C" {
    static __start_hearth_cases: Case;
    static __stop_hearth_cases: Case;
}

pub fn cases() -> &'static [Case] {
    let (start, stop) = (
        &raw const __start_hearth_cases,
        &raw const __stop_hearth_cases,
    );
    // SAFETY: the linker puts these symbols around the section that the assembly above fills with
    // whole `Case`s and nothing else.
    unsafe { std::slice::from_raw_parts(start, stop.offset_from(start) as usize) }
}

/// Whether this CPU has all the instructions.
pub fn is_supported() -> bool {
    use std::is_x86_feature_detected as has;
    has!("popcnt")
        && has!("bmi1")
        && has!("bmi2")
        && has!("adx")
        && has!("sse4.2")
        && has!("movbe")
        && has!("cmpxchg16b")
}

impl Case {
    pub fn name(&self) -> &'static str {
        // SAFETY: the assembly above stores a string with a zero at its end.
        let name = unsafe { std::ffi::CStr::from_ptr(self.name) };
        name.to_str().unwrap()
    }

    /// The whole function.
    pub fn code(&self) -> &'static [u8] {
        bytes(self.start, self.end)
    }

    /// The one instruction that is tested.
    pub fn instruction(&self) -> &'static [u8] {
        bytes(self.body, self.body_end)
    }

    /// Where it is in the function.
    pub fn instruction_offset(&self) -> u64 {
        (self.body - self.start) as u64
    }

    /// What this machine's CPU makes of `frame`.
    pub fn run(&self, mut frame: Frame) -> Frame {
        // SAFETY: the address is that of a function with this signature; it touches nothing but
        // the frame, registers that the calling convention lets it, and RBX, which it restores.
        unsafe {
            let function: extern "sysv64" fn(*mut Frame, u64) = std::mem::transmute(self.start);
            function(&mut frame, SCALED_INDEX);
        }
        frame
    }
}

/// RSI while an instruction runs.
pub const SCALED_INDEX: u64 = 3;

fn bytes(start: usize, end: usize) -> &'static [u8] {
    // SAFETY: both are labels in this order in this program's code, which is never unmapped.
    unsafe { std::slice::from_raw_parts(start as *const u8, end - start) }
}
