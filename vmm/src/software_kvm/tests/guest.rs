//! The same instructions in a real guest at privilege level 0. On hardware KVM the CPU runs them
//! all; on software KVM some end `KVM_RUN` and are completed by our code.

use std::arch::global_asm;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_xcrs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::native::{self, Case, Frame, SCALED_INDEX};
use crate::memory::{self, GuestMemory};
use crate::software_kvm::{Completion, Platform, complete, cpu::control, detect};

const MEMORY_BYTES: u64 = 16 << 20;
const GDT: u64 = 0x500;
const IDT: u64 = 0x4000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
const DATA: u64 = 0x10000;
const STACK_TOP: u64 = 0x20000;
/// What functions return to: it tells the test.
const RETURN: u64 = 0x20000;
const CODE: u64 = 0x21000;
/// End of a page.
const BOUNDARY: u64 = 0x20_0000;
/// Two pages that the guest maps at [`WINDOW`], one after the other.
const PAGE_A: u64 = 0x40_0000;
const PAGE_B: u64 = 0x60_0000;
const WINDOW: u64 = 0x1000_0000;
const UNMAPPED: u64 = 0x4000_0000;

const DONE_PORT: u16 = 0x99;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

struct Guest {
    // Dropped in this order.
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: std::sync::Arc<GuestMemory>,
    platform: Platform,
    completions: Vec<Completion>,
}

/// A vCPU in long mode at privilege level 0; none without /dev/kvm.
fn guest() -> Option<Guest> {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return None;
    };
    let platform = detect(crate::config::PlatformChoice::Auto);
    let vm = kvm.create_vm().unwrap();
    let memory = memory::allocate(MEMORY_BYTES).unwrap();
    memory::register(&vm, &memory).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&crate::vcpu::cpuid::build(&kvm, 0, 1, platform).unwrap())
        .unwrap();
    let guest = Guest {
        vcpu,
        _vm: vm,
        memory,
        platform,
        completions: Vec::new(),
    };
    guest.write_tables();
    guest.enter_long_mode();
    Some(guest)
}

impl Guest {
    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn put64(&self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn get64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.get(address))
    }

    fn write_tables(&self) {
        self.put64(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff);
        self.put64(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff);
        // The first 16 MiB one to one in 2 MiB pages, and the window.
        self.put64(PML4, PDPT | 3);
        self.put64(PDPT, PD | 3);
        for page in 0..8 {
            self.put64(PD + page * 8, (page << 21) | 0x83);
        }
        self.put64(PD + (WINDOW >> 21) * 8, PAGE_A | 0x83);
        self.put64(PD + ((WINDOW >> 21) + 1) * 8, PAGE_B | 0x83);
        // out 0x99, al; hlt
        self.put(RETURN, &[0xe6, DONE_PORT as u8, 0xf4]);
    }

    fn set_handler(&self, vector: u64, address: u64) {
        let low = address & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40;
        self.put64(IDT + vector * 16, low | (address >> 16 & 0xffff) << 48);
    }

    fn enter_long_mode(&self) {
        let mut sregs = self.vcpu.get_sregs().unwrap();
        let code = kvm_segment {
            limit: 0xffff_ffff,
            selector: CODE_SELECTOR,
            present: 1,
            type_: 11,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: DATA_SELECTOR,
            type_: 3,
            l: 0,
            db: 1,
            ..code
        };
        sregs.cs = code;
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.ss,
            &mut sregs.fs,
            &mut sregs.gs,
        ] {
            *segment = data;
        }
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 31);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 4095);
        sregs.cr3 = PML4;
        // PAE, OSFXSR, OSXMMEXCPT.
        sregs.cr4 = 0x620 | control::CR4_OSXSAVE | control::CR4_SMAP;
        // PE, MP, ET, NE, WP, PG.
        sregs.cr0 = 0x8001_0033;
        sregs.efer = 0x500;
        self.vcpu.set_sregs(&sregs).unwrap();
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = 7;
        self.vcpu.set_xcrs(&xcrs).unwrap();
    }

    /// Calls the function at `address` with two arguments.
    fn call(&mut self, address: u64, arguments: [u64; 2]) {
        self.put64(STACK_TOP - 16, RETURN);
        let regs = kvm_regs {
            rip: address,
            rsp: STACK_TOP - 16,
            rdi: arguments[0],
            rsi: arguments[1],
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(DONE_PORT, _) => return,
                VcpuExit::InternalError if self.platform == Platform::Software => {
                    self.completions
                        .push(complete(&mut self.vcpu, &self.memory).unwrap());
                }
                exit => {
                    let exit = format!("{exit:?}");
                    panic!("{exit} at {:#x}", self.vcpu.get_regs().unwrap().rip);
                }
            }
        }
    }

    /// Runs `case` with its instruction at `offset` bytes before the end of a page, or anywhere.
    fn run(&mut self, case: &Case, frame: Frame, offset: Option<u64>) -> Frame {
        let code = match offset {
            Some(offset) => BOUNDARY - offset - case.instruction_offset(),
            None => CODE,
        };
        self.put(code, case.code());
        self.put(DATA, &frame.to_bytes());
        self.call(code, [DATA, SCALED_INDEX]);
        Frame::from_bytes(&self.get(DATA))
    }
}

