//! `secretObjects`: what the driver copies from files into Kubernetes Secrets (driver.md 11), and what
//! the API server wants of each type of Secret (sync.md C).

use std::collections::HashMap;

use super::finding::Level;
use super::judge::{Sheet, list};
use crate::entry::nearest;
use crate::plan::{Missing, Output, Step};
use crate::yaml::{Content, Node, Place};

/// Files that a class makes.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) list: &'a [Output],
    /// The first of files that the store's versions number, and at most how many.
    pub(super) series: &'a [(Output, usize)],
    /// Whether every entry could be read.
    pub(super) complete: bool,
}

impl<'a> Files<'a> {
    /// What makes the file called `name`.
    fn named(&self, name: &str) -> Option<&'a Output> {
        let numbered = |(output, most): &&(Output, usize)| {
            let last = name.rsplit('/').next().unwrap_or(name);
            let digits = last.find(|c: char| !c.is_ascii_digit()).unwrap_or(last.len());
            let number = last[..digits].parse::<u32>();
            number.is_ok_and(|n| (n as usize) < *most && output.path.numbered(n).as_str() == name)
        };
        let list = self.list.iter().find(|output| output.path.as_str() == name);
        list.or_else(|| self.series.iter().find(numbered).map(|(output, _)| output))
    }

    /// Everything that is made.
    fn all(&self) -> impl Iterator<Item = &'a Output> {
        self.list.iter().chain(self.series.iter().map(|(output, _)| output))
    }
}

/// Kubernetes Secrets of the classes of one file, which are applied together: who writes which.
#[derive(Default)]
pub(super) struct Seen(HashMap<(String, String), String>);

/// A type of Kubernetes Secret.
pub(in crate::cli) struct Type {
    pub(in crate::cli) name: &'static str,
    /// Keys that must all be there.
    pub(in crate::cli) all: &'static [&'static str],
    /// Keys of which one must be there.
    pub(in crate::cli) any: &'static [&'static str],
    /// Whether the driver takes other keys as well.
    others: bool,
}

