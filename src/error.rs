//! What can go wrong, said so that the reader can act on it.
//!
//! A [`Problem`] is one fault with its place and the next step; [`Problems`] is the non-empty list
//! that a caller gets: all of them, in the order of the user's text. Neither ever holds a value, a
//! token or a raw response body. The gRPC code is chosen elsewhere (`server/status.rs`).

use std::fmt;
use std::time::Duration;

use crate::yaml::Place;

/// Whose move it is; the closed list behind gRPC codes, exit codes and metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The class or the request is not right.
    Config,
    /// The cluster's policy does not allow it.
    Refused,
    /// The store does not accept who we are.
    Unauthenticated,
    /// The store knows the identity and refuses.
    Denied,
    /// No such object, version or key.
    NotFound,
    /// The value is not what the entry says.
    Shape,
    /// The store asks us to slow down.
    Throttled,
    /// The store cannot be reached or is in trouble.
    Unavailable,
    /// The time for this mount is over.
    Deadline,
    /// A fault of keyferry.
    Bug,
}

impl Kind {
    /// Every kind, for closed lists of labels.
    pub const ALL: [Self; 10] = [
        Self::Config,
        Self::Refused,
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::Shape,
        Self::Throttled,
        Self::Unavailable,
        Self::Deadline,
        Self::Bug,
    ];

    /// Label in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Refused => "refused",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Shape => "shape",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Deadline => "deadline",
            Self::Bug => "bug",
        }
    }

    /// Who can repair it, in words for an error text.
    pub fn owner(self) -> &'static str {
        match self {
            Self::Config | Self::NotFound => "the author of the class",
            Self::Shape => "the author of the class or the owner of the value",
            Self::Refused => "the administrator of the cluster",
            Self::Unauthenticated | Self::Denied => "the administrator of the store",
            Self::Throttled | Self::Unavailable | Self::Deadline => "the operator, or time",
            Self::Bug => "the makers of keyferry",
        }
    }

    /// Whether it passes by itself.
    pub fn passing(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable | Self::Deadline)
    }
}

/// Whether the engine may try the same read again inside the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// It would fail the same way.
    #[default]
    No,
    /// One more try (a name that does not resolve).
    Once,
    /// Within the limit of tries, after the store's own delay if it gave one.
    After(Option<Duration>),
}

/// Where in the user's text a problem is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spot {
    /// Path of the field, such as `objects[2].objectType`; entries count from 0.
    pub field: String,
    /// Line and column in the text of the parameter.
    pub place: Option<Place>,
}

impl Spot {
    /// Place known by its field alone.
    pub fn field(field: impl Into<String>) -> Self {
        Self { field: field.into(), place: None }
    }

    /// Place in the text of a parameter.
    pub fn at(field: impl Into<String>, place: Place) -> Self {
        Self { field: field.into(), place: Some(place) }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, " [{}, line {}]", self.field, place.line),
            None => write!(f, " [{}]", self.field),
        }
    }
}

/// What is odd but allowed: logged at a mount, listed by `check`.
#[derive(Debug, Clone)]
pub struct Warning {
    /// Which oddity.
    pub rule: Rule,
    /// What was found, without a closing full stop.
    pub what: String,
    /// Where in the class.
    pub spot: Option<Spot>,
}

/// Oddities that `check` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A parameter that no backend of this name reads.
    UnknownParameter,
    /// A field of an entry that means nothing.
    UnknownField,
    /// A file that only root can read.
    Unreadable,
    /// A spelling that works here and nowhere else.
    Spelling,
    /// No identity in the class, so that every pod has to bring one.
    Identity,
    /// Anything else.
    Other,
}

impl Rule {
    /// Whether a mount logs it; what may be meant is told by `check` alone.
    pub fn at_mount(self) -> bool {
        !matches!(self, Self::Unreadable | Self::Spelling | Self::Identity)
    }
}

impl Warning {
    /// A warning about the field or parameter at `spot`.
    pub fn new(rule: Rule, what: impl Into<String>, spot: Spot) -> Self {
        Self { rule, what: what.into(), spot: Some(spot) }
    }
}

impl From<String> for Warning {
    fn from(what: String) -> Self {
        Self { rule: Rule::Other, what, spot: None }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.spot.as_ref().map_or(Ok(()), |spot| write!(f, "{spot}"))
    }
}

