//! Places inside a text that was itself taken out of a text: an entry in the text of a parameter, the
//! parameter in a file.
//!
//! Whatever the style of a scalar, the characters that are not white space stand in its source in the
//! same order; so the n-th of the text is found again as the n-th of the source.

use std::cell::OnceCell;
use std::rc::Rc;

use granit_parser::ScalarStyle;

use super::{Content, Node, Place, Raw};

/// Where the places of a text lie in the text around it.
#[derive(Clone)]
pub struct Within<'a> {
    /// Where the surrounding text begins.
    shift: Place,
    scalar: Option<Rc<Scalar<'a>>>,
}

struct Scalar<'a> {
    source: &'a str,
    start: Place,
    raw: Raw,
    text: String,
    /// Made when a place behind the first line is wanted.
    inks: OnceCell<Vec<Ink>>,
}

/// Where a character that is not white space stands in the text, and where in the source.
#[derive(Clone, Copy)]
struct Ink {
    text: Place,
    source: Place,
}

impl<'a> Within<'a> {
    /// A text that is not part of another.
    pub fn whole() -> Self {
        Self { shift: Place::START, scalar: None }
    }

    /// `text` after its surrounding white space was removed.
    pub fn trimmed(text: &str) -> Self {
        let removed = &text[..text.len() - text.trim_start().len()];
        Self { shift: end(removed), scalar: None }
    }

    /// The text of the scalar `node`, which was read from `source`; `self` says where `source` lies.
    pub fn scalar(&self, source: &'a str, node: &Node) -> Self {
        let scalar = match (&node.content, node.raw) {
            (Content::Text { text, .. }, Some(raw)) => {
                let source = source.strip_prefix('\u{feff}').unwrap_or(source);
                let (start, text) = (node.place, text.clone());
                Some(Rc::new(Scalar { source, start, raw, text, inks: OnceCell::new() }))
            }
            _ => None,
        };
        Self { shift: self.shift, scalar }
    }

    /// The place in the surrounding text.
    pub fn place(&self, place: Place) -> Place {
        let Place { line, column } = self.scalar.as_ref().map_or(place, |scalar| scalar.find(place));
        if line == 1 {
            Place { line: self.shift.line, column: self.shift.column + column - 1 }
        } else {
            Place { line: self.shift.line + line - 1, column }
        }
    }
}

/// The place behind the last character of `text`.
fn end(text: &str) -> Place {
    text.chars().fold(Place::START, Place::after)
}

impl Place {
    fn after(self, character: char) -> Self {
        if character == '\n' {
            Self { line: self.line + 1, column: 1 }
        } else {
            Self { line: self.line, column: self.column + 1 }
        }
    }
}

impl Scalar<'_> {
    /// White space has no place of its own: it lies before the ink that follows on its line, or behind the
    /// last one.
    fn find(&self, wanted: Place) -> Place {
        let (before, at) = if wanted.line == 1 {
            // The place of every entry of every mount: no list is made for it.
            let mut inks = self.inks();
            let (mut before, mut at) = (None, inks.next());
            while let Some(ink) = at.filter(|ink| ink.text < wanted) {
                (before, at) = (Some(ink), inks.next());
            }
            (before, at)
        } else {
            let inks = self.inks.get_or_init(|| self.inks().collect());
            let (before, behind) = inks.split_at(inks.partition_point(|ink| ink.text < wanted));
            (before.last().copied(), behind.first().copied())
        };
        match (before, at) {
            (_, Some(ink)) if ink.text.line == wanted.line => ink.source,
            (Some(ink), _) => Place { column: ink.source.column + 1, ..ink.source },
            (None, _) => self.start,
        }
    }

    /// The ink of the text beside that of the source, in order.
    fn inks(&self) -> impl Iterator<Item = Ink> {
        let mut place = Place::START;
        let text = self.text.chars().filter_map(move |character| {
            let here = place;
            place = place.after(character);
            (!character.is_whitespace()).then_some(here)
        });
        let mut source = Source { rest: self.source.get(self.raw.at..).unwrap_or(""), place: self.start };
        if matches!(self.raw.style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted) {
            source.next();
        }
        let source = std::iter::from_fn(move || {
            loop {
                let here = source.place;
                if !source.token(self.raw.style)?.is_whitespace() {
                    return Some(here);
                }
            }
        });
        text.zip(source).map(|(text, source)| Ink { text, source })
    }
}

