//! PKCS#12 whose password is no byte at all, as some writers mean by an empty one (azure.md 9.2).
//!
//! The format turns a password into UTF-16 with two zero bytes behind it, and most writers do so for the empty
//! one too; others derive their keys from nothing. The reader that we use knows the first kind. This takes MAC
//! and old encryption of the second kind away, so that the reader can do the rest.

use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockCipherDecrypt, BlockModeDecrypt, KeyInit, KeyIvInit};
use ring::{digest, hmac};
use zeroize::Zeroizing;

use super::der::{Item, inside, item, items};

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const EXPLICIT: u8 = 0xa0;
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const KEY_BAG: &[u8] = &[0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x01];
const SHROUDED: &[u8] = &[0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02];
const TRIPLE_DES: &[u8] = &[0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01, 0x03];
const RC2_40: &[u8] = &[0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01, 0x06];
/// Hashes of a MAC.
const HASHES: [(&[u8], &digest::Algorithm, hmac::Algorithm); 4] = [
    (&[0x2b, 0x0e, 0x03, 0x02, 0x1a], &digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], &digest::SHA256, hmac::HMAC_SHA256),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02], &digest::SHA384, hmac::HMAC_SHA384),
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03], &digest::SHA512, hmac::HMAC_SHA512),
];
/// Rounds of a derivation at most; the value is not ours.
const MOST_ROUNDS: u32 = 1_000_000;
/// What a derived key is for.
const KEY: u8 = 1;
const VECTOR: u8 = 2;
const MAC: u8 = 3;

/// The same archive without MAC and old encryption, if its MAC proves that its password is no byte at all.
pub(super) fn open(pfx: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let [version, safes, mac] = inside(pfx)?.try_into().ok()?;
    let safes = data(safes.whole)?;
    verify(&mac, safes)?;
    let mut opened = Zeroizing::new(Vec::with_capacity(pfx.len()));
    for info in inside(safes)? {
        opened.extend_from_slice(&unlock(info.whole)?);
    }
    let safes = Zeroizing::new(item(SEQUENCE, &opened));
    let whole = Zeroizing::new([version.whole, &content_info(&safes)].concat());
    Some(Zeroizing::new(item(SEQUENCE, &whole)))
}

/// `ContentInfo` of data.
fn content_info(data: &[u8]) -> Vec<u8> {
    let octets = Zeroizing::new(item(OCTETS, data));
    item(SEQUENCE, &Zeroizing::new([DATA, &item(EXPLICIT, &octets)].concat()))
}

/// The bytes of a `ContentInfo` of data.
fn data(info: &[u8]) -> Option<&[u8]> {
    match inside(info)?.as_slice() {
        [kind, value] if kind.whole == DATA => match items(value.content)?.as_slice() {
            [octets] if octets.tag == OCTETS => Some(octets.content),
            _ => None,
        },
        _ => None,
    }
}

/// `MacData`: digest, salt, rounds.
fn verify(mac: &Item<'_>, safes: &[u8]) -> Option<()> {
    let (info, salt, rounds) = match items(mac.content)?.as_slice() {
        [info, salt] => (info.content, salt.content, 1),
        [info, salt, rounds] => (info.content, salt.content, number(rounds.content)?),
        _ => return None,
    };
    let [algorithm, tag] = items(info)?.try_into().ok()?;
    let name = items(algorithm.content)?.first()?.content;
    let (_, hash, hmac) = HASHES.iter().find(|(known, ..)| *known == name)?;
    let key = derive(hash, MAC, salt, rounds, hash.output_len())?;
    hmac::verify(&hmac::Key::new(*hmac, &key), safes, tag.content).ok()
}

/// A `ContentInfo` with its safe and the keys in it unlocked. A lock that the reader opens by itself stays.
fn unlock(info: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let safe = match inside(info)?.as_slice() {
        [kind, value] if kind.whole == ENCRYPTED => {
            let [_version, content] = inside(value.content)?.try_into().ok()?;
            let [_kind, algorithm, bytes] = items(content.content)?.try_into().ok()?;
            match decrypt(&algorithm, bytes.content) {
                Some(safe) => safe,
                None => return Some(Zeroizing::new(info.to_vec())),
            }
        }
        _ => Zeroizing::new(data(info)?.to_vec()),
    };
    let mut bags = Zeroizing::new(Vec::with_capacity(safe.len()));
    for bag in inside(&safe)? {
        bags.extend_from_slice(&self::bag(&bag)?);
    }
    let safe = Zeroizing::new(item(SEQUENCE, &bags));
    Some(Zeroizing::new(content_info(&safe)))
}

