//! A JSON Web Key to a public key in PEM (azure.md 9.4).

use serde::Deserialize;

use super::der::item;
use super::{Error, decode, error, pem};
use crate::secret::SecretBytes;

#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// The SubjectPublicKeyInfo of the key as a `PUBLIC KEY` block.
pub fn to_pem(json: &[u8]) -> Result<SecretBytes, Error> {
    let jwk: Jwk = serde_json::from_slice(json).map_err(|_| error("the key is not a JSON Web Key"))?;
    let der = match jwk.kty.as_deref() {
        Some("RSA" | "RSA-HSM") => rsa(&jwk)?,
        Some("EC" | "EC-HSM") => ec(&jwk)?,
        Some(other) => {
            return Err(error(format!("failed to get key. key type '{other}' currently not supported")));
        }
        None => return Err(error("failed to get key. the store gave no key type (kty)")),
    };
    let mut text = String::new();
    pem::write("PUBLIC KEY", &der, &mut text);
    Ok(text.into())
}

fn member(value: Option<&String>, name: &str) -> Result<SecretBytes, Error> {
    let text = value.ok_or_else(|| error(format!("failed to get key. the store gave no {name}")))?;
    decode::base64url(text.as_bytes())
        .ok()
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| error(format!("failed to get key. {name} is not base64url")))
}

fn rsa(jwk: &Jwk) -> Result<Vec<u8>, Error> {
    let (n, e) = (member(jwk.n.as_ref(), "n")?, member(jwk.e.as_ref(), "e")?);
    let key = item(SEQUENCE, &[integer(n.expose()), integer(e.expose())].concat());
    Ok(public_key(RSA, &key))
}

fn ec(jwk: &Jwk) -> Result<Vec<u8>, Error> {
    let (curve, size) = match jwk.crv.as_deref() {
        Some("P-256") => (P256, 32),
        Some("P-384") => (P384, 48),
        Some("P-521") => (P521, 66),
        Some(other) => return Err(error(format!("curve {other} is not supported"))),
        None => return Err(error("failed to get key. the store gave no curve (crv)")),
    };
    let (x, y) = (member(jwk.x.as_ref(), "x")?, member(jwk.y.as_ref(), "y")?);
    let mut point = vec![4];
    for coordinate in [x, y] {
        let bytes = coordinate.expose();
        let skip = bytes.iter().take_while(|b| **b == 0).count().min(bytes.len().saturating_sub(size));
        let bytes = &bytes[skip..];
        let missing = size
            .checked_sub(bytes.len())
            .ok_or_else(|| error("failed to get key. a coordinate is too long"))?;
        point.extend(std::iter::repeat_n(0, missing));
        point.extend_from_slice(bytes);
    }
    Ok(public_key(&[EC, curve].concat(), &point))
}

fn public_key(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let bits = [&[0], key].concat();
    item(SEQUENCE, &[item(SEQUENCE, algorithm), item(BIT_STRING, &bits)].concat())
}

/// A DER integer is signed: a high first bit needs a zero before it, other leading zeros go.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|b| **b == 0).count().min(bytes.len() - 1);
    let bytes = &bytes[zeros..];
    let sign: &[u8] = if bytes[0] & 0x80 == 0 { &[] } else { &[0] };
    item(INTEGER, &[sign, bytes].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> String {
        String::from_utf8(to_pem(json.as_bytes()).unwrap().expose().to_vec()).unwrap()
    }

    #[test]
    fn azure_18_6_ec_key() {
        for kty in ["EC", "EC-HSM"] {
            let json = format!(
                r#"{{"kty":"{kty}","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}}"#
            );
            assert_eq!(
                text(&json),
                "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMKBCTNIcKUSDii11ySs3526iDZ8A\niTo7Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==\n-----END PUBLIC KEY-----\n"
            );
        }
    }

    #[test]
    fn azure_18_7_rsa_key() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let pem = text(&format!(r#"{{"kty":"RSA-HSM","e":"AQAB","n":"{n}"}}"#));
        let lines: Vec<_> = pem.lines().collect();
        assert_eq!(lines[1], "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0vx7agoebGcQSuuPiLJX");
        assert_eq!(lines[lines.len() - 2], "gwIDAQAB");
    }

    #[test]
    fn azure_9_4_every_curve_loads() {
        // Points with leading zeros, which some writers leave out.
        for (curve, size) in [("P-256", 32_usize), ("P-384", 48), ("P-521", 66)] {
            let whole = vec![7_u8; size];
            let short = vec![7_u8; size - 1];
            let encode = |bytes: &[u8]| {
                use ::base64::Engine;
                ::base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
            };
            let (x, y) = (encode(&short), encode(&whole));
            let pem = text(&format!(r#"{{"kty":"EC-HSM","crv":"{curve}","x":"{x}","y":"{y}"}}"#));
            use rustls::pki_types::pem::PemObject;
            let der = rustls::pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, key) =
                <x509_parser::prelude::SubjectPublicKeyInfo as x509_parser::prelude::FromDer<_>>::from_der(
                    &der,
                )
                .unwrap();
            let point = key.subject_public_key.data;
            assert_eq!(point.len(), 1 + 2 * size, "{curve}");
            assert_eq!((point[0], point[1], point[2]), (4, 0, 7), "{curve}: padded to the curve's size");
        }
    }

    #[test]
    fn azure_9_4_other_keys_are_refused() {
        for (json, fragment) in [
            (r#"{"kty":"oct-HSM"}"#, "key type 'oct-HSM' currently not supported"),
            (r#"{"kty":"EC","crv":"P-256K"}"#, "curve P-256K is not supported"),
            (r#"{"kty":"EC"}"#, "crv"),
            ("{}", "kty"),
            (r#"{"kty":"RSA","n":"","e":"AQAB"}"#, "n is not base64url"),
        ] {
            let text = to_pem(json.as_bytes()).unwrap_err().to_string();
            assert!(text.contains(fragment), "{text}");
        }
    }
}
