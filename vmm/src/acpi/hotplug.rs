//! Registers by which the guest learns that disks have come or gone: a general-purpose event
//! block (4.8.4) and one byte for each slot that says whether a device is in it.
//!
//! Disks sit in slots below one container device. When a slot is filled or is to be emptied, its
//! byte changes and event 0 is raised; the guest's handler (`\_GPE._E00` in the DSDT) has the
//! container checked, and so every slot's `_STA`.
//!
//! An event that the guest has not enabled waits: what comes while it boots is found at the
//! latest when it starts to listen.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Event 0: look at the slots.
const SLOTS_CHANGED: u8 = 1;

/// `_STA` (6.3.7) of a device that is there: present, enabled, shown, working.
const THERE: u8 = 0b1111;

/// The registers, at consecutive ports:
///
/// | offset | bytes | register |
/// |---|---|---|
/// | 0 | 1 | `GPE0_STS`: write 1 to clear |
/// | 1 | 1 | `GPE0_EN` |
/// | 8 | 16 | what `_STA` of each slot returns; read-only |
#[derive(Debug)]
pub struct HotPlugRegisters {
    status: u8,
    enable: u8,
    slots: [u8; Self::SLOTS],
    sci: EventFd,
}

impl HotPlugRegisters {
    /// Ports that the registers take.
    pub const PORT_COUNT: u64 = Self::STA + Self::SLOTS as u64;
    /// Most slots.
    pub const SLOTS: usize = 16;
    pub(super) const GPE0: u64 = 0;
    pub(super) const GPE0_LENGTH: u8 = 2;
    pub(super) const STA: u64 = 8;

    /// Registers as they are after a reset, with all slots empty. `sci` is written once for each
    /// event that the guest has enabled, as [`PowerManagement::sci_eventfd`] is.
    ///
    /// [`PowerManagement::sci_eventfd`]: super::pm::PowerManagement::sci_eventfd
    pub fn new(sci: &EventFd) -> io::Result<Self> {
        Ok(Self {
            status: 0,
            enable: 0,
            slots: [0; Self::SLOTS],
            sci: sci.try_clone()?,
        })
    }

    /// Says of a slot whether a device is in it, and tells the guest if that is news.
    pub fn set_present(&mut self, slot: usize, present: bool) {
        let sta = if present { THERE } else { 0 };
        if std::mem::replace(&mut self.slots[slot], sta) != sta {
            self.status |= SLOTS_CHANGED;
            self.signal_pending();
        }
    }

    /// The guest reads `data.len()` ports from `offset` on. What is no register reads as ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = match offset.saturating_add(index as u64) {
                0 => self.status,
                1 => self.enable,
                port => port
                    .checked_sub(Self::STA)
                    .and_then(|slot| self.slots.get(usize::try_from(slot).ok()?).copied())
                    .unwrap_or(0xff),
            };
        }
    }

    /// The guest writes `data` from port `offset` on, lowest byte first.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, &byte) in data.iter().enumerate() {
            match offset.saturating_add(index as u64) {
                0 => self.status &= !byte,
                1 => self.enable = byte & SLOTS_CHANGED,
                _ => {}
            }
        }
        // As with the power button: the line is edge-triggered, so what still waits needs an edge.
        if offset < u64::from(Self::GPE0_LENGTH) {
            self.signal_pending();
        }
    }

    fn signal_pending(&self) {
        if self.status & self.enable != 0 {
            // Only fails when the counter is full: then the SCI is pending many times over.
            let _ = self.sci.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn registers() -> (HotPlugRegisters, EventFd) {
        let sci = EventFd::new(EFD_NONBLOCK).unwrap();
        (HotPlugRegisters::new(&sci).unwrap(), sci)
    }

    fn read(registers: &HotPlugRegisters, offset: u64) -> u8 {
        let mut byte = [0x55];
        registers.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn a_change_raises_the_event_once_the_guest_listens_and_until_it_is_cleared() {
        let (mut registers, sci) = registers();
        registers.set_present(3, true);
        assert_eq!(read(&registers, 8 + 3), 0b1111);
        assert_eq!(read(&registers, 0), SLOTS_CHANGED);
        assert!(sci.read().is_err(), "nobody listens yet");
        registers.write(1, &[0xff]);
        assert_eq!(sci.read().unwrap(), 1);
        assert_eq!(read(&registers, 1), SLOTS_CHANGED);
        registers.write(0, &[SLOTS_CHANGED]);
        assert_eq!(read(&registers, 0), 0);
        assert!(sci.read().is_err());
        registers.set_present(3, false);
        assert_eq!((read(&registers, 8 + 3), sci.read().unwrap()), (0, 1));
    }

    #[test]
    fn what_changes_while_the_guest_handles_the_event_raises_it_again() {
        let (mut registers, sci) = registers();
        registers.write(1, &[SLOTS_CHANGED]);
        registers.set_present(0, true);
        sci.read().unwrap();
        // As Linux does with an edge-triggered event: off and cleared, handled, on again.
        registers.write(1, &[0]);
        registers.write(0, &[SLOTS_CHANGED]);
        registers.set_present(1, true);
        assert!(sci.read().is_err());
        registers.write(1, &[SLOTS_CHANGED]);
        assert_eq!(sci.read().unwrap(), 1);
    }

    #[test]
    fn no_news_is_no_event_and_the_guest_can_not_change_what_is_there() {
        let (mut registers, _sci) = registers();
        registers.set_present(5, false);
        assert_eq!(read(&registers, 0), 0);
        registers.write(8, &[0xff; 16]);
        assert_eq!(read(&registers, 8 + 5), 0);
        for beyond in [2, 7, 24, u64::MAX] {
            assert_eq!(read(&registers, beyond), 0xff);
            registers.write(beyond, &[1, 1, 1]);
        }
    }
}
