//! keyferry: one provider for the Secrets Store CSI driver that answers as all of the vendors'.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may stop at the first surprise"))]

pub mod http;
pub mod secret;
pub mod shape;
