//! Parts of a certificate with its key, out of PEM (azure.md 16 rows 18, 33). An empty part is an error,
//! since nobody asks for an empty file.

use zeroize::Zeroizing;

use super::pem::{Block, Blocks};
use super::{Error, Pem, chain, error};
use crate::secret::SecretBytes;

const CERTIFICATE: &str = "CERTIFICATE";

/// The private keys; mostly it is one.
pub fn key(text: &[u8]) -> Result<SecretBytes, Error> {
    write(Blocks::of(text).filter(|block| block.label != CERTIFICATE), "private key")
}

/// The certificate that signs no other.
pub fn leaf(text: &[u8]) -> Result<SecretBytes, Error> {
    let certificates = certificates(text);
    let leaf = chain::leaf(&ders(&certificates))?;
    write(certificates.iter().skip(leaf).take(1), "certificate")
}

/// All certificates.
pub fn chain(text: &[u8]) -> Result<SecretBytes, Error> {
    write(certificates(text).iter(), "certificate")
}

/// All certificates but the leaf.
pub fn authorities(text: &[u8]) -> Result<SecretBytes, Error> {
    let certificates = certificates(text);
    let leaf = chain::leaf(&ders(&certificates))?;
    let others = certificates.iter().enumerate().filter(|(at, _)| *at != leaf).map(|(_, block)| block);
    write(others, "certificate of an authority")
}

/// Private keys, then the certificates leaf first and root last.
pub fn in_order(text: &[u8]) -> Result<Pem, Error> {
    let certificates = certificates(text);
    let chain::Order { order, note } = chain::order(&ders(&certificates))?;
    let keys: Vec<_> = Blocks::of(text).filter(|block| block.label != CERTIFICATE).collect();
    let text = write(keys.iter().chain(order.iter().map(|at| &certificates[*at])), "block")?;
    Ok(Pem { text, note })
}

fn certificates(text: &[u8]) -> Vec<Block<'_>> {
    Blocks::of(text).filter(|block| block.label == CERTIFICATE).collect()
}

fn ders<'a>(blocks: &'a [Block<'_>]) -> Vec<&'a [u8]> {
    blocks.iter().map(|block| block.der.as_slice()).collect()
}

fn write<'a, B: std::borrow::Borrow<Block<'a>>>(
    blocks: impl Iterator<Item = B>,
    what: &str,
) -> Result<SecretBytes, Error> {
    let mut out = Zeroizing::new(String::new());
    blocks.for_each(|block| block.borrow().copy(&mut out));
    if out.is_empty() {
        return Err(error(format!("the value holds no {what} as PEM")));
    }
    Ok(SecretBytes::new(std::mem::take(&mut *out).into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shape/key.pem"));
    const CHAIN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shape/chain.pem"));

    fn blocks() -> Vec<String> {
        let end = "-----END CERTIFICATE-----\n";
        CHAIN.split_inclusive(end).map(ToOwned::to_owned).collect()
    }

    fn text(part: Result<SecretBytes, Error>) -> String {
        String::from_utf8(part.unwrap().expose().to_vec()).unwrap()
    }

    #[test]
    fn t11_each_part_is_exactly_its_blocks() {
        let [leaf_pem, mid, root] = blocks().try_into().unwrap();
        let all = format!("{root}{KEY}{leaf_pem}{mid}");
        assert_eq!(text(key(all.as_bytes())), KEY);
        assert_eq!(text(leaf(all.as_bytes())), leaf_pem);
        assert_eq!(text(chain(all.as_bytes())), format!("{root}{leaf_pem}{mid}"));
        assert_eq!(text(authorities(all.as_bytes())), format!("{root}{mid}"));
    }

    #[test]
    fn azure_16_18_a_pem_text_can_be_put_in_order() {
        let [leaf_pem, mid, root] = blocks().try_into().unwrap();
        let got = in_order(format!("{root}{leaf_pem}{KEY}{mid}").as_bytes()).unwrap();
        assert_eq!(got.text.expose(), format!("{KEY}{CHAIN}").as_bytes());
        assert_eq!(got.note, None);
        let gap = in_order(format!("{root}{leaf_pem}{KEY}").as_bytes()).unwrap();
        assert_eq!(gap.text.expose(), format!("{KEY}{root}{leaf_pem}").as_bytes());
        assert!(gap.note.unwrap().contains("mid"));
    }

    #[test]
    fn an_empty_part_is_an_error() {
        let leaf_pem = blocks().remove(0);
        for (part, what) in [
            (key(leaf_pem.as_bytes()), "no private key"),
            (authorities(leaf_pem.as_bytes()), "no certificate of an authority"),
            (chain(KEY.as_bytes()), "no certificate"),
            (leaf(b"\xff"), "no leaf"),
        ] {
            assert!(part.unwrap_err().to_string().contains(what), "{what}");
        }
    }
}
