//! The fixed power-management registers (4.8.3): power button, power-off, reset.

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// `SLP_TYPa` of the state S5, "soft off"; the DSDT tells the guest.
pub(super) const SLEEP_TYPE_S5: u8 = 5;

/// Bits of `PM1_STS` and `PM1_EN` (4.8.3.1): the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// All events that `PM1_EN` can have: timer, global lock, power and sleep button, clock. Kernels
/// read back what they enable, though but for the power button nothing ever happens.
const EVENTS: u16 = 1 << 0 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
/// Bits of `PM1_CNT` (4.8.3.2).
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
const ENTER_S5: u16 = SLEEP_ENABLE | (SLEEP_TYPE_S5 as u16) << SLEEP_TYPE_SHIFT;

/// What the guest wants after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PmAction {
    /// Nothing.
    None,
    /// It has entered S5: the machine is to end.
    PowerOff,
    /// It has written the reset register.
    Reset,
}

/// The registers, at consecutive ports:
///
/// | offset | bytes | register |
/// |---|---|---|
/// | 0 | 2 | `PM1a_STS`: write 1 to clear |
/// | 2 | 2 | `PM1a_EN` |
/// | 4 | 2 | `PM1a_CNT` |
/// | 6 | 1 | reset register |
///
/// The only event is the power button.
#[derive(Debug)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    sci: EventFd,
}

impl PowerManagement {
    /// Ports that the registers take.
    pub const PORT_COUNT: u64 = 8;
    pub(super) const PM1_EVENT: u64 = 0;
    pub(super) const PM1_CONTROL: u64 = 4;
    pub(super) const RESET: u64 = 6;
    pub(super) const RESET_VALUE: u8 = 1;

    /// Registers as they are after a reset; fails if the system has no eventfd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: 0,
            enable: 0,
            control: SCI_ENABLED,
            sci: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Written once for each event that the guest has enabled: to be the irqfd of the SCI.
    pub fn sci_eventfd(&self) -> &EventFd {
        &self.sci
    }