#[test]
fn a_guest_kernel_gets_the_results_that_this_cpu_gives() {
    if !native::is_supported() {
        println!("skipped: this CPU lacks some of the instructions");
        return;
    }
    let Some(mut guest) = guest() else { return };
    let memory = [0x0123_4567_89ab_cdef, 1, 2, 3, 4, 5, 6, 7];
    let frames = [
        Frame::new(
            [0x1111_2222_3333_4444, 0x8000_0000_0000_00f0, 0x0c04, 9],
            0,
            memory,
        ),
        Frame::new([0x0123_4567_89ab_cdef, u64::MAX, 0xff, 1], u64::MAX, memory),
        Frame::new([2, 0, 64, 3], 1, memory),
    ];
    for case in native::cases() {
        // Here the emulator raises #UD, which nobody sees but the guest.
        if guest.platform == Platform::Software && case.name().starts_with("movbe") {
            continue;
        }
        for frame in frames {
            for offset in [None, Some(1), Some(3)] {
                let native = case.run(frame).keep_flags(case.defined_flags);
                let result = guest
                    .run(case, frame, offset)
                    .keep_flags(case.defined_flags);
                assert_eq!(result, native, "{}", case.name());
            }
        }
    }
    println!("completed by our code: {}", guest.completions.len());
}

