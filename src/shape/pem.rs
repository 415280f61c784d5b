//! PEM: 64 characters a line, LF, a newline after each END line (azure.md 9).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

const WIDTH: usize = 64;

/// Appends one block.
pub(super) fn write(label: &str, der: &[u8], out: &mut String) {
    let body = Zeroizing::new(STANDARD.encode(der));
    out.reserve(body.len() + body.len() / WIDTH + 2 * label.len() + 40);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in body.as_bytes().chunks(WIDTH) {
        // The alphabet of base64 is ASCII.
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
}

/// A certificate in DER as one block.
pub fn certificate(der: &[u8]) -> SecretBytes {
    let mut text = String::new();
    write("CERTIFICATE", der, &mut text);
    text.into()
}

/// The certificate blocks of a text, re-encoded, without the text around them (azure.md 9.3).
pub fn certificates(text: &[u8]) -> SecretBytes {
    pick(text, |label| label == "CERTIFICATE")
}

/// All other blocks of a text.
pub fn keys(text: &[u8]) -> SecretBytes {
    pick(text, |label| label != "CERTIFICATE")
}

fn pick(text: &[u8], wanted: impl Fn(&str) -> bool) -> SecretBytes {
    let mut out = String::with_capacity(text.len());
    for block in Blocks::of(text).filter(|block| wanted(block.label)) {
        block.copy(&mut out);
    }
    out.into()
}

/// One block of a text.
pub(super) struct Block<'a> {
    pub(super) label: &'a str,
    headers: &'a str,
    pub(super) der: Zeroizing<Vec<u8>>,
}

impl Block<'_> {
    /// Writes the block anew; headers of an encrypted key are kept, or it could not be read.
    pub(super) fn copy(&self, out: &mut String) {
        let mut body = Zeroizing::new(String::new());
        write(self.label, &self.der, &mut body);
        let begin = format!("-----BEGIN {}-----\n", self.label);
        out.push_str(&begin);
        if !self.headers.is_empty() {
            for line in self.headers.lines() {
                out.push_str(line.trim_end());
                out.push('\n');
            }
            out.push('\n');
        }
        out.push_str(&body[begin.len()..]);
    }
}

/// The blocks of a text, in its order.
pub(super) struct Blocks<'a>(&'a str);

impl<'a> Blocks<'a> {
    /// Nothing where `text` is no text.
    pub(super) fn of(text: &'a [u8]) -> Self {
        Self(std::str::from_utf8(text).unwrap_or_default())
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        loop {
            let start = find_line(self.0, "-----BEGIN ")?;
            let after = &self.0[start + "-----BEGIN ".len()..];
            self.0 = after;
            let Some((label, body)) = after.split_once("-----") else { continue };
            if label.contains('\n') || !body.starts_with(['\n', '\r']) {
                continue;
            }
            let end = format!("-----END {label}-----");
            let Some((body, rest)) = body.split_once(end.as_str()) else { continue };
            if let Some(block) = read(label, body) {
                self.0 = rest;
                return Some(block);
            }
        }
    }
}

/// Position of `word` at the start of a line.
fn find_line(text: &str, word: &str) -> Option<usize> {
    if text.starts_with(word) {
        return Some(0);
    }
    text.match_indices(word).map(|(at, _)| at).find(|at| text[..*at].ends_with('\n'))
}

fn read<'a>(label: &'a str, body: &'a str) -> Option<Block<'a>> {
    let body = body.trim_start();
    let has_headers = body.lines().next().is_some_and(|line| line.contains(':'));
    let (headers, data) = match body.split_once("\n\n").or_else(|| body.split_once("\n\r\n")) {
        Some((headers, data)) if has_headers => (headers, data),
        _ if has_headers => return None,
        _ => ("", body),
    };
    let compact = Zeroizing::new(data.split_whitespace().collect::<String>());
    let der = Zeroizing::new(STANDARD.decode(compact.as_bytes()).ok()?);
    Some(Block { label, headers, der })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn azure_9_3_split_drops_the_text_around_and_keeps_headers() {
        let mut text = "note\n".to_owned();
        write("CERTIFICATE", &[1; 50], &mut text);
        text.push_str("Bag Attributes\n-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAEC\n-----END RSA PRIVATE KEY-----\n");
        let mut want = String::new();
        write("CERTIFICATE", &[1; 50], &mut want);
        assert_eq!(certificates(text.as_bytes()).expose(), want.as_bytes());
        let keys = keys(text.as_bytes());
        let keys = std::str::from_utf8(keys.expose()).unwrap();
        assert!(
            keys.starts_with(
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAEC\n-----END"
            ),
            "{keys}"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".*", label in "[A-Z ]{0,9}") {
            let _ = certificates(text.as_bytes());
            let _ = keys(format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----").as_bytes());
        }
    }
}
