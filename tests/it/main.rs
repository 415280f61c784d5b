//! Integration tests: real sockets, the real binary, real servers where there are any.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod proto;
