//! The life of an instance, as data: what may be asked when, and what follows a guest's end.
//! The code that lives it is in [`super::driver`].
//!
//! ```text
//!            RunInstances                        StartInstances
//!                 │        ┌───────────────────────────────────────────────┐
//!                 ▼        ▼                                               │
//!              ┌─────────────┐  VMM up   ┌─────────┐   stop   ┌──────────┐ │
//!              │   pending   ├──────────►│ running ├─────────►│ stopping │ │
//!              └─┬────┬────┬─┘           └┬─┬─┬──┬─┘          └─┬──┬─────┘ │
//!      first     │    │    │   reboot or  │ │ │  │   guest ends │  │       │
//!      start     │    │    │   reset: the │ │ │  │   or by force│  │       │
//!      failed    │    │    │   guest again└─┘ │  │              ▼  │       │
//!                │    │    │                  │  │ off or ┌─────────┐      │
//!                │    │    │                  │  │ broken │         ├──────┘
//!                │    │    └──────────────────│──┴───────►│ stopped │
//!                │    │     start failed      │           │         │
//!                │    │ terminate   terminate │           └────┬────┘
//!                ▼    ▼                       ▼                ▼ terminate
//!              ┌──────────────────────────────────────────────────┐
//!              │                  shutting-down                   │
//!              └────────────────────────┬─────────────────────────┘
//!                                       ▼ VMM gone, volumes deleted or free
//!                                  terminated
//! ```
//!
//! What is below `running` in the picture starts from the database: a row is committed first,
//! then the host is changed; [`crate::reconcile`] takes up what a crash cuts in two.

use std::time::Duration;

use hearth_vmm::control::ExitReason;

use super::model::{Operation, StateReason};

crate::db::state_names! {
    /// Where an instance is in its life.
    InstanceState {
        Pending = "pending",
        Running = "running",
        Stopping = "stopping",
        Stopped = "stopped",
        ShuttingDown = "shutting-down",
        Terminated = "terminated",
    }
}

/// What a caller may ask of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Start,
    Stop { force: bool },
    Reboot,
    Terminate,
}

/// What an instance does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Goes to this state, and on from there.
    Goes(InstanceState),
    /// Shuts the guest down and boots it again; stays running.
    Reboots,
    /// Already stopping; now at once.
    Hurries,
    /// It is there already, or on the way.
    Nothing,
    /// Not in this state.
    Refused,
}

/// What is legal: one line for each cell of the table in docs/agent.md.
pub const fn answer(state: InstanceState, asked: Asked) -> Answer {
    use Answer::{Goes, Hurries, Nothing, Reboots, Refused};
    use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
    match (asked, state) {
        (Asked::Start, Stopped) => Goes(Pending),
        (Asked::Start, Pending | Running) => Nothing,
        (Asked::Start, Stopping | ShuttingDown | Terminated) => Refused,

        (Asked::Stop { .. }, Running) => Goes(Stopping),
        (Asked::Stop { force: true }, Stopping) => Hurries,
        (Asked::Stop { .. }, Stopping | Stopped) => Nothing,
        (Asked::Stop { .. }, Pending | ShuttingDown | Terminated) => Refused,

        (Asked::Reboot, Running) => Reboots,
        (Asked::Reboot, Pending | Stopping | Stopped | ShuttingDown | Terminated) => Refused,

        (Asked::Terminate, Pending | Running | Stopping | Stopped) => Goes(ShuttingDown),
        (Asked::Terminate, ShuttingDown | Terminated) => Nothing,
    }
}

/// How a VMM's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it reported.
    Reported { reason: ExitReason, message: String },
    /// Without a word: killed, or the host went down.
    Unexplained,
}

/// What follows when the VMM of an instance has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start the guest again, in the same state.
    Again {
        /// The guest did it by itself (and may do it again and again).
        by_itself: bool,
    },
    /// Stopped, for this reason.
    Stopped(StateReason),
    /// Finish terminating.
    Terminate,
}

