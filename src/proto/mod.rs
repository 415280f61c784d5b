//! Messages and service of the driver's contract, generated from `proto/v1alpha1/service.proto`.
//!
//! The messages that carry tokens or values print no content.

use std::fmt;

pub use generated::*;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; a test keeps it equal to the contract")]
#[rustfmt::skip]
#[path = "v1alpha1.rs"]
mod generated;

impl fmt::Debug for MountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountRequest").field("target_path", &self.target_path).finish_non_exhaustive()
    }
}

impl fmt::Debug for MountResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountResponse").field("files", &self.files).finish_non_exhaustive()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({:?}, {:o}, {} bytes)", self.path, self.mode, self.contents.len())
    }
}
