//! Reads one entry of an `objects` text: fields by name, every problem collected.

use crate::error::{Problem, Spot};
use crate::plan::Missing;
use crate::secret::SecretBytes;
use crate::yaml::{Content, Node};

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

    /// Whether the field is there with a value.
    pub fn has(&self, field: &str) -> bool {
        self.node.get(field).is_some_and(|value| !matches!(value.content, Content::Null))
    }

    /// A boolean: `true`, `false` and the other spellings of Go's ParseBool.
    pub fn flag(&self, field: &str, problems: &mut Vec<Problem>) -> bool {
        let text = self.text(field, problems);
        boolean(&text).unwrap_or_else(|| {
            problems.push(
                Problem::config(format!("{field} {text:?} is no boolean"))
                    .at(self.spot_of(field))
                    .hint("write true or false"),
            );
            false
        })
    }

    /// `optional` and `default`: what happens when the store has no such object.
    pub fn missing(&self, problems: &mut Vec<Problem>) -> Missing {
        let optional = self.flag("optional", problems);
        if !self.has("default") {
            return if optional { Missing::Skips } else { Missing::Fails };
        }
        if !optional {
            problems.push(
                Problem::config("default is given but the entry is not optional")
                    .at(self.spot_of("default"))
                    .hint("add optional: true, or remove default"),
            );
        }
        Missing::Gives(SecretBytes::from(self.text("default", problems)))
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