/// A walk through the source of a scalar.
struct Source<'a> {
    rest: &'a str,
    place: Place,
}

impl Source<'_> {
    fn next(&mut self) -> Option<char> {
        let character = self.rest.chars().next()?;
        self.rest = &self.rest[character.len_utf8()..];
        self.place = self.place.after(character);
        Some(character)
    }

    /// The next character of the text; a line that is continued counts as white space.
    fn token(&mut self, style: ScalarStyle) -> Option<char> {
        let character = self.next()?;
        match (style, character) {
            (ScalarStyle::SingleQuoted, '\'') => self.next(),
            (ScalarStyle::DoubleQuoted, '\\') => Some(self.escaped()),
            _ => Some(character),
        }
    }

    fn escaped(&mut self) -> char {
        let digits = match self.next() {
            Some('n' | 't' | 'r' | 'v' | 'f' | 'N' | '_' | 'L' | 'P' | ' ' | '\t' | '\n' | '\r') | None => {
                return ' ';
            }
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(other) => return other,
        };
        let code = (0..digits).try_fold(0, |code, _| Some(code * 16 + self.next()?.to_digit(16)?));
        code.and_then(char::from_u32).unwrap_or('?')
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use proptest::prelude::*;

    /// The character of `source` at the place that a `mark` in the text of `a` has.
    fn found(source: &str, mark: char) -> Option<char> {
        let root = parse(source).unwrap().unwrap();
        let node = root.get("a").unwrap();
        let (before, _) = node.text().unwrap().split_once(mark).unwrap();
        let place = Within::whole().scalar(source, node).place(end(before));
        source.split('\n').nth(place.line - 1)?.chars().nth(place.column - 1)
    }

    #[test]
    fn places_hold_in_every_style() {
        for source in [
            "a: |\n  x: 1\n  y: §\n",
            "a: |+2\n\n\n     x: 1\n   y: §\n\n",
            "a: >-\n  one\n  two\n\n  three §\n",
            "a: plain that\n  goes on §\n",
            "a: 'it''s\n\n   §'\n",
            "a: \"x\\n\\u003c \\\n   \\\"y\\\": §\"\n",
            "{\"b\": 1, \"a\": \"x\\ty\\n§\"}",
            "b: é\na: |\r\n  x\r\n  é §\r\n",
            "a: !!str |-\n  §",
        ] {
            assert_eq!(found(source, '§'), Some('§'), "{source:?}");
        }
    }

    #[test]
    fn a_text_in_a_text_in_a_file_keeps_its_places() {
        let file = "o: |\n  array:\n    - |\n      objectName: \"é\"\n      x: §\n";
        let outer = parse(file).unwrap().unwrap();
        let objects = outer.get("o").unwrap();
        let text = objects.text().unwrap();
        let inner = parse(text).unwrap().unwrap();
        let entry = &inner.get("array").unwrap().items()[0];
        let fields = parse(entry.text().unwrap()).unwrap().unwrap();
        let place = Within::whole().scalar(text, entry).place(fields.get("x").unwrap().place);
        assert_eq!(place, Place { line: 4, column: 8 });
        assert_eq!(Within::whole().scalar(file, objects).place(place), Place { line: 5, column: 10 });
    }

    #[test]
    fn what_was_trimmed_shifts_the_first_line_alone() {
        let within = Within::trimmed(" \n  x: 1\ny");
        assert_eq!(within.place(Place::START), Place { line: 2, column: 3 });
        assert_eq!(within.place(Place { line: 2, column: 1 }), Place { line: 3, column: 1 });
    }

    proptest! {
        #[test]
        fn any_text_in_quotes_keeps_its_places(before in "[a-z '\"\\\\\n\té:#-]{0,40}") {
            let json = serde_json::json!({"a": format!("{before}§")}).to_string();
            prop_assert_eq!(found(&json, '§'), Some('§'));
            let block: String = format!("x{before}§").split('\n').map(|line| format!("  {line}\n")).collect();
            prop_assert_eq!(found(&format!("a: |\n{block}"), '§'), Some('§'));
        }
    }
}
