//! Our code on plain data, against this machine's CPU.

use proptest::prelude::*;

use super::native::{self, Case, Frame, SCALED_INDEX};
use crate::software_kvm::cpu::{
    Control, Cpu, Exception, ExtendedState, RAX, RBX, RCX, RDX, Registers, Segment, Stop, control,
    flags,
};
use crate::software_kvm::{execute, fetch};

const RSI: usize = 6;
const RDI: usize = 7;
/// Where the model's memory starts.
const MEMORY: u64 = 0x1000;

/// A CPU without paging, with a little memory.
pub struct PlainCpu {
    pub registers: Registers,
    pub memory: Vec<u8>,
    pub control: Control,
    pub state: ExtendedState,
    pub xcr0: u64,
    pub flushes: u32,
}

impl PlainCpu {
    pub fn new() -> Self {
        Self {
            registers: Registers {
                rip: 0x100,
                rflags: 2,
                ..Default::default()
            },
            memory: vec![0; 0x2000],
            control: Control {
                cr4: control::CR4_OSXSAVE | control::CR4_FSGSBASE,
                ..Default::default()
            },
            state: Box::new([0; 4096]),
            xcr0: 7,
            flushes: 0,
        }
    }

    pub fn run(&mut self, instruction: &[u8]) -> Result<(), Stop> {
        let (instruction, _) = fetch(self, 64, instruction)?;
        execute(self, &instruction)
    }

    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Stop> {
        let start = address.wrapping_sub(MEMORY) as usize;
        let fault = Exception {
            vector: 14,
            error_code: Some(0),
            address: Some(address),
        };
        match start.checked_add(length) {
            Some(end) if end <= self.memory.len() => Ok(start..end),
            _ => Err(fault.into()),
        }
    }
}

impl Cpu for PlainCpu {
    fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn segment_base(&self, _: Segment) -> u64 {
        0
    }

    fn set_segment_base(&mut self, _: Segment, _: u64) -> Result<(), Stop> {
        Ok(())
    }

