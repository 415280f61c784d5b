//! A member of a JSON or YAML value.
//!
//! The exact name comes first, then a dotted path. Texts are given raw, numbers as they were written,
//! booleans as words; what is nested is refused, as is null (tracker T26).

use super::{Error, error};
use crate::entry::nearest;
use crate::secret::SecretBytes;
use crate::yaml::{self, Content, Node};

/// The member at `path`. JSON is YAML as well, and the reader keeps numbers as they were written.
pub fn field(value: &[u8], path: &str) -> Result<SecretBytes, Error> {
    let text =
        std::str::from_utf8(value).map_err(|_| error("the value is not text, so it has no members"))?;
    let root =
        yaml::parse(text).ok().flatten().filter(|root| matches!(root.content, Content::Map(_))).ok_or_else(
            || error(format!("the value is not a JSON or YAML object, so it has no member {path:?}")),
        )?;
    let node = find(&root, path).ok_or_else(|| absent(&root, path))?;
    match &node.content {
        Content::Text { text, .. } => Ok(SecretBytes::from(text.clone())),
        Content::Null => Err(error(format!("member {path:?} of the value is null"))),
        Content::List(_) | Content::Map(_) => {
            Err(error(format!("member {path:?} of the value is a {}, not a text or a number", node.kind())))
        }
    }
}

fn find<'a>(node: &'a Node, path: &str) -> Option<&'a Node> {
    if let Some(found) = node.get(path) {
        return Some(found);
    }
    let dots = path.match_indices('.').map(|(at, _)| at);
    dots.filter_map(|at| find(node.get(&path[..at])?, &path[at + 1..])).next()
}

fn absent(root: &Node, path: &str) -> Error {
    let Content::Map(fields) = &root.content else { return error("the value has no members") };
    let names: Vec<_> = fields.iter().map(|(key, _)| key.name.as_str()).collect();
    error(format!("member {path:?} is not in the value{}", nearest(path, &names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &[u8] =
        br#"{"port":5432,"r":1.50,"big":12345678901234567890,"on":true,"a.b":"x","c":{"d":"y\nz"},"n":null}"#;

    #[test]
    fn t26_numbers_and_booleans_are_as_written() {
        for (path, want) in [
            ("port", "5432"),
            ("r", "1.50"),
            ("big", "12345678901234567890"),
            ("on", "true"),
            ("a.b", "x"),
            ("c.d", "y\nz"),
        ] {
            assert_eq!(field(JSON, path).unwrap().expose(), want.as_bytes(), "{path}");
        }
        assert_eq!(field(b"pw: 0123\n", "pw").unwrap().expose(), b"0123");
    }

    #[test]
    fn a_missing_member_names_the_nearest_and_no_value() {
        let text = field(JSON, "prot").unwrap_err().to_string();
        assert!(text.contains("did you mean \"port\"?") && !text.contains("5432"), "{text}");
        for path in ["n", "c"] {
            assert!(field(JSON, path).is_err());
        }
        assert!(field(b"plain", "a").unwrap_err().to_string().contains("not a JSON or YAML object"));
    }
}
