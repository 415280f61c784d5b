//! What tests stand on.

pub mod driver;
#[allow(dead_code, reason = "shared with the benches")]
pub mod vault;
