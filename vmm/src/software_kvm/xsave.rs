//! XSAVE and its relatives (Intel SDM volume 1, chapter 13) between the vCPU's state, which KVM
//! gives and takes in the standard format, and the guest's memory.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use iced_x86::{Instruction, Mnemonic};

use super::cpu::{Cpu, Exception, ExtendedState, RAX, RDX, Stop, control};
use super::operands::aligned_address;

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Bit 63 of `XCOMP_BV`: the compacted format.
const COMPACTED: u64 = 1 << 63;

/// Parts of the legacy region (10.5.1): FCW to FDP, MXCSR and its mask, ST0 to ST7, XMM0 to XMM15.
const X87_CONTROL: std::ops::Range<usize> = 0..24;
const MXCSR: std::ops::Range<usize> = 24..32;
const X87_REGISTERS: std::ops::Range<usize> = 32..160;
const XMM_REGISTERS: std::ops::Range<usize> = 160..416;
/// The header (13.4.2).
const HEADER: usize = 512;
const HEADER_LENGTH: usize = 64;
/// First byte after the header.
const EXTENDED: usize = HEADER + HEADER_LENGTH;

const INITIAL_FCW: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
/// Bits of MXCSR that raise #GP when set.
const MXCSR_RESERVED: u32 = 0xffff_0000;

const IA32_XSS: u32 = 0xda0;

/// `Ok(false)`: not one of these.
pub(super) fn execute(cpu: &mut impl Cpu, instruction: &Instruction) -> Result<bool, Stop> {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 => {
            let area = Area::of(cpu, instruction, 0)?;
            save_standard(cpu, &area)?;
        }
        Xsavec | Xsavec64 => {
            let area = Area::of(cpu, instruction, 0)?;
            save_compacted(cpu, &area)?;
        }
        Xsaves | Xsaves64 => {
            let supervisor = supervisor_components(cpu)?;
            let area = Area::of(cpu, instruction, supervisor)?;
            save_compacted(cpu, &area)?;
        }
        Xrstor | Xrstor64 => {
            let area = Area::of(cpu, instruction, 0)?;
            restore(cpu, &area, false)?;
        }
        Xrstors | Xrstors64 => {
            let supervisor = supervisor_components(cpu)?;
            let area = Area::of(cpu, instruction, supervisor)?;
            restore(cpu, &area, true)?;
        }
        Xgetbv => get_extended_control(cpu)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// KVM neither gives nor takes supervisor components; kernels set none where CPUID has none.
fn supervisor_components(cpu: &mut impl Cpu) -> Result<u64, Stop> {
    match cpu.msr(IA32_XSS)? {
        0 => Ok(0),
        _ => Err(Stop::Unsupported("supervisor state components")),
    }
}

/// Where a component lies (CPUID leaf 0xD).
#[derive(Clone, Copy)]
struct Component {
    /// In the standard format.
    offset: usize,
    size: usize,
    /// In the compacted format it starts at a multiple of 64.
    is_aligned: bool,
}

/// Components 2 to 62 of this CPU that lie within what KVM gives.
fn components() -> &'static [Option<Component>; 63] {
    static COMPONENTS: OnceLock<[Option<Component>; 63]> = OnceLock::new();
    COMPONENTS.get_or_init(|| {
        std::array::from_fn(|index| {
            if index < 2 {
                return None;
            }
            let leaf = __cpuid_count(0xd, index as u32);
            let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
            let is_there = size != 0 && offset >= EXTENDED && offset + size <= 4096;
            let is_aligned = leaf.ecx & 2 != 0;
            is_there.then_some(Component {
                offset,
                size,
                is_aligned,
            })
        })
    })
}

fn extended_components(mask: u64) -> impl Iterator<Item = (u64, Component)> {
    let present = components().iter().enumerate();
    present.filter_map(move |(index, component)| {
        let bit = 1 << index;
        component
            .filter(|_| mask & bit != 0)
            .map(|component| (bit, component))
    })
}

/// The operands that all these instructions have.
struct Area {
    address: u64,
    /// XCR0, with IA32_XSS where the instruction looks at it.
    enabled: u64,
    /// "Requested-feature bitmap": what of it EDX:EAX asks for.
    requested: u64,
}

