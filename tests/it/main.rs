//! Integration tests: real sockets, the real binary, real servers where there are any.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]

mod azure;
mod cases;
mod check;
mod clouds;
mod contract;
mod faults;
mod history;
mod http;
mod identities;
mod layers;
mod operator;
mod outage;
mod pkcs12;
mod proto;
mod reference;
mod rows;
mod server;
#[path = "../standins/mod.rs"]
mod standins;
mod support;
mod upgrade;
mod ways;