/// A bag; a locked key becomes an open one.
fn bag(bag: &Item<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let parts = items(bag.content)?;
    let [kind, value, rest @ ..] = parts.as_slice() else { return None };
    if kind.whole != SHROUDED {
        return Some(Zeroizing::new(bag.whole.to_vec()));
    }
    let [algorithm, bytes] = inside(value.content)?.try_into().ok()?;
    let Some(key) = decrypt(&algorithm, bytes.content) else {
        return Some(Zeroizing::new(bag.whole.to_vec()));
    };
    let mut open = Zeroizing::new([KEY_BAG, &Zeroizing::new(item(EXPLICIT, &key))].concat());
    rest.iter().for_each(|attributes| open.extend_from_slice(attributes.whole));
    Some(Zeroizing::new(item(SEQUENCE, &open)))
}

/// Opens what one of the two old ciphers closed.
fn decrypt(algorithm: &Item<'_>, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let [name, parameters] = items(algorithm.content)?.try_into().ok()?;
    let open = match name.whole {
        TRIPLE_DES => cbc::<des::TdesEde3>,
        RC2_40 => cbc::<rc2::Rc2>,
        _ => return None,
    };
    let [salt, rounds] = items(parameters.content)?.try_into().ok()?;
    let length = if name.whole == RC2_40 { 5 } else { 24 };
    let hash = &digest::SHA1_FOR_LEGACY_USE_ONLY;
    let rounds = number(rounds.content)?;
    let key = derive(hash, KEY, salt.content, rounds, length)?;
    let vector = derive(hash, VECTOR, salt.content, rounds, 8)?;
    open(&key, &vector, bytes)
}

fn cbc<C: KeyInit + BlockCipherDecrypt>(
    key: &[u8],
    vector: &[u8],
    bytes: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, vector).ok()?;
    let mut bytes = Zeroizing::new(bytes.to_vec());
    let length = cipher.decrypt_padded::<Pkcs7>(&mut bytes).ok()?.len();
    bytes.truncate(length);
    Some(bytes)
}

fn number(bytes: &[u8]) -> Option<u32> {
    let number =
        bytes.iter().try_fold(0_u32, |number, byte| number.checked_mul(256)?.checked_add((*byte).into()))?;
    (1..=MOST_ROUNDS).contains(&number).then_some(number)
}

/// RFC 7292 appendix B.2, for a password of no bytes.
fn derive(
    hash: &'static digest::Algorithm,
    purpose: u8,
    salt: &[u8],
    rounds: u32,
    length: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let block = hash.block_len();
    if salt.is_empty() || salt.len() > 1024 {
        return None;
    }
    let mut input: Vec<u8> = salt.iter().copied().cycle().take(block * salt.len().div_ceil(block)).collect();
    let mut out = Zeroizing::new(Vec::with_capacity(length + hash.output_len()));
    loop {
        let mut state = digest::digest(hash, &[&vec![purpose; block], &input[..]].concat());
        for _ in 1..rounds {
            state = digest::digest(hash, state.as_ref());
        }
        out.extend_from_slice(state.as_ref());
        if out.len() >= length {
            out.truncate(length);
            return Some(out);
        }
        for part in input.chunks_mut(block) {
            let mut carry = 1_u16;
            for (at, byte) in part.iter_mut().enumerate().rev() {
                let add = state.as_ref()[at % hash.output_len()];
                let [high, low] = (u16::from(*byte) + u16::from(add) + carry).to_be_bytes();
                (*byte, carry) = (low, high.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> Vec<u8> {
        let text = include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/shape/pfx/ec-keytool-legacy-zero.b64"
        ));
        super::super::decode::base64(text).unwrap().expose().to_vec()
    }

    #[test]
    fn only_a_mac_that_fits_opens() {
        assert!(open(&file()).is_some());
        let mut other = file();
        let at = other.len() - 40;
        other[at] ^= 1;
        assert!(open(&other).is_none(), "salt or digest of the MAC was changed");
        let with_bytes =
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shape/pfx/ec-keytool.b64"));
        let with_bytes = super::super::decode::base64(with_bytes).unwrap();
        assert!(open(with_bytes.expose()).is_none(), "the other kind of empty password");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_value_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut file = file();
            let at = at.index(file.len());
            file[at] = byte;
            let _ = open(&file);
        }
    }
}