impl Area {
    fn of(cpu: &mut impl Cpu, instruction: &Instruction, supervisor: u64) -> Result<Self, Stop> {
        let control = cpu.control();
        if control.cr4 & control::CR4_OSXSAVE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        if control.cr0 & control::CR0_TASK_SWITCHED != 0 {
            return Err(Exception::DEVICE_NOT_AVAILABLE.into());
        }
        let address = aligned_address(cpu, instruction, 64)?;
        let enabled = cpu.xcr0()? | supervisor;
        let gpr = cpu.registers().gpr;
        let asked = gpr[RDX] << 32 | gpr[RAX] & 0xffff_ffff;
        let requested = enabled & asked;
        Ok(Self {
            address,
            enabled,
            requested,
        })
    }

    fn at(&self, offset: usize) -> u64 {
        self.address.wrapping_add(offset as u64)
    }

    fn copy_out(
        &self,
        cpu: &mut impl Cpu,
        state: &[u8],
        at: std::ops::Range<usize>,
    ) -> Result<(), Stop> {
        cpu.write(self.at(at.start), &state[at])
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

/// `XSTATE_BV` of what KVM gave: components that are not in their initial state.
fn in_use(state: &ExtendedState) -> u64 {
    u64_at(&state[..], HEADER)
}

/// Writes the parts of the legacy region that `mask` asks for.
fn save_legacy(
    cpu: &mut impl Cpu,
    area: &Area,
    state: &[u8],
    mask: u64,
    mxcsr: bool,
) -> Result<(), Stop> {
    if mask & X87 != 0 {
        area.copy_out(cpu, state, X87_CONTROL)?;
        area.copy_out(cpu, state, X87_REGISTERS)?;
    }
    if mxcsr {
        area.copy_out(cpu, state, MXCSR)?;
    }
    if mask & SSE != 0 {
        area.copy_out(cpu, state, XMM_REGISTERS)?;
    }
    Ok(())
}

/// XSAVE (13.7). XSAVEOPT (13.9) may leave out more, and need not.
fn save_standard(cpu: &mut impl Cpu, area: &Area) -> Result<(), Stop> {
    let state = cpu.extended_state()?;
    let mut old = [0; 8];
    cpu.read(area.at(HEADER), &mut old)?;
    let mxcsr = area.requested & (SSE | AVX) != 0;
    save_legacy(cpu, area, &state[..], area.requested, mxcsr)?;
    for (_, component) in extended_components(area.requested) {
        area.copy_out(
            cpu,
            &state[..],
            component.offset..component.offset + component.size,
        )?;
    }
    let kept = u64::from_le_bytes(old) & !area.requested;
    let saved = kept | (in_use(&state) & area.requested);
    cpu.write(area.at(HEADER), &saved.to_le_bytes())
}

/// XSAVEC (13.10), and XSAVES (13.11) without supervisor components.
fn save_compacted(cpu: &mut impl Cpu, area: &Area) -> Result<(), Stop> {
    let state = cpu.extended_state()?;
    let mut saved = in_use(&state) & area.requested;
    if area.requested & SSE != 0 && state[24..28] != INITIAL_MXCSR.to_le_bytes() {
        saved |= SSE;
    }
    save_legacy(cpu, area, &state[..], saved, saved & SSE != 0)?;
    for (bit, component, offset) in compacted(area.requested) {
        if saved & bit != 0 {
            let bytes = &state[component.offset..component.offset + component.size];
            cpu.write(area.at(offset), bytes)?;
        }
    }
    let mut header = [0; HEADER_LENGTH];
    header[..8].copy_from_slice(&saved.to_le_bytes());
    header[8..16].copy_from_slice(&(area.requested | COMPACTED).to_le_bytes());
    cpu.write(area.at(HEADER), &header)
}

/// Components of the compacted format whose `XCOMP_BV` is `mask`, with their offsets (13.4.3).
fn compacted(mask: u64) -> impl Iterator<Item = (u64, Component, usize)> {
    let mut next = EXTENDED;
    extended_components(mask).map(move |(bit, component)| {
        let offset = if component.is_aligned {
            next.next_multiple_of(64)
        } else {
            next
        };
        next = offset + component.size;
        (bit, component, offset)
    })
}

/// XRSTOR (13.8), XRSTORS (13.12).
fn restore(cpu: &mut impl Cpu, area: &Area, only_compacted: bool) -> Result<(), Stop> {
    const PROTECTION: Stop = Stop::Exception(Exception::GENERAL_PROTECTION);
    let mut new = [0; EXTENDED];
    cpu.read(area.address, &mut new)?;
    let present = u64_at(&new, HEADER);
    let layout = u64_at(&new, HEADER + 8);
    let is_compacted = layout & COMPACTED != 0;
    let allowed = if is_compacted {
        layout & !COMPACTED
    } else {
        area.enabled
    };
    let reserved = if is_compacted {
        HEADER + 16
    } else {
        HEADER + 8
    };
    let is_malformed = present & !allowed != 0
        || allowed & !area.enabled != 0
        || (only_compacted && !is_compacted)
        || new[reserved..if is_compacted { EXTENDED } else { HEADER + 24 }]
            .iter()
            .any(|b| *b != 0);
    if is_malformed {
        return Err(PROTECTION);
    }

    let mut state = cpu.extended_state()?;
    let loaded = area.requested & present;
    if area.requested & X87 != 0 {
        take(&mut state, &new, X87_CONTROL, loaded & X87 != 0);
        take(&mut state, &new, X87_REGISTERS, loaded & X87 != 0);
        if loaded & X87 == 0 {
            state[..2].copy_from_slice(&INITIAL_FCW.to_le_bytes());
        }
    }
    if area.requested & SSE != 0 {
        take(&mut state, &new, XMM_REGISTERS, loaded & SSE != 0);
    }
    // The standard format has MXCSR whenever SSE or AVX is asked for, the compacted one only with
    // SSE.
    if is_compacted && area.requested & SSE != 0 && loaded & SSE == 0 {
        state[24..28].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
    } else if area.requested & if is_compacted { SSE } else { SSE | AVX } != 0 {
        if u64_at(&new, 24) as u32 & MXCSR_RESERVED != 0 {
            return Err(PROTECTION);
        }
        state[24..28].copy_from_slice(&new[24..28]);
    }

    let places: Vec<_> = match is_compacted {
        true => compacted(layout & !COMPACTED).collect(),
        false => extended_components(area.requested)
            .map(|(b, c)| (b, c, c.offset))
            .collect(),
    };
    for (bit, component, offset) in places {
        if area.requested & bit == 0 {
            continue;
        }
        let target = &mut state[component.offset..component.offset + component.size];
        if loaded & bit != 0 {
            cpu.read(area.at(offset), target)?;
        } else {
            target.fill(0);
        }
    }
    let now = in_use(&state) & !area.requested | loaded;
    state[HEADER..HEADER + 8].copy_from_slice(&now.to_le_bytes());
    state[HEADER + 8..EXTENDED].fill(0);
    cpu.set_extended_state(state)
}

/// Loads one part of the legacy region, or clears it.
fn take(state: &mut ExtendedState, new: &[u8], part: std::ops::Range<usize>, is_loaded: bool) {
    if is_loaded {
        state[part.clone()].copy_from_slice(&new[part]);
    } else {
        state[part].fill(0);
    }
}

/// XGETBV: XCR0, or what of it is in use.
fn get_extended_control(cpu: &mut impl Cpu) -> Result<(), Stop> {
    if cpu.control().cr4 & control::CR4_OSXSAVE == 0 {
        return Err(Exception::INVALID_OPCODE.into());
    }
    let value = match cpu.registers().gpr[super::cpu::RCX] as u32 {
        0 => cpu.xcr0()?,
        1 => cpu.xcr0()? & in_use(&cpu.extended_state()?),
        _ => return Err(Exception::GENERAL_PROTECTION.into()),
    };
    let registers = cpu.registers();
    registers.gpr[RAX] = value & 0xffff_ffff;
    registers.gpr[RDX] = value >> 32;
    Ok(())
}
