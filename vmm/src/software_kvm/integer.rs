//! Arithmetic on general registers that KVM's emulator lacks: POPCNT, BMI1, BMI2, ADX, CRC32,
//! MOVBE, CMPXCHG16B, random numbers (Intel SDM volume 2).

use iced_x86::{Instruction, Mnemonic};

use super::cpu::{Cpu, RAX, RBX, RCX, RDX, Stop, flags};
use super::operands::{aligned_address, read, size, write};

/// `Ok(false)`: not one of these.
pub(super) fn execute(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<bool, Stop> {
    match instruction.mnemonic() {
        Mnemonic::Cmpxchg16b => compare_exchange(cpu, instruction)?,
        Mnemonic::Rdrand | Mnemonic::Rdseed => random(cpu, instruction)?,
        Mnemonic::Crc32 => crc32(cpu, instruction)?,
        Mnemonic::Movbe => {
            let bits = 8 * size(instruction, 0) as u32;
            let value = read(cpu, instruction, 1)?.swap_bytes() >> (64 - bits);
            write(cpu, instruction, 0, value)?;
        }
        Mnemonic::Movdiri => {
            let value = read(cpu, instruction, 1)?;
            write(cpu, instruction, 0, value)?;
        }
        Mnemonic::Mulx => {
            let bits = 8 * size(instruction, 0) as u32;
            let factor = cpu.registers().gpr[RDX] & mask(bits);
            let product = u128::from(factor) * u128::from(read(cpu, instruction, 2)?);
            write(cpu, instruction, 1, product as u64)?;
            write(cpu, instruction, 0, (product >> bits) as u64)?;
        }
        Mnemonic::Adcx => add_with(cpu, instruction, flags::CARRY)?,
        Mnemonic::Adox => add_with(cpu, instruction, flags::OVERFLOW)?,
        Mnemonic::Popcnt | Mnemonic::Blsi | Mnemonic::Blsr | Mnemonic::Blsmsk => {
            let bits = 8 * size(instruction, 0) as u32;
            let source = read(cpu, instruction, 1)?;
            let (result, carry) = match instruction.mnemonic() {
                Mnemonic::Popcnt => (u64::from(source.count_ones()), false),
                Mnemonic::Blsi => (source & source.wrapping_neg(), source != 0),
                Mnemonic::Blsr => (source & source.wrapping_sub(1), source == 0),
                _ => (source ^ source.wrapping_sub(1), source == 0),
            };
            let result = result & mask(bits);
            write(cpu, instruction, 0, result)?;
            if instruction.mnemonic() == Mnemonic::Popcnt {
                cpu.registers()
                    .set_flag(flags::PARITY | flags::ADJUST, false);
            }
            set_flags(cpu, result, bits, carry);
        }
        Mnemonic::Andn | Mnemonic::Bextr | Mnemonic::Bzhi => {
            let bits = 8 * size(instruction, 0) as u32;
            let first = read(cpu, instruction, 1)?;
            let second = read(cpu, instruction, 2)?;
            let (result, carry) = match instruction.mnemonic() {
                Mnemonic::Andn => (!first & second & mask(bits), false),
                Mnemonic::Bextr => {
                    let (start, length) = (second as u32 & 0xff, second as u32 >> 8 & 0xff);
                    (first.checked_shr(start).unwrap_or(0) & mask(length), false)
                }
                _ => (
                    first & mask(second as u32 & 0xff),
                    second & 0xff >= u64::from(bits),
                ),
            };
            write(cpu, instruction, 0, result)?;
            set_flags(cpu, result, bits, carry);
        }
        Mnemonic::Shlx | Mnemonic::Shrx | Mnemonic::Sarx | Mnemonic::Rorx => {
            let result = shift(cpu, instruction)?;
            write(cpu, instruction, 0, result)?;
        }
        Mnemonic::Pdep | Mnemonic::Pext => {
            let source = read(cpu, instruction, 1)?;
            let places = read(cpu, instruction, 2)?;
            let result = match instruction.mnemonic() {
                Mnemonic::Pdep => deposit(source, places),
                _ => extract(source, places),
            };
            write(cpu, instruction, 0, result)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The lowest `bits` bits.
fn mask(bits: u32) -> u64 {
    1u64.checked_shl(bits).map_or(u64::MAX, |bit| bit - 1)
}

fn set_flags(cpu: &mut impl Cpu, result: u64, bits: u32, carry: bool) {
    let registers = cpu.registers();
    registers.set_flag(flags::ZERO, result == 0);
    registers.set_flag(flags::SIGN, result >> (bits - 1) & 1 != 0);
    registers.set_flag(flags::CARRY, carry);
    registers.set_flag(flags::OVERFLOW, false);
}

fn compare_exchange(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let address = aligned_address(cpu, instruction, 16)?;
    let gpr = cpu.registers().gpr;
    let join = |high: usize, low: usize| u128::from(gpr[high]) << 64 | u128::from(gpr[low]);
    let old = join(RDX, RAX);
    let found = cpu.compare_exchange(address, old, join(RCX, RBX))?;
    let registers = cpu.registers();
    registers.set_flag(flags::ZERO, found == old);
    if found != old {
        registers.gpr[RAX] = found as u64;
        registers.gpr[RDX] = (found >> 64) as u64;
    }
    Ok(())
}

fn random(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut bytes = [0; 8];
    // SAFETY: the pointer and the length are those of `bytes`.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let is_filled = filled == bytes.len() as isize;
    // Zero and a clear carry say that no random number was there.
    let value = if is_filled {
        u64::from_le_bytes(bytes)
    } else {
        0
    };
    write(cpu, instruction, 0, value)?;
    cpu.registers().rflags &= !flags::STATUS;
    cpu.registers().set_flag(flags::CARRY, is_filled);
    Ok(())
}

fn add_with(cpu: &mut impl Cpu, instruction: &Instruction, flag: u64) -> Result<(), Stop> {
    let bits = 8 * size(instruction, 0) as u32;
    let carry_in = u128::from(cpu.registers().has_flag(flag));
    let sum =
        u128::from(read(cpu, instruction, 0)?) + u128::from(read(cpu, instruction, 1)?) + carry_in;
    write(cpu, instruction, 0, sum as u64)?;
    cpu.registers().set_flag(flag, sum >> bits != 0);
    Ok(())
}

fn shift(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<u64, Stop> {
    let bits = 8 * size(instruction, 0) as u32;
    let value = read(cpu, instruction, 1)?;
    let count = read(cpu, instruction, 2)? as u32 & (bits - 1);
    let signed = if bits == 64 {
        value as i64
    } else {
        i64::from(value as i32)
    };
    Ok(match instruction.mnemonic() {
        Mnemonic::Shlx => value << count,
        Mnemonic::Shrx => value >> count,
        Mnemonic::Sarx => (signed >> count) as u64,
        _ if bits == 64 => value.rotate_right(count),
        _ => (value as u32).rotate_right(count).into(),
    } & mask(bits))
}

/// Puts the low bits of `source`, in order, where `places` has ones.
fn deposit(mut source: u64, mut places: u64) -> u64 {
    let mut result = 0;
    while places != 0 {
        let place = places & places.wrapping_neg();
        if source & 1 != 0 {
            result |= place;
        }
        source >>= 1;
        places &= places - 1;
    }
    result
}

/// Collects the bits of `source` where `places` has ones.
fn extract(source: u64, mut places: u64) -> u64 {
    let mut result = 0;
    let mut bit = 1u64;
    while places != 0 {
        let place = places & places.wrapping_neg();
        if source & place != 0 {
            result |= bit;
        }
        bit = bit.wrapping_shl(1);
        places &= places - 1;
    }
    result
}

/// CRC-32C, one bit at a time, over the bytes of the second operand.
fn crc32(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<(), Stop> {
    const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = size(instruction, 1);
    let mut crc = read(cpu, instruction, 0)? as u32;
    for byte in &read(cpu, instruction, 1)?.to_le_bytes()[..bytes] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 != 0;
            crc >>= 1;
            if carry {
                crc ^= REFLECTED_POLYNOMIAL;
            }
        }
    }
    write(cpu, instruction, 0, crc.into())
}
