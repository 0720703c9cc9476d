//! Hearth's VMM: one process for one micro-VM on `/dev/kvm`.

pub mod config;
pub mod control;
