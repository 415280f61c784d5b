//! Conversions of secret bytes: pure functions, bytes in, bytes out.