global_asm!(
    r#"
    .pushsection .text, "ax"
    .balign 16
    .globl hearth_kernel, hearth_kernel_breakpoint, hearth_kernel_protection
    .globl hearth_kernel_page_fault, hearth_kernel_end
hearth_kernel:
    stac
    pushfq
    pop qword ptr [rdi]
    clac
    pushfq
    pop qword ptr [rdi + 8]

    int3

    fninit
    fwait
    fldcw [rdi + 0x200]
    fnstcw [rdi + 0x20]
    fild dword ptr [rdi + 0x208]
    fnstsw ax
    mov [rdi + 0x18], rax
    fnclex
    fxsave64 [rdi + 0x400]
    emms
    ldmxcsr [rdi + 0x210]
    stmxcsr [rdi + 0x28]

    mov eax, 0x18
    verw ax
    setz [rdi + 0x30]
    mov eax, 0x10
    verw ax
    setz [rdi + 0x31]
    mov ecx, 0x18
    lsl ebx, ecx
    mov [rdi + 0x38], rbx
    lar ebx, ecx
    mov [rdi + 0x40], rbx

    rdtsc
    mov [rdi + 0x48], eax
    mov [rdi + 0x4c], edx
    cmp byte ptr [rdi + 0x219], 0
    je 1f
    rdtscp
1:  mov [rdi + 0x50], eax
    mov [rdi + 0x54], edx

    xor ecx, ecx
    xgetbv
    mov [rdi + 0x58], eax
    mov [rdi + 0x5c], edx

    // The window's second page takes the place of the first.
    mov rbx, [rdi + 0x260]
    mov rdx, [rdi + 0x268]
    mov rax, [rbx]
    mov [rdi + 0x60], rax
    mov rax, [rdi + 0x270]
    mov [rdx], rax
    mov eax, 2
    cmp byte ptr [rdi + 0x218], 0
    je 2f
    invpcid rax, [rdi + 0x280]
    jmp 3f
2:  mov rax, cr3
    mov cr3, rax
3:  mov rax, [rbx]
    mov [rdi + 0x68], rax

    // An operand on two pages.
    mov rbx, [rdi + 0x278]
    popcnt rax, [rbx]
    mov [rdi + 0x70], rax

    // XMM5 by XSAVEC and back; AVX from one area to another.
    movups xmm5, [rdi + 0x220]
    mov eax, 7
    xor edx, edx
    xsavec64 [rsi]
    movups xmm5, [rdi + 0x240]
    xrstor64 [rsi]
    movups [rdi + 0x230], xmm5
    xrstor64 [rsi + 0x1000]
    xsave64 [rsi + 0x2000]

    lea r9, [rip + 4f]
    xrstor64 [rsi + 8]
4:  lea r9, [rip + 5f]
    mov rdx, [rdi + 0x288]
    popcnt rax, [rdx]
5:  ret

hearth_kernel_breakpoint:
    inc qword ptr [rdi + 0x10]
    iretq
hearth_kernel_protection:
    pop qword ptr [rdi + 0x78]
    inc qword ptr [rdi + 0x80]
    mov [rsp], r9
    iretq
hearth_kernel_page_fault:
    pop qword ptr [rdi + 0x88]
    mov rax, cr2
    mov [rdi + 0x90], rax
    mov [rsp], r9
    iretq
hearth_kernel_end:
    .popsection
    "#
);

unsafe extern "C" {
    static hearth_kernel: u8;
    static hearth_kernel_breakpoint: u8;
    static hearth_kernel_protection: u8;
    static hearth_kernel_page_fault: u8;
    static hearth_kernel_end: u8;
}

