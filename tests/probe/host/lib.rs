//! The probe's modules that need no machine, so that their tests run on the host.

extern crate alloc;

#[path = "../src/command/arguments.rs"]
pub mod arguments;
#[path = "../src/histogram.rs"]
pub mod histogram;
#[path = "../src/json.rs"]
pub mod json;
#[path = "../src/pattern.rs"]
pub mod pattern;
