//! DER, as far as we read and write it ourselves.

/// One item.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) tag: u8,
    /// With tag and length.
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
}

/// The items that follow each other in `der`; nothing where it is not DER of short tags.
pub(super) fn items(mut der: &[u8]) -> Option<Vec<Item<'_>>> {
    let mut found = Vec::new();
    while let [tag, first, ..] = *der {
        let (head, length) = match usize::from(first) {
            short @ 0..0x80 => (2, short),
            long => {
                let head = 2 + (long & 0x7f);
                let bytes = der.get(2..head).filter(|bytes| (1..=4).contains(&bytes.len()))?;
                (head, bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
            }
        };
        let whole = der.get(..head.checked_add(length)?)?;
        found.push(Item { tag, whole, content: &whole[head..] });
        der = &der[whole.len()..];
    }
    der.is_empty().then_some(found)
}

/// The items inside the one item that `der` is.
pub(super) fn inside(der: &[u8]) -> Option<Vec<Item<'_>>> {
    match items(der)?.as_slice() {
        [only] => items(only.content),
        _ => None,
    }
}

/// Writes one item.
pub(super) fn item(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|b| **b == 0).count().min(length.len() - 1)..];
    let mut out = Vec::with_capacity(content.len() + 10);
    out.push(tag);
    if content.len() >= 0x80 {
        // At most eight bytes of length.
        out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
    }
    out.extend_from_slice(significant);
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_panics(content in prop::collection::vec(any::<u8>(), 0..400)) {
            let whole = item(0x30, &content);
            let read = items(&whole).unwrap();
            prop_assert_eq!((read.len(), read[0].tag, read[0].content), (1, 0x30, &content[..]));
            let _ = (items(&content), inside(&content));
        }
    }
}
