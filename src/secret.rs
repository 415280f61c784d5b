//! Bytes and texts that must not leak: values, tokens, client secrets.
//!
//! Both types have no `Display`, print only their length in `Debug`, are compared in constant time
//! and wiped when dropped. [`SecretBytes::expose`] and [`SecretText::expose`] are the only ways to
//! the content, so a search for `expose(` finds every place that touches one.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

/// Value read from a store or made from one: bytes, shared and wiped on the last drop.
#[derive(Clone, Default)]
pub struct SecretBytes(Arc<Zeroizing<Vec<u8>>>);

impl SecretBytes {
    /// Takes over `bytes`; they are wiped when the last clone is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// Gives the content.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The content for an answer, without a copy: it is wiped when the last holder lets go.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(Owner(self.clone()))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What [`Bytes`] holds on to; private, so that `expose` stays the only other way to the content.
struct Owner(SecretBytes);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }
}

impl From<String> for SecretBytes {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.len())
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        same(self.expose(), other.expose())
    }
}

impl Eq for SecretBytes {}

/// Text that proves an identity: a token, a client secret.
#[derive(Clone, Default)]
pub struct SecretText(Arc<Zeroizing<String>>);

impl SecretText {
    /// Takes over `text`; it is wiped when the last clone is dropped.
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// Gives the content.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no character.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretText({} bytes)", self.0.len())
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        same(self.expose().as_bytes(), other.expose().as_bytes())
    }
}

impl Eq for SecretText {}

impl<'de> serde::Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Compares in a time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_only_the_length() {
        assert_eq!(format!("{:?}", SecretBytes::from(&b"hunter2"[..])), "SecretBytes(7 bytes)");
        assert_eq!(format!("{:?}", SecretText::new("eyJ".into())), "SecretText(3 bytes)");
    }

    #[test]
    fn equality_is_by_content() {
        assert_eq!(SecretBytes::from(&b"a"[..]), SecretBytes::new(vec![b'a']));
        assert_ne!(SecretBytes::from(&b"a"[..]), SecretBytes::from(&b"ab"[..]));
        assert_ne!(SecretText::new("a".into()), SecretText::new("b".into()));
    }
}
