//! Reads one entry of an `objects` text: fields by name, every problem collected.

use crate::error::{Problem, Spot};
use crate::plan::Missing;
use crate::secret::SecretBytes;
use crate::yaml::{Content, Node};

/// A parameter or a field of an entry, as the reference shows it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name; case counts.
    pub name: &'static str,
    /// What it may hold, in Markdown.
    pub accepts: &'static str,
    /// What holds where it is empty.
    pub default: &'static str,
    /// What it does.
    pub says: &'static str,
    /// Whether the peer has it not.
    pub own: bool,
}

impl Field {
    /// One that the peer has as well.
    pub const fn new(
        name: &'static str,
        accepts: &'static str,
        default: &'static str,
        says: &'static str,
    ) -> Self {
        Self { name, accepts, default, says, own: false }
    }

    /// One that the peer does not have.
    pub const fn own(
        name: &'static str,
        accepts: &'static str,
        default: &'static str,
        says: &'static str,
    ) -> Self {
        Self { name, accepts, default, says, own: true }
    }
}

/// The names of `fields`.
pub const fn names<const N: usize>(fields: &[Field; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = fields[at].name;
        at += 1;
    }
    names
}

/// One entry under examination. Line numbers are those of the text that the entry stands in.
pub struct Entry<'a> {
    node: &'a Node,
    name: String,
    line_offset: usize,
    known: &'static [&'static str],
}

impl<'a> Entry<'a> {
    /// Takes the mapping `node`, which is called `name` (`objects[2]`) in errors and may have the
    /// fields `known`; `line_offset` is added to the lines of a text inside a text.
    pub fn new(node: &'a Node, name: String, line_offset: usize, known: &'static [&'static str]) -> Self {
        Self { node, name, line_offset, known }
    }

    /// Place of the whole entry.
    pub fn spot(&self) -> Spot {
        Spot { field: self.name.clone(), line: Some(self.node.place.line + self.line_offset) }
    }

    /// Place of a field, or of the entry where it has no such field.
    pub fn spot_of(&self, field: &str) -> Spot {
        let line = self.node.get(field).unwrap_or(self.node).place.line + self.line_offset;
        Spot { field: format!("{}.{field}", self.name), line: Some(line) }
    }

    /// Text of a field without surrounding white space; empty where it is absent or null.
    pub fn text(&self, field: &str, problems: &mut Vec<Problem>) -> String {
        let Some(value) = self.node.get(field) else { return String::new() };
        match &value.content {
            Content::Null => String::new(),
            Content::Text { text, .. } => text.trim().to_owned(),
            Content::List(_) | Content::Map(_) => {
                problems.push(
                    Problem::config(format!("cannot unmarshal {} into string", value.kind()))
                        .at(self.spot_of(field))
                        .hint(format!("give {field} as one text")),
                );
                String::new()
            }
        }
    }

    /// The node of a field.
    pub fn node(&self, field: &str) -> Option<&Node> {
        self.node.get(field)
    }

    /// Whether the field is there with a value.
    pub fn has(&self, field: &str) -> bool {
        self.node.get(field).is_some_and(|value| !matches!(value.content, Content::Null))
    }

    /// A boolean: `true`, `false` and the other spellings of Go's ParseBool; false where it is absent.
    pub fn flag(&self, field: &str, problems: &mut Vec<Problem>) -> bool {
        self.choice(field, problems).unwrap_or_default()
    }

    /// A boolean that may be left to a default.
    pub fn choice(&self, field: &str, problems: &mut Vec<Problem>) -> Option<bool> {
        let text = self.text(field, problems);
        if text.is_empty() {
            return None;
        }
        let read = boolean(&text);
        if read.is_none() {
            problems.push(
                Problem::config(format!("{field} {text:?} is no boolean"))
                    .at(self.spot_of(field))
                    .hint("write true or false"),
            );
        }
        read
    }

    /// What happens when the store has no such object: the fields `optional` and `default` (tracker T08).
    pub fn missing(&self, problems: &mut Vec<Problem>) -> Missing {
        let optional = self.flag("optional", problems);
        if self.has("default") {
            if !optional {
                problems.push(
                    Problem::config("default is given but the entry is not optional")
                        .at(self.spot_of("default"))
                        .hint("add optional: true, or remove default"),
                );
            }
            return Missing::Gives(SecretBytes::from(self.text("default", problems)));
        }
        if optional { Missing::Skips } else { Missing::Fails }
    }

    /// Names fields that mean nothing, with the nearest name that does.
    pub fn unknown(&self) -> Vec<(Spot, String)> {
        let Content::Map(fields) = &self.node.content else { return Vec::new() };
        let odd = fields.iter().filter(|(key, _)| !self.known.contains(&key.name.as_str()));
        odd.map(|(key, _)| {
            let spot = Spot {
                field: format!("{}.{}", self.name, key.name),
                line: Some(key.place.line + self.line_offset),
            };
            (spot, format!("field {:?} is unknown and ignored{}", key.name, nearest(&key.name, self.known)))
        })
        .collect()
    }
}

/// Reads the spellings of azure.md 4; empty is false.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// `, did you mean "x"?` for the nearest of `known`, or nothing.
pub fn nearest(found: &str, known: &[&str]) -> String {
    let lower = found.to_lowercase();
    let best = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 3 + 1);
    best.map_or(String::new(), |(_, name)| format!(", did you mean {name:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_4_booleans_are_those_of_go() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["", "0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["yes", "on", "tRuE", "2"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }
}