/// Decides what follows the end of a VMM.
pub fn after_end(state: InstanceState, operation: Operation, end: &End) -> Next {
    match state {
        InstanceState::ShuttingDown | InstanceState::Terminated => return Next::Terminate,
        InstanceState::Stopping => {
            return Next::Stopped(StateReason::user("stopped on request"));
        }
        InstanceState::Pending | InstanceState::Running | InstanceState::Stopped => {}
    }
    if matches!(operation, Operation::Reboot { .. } | Operation::Restart) {
        // Whatever way the guest went down, it was to come back.
        return Next::Again { by_itself: false };
    }
    match end {
        End::Reported {
            reason: ExitReason::PowerOff,
            ..
        } => Next::Stopped(StateReason::guest()),
        End::Reported {
            reason: ExitReason::Reset,
            ..
        } => Next::Again { by_itself: true },
        End::Reported { reason, message } => {
            let what = match reason {
                ExitReason::GuestCrash => "the guest crashed",
                ExitReason::StartFailed => "the guest could not be started",
                ExitReason::Killed => "the VMM was ended from outside",
                _ => "the VMM failed",
            };
            Next::Stopped(StateReason::broken(format!("{what}: {message}")))
        }
        End::Unexplained => Next::Stopped(StateReason::broken(
            "the VMM process is gone and left no report: it was killed, or the host went down",
        )),
    }
}

/// How long to wait before a guest that reset itself is started again: at once the first time,
/// then 1, 2, 4, … up to 60 seconds while it keeps ending within a minute.
pub const fn backoff(quick_resets: u32) -> Duration {
    match quick_resets {
        0 | 1 => Duration::ZERO,
        2..=7 => Duration::from_secs(1 << (quick_resets - 2)),
        _ => Duration::from_secs(60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use InstanceState::*;

    #[test]
    fn what_is_legal_in_each_state() {
        use Answer::*;
        let stop = Asked::Stop { force: false };
        let force = Asked::Stop { force: true };
        // Start, stop, stop by force, reboot, terminate.
        let table = [
            (
                Pending,
                [Nothing, Refused, Refused, Refused, Goes(ShuttingDown)],
            ),
            (
                Running,
                [
                    Nothing,
                    Goes(Stopping),
                    Goes(Stopping),
                    Reboots,
                    Goes(ShuttingDown),
                ],
            ),
            (
                Stopping,
                [Refused, Nothing, Hurries, Refused, Goes(ShuttingDown)],
            ),
            (
                Stopped,
                [Goes(Pending), Nothing, Nothing, Refused, Goes(ShuttingDown)],
            ),
            (ShuttingDown, [Refused, Refused, Refused, Refused, Nothing]),
            (Terminated, [Refused, Refused, Refused, Refused, Nothing]),
        ];
        assert_eq!(table.len(), InstanceState::ALL.len());
        for (state, answers) in table {
            let asked = [Asked::Start, stop, force, Asked::Reboot, Asked::Terminate];
            for (asked, expected) in asked.into_iter().zip(answers) {
                assert_eq!(answer(state, asked), expected, "{asked:?} when {state:?}");
            }
        }
    }

    fn reported(reason: ExitReason) -> End {
        End::Reported {
            reason,
            message: "words".to_owned(),
        }
    }

    #[test]
    fn a_guest_that_powers_off_by_itself_is_stopped_and_says_so() {
        let next = after_end(Running, Operation::None, &reported(ExitReason::PowerOff));
        assert_eq!(next, Next::Stopped(StateReason::guest()));
    }

    #[test]
    fn only_a_reset_or_a_reboot_starts_the_guest_again() {
        let again = |by_itself| Next::Again { by_itself };
        let reset = reported(ExitReason::Reset);
        assert_eq!(after_end(Running, Operation::None, &reset), again(true));
        let reboot = Operation::Reboot { deadline: 1 };
        for end in [
            reset.clone(),
            reported(ExitReason::PowerOff),
            End::Unexplained,
        ] {
            assert_eq!(after_end(Running, reboot, &end), again(false));
        }
        for end in [
            reported(ExitReason::GuestCrash),
            reported(ExitReason::InternalError),
            reported(ExitReason::StartFailed),
            reported(ExitReason::Killed),
            End::Unexplained,
        ] {
            let Next::Stopped(reason) = after_end(Running, Operation::None, &end) else {
                panic!("{end:?} must not start the guest again")
            };
            assert_eq!(reason.code, "Server.InternalError");
        }
        let stop = Operation::Stop { deadline: 1 };
        assert!(matches!(
            after_end(Stopping, stop, &reset),
            Next::Stopped(_)
        ));
        assert_eq!(
            after_end(ShuttingDown, Operation::None, &reset),
            Next::Terminate
        );
    }

    #[test]
    fn resets_in_a_row_wait_longer_and_longer_up_to_a_minute() {
        let waits: Vec<u64> = (0..10).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