    /// The guest reads `data.len()` ports from `offset` on. What is beyond the registers reads as
    /// ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = [0; Self::PORT_COUNT as usize];
        registers[0..2].copy_from_slice(&self.status.to_le_bytes());
        registers[2..4].copy_from_slice(&self.enable.to_le_bytes());
        registers[4..6].copy_from_slice(&self.control.to_le_bytes());
        for (index, byte) in data.iter_mut().enumerate() {
            let port = offset.saturating_add(index as u64) as usize;
            *byte = registers.get(port).copied().unwrap_or(0xff);
        }
    }

    /// The guest writes `data` from port `offset` on, lowest byte first.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> PmAction {
        let mut action = PmAction::None;
        for (index, &byte) in data.iter().enumerate() {
            let high = u16::from(byte) << 8;
            match offset.saturating_add(index as u64) {
                1 => self.status &= !high,
                2 => self.enable = (self.enable & 0xff00) | (u16::from(byte) & EVENTS),
                3 => self.enable = (self.enable & 0x00ff) | (high & EVENTS),
                5 if high & (SLEEP_ENABLE | SLEEP_TYPE_MASK) == ENTER_S5 => {
                    action = PmAction::PowerOff;
                }
                // SLP_TYP is kept; SLP_EN reads as zero.
                5 => self.control = SCI_ENABLED | (high & SLEEP_TYPE_MASK),
                Self::RESET if byte == Self::RESET_VALUE => action = PmAction::Reset,
                // No bit of the other bytes belongs to anything that is there.
                _ => {}
            }
        }
        // The guest has enabled the button after it was pressed, or has acknowledged another
        // press: the line is edge-triggered, so what is still pending needs a new edge.
        if (Self::PM1_EVENT..Self::PM1_CONTROL).contains(&offset) {
            self.signal_pending();
        }
        action
    }

    /// Presses the power button and lets it go. Returns whether the guest listens: if not, the
    /// press waits until it does.
    pub fn press_power_button(&mut self) -> bool {
        self.status |= POWER_BUTTON;
        self.signal_pending()
    }

    fn signal_pending(&self) -> bool {
        let pending = self.status & self.enable != 0;
        if pending {
            // Only fails when the counter is full: then the SCI is pending many times over.
            let _ = self.sci.write(1);
        }
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write16(pm: &mut PowerManagement, offset: u64, value: u16) -> PmAction {
        pm.write(offset, &value.to_le_bytes())
    }

    fn read16(pm: &PowerManagement, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn sci_edges(pm: &PowerManagement) -> u64 {
        pm.sci_eventfd().read().unwrap_or(0)
    }

    #[test]
    fn a_press_interrupts_a_guest_that_listens_and_waits_to_be_acknowledged() {
        let mut pm = PowerManagement::new().unwrap();
        assert_eq!(write16(&mut pm, 2, POWER_BUTTON), PmAction::None);
        assert_eq!(sci_edges(&pm), 0);
        assert!(pm.press_power_button());
        assert_eq!(sci_edges(&pm), 1);
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
        assert_eq!(write16(&mut pm, 0, POWER_BUTTON), PmAction::None);
        assert_eq!(read16(&pm, 0), 0);
        assert_eq!(sci_edges(&pm), 0);
    }

    #[test]
    fn a_press_before_the_guest_listens_is_kept_until_it_does() {
        let mut pm = PowerManagement::new().unwrap();
        assert!(!pm.press_power_button());
        assert_eq!(sci_edges(&pm), 0);
        let _ = write16(&mut pm, 2, POWER_BUTTON);
        assert_eq!(sci_edges(&pm), 1);
    }

    #[test]
    fn writing_the_status_does_not_clear_what_was_not_written() {
        let mut pm = PowerManagement::new().unwrap();
        pm.press_power_button();
        let _ = write16(&mut pm, 0, !POWER_BUTTON);
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
    }

    #[test]
    fn what_the_guest_enables_reads_back_also_where_nothing_happens() {
        let mut pm = PowerManagement::new().unwrap();
        let _ = write16(&mut pm, 2, 0xffff);
        assert_eq!(read16(&pm, 2), EVENTS);
        let _ = pm.write(2, &[0]);
        assert_eq!(read16(&pm, 2), EVENTS & 0xff00);
        let _ = pm.write(3, &[0]);
        assert_eq!(read16(&pm, 2), 0);
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_nothing() {
        let mut pm = PowerManagement::new().unwrap();
        for sleep_type in 0..8u16 {
            let value = sleep_type << SLEEP_TYPE_SHIFT;
            assert_eq!(write16(&mut pm, 4, value), PmAction::None);
            let expected = match sleep_type {
                5 => PmAction::PowerOff,
                _ => PmAction::None,
            };
            assert_eq!(write16(&mut pm, 4, value | SLEEP_ENABLE), expected);
        }
    }

    #[test]
    fn the_machine_is_always_in_acpi_mode() {
        let mut pm = PowerManagement::new().unwrap();
        let _ = write16(&mut pm, 4, 0);
        assert_eq!(read16(&pm, 4) & SCI_ENABLED, SCI_ENABLED);
    }

    #[test]
    fn the_reset_register_takes_only_its_value() {
        let mut pm = PowerManagement::new().unwrap();
        assert_eq!(pm.write(6, &[0]), PmAction::None);
        assert_eq!(pm.write(6, &[1]), PmAction::Reset);
    }

    #[test]
    fn accesses_beyond_the_registers_read_ones_and_do_nothing() {
        let mut pm = PowerManagement::new().unwrap();
        let mut data = [0; 16];
        pm.read(4, &mut data);
        assert_eq!(data[4..], [0xff; 12]);
        assert_eq!(pm.write(7, &[0xff; 16]), PmAction::None);
        assert_eq!(pm.write(u64::MAX - 3, &[0xff; 4]), PmAction::None);
        pm.read(u64::MAX - 3, &mut data[..4]);
    }
}
