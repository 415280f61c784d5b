//! What tests stand on.

pub mod azure;
pub mod driver;
pub mod log;
pub mod server;
