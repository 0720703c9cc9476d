//! The ACPI power-management ports on the bus: what the guest asks of them ends the machine.

use std::sync::{Arc, Mutex, PoisonError};

use crate::acpi::pm::{PmAction, PowerManagement};
use crate::bus::BusDevice;
use crate::control::ExitReason;
use crate::exit::ExitSwitch;

pub(super) struct PowerPorts {
    pub power: Arc<Mutex<PowerManagement>>,
    pub exit: Arc<ExitSwitch>,
}

impl BusDevice for PowerPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
        power.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
        match power.write(offset, data) {
            PmAction::None => {}
            PmAction::PowerOff => self.exit.announce(ExitReason::PowerOff, "ACPI S5"),
            PmAction::Reset => self.exit.announce(ExitReason::Reset, "ACPI reset register"),
        }
    }
}
