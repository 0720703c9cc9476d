//! Memory: one to one everywhere.

pub mod dma;
pub mod heap;
pub mod high;
mod intrinsics;
