//! System instructions that KVM's emulator lacks.

use iced_x86::{Instruction, Mnemonic, Register};

use super::cpu::{Cpu, Exception, RAX, RCX, RDX, Segment, Stop, control, flags};
use super::operands::{address, read, size, write};

const IA32_TSC: u32 = 0x10;
const IA32_TSC_AUX: u32 = 0xc000_0103;

/// `Ok(false)`: not one of these.
pub(super) fn execute(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<bool, Stop> {
    match instruction.mnemonic() {
        Mnemonic::Int1 => return Err(Exception::DEBUG.into()),
        Mnemonic::Int3 => return Err(Exception::BREAKPOINT.into()),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::INVALID => {
            return Err(Exception::INVALID_OPCODE.into());
        }
        Mnemonic::Clac => cpu.registers().set_flag(flags::ALIGNMENT_CHECK, false),
        Mnemonic::Stac => cpu.registers().set_flag(flags::ALIGNMENT_CHECK, true),
        // Hints, and caches that the guest can't see. RDSSP does nothing without shadow stacks.
        Mnemonic::Clwb
        | Mnemonic::Clflushopt
        | Mnemonic::Cldemote
        | Mnemonic::Monitor
        | Mnemonic::Mwait
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => {}
        Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Lar | Mnemonic::Lsl => {
            inspect_segment(cpu, instruction)?;
        }
        Mnemonic::Rdtscp => {
            let (time, aux) = (cpu.msr(IA32_TSC)?, cpu.msr(IA32_TSC_AUX)?);
            let gpr = &mut cpu.registers().gpr;
            gpr[RAX] = time & 0xffff_ffff;
            gpr[RDX] = time >> 32;
            gpr[RCX] = aux & 0xffff_ffff;
        }
        Mnemonic::Rdpid => {
            let aux = cpu.msr(IA32_TSC_AUX)?;
            write(cpu, instruction, 0, aux & 0xffff_ffff)?;
        }
        Mnemonic::Invpcid => invalidate(cpu, instruction)?,
        Mnemonic::Rdfsbase => read_base(cpu, instruction, Segment::Fs)?,
        Mnemonic::Rdgsbase => read_base(cpu, instruction, Segment::Gs)?,
        Mnemonic::Wrfsbase => write_base(cpu, instruction, Segment::Fs)?,
        Mnemonic::Wrgsbase => write_base(cpu, instruction, Segment::Gs)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// INVPCID: whatever it asks for, all is invalidated.
fn invalidate(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    const LAST_TYPE: u64 = 3;
    if read(cpu, instruction, 0)? > LAST_TYPE {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let mut descriptor = [0; 16];
    let address = address(cpu, instruction, 1)?;
    cpu.read(address, &mut descriptor)?;
    cpu.flush_tlb()
}

fn check_base_access(cpu: &impl Cpu) -> Result<(), Stop> {
    match cpu.control().cr4 & control::CR4_FSGSBASE {
        0 => Err(Exception::INVALID_OPCODE.into()),
        _ => Ok(()),
    }
}

fn read_base(cpu: &mut impl Cpu, instruction: &Instruction, segment: Segment) -> Result<(), Stop> {
    check_base_access(cpu)?;
    let base = cpu.segment_base(segment);
    write(cpu, instruction, 0, base)
}

fn write_base(cpu: &mut impl Cpu, instruction: &Instruction, segment: Segment) -> Result<(), Stop> {
    check_base_access(cpu)?;
    let base = read(cpu, instruction, 0)?;
    cpu.set_segment_base(segment, base)
}

/// VERR, VERW, LAR, LSL: ZF tells whether the selector names a segment of the right kind.
fn inspect_segment(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mnemonic = instruction.mnemonic();
    let source = match mnemonic {
        Mnemonic::Lar | Mnemonic::Lsl => 1,
        _ => 0,
    };
    let selector = selector(cpu, instruction, source)?;
    let result = descriptor(cpu, selector)?.and_then(|d| inspect(mnemonic, d));
    cpu.registers().set_flag(flags::ZERO, result.is_some());
    match result {
        Some(value) if source == 1 => write(cpu, instruction, 0, value),
        _ => Ok(()),
    }
}

fn selector(cpu: &mut impl Cpu, instruction: &Instruction, index: u32) -> Result<u16, Stop> {
    // In memory it is two bytes, whatever the operand size.
    if instruction.op_register(index) == Register::None && size(instruction, index) != 2 {
        let address = address(cpu, instruction, index)?;
        let mut bytes = [0; 2];
        cpu.read(address, &mut bytes)?;
        return Ok(u16::from_le_bytes(bytes));
    }
    Ok(read(cpu, instruction, index)? as u16)
}

/// The selector's descriptor (Intel SDM volume 3, 3.4.5); none for a null selector, one beyond the
/// table, or one of a local table.
fn descriptor(cpu: &mut impl Cpu, selector: u16) -> Result<Option<u64>, Stop> {
    const LOCAL_TABLE: u16 = 4;
    let offset = selector & !7;
    let control = cpu.control();
    if offset == 0 || selector & LOCAL_TABLE != 0 || offset | 7 > control.gdt_limit {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    cpu.read(control.gdt_base.wrapping_add(offset.into()), &mut bytes)?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// What LAR and LSL return of a descriptor, or none if the instruction can't be used with it. At
/// privilege level 0, only the descriptor's kind matters.
fn inspect(mnemonic: Mnemonic, descriptor: u64) -> Option<u64> {
    let kind = descriptor >> 40 & 0xf;
    let is_code_or_data = descriptor >> 44 & 1 != 0;
    let is_code = is_code_or_data && kind & 8 != 0;
    // Bit 1 of a code segment: readable; of a data segment: writable.
    let second = kind & 2 != 0;
    match mnemonic {
        Mnemonic::Verr => (is_code_or_data && (!is_code || second)).then_some(0),
        Mnemonic::Verw => (is_code_or_data && !is_code && second).then_some(0),
        // System segments that are there in 64-bit mode: LDT, TSS (available, busy), call gate.
        Mnemonic::Lar => (is_code_or_data || matches!(kind, 2 | 9 | 11 | 12))
            .then_some(descriptor >> 32 & 0x00ff_ff00),
        _ => (is_code_or_data || matches!(kind, 2 | 9 | 11)).then(|| {
            let limit = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
            match descriptor >> 55 & 1 {
                0 => limit,
                _ => limit << 12 | 0xfff,
            }
        }),
    }
}
