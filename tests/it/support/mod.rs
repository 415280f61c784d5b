//! What tests stand on.

pub mod vault;
