//! Reads YAML into nodes with positions, with the leniences of the parser that classes were written
//! for (azure.md 5): a plain scalar keeps its source text whatever its type, merge keys work, a key
//! that stands twice is an error.
//!
//! Built on parser events, because a typed reader stops at the first mistake and drops the places.
//! Input, nodes and depth are bounded; errors quote names of keys and never values. A text that stands
//! inside a text keeps its places through [`Within`].

mod within;

use std::collections::HashMap;
use std::fmt;

use granit_parser::{Event, Parser, ScalarStyle, Span};

pub use within::Within;

const MOST_DEPTH: usize = 64;

/// Bounds of one text.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the text.
    pub bytes: usize,
    /// Nodes of the tree, aliases written out.
    pub nodes: usize,
}

impl Limits {
    /// A parameter of a class.
    pub const PARAMETER: Self = Self { bytes: 2 << 20, nodes: 20_000 };
    /// A file of manifests: a cluster's classes in one list.
    pub const MANIFESTS: Self = Self { bytes: 64 << 20, nodes: 2_000_000 };
}

/// A place in the text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Place {
    /// Where every text begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A node of the tree.
#[derive(Clone)]
pub struct Node {
    /// Where it starts; a block scalar starts with its first line that is not blank.
    pub place: Place,
    /// What it is.
    pub content: Content,
    /// How a scalar stands in the source, where its text can be found there again.
    pub(crate) raw: Option<Raw>,
}

/// A scalar as it was written.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    /// Byte of the source at which it starts.
    at: usize,
    style: ScalarStyle,
}

/// What a node is.
#[derive(Clone)]
pub enum Content {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar.
    Text {
        /// Its text.
        text: String,
        /// Whether it stood without quotes.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the text.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Where it stands.
    pub place: Place,
}

/// Why a text is not YAML that we read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Where, as far as it is known.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "yaml: line {}: {}", place.line, self.message),
            None => write!(f, "yaml: {}", self.message),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} at {}:{})", self.kind(), self.place.line, self.place.column)
    }
}

impl Node {
    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.field(key).map(|(_, value)| value)
    }

    /// `key` and its value, if this is a mapping that has it.
    pub fn field(&self, key: &str) -> Option<&(Key, Self)> {
        self.fields().iter().find(|(k, _)| k.name == key)
    }

    /// The fields of a mapping; none of anything else.
    pub fn fields(&self) -> &[(Key, Self)] {
        match &self.content {
            Content::Map(fields) => fields,
            _ => &[],
        }
    }

    /// The items of a sequence; none of anything else.
    pub fn items(&self) -> &[Self] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self.content, Content::Null)
    }

    /// Whether it is a literal or folded text, whose mark stands before its place.
    pub fn is_block(&self) -> bool {
        self.raw.is_some_and(|raw| matches!(raw.style, ScalarStyle::Literal | ScalarStyle::Folded))
    }

    /// The text of a scalar; empty for null, nothing for a list or a mapping.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Null => Some(""),
            Content::Text { text, .. } => Some(text),
            Content::List(_) | Content::Map(_) => None,
        }
    }

    /// A whole number as go-yaml reads one into 32 bits: bases by prefix, `_` between digits, fractions cut
    /// off; null is 0 (azure.md 5). The error is the tag of what was found.
    pub fn int32(&self) -> Result<i32, &'static str> {
        let text = match &self.content {
            Content::Null => return Ok(0),
            Content::Text { text, plain: true } => text.replace('_', ""),
            _ => return Err(self.kind()),
        };
        let (sign, digits) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(&text)),
        };
        let based = |prefix: &[&str], base| {
            let digits = prefix.iter().find_map(|p| digits.strip_prefix(p))?;
            i64::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with(['+', '-']))
        };
        let number = based(&["0x", "0X"], 16)
            .or_else(|| based(&["0o", "0O"], 8))
            .or_else(|| based(&["0b", "0B"], 2))
            .or_else(|| based(&["0"], 8))
            .or_else(|| digits.parse().ok().filter(|_| digits.starts_with(|c: char| c.is_ascii_digit())));
        let number = match number {
            Some(number) => sign * number,
            None => fraction(&text).ok_or_else(|| self.kind())?,
        };
        i32::try_from(number).map_err(|_| self.kind())
    }

    /// The tag that errors name, such as `!!map`.
    pub fn kind(&self) -> &'static str {
        match &self.content {
            Content::Null => "!!null",
            Content::Text { text, plain: true } => resolve(text),
            Content::Text { .. } => "!!str",
            Content::List(_) => "!!seq",
            Content::Map(_) => "!!map",
        }
    }
}

