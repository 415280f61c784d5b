//! base64 and hex, with the error texts that users of the peer know (azure.md 9.1).

use super::{Error, error};
use crate::secret::SecretBytes;

/// Standard base64: padding mandatory, CR and LF skipped.
pub fn base64(text: &[u8]) -> Result<SecretBytes, Error> {
    let bad = |at: usize| error(format!("illegal base64 data at input byte {at}"));
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut group, mut filled) = (0_u32, 0);
    for (at, byte) in text.iter().enumerate().filter(|(_, byte)| !is_break(**byte)) {
        if *byte == b'=' {
            padding(text, at, filled).map_err(bad)?;
            let bits = group << (6 * (4 - filled));
            bytes.extend_from_slice(&bits.to_be_bytes()[1..filled]);
            return Ok(SecretBytes::new(bytes));
        }
        group = group << 6 | sextet(*byte, b'+', b'/').ok_or_else(|| bad(at))?;
        filled += 1;
        if filled == 4 {
            bytes.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, filled) = (0, 0);
        }
    }
    if filled == 0 { Ok(SecretBytes::new(bytes)) } else { Err(bad(text.len() - filled)) }
}

/// Checks the end of a text whose first `=` is at `at`; the error is the offending position.
fn padding(text: &[u8], at: usize, filled: usize) -> Result<(), usize> {
    let mut rest = (at + 1..text.len()).filter(|i| !is_break(text[*i]));
    match filled {
        0 | 1 => return Err(at),
        2 => match rest.next() {
            None => return Err(text.len()),
            Some(next) if text[next] != b'=' => return Err(next - 1),
            Some(_) => {}
        },
        _ => {}
    }
    rest.next().map_or(Ok(()), Err)
}

fn is_break(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

fn sextet(byte: u8, plus: u8, slash: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        _ if byte == plus => 62,
        _ if byte == slash => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

/// URL-safe base64, with or without padding, CR and LF skipped.
pub fn base64url(text: &[u8]) -> Result<SecretBytes, Error> {
    let bad = |at: usize| error(format!("illegal base64url data at input byte {at}"));
    let end = text.iter().rposition(|b| *b != b'=' && !is_break(*b)).map_or(0, |at| at + 1);
    let mut bytes = Vec::with_capacity(end / 4 * 3 + 3);
    let (mut group, mut filled) = (0_u32, 0);
    for (at, byte) in text[..end].iter().enumerate().filter(|(_, byte)| !is_break(**byte)) {
        group = group << 6 | sextet(*byte, b'-', b'_').ok_or_else(|| bad(at))?;
        filled += 1;
        if filled == 4 {
            bytes.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, filled) = (0, 0);
        }
    }
    match filled {
        0 => {}
        1 => return Err(bad(end - 1)),
        _ => bytes.extend_from_slice(&(group << (6 * (4 - filled))).to_be_bytes()[1..filled]),
    }
    Ok(SecretBytes::new(bytes))
}

/// Pairs of hex digits, either case, nothing else. The peer prints the offending byte; a byte of a
/// value does not belong into an error, so this names its position.
pub fn hex(text: &[u8]) -> Result<SecretBytes, Error> {
    let digit = |at: usize| {
        char::from(text[at])
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
            .ok_or_else(|| error(format!("encoding/hex: invalid byte: at input byte {at}")))
    };
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for at in (0..text.len()).step_by(2) {
        let high = digit(at)?;
        if at + 1 == text.len() {
            return Err(error("encoding/hex: odd length hex string"));
        }
        bytes.push(high << 4 | digit(at + 1)?);
    }
    Ok(SecretBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::base64::Engine;
    use ::base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    fn fails(text: &str) -> String {
        base64(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn azure_18_4_and_5_base64_and_hex() {
        assert_eq!(base64(b"AAEC/w==").unwrap().expose(), [0, 1, 2, 255]);
        assert_eq!(base64(b"AAEC\r\n/w==\n").unwrap().expose(), [0, 1, 2, 255]);
        assert_eq!(fails("AAEC/w"), "illegal base64 data at input byte 4");
        assert_eq!(hex(b"00Ff10").unwrap().expose(), [0, 255, 16]);
    }

    #[test]
    fn azure_9_1_bad_base64_names_the_position() {
        for (text, at) in
            [("AA C", 2), ("A===", 1), ("AA=A", 2), ("AA=", 3), ("AAAA=", 4), ("AAA=AAAA", 4), ("AA==A", 4)]
        {
            assert_eq!(fails(text), format!("illegal base64 data at input byte {at}"), "{text}");
        }
    }

    #[test]
    fn azure_9_1_bad_hex_names_no_byte_of_the_value() {
        assert_eq!(hex(b"0g").unwrap_err().to_string(), "encoding/hex: invalid byte: at input byte 1");
        assert_eq!(hex(b"000").unwrap_err().to_string(), "encoding/hex: odd length hex string");
    }

    proptest! {
        #[test]
        fn decoders_undo_encoders_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let standard = base64(STANDARD.encode(&bytes).as_bytes()).unwrap();
            prop_assert_eq!(standard.expose(), &bytes[..]);
            let url = base64url(URL_SAFE_NO_PAD.encode(&bytes).as_bytes()).unwrap();
            prop_assert_eq!(url.expose(), &bytes[..]);
            let _ = (base64(&bytes), base64url(&bytes), hex(&bytes));
        }
    }
}
