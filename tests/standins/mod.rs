//! Stand-ins: servers on loopback that answer as the real services do and refuse what those refuse.
//! Test support only. Each is a library (a handle that stops its tasks when dropped) and a small binary
//! around it for judges, demos and benchmarks. See README.md in this folder.
#![allow(dead_code, unreachable_pub, reason = "each target that includes this uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support: a failure has to stop the test")]

pub mod azure;
pub mod clock;
pub mod faults;
pub mod issuer;
pub mod log;
pub mod serve;
pub mod tls;