#[test]
fn a_guest_kernel_can_use_what_kernels_use_and_takes_its_exceptions() {
    use std::is_x86_feature_detected as has;
    if !has!("avx") || !has!("xsavec") || !has!("popcnt") {
        println!("skipped: this CPU lacks some of the instructions");
        return;
    }
    let Some(mut guest) = guest() else { return };
    let start = &raw const hearth_kernel;
    // SAFETY: the assembly above lies between these two symbols.
    let code = unsafe {
        let length = (&raw const hearth_kernel_end).offset_from(start) as usize;
        std::slice::from_raw_parts(start, length)
    };
    guest.put(CODE, code);
    for (vector, symbol) in [
        (3, &raw const hearth_kernel_breakpoint),
        (13, &raw const hearth_kernel_protection),
        (14, &raw const hearth_kernel_page_fault),
    ] {
        guest.set_handler(vector, CODE + (symbol as u64 - start as u64));
    }

    let area = DATA + 0x1000;
    let is_software = guest.platform == Platform::Software;
    // SAFETY: every x86-64 CPU has CPUID.
    let (extended, seven) = (
        std::arch::x86_64::__cpuid(0x8000_0001),
        std::arch::x86_64::__cpuid(7),
    );
    let has_rdtscp = is_software || extended.edx & (1 << 27) != 0;
    let has_invpcid = is_software || seven.ebx & (1 << 10) != 0;
    let avx: [u8; 256] = std::array::from_fn(|index| index as u8 ^ 0x5a);
    guest.put64(DATA + 0x200, 0x27f);
    guest.put(DATA + 0x208, &(-5i32).to_le_bytes());
    guest.put64(DATA + 0x210, 0x1fa0);
    guest.put(DATA + 0x218, &[has_invpcid.into(), has_rdtscp.into()]);
    guest.put(DATA + 0x220, &[0xc3; 16]);
    guest.put64(DATA + 0x260, WINDOW);
    guest.put64(DATA + 0x268, PD + (WINDOW >> 21) * 8);
    guest.put64(DATA + 0x270, PAGE_B | 0x83);
    guest.put64(DATA + 0x278, WINDOW + (2 << 20) - 3);
    guest.put64(DATA + 0x288, UNMAPPED);
    guest.put64(PAGE_A, 0xaaaa);
    guest.put64(PAGE_B, 0xbbbb);
    // Three bytes at the end of the window's first page, which is then page B, and five at the
    // start of its second, page B too.
    guest.put(PAGE_B + (2 << 20) - 3, &[0xff; 3]);
    guest.put(area + 0x1000 + 24, &0x1f80u32.to_le_bytes());
    guest.put64(area + 0x1000 + 512, 7);
    guest.put(area + 0x1000 + 576, &avx);
    guest.call(CODE, [DATA, area]);

    let ac = 1 << 18;
    assert_eq!(
        (guest.get64(DATA) & ac, guest.get64(DATA + 8) & ac),
        (ac, 0),
        "STAC, CLAC"
    );
    assert_eq!(guest.get64(DATA + 0x10), 1, "INT3");
    assert_eq!(guest.get::<2>(DATA + 0x20), 0x27fu16.to_le_bytes(), "FLDCW");
    assert_eq!(
        guest.get::<2>(DATA + 0x18),
        (7u16 << 11).to_le_bytes(),
        "FILD, FNSTSW"
    );
    let minus_five = [0, 0, 0, 0, 0, 0, 0, 0xa0, 0x01, 0xc0];
    assert_eq!(guest.get::<10>(DATA + 0x400 + 32), minus_five, "FILD");
    assert_eq!(guest.get::<1>(DATA + 0x400 + 4), [0x80], "tags after FILD");
    assert_eq!(
        guest.get::<4>(DATA + 0x28),
        0x1fa0u32.to_le_bytes(),
        "LDMXCSR, STMXCSR"
    );
    assert_eq!(guest.get::<2>(DATA + 0x30), [1, 0], "VERW");
    assert_eq!(guest.get64(DATA + 0x38), 0xffff_ffff, "LSL");
    assert_eq!(guest.get64(DATA + 0x40) & 0xff_fe00, 0xcf_9200, "LAR");
    let (before, after) = (guest.get64(DATA + 0x48), guest.get64(DATA + 0x50));
    assert!(after >= before, "RDTSCP {after} after RDTSC {before}");
    assert_eq!(guest.get64(DATA + 0x58), 7, "XGETBV");
    assert_eq!(guest.get64(DATA + 0x60), 0xaaaa);
    assert_eq!(guest.get64(DATA + 0x68), 0xbbbb, "INVPCID");
    let ones = 3 * 8 + 0xbbbbu64.count_ones();
    assert_eq!(
        guest.get64(DATA + 0x70),
        u64::from(ones),
        "an operand on two pages"
    );
    assert_eq!(guest.get::<16>(DATA + 0x230), [0xc3; 16], "XSAVEC, XRSTOR");
    assert_eq!(
        guest.get::<256>(area + 0x2000 + 576),
        avx,
        "XRSTOR, XSAVE of AVX"
    );
    assert_eq!(
        (guest.get64(DATA + 0x78), guest.get64(DATA + 0x80)),
        (0, 1),
        "#GP"
    );
    assert_eq!(
        (guest.get64(DATA + 0x88), guest.get64(DATA + 0x90)),
        (0, UNMAPPED),
        "#PF"
    );
    println!("completed by our code: {:?}", guest.completions);
}
