//! What tests stand on.

pub mod driver;
pub mod store;
