//! Operands of a decoded instruction.

use iced_x86::{Instruction, OpKind, Register};

use super::cpu::{Cpu, Exception, Segment, Stop};

/// Bytes of the operand `index`.
pub(super) fn size(instruction: &Instruction, index: u32) -> usize {
    match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => 1,
    }
}

/// Linear address of the memory operand `index`.
pub(super) fn address(
    cpu: &mut impl Cpu,
    instruction: &Instruction,
    index: u32,
) -> Result<u64, Stop> {
    let address = instruction.virtual_address(index, 0, |register, _, _| {
        Some(match segment(register) {
            Some(segment) => cpu.segment_base(segment),
            None => read_register(cpu, register)?,
        })
    });
    address.ok_or(Stop::Unsupported("an address of this form"))
}

/// The operand `index`, zero-extended.
pub(super) fn read(cpu: &mut impl Cpu, instruction: &Instruction, index: u32) -> Result<u64, Stop> {
    match instruction.op_kind(index) {
        OpKind::Register => read_register(cpu, instruction.op_register(index))
            .ok_or(Stop::Unsupported("a register that is not a general one")),
        OpKind::Memory => {
            let mut bytes = [0; 8];
            let size = size(instruction, index).min(8);
            let address = address(cpu, instruction, index)?;
            cpu.read(address, &mut bytes[..size])?;
            Ok(u64::from_le_bytes(bytes))
        }
        OpKind::Immediate8 => Ok(instruction.immediate8().into()),
        _ => Err(Stop::Unsupported("an operand of this form")),
    }
}

/// Writes the low bytes of `value`; a 32-bit register's upper half becomes zero.
pub(super) fn write(
    cpu: &mut impl Cpu,
    instruction: &Instruction,
    index: u32,
    value: u64,
) -> Result<(), Stop> {
    match instruction.op_kind(index) {
        OpKind::Register => write_register(cpu, instruction.op_register(index), value),
        OpKind::Memory => {
            let size = size(instruction, index).min(8);
            let address = address(cpu, instruction, index)?;
            cpu.write(address, &value.to_le_bytes()[..size])
        }
        _ => Err(Stop::Unsupported("an operand of this form")),
    }
}

/// Address of a memory operand that has to be a multiple of `alignment`.
pub(super) fn aligned_address(
    cpu: &mut impl Cpu,
    instruction: &Instruction,
    alignment: u64,
) -> Result<u64, Stop> {
    let address = address(cpu, instruction, 0)?;
    if !address.is_multiple_of(alignment) {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(address)
}

fn read_register(cpu: &mut impl Cpu, register: Register) -> Option<u64> {
    if !register.is_gpr() {
        return None;
    }
    let value = cpu.registers().gpr[register.full_register().number()];
    Some(match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ if is_high_byte(register) => value >> 8 & 0xff,
        _ => value & 0xff,
    })
}

fn write_register(cpu: &mut impl Cpu, register: Register, value: u64) -> Result<(), Stop> {
    if !register.is_gpr() {
        return Err(Stop::Unsupported("a register that is not a general one"));
    }
    let place = &mut cpu.registers().gpr[register.full_register().number()];
    *place = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => *place & !0xffff | value & 0xffff,
        _ => return Err(Stop::Unsupported("a result of one byte")),
    };
    Ok(())
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    )
}

fn segment(register: Register) -> Option<Segment> {
    Some(match register {
        Register::ES => Segment::Es,
        Register::CS => Segment::Cs,
        Register::SS => Segment::Ss,
        Register::DS => Segment::Ds,
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => return None,
    })
}
