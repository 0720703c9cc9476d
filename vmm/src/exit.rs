//! How a guest's end is agreed on: whoever sees a reason to end first names it, and the main
//! thread acts.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::control::{ExitReason, ExitReport};

/// The one place where an end is announced. The first announcement counts.
#[derive(Debug)]
pub struct ExitSwitch {
    report: Mutex<Option<ExitReport>>,
    announced: EventFd,
    power_button: AtomicBool,
}

impl ExitSwitch {
    /// Nothing announced yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            report: Mutex::new(None),
            announced: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            power_button: AtomicBool::new(false),
        })
    }

    /// From now on a reset counts as a power-off: whoever pressed the button wants the guest to
    /// end, and some guests answer by a reset.
    pub fn power_button_pressed(&self) {
        self.power_button.store(true, Ordering::SeqCst);
    }

    /// Asks for the end. Later calls change nothing.
    pub fn announce(&self, reason: ExitReason, message: impl Into<String>) {
        let pressed = self.power_button.load(Ordering::SeqCst);
        let reason = match reason {
            ExitReason::Reset if pressed => ExitReason::PowerOff,
            other => other,
        };
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.is_none() {
            *report = Some(ExitReport {
                reason,
                message: message.into(),
                credits: Vec::new(),
            });
            if let Err(error) = self.announced.write(1) {
                tracing::error!(%error, "the end of the guest could not be announced");
            }
        }
    }

    /// What was announced, if anything was.
    pub fn announced(&self) -> Option<ExitReport> {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Readable once something is announced.
    pub fn event(&self) -> &EventFd {
        &self.announced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_announcement_counts() {
        let exit = ExitSwitch::new().unwrap();
        assert_eq!(exit.announced(), None);
        exit.announce(ExitReason::Reset, "first");
        exit.announce(ExitReason::Killed, "second");
        assert_eq!(exit.announced().unwrap().reason, ExitReason::Reset);
        assert_eq!(exit.event().read().unwrap(), 1);
    }

    #[test]
    fn a_reset_after_the_power_button_is_a_power_off() {
        let exit = ExitSwitch::new().unwrap();
        exit.power_button_pressed();
        exit.announce(ExitReason::Reset, "guest");
        assert_eq!(exit.announced().unwrap().reason, ExitReason::PowerOff);
    }
}
