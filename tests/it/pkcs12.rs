//! PKCS#12 files of every writer we know (tests/shape/pfx/make.sh), beside what OpenSSL prints of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyferry::shape::{decode, pkcs12};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const KINDS: [&str; 3] = ["rsa", "ec", "ed25519"];
const WRITERS: [&str; 10] = [
    "openssl",
    "openssl-legacy",
    "openssl-no-mac",
    "openssl-plain",
    "safes-1",
    "safes-3",
    "keytool",
    "keytool-legacy",
    "keytool-zero",
    "keytool-legacy-zero",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shape/pfx")
}

fn printed(kind: &str) -> String {
    std::fs::read_to_string(folder().join(format!("{kind}.pem"))).unwrap()
}

fn der(kind: &str, writer: &str) -> Vec<u8> {
    let text = std::fs::read(folder().join(format!("{kind}-{writer}.b64"))).unwrap();
    decode::base64(&text).unwrap().expose().to_vec()
}

/// Loads certificate and key as a server would.
fn load(pem: &[u8]) {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect();
    assert_eq!(chain.len(), 3);
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
}

#[test]
fn t10_every_writers_pfx_is_what_openssl_prints_and_loads() {
    let mut wrong = Vec::new();
    for kind in KINDS {
        for writer in WRITERS {
            match pkcs12::to_pem(&der(kind, writer), true) {
                Ok(pem) if pem.text.expose() == printed(kind).as_bytes() => load(pem.text.expose()),
                Ok(_) => wrong.push(format!("{kind}-{writer}: other bytes")),
                Err(error) => wrong.push(format!("{kind}-{writer}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The items of a DER text: each whole, and its content.
fn items(mut der: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let mut head = 2;
        let mut size = usize::from(der[1]);
        if size & 0x80 != 0 {
            head += size & 0x7f;
            size = der[2..head].iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
        }
        found.push((&der[..head + size], &der[head..head + size]));
        der = &der[head + size..];
    }
    found
}

fn inside<'a>(der: &'a [u8], path: &[usize]) -> &'a [u8] {
    path.iter().fold(der, |der, number| items(der)[*number].1)
}

fn item(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let size = match (high, low) {
        (0, 0..0x80) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag][..], &size, content].concat()
}

/// A PFX of one safe without encryption, with the bags of `plain` in another order.
fn reordered(plain: &[u8], order: &[usize]) -> Vec<u8> {
    let safes = inside(plain, &[0, 1, 1, 0, 0]);
    let bags: Vec<_> = items(safes)
        .iter()
        .flat_map(|(_, safe)| items(inside(safe, &[1, 0, 0])))
        .map(|(bag, _)| bag)
        .collect();
    assert_eq!(bags.len(), 4, "three certificates and a key");
    let bags: Vec<_> = order.iter().map(|at| bags[*at]).collect();
    let data = |content: &[u8]| {
        let kind = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
        item(0x30, &[&kind[..], &item(0xa0, &item(0x04, content))].concat())
    };
    let safe = data(&item(0x30, &bags.concat()));
    let version = [0x02, 0x01, 0x03];
    item(0x30, &[&version[..], &data(&item(0x30, &safe))].concat())
}

#[test]
fn t09_all_orders_of_a_chain_give_the_same_bytes() {
    for kind in ["rsa", "ec"] {
        let plain = der(kind, "openssl-plain");
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for key in 0..=3 {
                // The key bag is the last one of the file; it may stand anywhere among the others.
                let mut bags = order.to_vec();
                bags.insert(key, 3);
                let pem = pkcs12::to_pem(&reordered(&plain, &bags), true).unwrap();
                assert_eq!(pem.text.expose(), printed(kind).as_bytes(), "{kind} {bags:?}");
                assert_eq!(pem.note, None);
                load(pem.text.expose());
            }
        }
    }
}

#[test]
fn azure_9_2_without_a_certificate_or_with_the_order_off_nothing_is_judged() {
    let plain = der("ec", "openssl-plain");
    let only_key = reordered(&plain, &[3]);
    assert!(pkcs12::to_pem(&only_key, true).unwrap_err().to_string().contains("no leaf found"));
    let pem = pkcs12::to_pem(&only_key, false).unwrap();
    assert!(printed("ec").as_bytes().starts_with(pem.text.expose()));
    // Root and leaf, the intermediate is missing: the order of the file, and the issuer that is missing.
    let gap = pkcs12::to_pem(&reordered(&plain, &[3, 1, 0]), true).unwrap();
    assert!(gap.note.unwrap().contains("no certificate of issuer \"CN=mid\""));
}
