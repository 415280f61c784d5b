//! Paths and modes that can only be made valid.
//!
//! The rules are the driver's (driver.md 5.1): a path that it would refuse fails the whole mount
//! with a bare message, so it is refused here, by name.

use std::fmt;

/// Path of a file in the volume: relative, clean, without `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(String);

impl RelPath {
    /// Checks `text` against driver.md 5.1; the error says which rule is broken.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("file name must not be empty");
        }
        if text.starts_with('/') {
            return Err("file name must be a relative path");
        }
        if text.split('/').any(|part| part == "..") || text.starts_with("..") {
            return Err("file name must not contain '..'");
        }
        if text.split('/').any(|part| part.is_empty() || part == ".") {
            return Err("file name must be in cleaned form, without './', '//' or a '/' at the end");
        }
        if text.contains('\0') {
            return Err("file name must not contain a NUL character");
        }
        if text.len() > 4096 || text.split('/').any(|part| part.len() > 255) {
            return Err("file name is too long: at most 4096 bytes in all and 255 in each part");
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks `text` without its superfluous parts: `./`, `//` and a `/` at the end.
    pub fn cleaned(text: &str) -> Result<Self, &'static str> {
        let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let root = if text.starts_with('/') { "/" } else { "" };
        Self::new(&format!("{root}{}", parts.join("/")))
    }

    /// The path with another number at the start of its last part: of `a/0.crt` it makes `a/7.crt`.
    /// Who makes the first one leaves room for ten digits.
    pub fn numbered(&self, number: u32) -> Self {
        let (folder, last) = self.0.rsplit_once('/').unwrap_or(("", &self.0));
        let rest = last.trim_start_matches(|c: char| c.is_ascii_digit());
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Self(format!("{folder}{number}{rest}"))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this path is a directory on the way to `other`.
    pub fn is_parent_of(&self, other: &Self) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Permission bits of a file, never 0: a file nobody can read is never wanted (driver.md 0.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode(u16);

impl Mode {
    /// What a file gets when neither class nor caller say anything.
    pub const DEFAULT: Self = Self(0o644);

    /// Takes bits as a number; `None` for 0 and for more than twelve bits.
    pub fn from_bits(bits: u32) -> Option<Self> {
        u16::try_from(bits).ok().filter(|bits| *bits != 0 && *bits <= 0o7777).map(Self)
    }

    /// Reads octal text: `0400`, `400`, `0o400`.
    pub fn from_octal(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('+')).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        u32::from_str_radix(digits, 8).ok().and_then(Self::from_bits)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// Whether processes of other users than root, to whom all files belong, can read (driver.md 5.3).
    pub fn readable_by_others(self) -> bool {
        self.0 & 0o004 != 0
    }

    /// The same mode, readable for all.
    pub fn with_read_for_others(self) -> Self {
        Self(self.0 | 0o444)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_the_driver_refuses_cannot_be_made() {
        for bad in ["", "/a", "..", "../a", "a/../b", "..x", "...", "./a", ".", "a//b", "a/", "a/./b", "a\0b"]
        {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(RelPath::new(&"a".repeat(256)).is_err());
        for good in ["a", "a/b", ".dockerconfigjson", "a/..x", "with space", "a\\b"] {
            assert!(RelPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn paths_of_a_series_differ_by_number() {
        let path = RelPath::cleaned("./a//b/0.crt").unwrap();
        assert_eq!(path.numbered(7).as_str(), "a/b/7.crt");
        assert_eq!(RelPath::cleaned("a/").unwrap().as_str(), "a");
        for bad in ["", ".", "/a", "a/../b"] {
            assert!(RelPath::cleaned(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn t35_modes_are_octal_and_never_zero() {
        assert_eq!(Mode::from_octal("0400").map(Mode::bits), Some(256));
        assert_eq!(Mode::from_octal("0o644").map(Mode::bits), Some(420));
        assert_eq!(Mode::from_octal("1777").map(Mode::bits), Some(0o1777));
        for bad in ["", "0", "0900", "rw-", "-1", "99999999"] {
            assert_eq!(Mode::from_octal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn parents_are_whole_components() {
        let path = |text| RelPath::new(text).unwrap();
        assert!(path("a").is_parent_of(&path("a/b")));
        assert!(!path("a").is_parent_of(&path("ab")));
    }
}
