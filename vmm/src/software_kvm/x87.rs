//! x87 and MXCSR control instructions that KVM's emulator lacks; kernels use them to set floating
//! point up and to switch it from one process to another.

use iced_x86::{Instruction, Mnemonic};

use super::cpu::{Cpu, Exception, ExtendedState, RAX, Stop, control};
use super::operands::{read, write};

/// Offsets in the legacy region (Intel SDM volume 1, 10.5.1).
const CONTROL_WORD: usize = 0;
const STATUS_WORD: usize = 2;
/// One bit for each register that is not empty.
const ABRIDGED_TAGS: usize = 4;
const REGISTERS: usize = 32;
const MXCSR: usize = 24;
/// `XSTATE_BV`: bit 0 is x87, bit 1 SSE.
const XSTATE_BV: usize = 512;

/// Status word: the six exceptions, stack fault, and their summary; busy.
const EXCEPTIONS: u16 = 0x80ff;
const SUMMARY: u16 = 0x80;
const MXCSR_RESERVED: u64 = 0xffff_0000;

/// `Ok(false)`: not one of these.
pub(super) fn execute(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<bool, Stop> {
    let mnemonic = instruction.mnemonic();
    let unavailable = match mnemonic {
        Mnemonic::Wait => control::CR0_TASK_SWITCHED | control::CR0_MONITOR_COPROCESSOR,
        Mnemonic::Fnclex
        | Mnemonic::Fnstsw
        | Mnemonic::Fldcw
        | Mnemonic::Fild
        | Mnemonic::Emms
        | Mnemonic::Ldmxcsr
        | Mnemonic::Stmxcsr => control::CR0_TASK_SWITCHED,
        _ => return Ok(false),
    };
    if cpu.control().cr0 & unavailable == unavailable {
        return Err(Exception::DEVICE_NOT_AVAILABLE.into());
    }

    let mut state = cpu.extended_state()?;
    match mnemonic {
        Mnemonic::Wait => {
            if u16_at(&state, STATUS_WORD) & SUMMARY != 0 {
                return Err(Exception::X87.into());
            }
            return Ok(true);
        }
        Mnemonic::Fnstsw => {
            let status = u16_at(&state, STATUS_WORD);
            // FNSTSW AX; the emulator has the form with memory.
            let registers = cpu.registers();
            registers.gpr[RAX] = registers.gpr[RAX] & !0xffff | u64::from(status);
            return Ok(true);
        }
        Mnemonic::Stmxcsr => {
            let mxcsr =
                u32::from(u16_at(&state, MXCSR)) | u32::from(u16_at(&state, MXCSR + 2)) << 16;
            write(cpu, instruction, 0, mxcsr.into())?;
            return Ok(true);
        }
        Mnemonic::Fnclex => {
            let status = u16_at(&state, STATUS_WORD) & !EXCEPTIONS;
            set_u16(&mut state, STATUS_WORD, status);
        }
        Mnemonic::Emms => {
            set_top(&mut state, 0);
            state[ABRIDGED_TAGS] = 0;
        }
        Mnemonic::Fldcw => {
            let control = read(cpu, instruction, 0)? as u16;
            // Exceptions that are pending and no longer masked are now to be raised.
            let status = u16_at(&state, STATUS_WORD);
            let raised = status & !control & 0x3f != 0;
            set_u16(
                &mut state,
                STATUS_WORD,
                if raised {
                    status | 0x8080
                } else {
                    status & !0x8080
                },
            );
            set_u16(&mut state, CONTROL_WORD, control | 0x40);
        }
        Mnemonic::Fild => push_integer(cpu, instruction, &mut state)?,
        _ => {
            let mxcsr = read(cpu, instruction, 0)?;
            if mxcsr & MXCSR_RESERVED != 0 {
                return Err(Exception::GENERAL_PROTECTION.into());
            }
            state[MXCSR..MXCSR + 4].copy_from_slice(&(mxcsr as u32).to_le_bytes());
            state[XSTATE_BV] |= 2;
        }
    }
    if mnemonic != Mnemonic::Ldmxcsr {
        state[XSTATE_BV] |= 1;
    }
    cpu.set_extended_state(state)?;
    Ok(true)
}

/// FILD: Linux runs it after EMMS on some AMD CPUs, only so that it overwrites the last
/// instruction's address.
fn push_integer(
    cpu: &mut impl Cpu,
    instruction: &Instruction,
    state: &mut ExtendedState,
) -> Result<(), Stop> {
    let raw = read(cpu, instruction, 0)?;
    let value = match instruction.memory_size().size() {
        2 => i64::from(raw as i16),
        4 => i64::from(raw as i32),
        _ => raw as i64,
    };
    let top = (u16_at(state, STATUS_WORD) >> 11).wrapping_sub(1) & 7;
    if state[ABRIDGED_TAGS] & (1 << top) != 0 {
        return Err(Stop::Unsupported("an overflow of the x87 stack"));
    }
    // The register at the new top, as an 80-bit number.
    let mut number = [0; 10];
    if value != 0 {
        let magnitude = value.unsigned_abs();
        let shift = magnitude.leading_zeros();
        let sign = if value < 0 { 0x8000 } else { 0 };
        let exponent = (16383 + 63 - shift as u16) | sign;
        number[..8].copy_from_slice(&(magnitude << shift).to_le_bytes());
        number[8..].copy_from_slice(&exponent.to_le_bytes());
    }
    // The image holds ST0 first, so pushing moves the others down.
    state.copy_within(REGISTERS..REGISTERS + 7 * 16, REGISTERS + 16);
    state[REGISTERS..REGISTERS + 16].fill(0);
    state[REGISTERS..REGISTERS + 10].copy_from_slice(&number);
    state[ABRIDGED_TAGS] |= 1 << top;
    set_top(state, top);
    Ok(())
}

fn set_top(state: &mut ExtendedState, top: u16) {
    let status = u16_at(state, STATUS_WORD) & !(7 << 11) | top << 11;
    set_u16(state, STATUS_WORD, status);
}

fn u16_at(state: &ExtendedState, offset: usize) -> u16 {
    u16::from_le_bytes([state[offset], state[offset + 1]])
}

fn set_u16(state: &mut ExtendedState, offset: usize, value: u16) {
    state[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}