/// A number with a fraction or an exponent, cut off towards 0.
fn fraction(text: &str) -> Option<i64> {
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let number = text.parse::<f64>().ok().filter(|number| numeric && number.abs() < 1e15)?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "cutting off is what is wanted; the range was checked"
    )]
    Some(number.trunc() as i64)
}

fn resolve(text: &str) -> &'static str {
    let digits = text.trim_start_matches(['-', '+']);
    match text {
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => "!!bool",
        _ if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'_') => "!!int",
        _ if digits.starts_with(|c: char| c.is_ascii_digit()) && digits.parse::<f64>().is_ok() => "!!float",
        _ => "!!str",
    }
}

/// Reads the first document of a parameter; nothing where there is none.
pub fn parse(text: &str) -> Result<Option<Node>, Error> {
    Ok(Reader::new(text, Limits::PARAMETER)?.documents(1)?.pop())
}

/// Reads all documents.
pub fn parse_all(text: &str, limits: Limits) -> Result<Vec<Node>, Error> {
    Reader::new(text, limits)?.documents(usize::MAX)
}

/// Cuts a file at its document marks, so that a mistake in one document leaves the others readable;
/// gives each piece with the number of lines before it.
pub fn split(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut start, mut before, mut offset, mut found) = (0, 0, 0, false);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let mark = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if mark && found {
            pieces.push((before, &text[start..offset]));
            (start, before, found) = (offset, number, false);
        }
        // What stands before the first mark may be directives of the document that follows.
        found |= mark || !(line.starts_with(['#', '%']) || line.trim().is_empty());
        offset += line.len();
        if found && line.trim_end() == "..." {
            pieces.push((before, &text[start..offset]));
            (start, before, found) = (offset, number + 1, false);
        }
    }
    pieces.push((before, &text[start..]));
    pieces
}

/// A collection under construction.
enum Open {
    List { place: Place, anchor: usize, items: Vec<Node> },
    Map { place: Place, anchor: usize, fields: Fields, merged: Vec<Node>, key: Option<Key> },
}

/// Fields of a mapping under construction, and the lines of their names.
#[derive(Default)]
struct Fields {
    list: Vec<(Key, Node)>,
    lines: HashMap<String, usize>,
}

