//! Reads one entry of an `objects` text: fields by name, every problem collected.

use crate::call::Parameters;
use crate::error::{Problem, Rule, Spot, Warning};
use crate::path::Mode;
use crate::plan::Missing;
use crate::secret::SecretBytes;
use crate::yaml::{Content, Node, Within};

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

/// How classes of one backend are written.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Parameters of a class.
    pub parameters: &'static [Field],
    /// Fields of an entry of `objects`.
    pub entry: &'static [Field],
    /// Whether entries may stand below a key `array`, each as a text of its own.
    pub array: bool,
}

impl Dialect {
    /// Of a backend whose classes nobody writes.
    pub const NONE: Self = Self { parameters: &[], entry: &[], array: false };
}

/// One entry under examination. Places are those of the parameter that the entry stands in.
pub struct Entry<'a> {
    node: &'a Node,
    name: String,
    within: Within<'a>,
    known: &'static [&'static str],
}

impl<'a> Entry<'a> {
    /// Takes the mapping `node`, which is called `name` (`objects[2]`) in errors and may have the
    /// fields `known`; `within` says where its text stands in the parameter.
    pub fn new(node: &'a Node, name: String, within: Within<'a>, known: &'static [&'static str]) -> Self {
        Self { node, name, within, known }
    }

    /// Place of the whole entry.
    pub fn spot(&self) -> Spot {
        Spot::at(&self.name, self.within.place(self.node.place))
    }

    /// Place of a field's value; of its name where it has no value, of the entry where it has no such field.
    pub fn spot_of(&self, field: &str) -> Spot {
        let place = match self.node.field(field) {
            Some((key, value)) if value.is_null() => key.place,
            Some((_, value)) => value.place,
            None => self.node.place,
        };
        Spot::at(format!("{}.{field}", self.name), self.within.place(place))
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
    pub fn unknown(&self) -> Vec<Warning> {
        let odd = self.node.fields().iter().filter(|(key, _)| !self.known.contains(&key.name.as_str()));
        odd.map(|(key, _)| {
            let near = nearest(&key.name, self.known);
            let spot = Spot::at(format!("{}.{}", self.name, key.name), self.within.place(key.place));
            Warning::new(
                Rule::UnknownField,
                format!("field {:?} is unknown and ignored{near}", key.name),
                spot,
            )
        })
        .collect()
    }

    /// Says that the mode in `field` shuts out every process that is not root (tracker T35).
    pub fn unreadable(&self, field: &str, mode: Option<Mode>) -> Option<Warning> {
        let mode = mode.filter(|mode| !mode.readable_by_others())?;
        let group = if mode.bits() & 0o040 == 0 { "" } else { " and its group" };
        let what = format!(
            "{field} {mode} can be read by root{group} alone: files belong to root, and fsGroup has no effect on them; \
             a container of another user needs {}",
            mode.with_read_for_others()
        );
        Some(Warning::new(Rule::Unreadable, what, self.spot_of(field)))
    }
}

/// Names the parameters that are not `known`, with the nearest name that is.
pub fn unknown_parameters(parameters: &Parameters, known: &[&str]) -> Vec<Warning> {
    let odd = parameters.keys().filter(|key| !known.contains(key));
    odd.map(|key| {
        let what = format!("parameter {key:?} is unknown and ignored{}", nearest(key, known));
        Warning::new(Rule::UnknownParameter, what, Spot::field(key))
    })
    .collect()
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