    fn control(&self) -> Control {
        self.control
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Stop> {
        data.copy_from_slice(&self.memory[self.range(address, data.len())?]);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Stop> {
        let range = self.range(address, data.len())?;
        self.memory[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange(&mut self, address: u64, old: u128, new: u128) -> Result<u128, Stop> {
        let mut found = [0; 16];
        self.read(address, &mut found)?;
        let found = u128::from_le_bytes(found);
        if found == old {
            self.write(address, &new.to_le_bytes())?;
        }
        Ok(found)
    }

    fn msr(&mut self, index: u32) -> Result<u64, Stop> {
        match index {
            0xda0 => Ok(0),
            _ => Ok(0x1234_5678_0000_0000 | u64::from(index)),
        }
    }

    fn xcr0(&mut self) -> Result<u64, Stop> {
        Ok(self.xcr0)
    }

    fn extended_state(&mut self) -> Result<ExtendedState, Stop> {
        Ok(self.state.clone())
    }

    fn set_extended_state(&mut self, state: ExtendedState) -> Result<(), Stop> {
        self.state = state;
        Ok(())
    }

    fn flush_tlb(&mut self) -> Result<(), Stop> {
        self.flushes += 1;
        Ok(())
    }
}

/// What our code makes of `frame`, at [`MEMORY`].
fn run(case: &Case, mut frame: Frame) -> Frame {
    let mut cpu = PlainCpu::new();
    cpu.registers.gpr[RAX] = frame.rax;
    cpu.registers.gpr[RBX] = frame.rbx;
    cpu.registers.gpr[RCX] = frame.rcx;
    cpu.registers.gpr[RDX] = frame.rdx;
    cpu.registers.gpr[RSI] = SCALED_INDEX;
    cpu.registers.gpr[RDI] = MEMORY;
    cpu.registers.rflags = frame.rflags;
    for (bytes, word) in cpu.memory[64..].chunks_exact_mut(8).zip(frame.memory) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    cpu.run(case.instruction()).unwrap();
    assert_eq!(cpu.registers.rip, 0x100 + case.instruction().len() as u64);
    [frame.rax, frame.rcx, frame.rdx, frame.rbx] = cpu.registers.gpr[..4].try_into().unwrap();
    frame.rflags = cpu.registers.rflags;
    for (bytes, word) in cpu.memory[64..].chunks_exact(8).zip(&mut frame.memory) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    frame
}

/// Numbers at the edges as well as any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..=130u64,
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 63),
        (0..64u32).prop_map(|bit| 1 << bit),
    ]
}

proptest! {
    #[test]
    fn our_code_does_what_this_cpu_does(
        registers in prop::array::uniform4(number()),
        memory in prop::array::uniform8(number()),
        status in any::<u64>(),
        exchange_succeeds in any::<bool>(),
    ) {
        if !native::is_supported() {
            println!("skipped: this CPU lacks some of the instructions");
            return Ok(());
        }
        for case in native::cases() {
            // KVM's emulator has it; it is here for the test with a guest.
            if case.name() == "lock cmpxchg8b" {
                continue;
            }
            let mut frame = Frame::new(registers, status, memory);
            if exchange_succeeds && case.name().contains("cmpxchg16b") {
                let place = if case.name().starts_with("lock") { 2 } else { 0 };
                (frame.rax, frame.rdx) = (frame.memory[place], frame.memory[place + 1]);
            }
            let ours = run(case, frame).keep_flags(case.defined_flags);
            let native = case.run(frame).keep_flags(case.defined_flags);
            prop_assert_eq!(ours, native, "{}", case.name());
        }
    }
}

fn stop_of(cpu: &mut PlainCpu, instruction: &[u8]) -> Exception {
    match cpu.run(instruction) {
        Err(Stop::Exception(exception)) => exception,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_breakpoint_leaves_rip_behind_it_and_an_invalid_opcode_before() {
    let mut cpu = PlainCpu::new();
    assert_eq!(stop_of(&mut cpu, &[0xcc]), Exception::BREAKPOINT);
    assert_eq!(cpu.registers.rip, 0x101);
    // ud1 eax, eax
    assert_eq!(
        stop_of(&mut cpu, &[0x0f, 0xb9, 0xc0]),
        Exception::INVALID_OPCODE
    );
    assert_eq!(cpu.registers.rip, 0x101);
}

#[test]
fn what_is_not_known_is_refused_and_changes_nothing() {
    let mut cpu = PlainCpu::new();
    // vpxor ymm0, ymm0, ymm0; hlt
    for instruction in [&[0xc5, 0xfd, 0xef, 0xc0][..], &[0xf4]] {
        let result = cpu.run(instruction);
        assert!(matches!(result, Err(Stop::Unsupported(_))), "{result:?}");
        assert_eq!(cpu.registers.rip, 0x100);
    }
}

#[test]
fn an_instruction_whose_bytes_kvm_did_not_tell_is_fetched() {
    let mut cpu = PlainCpu::new();
    cpu.registers.rip = MEMORY;
    // popcnt rax, rbx: all, some, and none of its bytes known.
    cpu.memory[..5].copy_from_slice(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3]);
    for known in [5, 3, 0] {
        cpu.registers.gpr[RBX] = 0xff;
        cpu.registers.gpr[RAX] = 0;
        cpu.registers.rip = MEMORY;
        let bytes = cpu.memory[..known].to_vec();
        cpu.run(&bytes).unwrap();
        assert_eq!((cpu.registers.gpr[RAX], cpu.registers.rip), (8, MEMORY + 5));
    }
}

#[test]
fn clac_and_stac_change_the_alignment_check_flag() {
    let mut cpu = PlainCpu::new();
    cpu.run(&[0x0f, 0x01, 0xcb]).unwrap();
    assert!(cpu.registers.has_flag(flags::ALIGNMENT_CHECK));
    cpu.run(&[0x0f, 0x01, 0xca]).unwrap();
    assert!(!cpu.registers.has_flag(flags::ALIGNMENT_CHECK));
}

#[test]
fn cmpxchg16b_faults_where_it_is_not_aligned() {
    let mut cpu = PlainCpu::new();
    cpu.registers.gpr[RDI] = MEMORY + 8;
    // lock cmpxchg16b [rdi]
    let instruction = [0xf0, 0x48, 0x0f, 0xc7, 0x0f];
    assert_eq!(
        stop_of(&mut cpu, &instruction),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn a_page_fault_of_an_operand_reaches_the_guest() {
    let mut cpu = PlainCpu::new();
    cpu.registers.gpr[RDI] = 0x10;
    // popcnt rax, [rdi]
    let exception = stop_of(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0x07]);
    assert_eq!((exception.vector, exception.address), (14, Some(0x10)));
    assert_eq!(cpu.registers.rip, 0x100);
}

#[test]
fn segments_are_told_by_their_descriptors() {
    let mut cpu = PlainCpu::new();
    cpu.control.gdt_base = MEMORY;
    cpu.control.gdt_limit = 31;
    let code: u64 = 0x00af_9b00_0000_ffff;
    let data: u64 = 0x00cf_9300_0000_ffff;
    cpu.memory[16..24].copy_from_slice(&code.to_le_bytes());
    cpu.memory[24..32].copy_from_slice(&data.to_le_bytes());
    // verw ax, verr ax, lsl ebx, eax, lar ebx, eax
    let is_zero = |cpu: &PlainCpu| cpu.registers.has_flag(flags::ZERO);
    for (selector, writable, readable) in [
        (0x10, false, true),
        (0x18, true, true),
        (0, false, false),
        (0x20, false, false),
    ] {
        cpu.registers.gpr[RAX] = selector;
        cpu.run(&[0x0f, 0x00, 0xe8]).unwrap();
        assert_eq!(is_zero(&cpu), writable, "verw {selector:#x}");
        cpu.run(&[0x0f, 0x00, 0xe0]).unwrap();
        assert_eq!(is_zero(&cpu), readable, "verr {selector:#x}");
        cpu.registers.gpr[RBX] = 0;
        cpu.run(&[0x0f, 0x03, 0xd8]).unwrap();
        assert_eq!(
            cpu.registers.gpr[RBX],
            if readable { 0xffff_ffff } else { 0 }
        );
    }
    cpu.registers.gpr[RAX] = 0x18;
    cpu.run(&[0x0f, 0x02, 0xd8]).unwrap();
    assert_eq!(cpu.registers.gpr[RBX], 0xcf_9300);
}

#[test]
fn fwait_raises_only_exceptions_that_are_pending() {
    let mut cpu = PlainCpu::new();
    cpu.run(&[0x9b]).unwrap();
    cpu.state[2] = 0x80;
    assert_eq!(stop_of(&mut cpu, &[0x9b]), Exception::X87);
    // fnclex
    cpu.run(&[0xdb, 0xe2]).unwrap();
    cpu.run(&[0x9b]).unwrap();
    cpu.control.cr0 = control::CR0_TASK_SWITCHED | control::CR0_MONITOR_COPROCESSOR;
    assert_eq!(stop_of(&mut cpu, &[0x9b]), Exception::DEVICE_NOT_AVAILABLE);
}

/// xsave64, xsavec64, xsaves64, xrstor64, xrstors64 with the operand [rdi].
const XSAVE: [u8; 4] = [0x48, 0x0f, 0xae, 0x27];
const XSAVEC: [u8; 4] = [0x48, 0x0f, 0xc7, 0x27];
const XSAVES: [u8; 4] = [0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x2f];
const XRSTORS: [u8; 4] = [0x48, 0x0f, 0xc7, 0x1f];

fn cpu_with_state() -> PlainCpu {
    let mut cpu = PlainCpu::new();
    cpu.registers.gpr[RDI] = MEMORY;
    cpu.registers.gpr[RAX] = u64::MAX;
    cpu.registers.gpr[RDX] = u64::MAX;
    for (index, byte) in cpu.state.iter_mut().enumerate() {
        *byte = index as u8;
    }
    cpu.state[24..32].copy_from_slice(&0xffff_0000_1fa0u64.to_le_bytes());
    cpu.state[416..576].fill(0);
    cpu.state[512] = 7;
    cpu
}

#[test]
fn state_that_is_saved_and_restored_is_the_same_in_both_formats() {
    if !std::is_x86_feature_detected!("avx") {
        println!("skipped: this CPU has no AVX");
        return;
    }
    for (save, restore) in [(XSAVE, XRSTOR), (XSAVEC, XRSTOR), (XSAVES, XRSTORS)] {
        let mut cpu = cpu_with_state();
        cpu.run(&save).unwrap();
        let before = std::mem::replace(&mut cpu.state, Box::new([0x55; 4096]));
        cpu.state[512..576].fill(0);
        cpu.run(&restore).unwrap();
        let (legacy, extended) = (0..416, 576..832);
        // The mask of MXCSR is not part of what is restored.
        cpu.state[28..32].copy_from_slice(&before[28..32]);
        assert_eq!(cpu.state[legacy.clone()], before[legacy]);
        assert_eq!(cpu.state[extended.clone()], before[extended]);
        assert_eq!(cpu.state[512], 7);
    }
}

#[test]
fn what_is_not_asked_for_is_neither_saved_nor_restored() {
    let mut cpu = cpu_with_state();
    cpu.registers.gpr[RAX] = 1;
    cpu.registers.gpr[RDX] = 0;
    cpu.memory.fill(0xaa);
    cpu.memory[512] = 6;
    cpu.run(&XSAVE).unwrap();
    assert_eq!(cpu.memory[160], 0xaa, "XMM0");
    assert_eq!(cpu.memory[24], 0xaa, "MXCSR");
    assert_eq!(cpu.memory[32], 32, "ST0");
    assert_eq!(cpu.memory[512], 7, "the bits of the others are kept");

    cpu.memory[512..576].fill(0);
    cpu.run(&XRSTOR).unwrap();
    assert_eq!(
        cpu.state[..2],
        0x37fu16.to_le_bytes(),
        "x87 is in its initial state"
    );
    assert_eq!((cpu.state[160], cpu.state[512]), (160, 6));
}

#[test]
fn restoring_from_a_malformed_header_is_a_protection_fault() {
    let malformed: [&[(usize, u8)]; 5] = [
        // A component that XCR0 has not enabled; reserved bytes; XCOMP_BV without its bit 63; a
        // component that the compacted format has no place for; reserved bits of MXCSR.
        &[(513, 0x80)],
        &[(528, 1)],
        &[(520, 1)],
        &[(512, 4), (520, 3), (527, 0x80)],
        &[(512, 2), (26, 1)],
    ];
    for bytes in malformed {
        let mut cpu = cpu_with_state();
        for (offset, value) in bytes {
            cpu.memory[*offset] = *value;
        }
        let before = cpu.state.clone();
        assert_eq!(
            stop_of(&mut cpu, &XRSTOR),
            Exception::GENERAL_PROTECTION,
            "{bytes:?}"
        );
        assert_eq!(cpu.state, before);
    }
    let mut cpu = cpu_with_state();
    assert_eq!(stop_of(&mut cpu, &XRSTORS), Exception::GENERAL_PROTECTION);
    cpu.registers.gpr[RDI] += 32;
    assert_eq!(stop_of(&mut cpu, &XRSTOR), Exception::GENERAL_PROTECTION);
    cpu.control.cr4 = 0;
    assert_eq!(stop_of(&mut cpu, &XSAVE), Exception::INVALID_OPCODE);
}

#[test]
fn invpcid_flushes_for_each_type_that_exists() {
    let mut cpu = PlainCpu::new();
    cpu.registers.gpr[RDI] = MEMORY;
    // invpcid rax, [rdi]
    let instruction = [0x66, 0x0f, 0x38, 0x82, 0x07];
    for kind in 0..=3 {
        cpu.registers.gpr[RAX] = kind;
        cpu.run(&instruction).unwrap();
    }
    assert_eq!(cpu.flushes, 4);
    cpu.registers.gpr[RAX] = 4;
    assert_eq!(
        stop_of(&mut cpu, &instruction),
        Exception::GENERAL_PROTECTION
    );
}