struct Reader<'a> {
    text: &'a str,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, (Node, usize)>,
    open: Vec<Open>,
    nodes: usize,
    limits: Limits,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, limits: Limits) -> Result<Self, Error> {
        if text.len() > limits.bytes {
            return Err(Error { place: None, message: format!("text of more than {} bytes", limits.bytes) });
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let parser = Parser::new_from_str(text);
        Ok(Self { text, parser, anchors: HashMap::new(), open: Vec::new(), nodes: 0, limits })
    }

    fn documents(mut self, most: usize) -> Result<Vec<Node>, Error> {
        let mut documents = Vec::new();
        while let Some(next) = self.parser.next_event() {
            let (event, span) = next.map_err(|error| {
                let (place, message) = (place_of(error.marker()), short(&error.info()));
                let place = if message == TAB { tab(self.text, place) } else { place };
                Error { place: Some(place), message }
            })?;
            let ended = matches!(event, Event::DocumentEnd);
            if let Some(root) = self.take(event, &span)? {
                documents.push(root);
            }
            if ended {
                self.anchors.clear();
                if documents.len() >= most {
                    break;
                }
            }
        }
        Ok(documents)
    }

    /// Handles one event; gives the root when it is complete.
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<Option<Node>, Error> {
        let place = place_of(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let at = span.byte_range().map(|range| range.start);
                let raw = at.map(|at| Raw { at, style });
                let node = scalar(&text, raw, style, tag.as_ref().map(|t| t.suffix()), place)?;
                self.place(node, anchor)
            }
            Event::Alias(id) => {
                let (node, size) =
                    self.anchors.get(&id).cloned().ok_or_else(|| fail(place, "unknown anchor"))?;
                self.count(size, place)?;
                self.place(node, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.push(Open::List { place, anchor, items: Vec::new() }),
            Event::MappingStart(_, anchor, _) => self.push(Open::Map {
                place,
                anchor,
                fields: Fields::default(),
                merged: Vec::new(),
                key: None,
            }),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(done) = self.open.pop() else { return Ok(None) };
                let (node, anchor) = done.close();
                self.place(node, anchor)
            }
            _ => Ok(None),
        }
    }

    fn push(&mut self, open: Open) -> Result<Option<Node>, Error> {
        let (Open::List { place, .. } | Open::Map { place, .. }) = &open;
        if self.open.len() >= MOST_DEPTH {
            return Err(fail(*place, &format!("nested more than {MOST_DEPTH} deep")));
        }
        if let Some(Open::Map { key: None, .. }) = self.open.last() {
            return Err(fail(*place, "a key must be a text"));
        }
        self.open.push(open);
        Ok(None)
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Error> {
        self.nodes += nodes;
        if self.nodes > self.limits.nodes {
            Err(fail(place, &format!("more than {} nodes", self.limits.nodes)))
        } else {
            Ok(())
        }
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, Error> {
        self.count(1, node.place)?;
        if anchor != 0 {
            let size = size(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut() {
            None => return Ok(Some(node)),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { fields, merged, key, .. }) => match key.take() {
                None => *key = Some(new_key(fields, node)?),
                Some(name) if name.name == "<<" => merge(merged, node)?,
                Some(name) => fields.list.push((name, node)),
            },
        }
        Ok(None)
    }
}

fn new_key(fields: &mut Fields, node: Node) -> Result<Key, Error> {
    let Some(name) = node.text().map(ToOwned::to_owned) else {
        return Err(fail(node.place, "a key must be a text"));
    };
    match fields.lines.insert(name.clone(), node.place.line) {
        Some(line) if name != "<<" => {
            Err(fail(node.place, &format!("mapping key {name:?} already defined at line {line}")))
        }
        _ => Ok(Key { name, place: node.place }),
    }
}

fn merge(merged: &mut Vec<Node>, node: Node) -> Result<(), Error> {
    match node.content {
        Content::Map(_) => merged.push(node),
        Content::List(items) if items.iter().all(|item| matches!(item.content, Content::Map(_))) => {
            merged.extend(items);
        }
        _ => return Err(fail(node.place, "map merge requires map or sequence of maps as the value")),
    }
    Ok(())
}

impl Open {
    fn close(self) -> (Node, usize) {
        match self {
            Self::List { place, anchor, items } => (node(place, Content::List(items)), anchor),
            Self::Map { place, anchor, mut fields, merged, .. } => {
                for source in merged {
                    let Content::Map(more) = source.content else { continue };
                    for (key, value) in more {
                        if fields.lines.insert(key.name.clone(), key.place.line).is_none() {
                            fields.list.push((key, value));
                        }
                    }
                }
                (node(place, Content::Map(fields.list)), anchor)
            }
        }
    }
}

fn node(place: Place, content: Content) -> Node {
    Node { place, content, raw: None }
}

fn scalar(
    text: &str,
    raw: Option<Raw>,
    style: ScalarStyle,
    tag: Option<&str>,
    place: Place,
) -> Result<Node, Error> {
    let plain = matches!(style, ScalarStyle::Plain);
    let null = plain && tag != Some("str") && matches!(text, "" | "~" | "null" | "Null" | "NULL");
    let content = match tag {
        _ if null => Content::Null,
        Some("binary") => Content::Text { text: binary(text, place)?, plain: false },
        Some("str") => Content::Text { text: text.to_owned(), plain: false },
        _ => Content::Text { text: text.to_owned(), plain },
    };
    let raw = raw.filter(|_| tag != Some("binary"));
    Ok(Node { place, content, raw })
}

fn binary(text: &str, place: Place) -> Result<String, Error> {
    use base64::Engine;
    let compact: String = text.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(compact);
    bytes
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| fail(place, "!!binary value contains invalid base64 data"))
}

fn size(node: &Node) -> usize {
    match &node.content {
        Content::Null | Content::Text { .. } => 1,
        Content::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Content::Map(fields) => 1 + fields.iter().map(|(_, value)| 1 + size(value)).sum::<usize>(),
    }
}

fn place_of(marker: &granit_parser::Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

fn fail(place: Place, message: &str) -> Error {
    Error { place: Some(place), message: message.to_owned() }
}

/// The tab that stands in an indentation; the parser names the line before it.
fn tab(text: &str, near: Place) -> Place {
    let mut lines = text.lines().enumerate().skip(near.line - 1);
    let column = |line: &str| line.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t');
    lines.find_map(|(index, line)| Some(Place { line: index + 1, column: column(line)? + 1 })).unwrap_or(near)
}

const TAB: &str = "found a tab character that violates indentation";

/// The parser's words in the ones that people search for; never a piece of the text.
fn short(info: &str) -> String {
    let lower = info.to_lowercase();
    let known = [
        ("tab", TAB),
        ("mapping values", "mapping values are not allowed in this context"),
        ("cannot start any token", "found character that cannot start any token"),
        ("anchor", "unknown anchor"),
        ("nest", "nested too deep"),
        ("simple key", "could not find expected ':'"),
    ];
    let found = known.iter().find(|(word, _)| lower.contains(word));
    found.map_or("did not find expected node content".to_owned(), |(_, message)| (*message).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(yaml: &str) -> String {
        parse(yaml).unwrap().unwrap().get("a").unwrap().text().unwrap().to_owned()
    }

    #[test]
    fn azure_5_plain_scalars_keep_their_source_text() {
        for text in ["0755", "1234567890", "12e4", "true", "2024-01-01", "0x1F", "yes"] {
            assert_eq!(text_of(&format!("a: {text}")), text);
        }
    }

    #[test]
    fn azure_5_null_is_the_empty_text() {
        for text in ["~", "null", ""] {
            assert_eq!(text_of(&format!("a: {text}")), "");
        }
        assert_eq!(text_of("a: \"null\""), "null");
    }

    #[test]
    fn azure_5_a_key_twice_is_an_error_with_both_lines() {
        let error = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.to_string(), "yaml: line 3: mapping key \"a\" already defined at line 1");
    }

    #[test]
    fn azure_5_anchors_and_merge_keys_work() {
        let root = parse("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n").unwrap().unwrap();
        let y = root.get("y").unwrap();
        assert_eq!((y.get("a").unwrap().text(), y.get("b").unwrap().text()), (Some("1"), Some("3")));
    }

    #[test]
    fn azure_5_only_the_first_document_is_read() {
        assert_eq!(text_of("a: 1\n---\na: 2\n"), "1");
        assert_eq!(parse_all("a: 1\n---\na: 2\n", Limits::PARAMETER).unwrap().len(), 2);
    }

    #[test]
    fn azure_5_crlf_comments_and_json_are_read() {
        assert_eq!(text_of("# note\r\na: x # end\r\n"), "x");
        assert_eq!(text_of("{\"a\": \"x\"}"), "x");
        assert!(parse("# only\n").unwrap().is_none_or(|n| matches!(n.content, Content::Null)));
        assert_eq!(text_of("a: !!binary eA=="), "x");
    }

    #[test]
    fn azure_5_whole_numbers_are_read_as_the_peer_reads_them() {
        let read = |text: &str| parse(&format!("a: {text}")).unwrap().unwrap().get("a").unwrap().int32();
        for (text, number) in [
            ("5", 5),
            ("0x5", 5),
            ("0o5", 5),
            ("0b101", 5),
            ("1_0", 10),
            ("010", 8),
            ("5.9", 5),
            ("-3", -3),
            ("1e1", 10),
            ("0", 0),
            ("~", 0),
            ("", 0),
        ] {
            assert_eq!(read(text), Ok(number), "{text}");
        }
        for (text, tag) in [
            ("\"5\"", "!!str"),
            ("five", "!!str"),
            ("true", "!!bool"),
            ("2147483648", "!!int"),
            ("99999999999999999999", "!!int"),
            ("[5]", "!!seq"),
            ("0x-5", "!!str"),
        ] {
            assert_eq!(read(text), Err(tag), "{text}");
        }
    }

    #[test]
    fn azure_5_tabs_as_indentation_are_errors() {
        assert!(parse("a:\n\tb: 1\n").is_err());
        let error = parse("a: x\n\tb: 1\n").unwrap_err();
        assert_eq!(error.to_string(), "yaml: line 2: found a tab character that violates indentation");
        assert_eq!(error.place, Some(Place { line: 2, column: 1 }));
    }

    #[test]
    fn block_scalars_know_where_their_text_starts() {
        let root = parse("a: |\n  x\n  y\n").unwrap().unwrap();
        assert_eq!(root.get("a").unwrap().place.line, 2);
    }

    #[test]
    fn files_are_cut_at_document_marks() {
        let text = "# note\n%YAML 1.2\n---\na: |\n  --- no mark\n---\n--- # empty\nb: 1\n---x: 2\n...\n%YAML 1.2\n---\n";
        let pieces = split(text);
        let starts: Vec<_> = pieces.iter().map(|(line, piece)| (*line, piece.lines().next())).collect();
        assert_eq!(
            starts,
            [(0, Some("# note")), (5, Some("---")), (6, Some("--- # empty")), (10, Some("%YAML 1.2"))]
        );
        assert_eq!(pieces.iter().map(|(_, piece)| *piece).collect::<String>(), text);
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..10 {
            let list = vec![format!("*a{}", n - 1); 9].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(20_000)).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
