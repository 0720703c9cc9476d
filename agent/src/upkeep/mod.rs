//! Keeping the store as a whole.
//!
//! - [`check`]: is everything sound?
//! - [`usage`]: what takes how much, each and by account
//! - [`export`]: volumes, snapshots and images as stand-alone files
//! - [`checksums`]: digests of layers at rest, made in the background

pub mod check;
pub mod checksums;
pub mod export;
pub mod usage;
