//! Security groups.

pub mod default_group;
