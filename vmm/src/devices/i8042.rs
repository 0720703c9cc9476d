//! The reset command of the PC's keyboard controller. No keyboard, no mouse.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::control::ExitReason;
use crate::exit::ExitSwitch;

/// "Pulse output line 0": the CPU's reset.
const RESET: u8 = 0xfe;

/// The command port.
pub struct ResetPort {
    exit: Arc<ExitSwitch>,
}

impl ResetPort {
    /// A port that announces resets on `exit`.
    pub fn new(exit: Arc<ExitSwitch>) -> Self {
        Self { exit }
    }
}

impl BusDevice for ResetPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers are empty.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&RESET) {
            self.exit
                .announce(ExitReason::Reset, "keyboard controller reset");
        }
    }
}
