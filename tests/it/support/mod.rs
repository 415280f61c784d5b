//! What tests stand on.

#[allow(dead_code, reason = "shared with the benches")]
pub mod vault;
