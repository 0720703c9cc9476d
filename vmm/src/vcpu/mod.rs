//! vCPUs: one thread each, which runs guest code and answers its exits.

pub mod cpuid;
pub mod msrs;
mod run;
mod thread;

pub use run::{RunContext, VcpuError};
pub use thread::{VcpuThread, install_kick_handler};
