//! What tests stand on.

pub mod azure;
pub mod driver;
