//! keyferry: one provider for the Secrets Store CSI driver that answers as all of the vendors'.
//!
//! A request walks one line: a door ([`server`] or [`cli`]) makes a [`call::Call`]; [`gather`] plans it
//! with a backend ([`backends`]), proves the identity and reads through [`fetch`], and makes files
//! ([`files`], [`shape`]). ARCHITECTURE.md is the map.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may stop at the first surprise"))]

pub mod backends;
pub mod call;
pub mod class;
pub mod cli;
pub mod entry;
pub mod error;
pub mod fetch;
pub mod files;
pub mod gather;
pub mod http;
pub mod kube;
pub mod path;
pub mod plan;
pub mod policy;
pub mod proto;
pub mod secret;
pub mod series;
pub mod server;
pub mod shape;
pub mod telemetry;
pub mod yaml;
