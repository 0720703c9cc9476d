//! Spreading work evenly over time: what the limits of disks and of networks have in common.
//!
//! - [`limits`]: a rate, and a burst beyond it, as the agent says them.
//! - [`clock`]: when the next piece of work may start; pure, on a clock of the caller's.
//! - [`measure`]: the clocks of one limit.

pub mod clock;
pub mod limits;
pub mod measure;