/// One fault: what happened, where, and what to do next.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Whose move it is.
    pub kind: Kind,
    /// What was being done and what was found, without a closing full stop.
    pub what: String,
    /// Where in the class.
    pub spot: Option<Spot>,
    /// The next step, as an order to the reader.
    pub hint: Option<String>,
    /// Whether the engine may try again.
    pub retry: Retry,
}

impl Problem {
    /// Makes a problem that is not tried again.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), spot: None, hint: None, retry: Retry::No }
    }

    /// A fault of the class.
    pub fn config(what: impl Into<String>) -> Self {
        Self::new(Kind::Config, what)
    }

    /// Adds the place.
    pub fn at(mut self, spot: Spot) -> Self {
        self.spot = Some(spot);
        self
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Allows further tries.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(spot) = &self.spot {
            write!(f, "{spot}")?;
        }
        write!(f, "; for {}", self.kind.owner())?;
        match &self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

/// All problems of one call: at least one, in the order of the user's text.
#[derive(Debug, Clone)]
pub struct Problems {
    list: Vec<Problem>,
    prefix: &'static str,
    context: String,
}

impl Problems {
    /// Makes the list, or nothing where there is no problem.
    pub fn some(list: Vec<Problem>) -> Option<Self> {
        if list.is_empty() { None } else { Some(Self { list, prefix: "", context: String::new() }) }
    }

    /// The problems, one or more.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Gives the list away, to join it with another.
    pub fn into_list(self) -> Vec<Problem> {
        self.list
    }

    /// The kind of the whole: the first lasting one, else the first.
    pub fn kind(&self) -> Kind {
        self.list.iter().map(|p| p.kind).find(|k| !k.passing()).unwrap_or(self.list[0].kind)
    }

    /// Says for whom and in which class; `prefix` is a peer's literal that people search for.
    pub fn of(mut self, prefix: &'static str, backend: &str, class: Option<&str>) -> Self {
        self.prefix = prefix;
        self.context = match class {
            Some(class) => format!("{backend}, SecretProviderClass {class}"),
            None => backend.to_owned(),
        };
        self
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem], prefix: "", context: String::new() }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix)?;
        if let [only] = self.list.as_slice() {
            write!(f, "{only}")?;
        } else {
            write!(f, "{} problems:", self.list.len())?;
            for (number, problem) in self.list.iter().enumerate() {
                write!(f, "\n{}. {problem}", number + 1)?;
            }
        }
        if self.context.is_empty() { Ok(()) } else { write!(f, "\n({})", self.context) }
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// The whole text without line breaks: a log line stays one line, whatever a store or a class holds.
    pub fn one_line(&self) -> String {
        one_line(&self.to_string())
    }
}

/// A text without line breaks, for logs.
pub fn one_line(text: &str) -> String {
    let parts = text.split(|c: char| c.is_control()).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// Cuts a text that would be longer than `most` bytes, and says so.
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" … (cut)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_stays_one_line() {
        let list = vec![Problem::config("one\r\ntwo"), Problem::config("three \u{1b}[31m")];
        let problems = Problems::some(list).unwrap().of("azure: ", "azure", Some("shop/c"));
        assert!(problems.to_string().contains('\n'));
        assert!(!problems.one_line().contains(|c: char| c.is_control()), "{}", problems.one_line());
        assert!(problems.one_line().contains("one two"), "{}", problems.one_line());
    }

    #[test]
    fn one_problem_reads_as_one_sentence() {
        let problem = Problem::config("objectType \"Secret\" is unknown")
            .at(Spot::at("objects[0].objectType", Place { line: 3, column: 1 }))
            .hint("write secret");
        let text = Problems::from(problem).of("failed: ", "azure", Some("shop/app")).to_string();
        assert_eq!(
            text,
            "failed: objectType \"Secret\" is unknown [objects[0].objectType, line 3]; for the author of the \
             class: write secret\n(azure, SecretProviderClass shop/app)"
        );
    }

    #[test]
    fn a_lasting_kind_wins_over_a_passing_one() {
        let list = vec![Problem::new(Kind::Throttled, "a"), Problem::new(Kind::Denied, "b")];
        assert_eq!(Problems::some(list).unwrap().kind(), Kind::Denied);
    }
}