const fn kind(name: &'static str, all: &'static [&'static str]) -> Type {
    Type { name, all, any: &[], others: true }
}

const TLS: &str = "kubernetes.io/tls";
/// Types that the API server checks or fills.
pub(in crate::cli) const TYPES: [Type; 8] = [
    kind("Opaque", &[]),
    Type { others: false, ..kind(TLS, &["tls.crt", "tls.key"]) },
    kind("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    kind("kubernetes.io/dockercfg", &[".dockercfg"]),
    Type { any: &["username", "password"], ..kind("kubernetes.io/basic-auth", &[]) },
    kind("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    kind("kubernetes.io/service-account-token", &[]),
    kind("bootstrap.kubernetes.io/token", &[]),
];
const ACCOUNT: &str = "kubernetes.io/service-account.name";

pub(super) const NAME_HINT: &str =
    "lower-case letters, digits, '-' and '.', at most 253, with a letter or digit at both ends";
/// Files that a hint names.
const MOST_NAMED: usize = 10;

/// Whether `text` can name an object (DNS-1123 subdomain).
pub(super) fn is_object_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_key(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(plain) && text != "." && !text.starts_with("..")
}

/// Checks `spec.secretObjects`; without `files` nobody knows which files there will be.
pub(super) fn check(sheet: &mut Sheet, files: Option<Files>, seen: &mut Seen) {
    let class = sheet.class;
    let Some(node) = class.node.get("spec").and_then(|spec| spec.get("secretObjects")) else { return };
    for (index, item) in list(sheet, node, "spec.secretObjects").iter().enumerate() {
        let name = format!("secretObjects[{index}]");
        if !matches!(item.content, Content::Map(_)) {
            let what = format!("{name} is a {}, not a mapping", item.kind());
            sheet.file(Level::Error, "secret/form", &name, sheet.place(item), &what);
            continue;
        }
        Secret { sheet, item, name }.check(files, seen);
    }
}

/// One item of `secretObjects` under examination.
struct Secret<'a, 'b> {
    sheet: &'a mut Sheet<'b>,
    item: &'a Node,
    name: String,
}

/// One item of `data`, as far as it is right.
struct Datum {
    file: String,
    file_at: Place,
    key: String,
    key_at: Place,
    /// Path of the item, below its Secret.
    path: String,
}

impl Secret<'_, '_> {
    fn check(mut self, files: Option<Files>, seen: &mut Seen) {
        let known = ["secretName", "type", "labels", "annotations", "data"];
        self.sheet.unknown(self.item, &format!("{}.", self.name), &known);
        self.secret_name(seen);
        for field in ["labels", "annotations"] {
            self.texts(field);
        }
        let data = self.data();
        if let Some(files) = files {
            for datum in data.iter().flatten() {
                self.file(datum, files);
            }
        }
        if let (Some(kind), Some(data)) = (self.kind(), data) {
            self.fits(kind, &data, files);
        }
    }

    fn error(&mut self, rule: &str, field: &str, place: Place, what: &str, hint: &str) {
        self.sheet.file(Level::Error, rule, &format!("{}{field}", self.name), place, what);
        self.sheet.hint(hint);
    }

    /// The trimmed text of a field and its place; what is no text is told.
    fn text(&mut self, node: &Node, field: &str, path: &str, rule: &str) -> (String, Place) {
        let found = node.field(field);
        let place = match found {
            Some((key, value)) if value.is_null() => key.place,
            Some((_, value)) => value.place,
            None => node.place,
        };
        let place = self.sheet.class.document.in_file(place);
        match found {
            Some((_, value)) if !value.is_null() && value.kind() != "!!str" => {
                let what = format!("{field} is a {}, not a text", value.kind());
                self.error(rule, path, place, &what, "put it in quotes");
                (value.text().unwrap_or("?").trim().to_owned(), place)
            }
            Some((_, value)) => (value.text().unwrap_or_default().trim().to_owned(), place),
            None => (String::new(), place),
        }
    }

    fn secret_name(&mut self, seen: &mut Seen) {
        let (name, place) = self.text(self.item, "secretName", ".secretName", "secret/name");
        if name.is_empty() {
            return self.error(
                "secret/name",
                ".secretName",
                place,
                "secretName is missing",
                "name the Kubernetes Secret",
            );
        }
        if !is_object_name(&name) {
            let what = format!("secretName {name:?} is no name of an object");
            return self.error("secret/name", ".secretName", place, &what, NAME_HINT);
        }
        let class = self.sheet.class;
        let (level, what) = match seen.0.insert((class.namespace.clone(), name.clone()), class.name.clone()) {
            None => return,
            Some(by) if by == class.name => {
                (Level::Error, format!("secretName {name:?} stands twice: each writes over the other"))
            }
            Some(by) => (
                Level::Warning,
                format!("secretName {name:?} is written by class {by:?} as well: each writes over the other"),
            ),
        };
        self.sheet.file(level, "secret/name", &format!("{}.secretName", self.name), place, &what);
        self.sheet.hint("give each Kubernetes Secret one writer");
    }

    /// Labels and annotations are texts.
    fn texts(&mut self, field: &str) {
        let Some(node) = self.item.get(field) else { return };
        let path = format!(".{field}");
        if !matches!(node.content, Content::Map(_) | Content::Null) {
            let what = format!("{field} is a {}, not a mapping of texts", node.kind());
            return self.error("secret/form", &path, self.sheet.place(node), &what, "write name: \"value\"");
        }
        for (key, value) in node.fields().iter().filter(|(_, value)| value.kind() != "!!str") {
            let what = format!("{field}: {:?} is a {}, not a text", key.name, value.kind());
            self.error("secret/form", &path, self.sheet.place(value), &what, "put it in quotes");
        }
    }

    /// The type, where it is one that the API server checks.
    fn kind(&mut self) -> Option<(&'static Type, Place)> {
        let (text, place) = self.text(self.item, "type", ".type", "secret/type");
        if text.is_empty() {
            let hint =
                "the driver writes no Secret without a type: Opaque, or kubernetes.io/tls and its relatives";
            self.error("secret/type", ".type", place, "type is missing", hint);
            return None;
        }
        if let Some(known) = TYPES.iter().find(|known| known.name == text) {
            return Some((known, place));
        }
        let near = nearest(&text, &TYPES.map(|known| known.name));
        if !near.is_empty() || text.starts_with("kubernetes.io/") {
            let what = format!("type {text:?} is none that Kubernetes knows{near}");
            self.sheet.file(Level::Warning, "secret/type", &format!("{}.type", self.name), place, &what);
        }
        None
    }

    /// The items of `data`; nothing where it is missing as a whole.
    fn data(&mut self) -> Option<Vec<Datum>> {
        let found = self.item.field("data");
        let field = format!("{}.data", self.name);
        let items = found.map_or(&[][..], |(_, node)| list(self.sheet, node, &field));
        if items.is_empty() {
            if found.is_none_or(|(_, node)| matches!(node.content, Content::List(_) | Content::Null)) {
                let place = found.map_or(self.item.place, |(key, _)| key.place);
                let place = self.sheet.class.document.in_file(place);
                let hint = "the driver writes no Secret without data: list objectName and key";
                self.error("secret/data", ".data", place, "data is missing or empty", hint);
            }
            return None;
        }
        let mut keys = HashMap::new();
        Some(
            items.iter().enumerate().filter_map(|(index, item)| self.datum(item, index, &mut keys)).collect(),
        )
    }

    fn datum(&mut self, item: &Node, index: usize, keys: &mut HashMap<String, usize>) -> Option<Datum> {
        let path = format!(".data[{index}]");
        if !matches!(item.content, Content::Map(_)) {
            let what = format!("data[{index}] is a {}, not a mapping", item.kind());
            self.error("secret/data", &path, self.sheet.place(item), &what, "write objectName and key");
            return None;
        }
        self.sheet.unknown(item, &format!("{}{path}.", self.name), &["objectName", "key"]);
        let (file, file_at) = self.text(item, "objectName", &format!("{path}.objectName"), "secret/data");
        let (key, key_at) = self.text(item, "key", &format!("{path}.key"), "secret/data");
        if file.is_empty() {
            let hint = "name the file of the volume whose bytes are wanted";
            self.error("secret/data", &format!("{path}.objectName"), file_at, "objectName is missing", hint);
        }
        let path_of_key = format!("{path}.key");
        if key.is_empty() {
            let hint = "name the key of the Kubernetes Secret";
            self.error("secret/data", &path_of_key, key_at, "key is missing", hint);
        } else if !is_key(&key) {
            let what = format!("key {key:?} can stand in no Kubernetes Secret");
            let hint = "letters, digits, '-', '_' and '.', at most 253, not starting with '..'";
            self.error("secret/key", &path_of_key, key_at, &what, hint);
        } else if let Some(first) = keys.insert(key.clone(), index) {
            let what = format!("key {key:?} stands twice, first in data[{first}]: the later one wins");
            self.error("secret/key", &path_of_key, key_at, &what, "give each file a key of its own");
        }
        (!file.is_empty() || !key.is_empty()).then_some(Datum { file, file_at, key, key_at, path })
    }

    /// Whether a file of that name will be there (tracker T43).
    fn file(&mut self, datum: &Datum, files: Files) {
        if datum.file.is_empty() {
            return;
        }
        let field = format!("{}{}.objectName", self.name, datum.path);
        if let Some(output) = files.named(&datum.file) {
            if matches!(output.missing, Missing::Skips) {
                let what =
                    format!("{:?} is optional: while it is missing, the Secret is not written", datum.file);
                self.sheet.file(Level::Warning, "secret/optional-file", &field, datum.file_at, &what);
                self.sheet.hint("give the entry a default");
            }
            return;
        }
        // An entry that cannot be read may be the one that makes the file.
        if !files.complete {
            return;
        }
        let names: Vec<_> = files.all().map(|output| output.path.as_str()).collect();
        let mut gives: Vec<_> = names.iter().take(MOST_NAMED).map(|name| format!("{name:?}")).collect();
        if names.len() > MOST_NAMED {
            gives.push(format!("and {} more", names.len() - MOST_NAMED));
        }
        let what = format!("no file is named {:?}; the class gives {}", datum.file, gives.join(", "));
        self.sheet.file(Level::Error, "secret/unknown-file", &field, datum.file_at, &what);
        self.sheet.hint(match meant(&datum.file, &files) {
            Some(output) => format!(
                "objectName is the name of the file, not of the object: use {:?}, which holds {}",
                output.path.as_str(),
                output.id
            ),
            None => "objectName is the name of a file of the volume: use one of these".to_owned(),
        });
    }

    /// Whether the API server and the driver take `data` for this type.
    fn fits(&mut self, (kind, place): (&Type, Place), data: &[Datum], files: Option<Files>) {
        let has = |key: &str| data.iter().any(|datum| datum.key == key);
        let missing: Vec<_> = kind.all.iter().filter(|key| !has(key)).map(|key| format!("{key:?}")).collect();
        if !missing.is_empty() {
            let what = format!("type {} needs the key {}", kind.name, missing.join(" and the key "));
            self.error("secret/type-needs", ".type", place, &what, "add it to data, or write type: Opaque");
        }
        if !kind.any.is_empty() && !kind.any.iter().any(|key| has(key)) {
            let what = format!("type {} needs the key \"{}\"", kind.name, kind.any.join("\" or \""));
            self.error("secret/type-needs", ".type", place, &what, "add it to data, or write type: Opaque");
        }
        let account = self.item.get("annotations").and_then(|all| all.get(ACCOUNT)).and_then(Node::text);
        if kind.name.ends_with("/service-account-token") && account.unwrap_or_default().is_empty() {
            let what = format!("type {} needs the annotation {ACCOUNT}", kind.name);
            self.error("secret/type-needs", ".type", place, &what, "Kubernetes fills such Secrets itself");
        }
        for datum in data {
            if !kind.others && !datum.key.is_empty() && !kind.all.contains(&datum.key.as_str()) {
                let what = format!("type {} takes no key but {}", kind.name, kind.all.join(" and "));
                let path = format!("{}.key", datum.path);
                self.error(
                    "secret/type-needs",
                    &path,
                    datum.key_at,
                    &what,
                    "put it into a Secret of its own",
                );
            }
            let output = files.and_then(|files| files.named(&datum.file));
            let lack = output.filter(|_| kind.name == TLS).and_then(|output| lacks(&datum.key, output));
            if let Some(lack) = lack {
                let what = format!("{:?} holds {lack}, which {} cannot be made from", datum.file, datum.key);
                let path = format!("{}.objectName", datum.path);
                let hint = "name the file of the secret that holds the certificate with its key";
                self.error("secret/type-needs", &path, datum.file_at, &what, hint);
            }
        }
    }
}

/// What a file of this plan holds that cannot become `key` of a TLS Secret (driver.md 11.3).
fn lacks(key: &str, output: &Output) -> Option<&'static str> {
    let has = |step: &Step| output.steps.contains(step);
    match key {
        _ if has(&Step::PublicKey) => Some("a public key"),
        "tls.key" if has(&Step::Certificate) || has(&Step::Certificates) => {
            Some("certificates without a key")
        }
        "tls.crt" if has(&Step::Keys) => Some("a key without certificates"),
        _ => None,
    }
}

/// The file that was probably meant: of the object of that name, or of nearly that name.
fn meant<'a>(wanted: &str, files: &Files<'a>) -> Option<&'a Output> {
    // Ids are `kind/name`, perhaps with a member behind `#`.
    let object = |output: &Output| {
        let (_, name) = output.id.split_once('/').unwrap_or(("", &output.id));
        name.split('#').next().unwrap_or_default().to_owned()
    };
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_lowercase();
    files
        .all()
        .find(|output| object(output).eq_ignore_ascii_case(wanted))
        .or_else(|| files.all().find(|output| last(output.path.as_str()) == last(wanted)))
        .or_else(|| {
            let distance = |path: &str| strsim::damerau_levenshtein(path, wanted);
            let best = files.all().min_by_key(|output| distance(output.path.as_str()))?;
            (distance(best.path.as_str()) <= wanted.chars().count() / 3 + 1).then_some(best)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_c_1_names_and_keys_follow_the_api_server() {
        for good in ["a", "a.b-c", "0"] {
            assert!(is_object_name(good), "{good:?}");
        }
        for bad in ["", "A", "a_b", "-a", "a.", "a..b", &"a".repeat(254)] {
            assert!(!is_object_name(bad), "{bad:?}");
        }
        for good in [".x", "a_b", "tls.crt", "A"] {
            assert!(is_key(good), "{good:?}");
        }
        for bad in ["", ".", "..", "..x", "foo/0", "a b", &"a".repeat(254)] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
