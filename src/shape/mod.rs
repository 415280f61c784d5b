//! Conversions of secret bytes: pure functions, bytes in, bytes out (azure.md 9).
//!
//! Errors name positions and kinds, never a piece of the value.

pub mod chain;
pub mod decode;
mod der;
pub mod extract;
pub mod jwk;
pub mod parts;
pub mod pem;
pub mod pkcs12;
mod unlocked;

use std::fmt;

use crate::secret::SecretBytes;

/// A certificate with its key as PEM, and a note for the log.
#[derive(Debug)]
pub struct Pem {
    /// The text.
    pub text: SecretBytes,
    /// Why the certificates are not in order, if they are not.
    pub note: Option<String>,
}

/// Why a value is not what its entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Makes an error of a text.
fn error(text: impl Into<String>) -> Error {
    Error(text.into())
}
