//! The `objects` text: entries in any of their forms, and the fields of one (azure.md 5, 6).

use super::fields::ENTRY_NAMES;
use super::{Azure, ObjectKind, Read, Settings};
use crate::call::Call;
use crate::entry::{Entry, nearest};
use crate::error::{Problem, Spot};
use crate::path::{Mode, RelPath};
use crate::plan::{Missing, Only, Output, Part, Plan, Step};
use crate::series::Series;
use crate::yaml::{self, Content, Node, Place, Within};

const SAMPLE: &str = "write\narray:\n  - |\n    objectName: db-password\n    objectType: secret";

/// The first file of a folder of versions; one of the greatest number must fit as well.
fn first_of(folder: &str) -> Result<RelPath, &'static str> {
    RelPath::cleaned(folder)?;
    RelPath::cleaned(&format!("{folder}/{}.crt", u32::MAX))?;
    RelPath::cleaned(&format!("{folder}/0"))
}

/// The entries of `objects`, each with its number and the place of its text. Plain mappings and a list without
/// `array` are taken as well (azure.md 16 row 32).
pub(super) fn entries<'a>(call: &'a Call, problems: &mut Vec<Problem>) -> Vec<(usize, Node, Within<'a>)> {
    let text = call.parameters.text("objects");
    let within = Within::trimmed(call.parameters.raw("objects").unwrap_or_default());
    let spot = |place: Option<Place>| Spot {
        field: "objects".into(),
        place: place.map(|place| within.place(place)),
    };
    if text.is_empty() {
        problems.push(Problem::config("objects is not set").at(spot(None)).hint(SAMPLE));
        return Vec::new();
    }
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(error) => {
            problems.push(
                Problem::config(format!("failed to yaml unmarshal objects, error: {error}"))
                    .at(spot(error.place))
                    .hint(SAMPLE),
            );
            return Vec::new();
        }
    };
    let refuse = |node: &Node, wanted: &str| {
        let line = node.place.line;
        Problem::config(format!(
            "failed to yaml unmarshal objects, error: yaml: unmarshal errors:\n  line {line}: cannot unmarshal {} into {wanted}",
            node.kind()
        ))
        .at(spot(Some(node.place)))
        .hint(SAMPLE)
    };
    let list = match root.map(|node| (node.get("array").cloned(), node)) {
        None => Vec::new(),
        Some((_, Node { content: Content::List(list), .. })) => list,
        Some((Some(array), _)) => match array.content {
            Content::List(list) => list,
            Content::Null => Vec::new(),
            _ => {
                problems.push(refuse(&array, "[]string"));
                return Vec::new();
            }
        },
        Some((None, node)) => {
            if !matches!(node.content, Content::Map(_) | Content::Null) {
                problems.push(refuse(&node, "types.StringArray"));
                return Vec::new();
            }
            Vec::new()
        }
    };
    let list: Vec<_> = list.into_iter().filter(|node| !matches!(node.content, Content::Null)).collect();
    if list.is_empty() {
        problems.push(Problem::config("objects lists no entry").at(spot(None)).hint(SAMPLE));
    }
    list.into_iter()
        .enumerate()
        .filter_map(|(index, node)| {
            let (node, within) = inner(text, &within, node, index, problems)?;
            Some((index, node, within))
        })
        .collect()
}

/// An entry is a text that holds a mapping, or the mapping itself.
fn inner<'a>(
    objects: &'a str,
    within: &Within<'a>,
    node: Node,
    index: usize,
    problems: &mut Vec<Problem>,
) -> Option<(Node, Within<'a>)> {
    let spot = |within: &Within, place| Spot::at(format!("objects[{index}]"), within.place(place));
    let text = match &node.content {
        Content::Map(_) => return Some((node, within.clone())),
        Content::Text { text, .. } => text,
        Content::List(_) | Content::Null => {
            let line = node.place.line;
            let what = format!(
                "failed to yaml unmarshal objects, error: yaml: unmarshal errors:\n  line {line}: cannot unmarshal {} into string",
                node.kind()
            );
            problems.push(Problem::config(what).at(spot(within, node.place)).hint(SAMPLE));
            return None;
        }
    };
    let deeper = within.scalar(objects, &node);
    let empty = || Node { content: Content::Map(Vec::new()), ..node.clone() };
    let (place, reason) = match yaml::parse(text) {
        Ok(Some(entry)) if matches!(entry.content, Content::Map(_)) => return Some((entry, deeper)),
        Ok(None) => return Some((empty(), within.clone())),
        Ok(Some(entry)) if entry.is_null() => return Some((empty(), within.clone())),
        Ok(Some(entry)) => {
            let (line, kind) = (entry.place.line, entry.kind());
            let reason = format!(
                "yaml: unmarshal errors:\n  line {line}: cannot unmarshal {kind} into types.KeyVaultObject"
            );
            (entry.place, reason)
        }
        Err(error) => (error.place.unwrap_or(Place::START), error.to_string()),
    };
    problems.push(
        Problem::config(format!("unmarshal failed for keyVaultObjects at index {index}, error: {reason}"))
            .at(spot(&deeper, place))
            .hint(SAMPLE),
    );
    None
}

/// One entry, checked.
struct Fields {
    kind: ObjectKind,
    name: String,
    version: String,
    form: CertificateForm,
    encoding: Option<Step>,
    /// The file, or the first one of a history.
    path: RelPath,
    history: Option<History>,
    mode: Option<Mode>,
    missing: Missing,
    id: String,
    label: String,
}

/// What becomes of a secret that is a certificate with its key.
struct CertificateForm {
    pfx: bool,
    part: Option<Part>,
    order: Option<bool>,
    split: bool,
}

/// Several versions of one object (azure.md 8).
struct History {
    asked: usize,
    most: usize,
}

impl History {
    /// The peer writes one version more than it is asked for, and so do we unless told otherwise.
    fn word(&self, index: usize) -> String {
        let asked = self.asked;
        format!(
            "objects[{index}]: one version more than objectVersionHistory {asked}, as the vendor's provider gives; \
             objectVersionHistoryExact: true stops at {asked}"
        )
    }
}

/// Adds the reads and outputs of one entry to the plan, or its problems to the list.
pub(super) fn entry(
    plan: &mut Plan<Azure>,
    settings: &Settings,
    (index, node, within): &(usize, Node, Within),
    problems: &mut Vec<Problem>,
) {
    let entry = Entry::new(node, format!("objects[{index}]"), within.clone(), &ENTRY_NAMES);
    plan.warnings.extend(entry.unknown());
    let Some(fields) = Checker::new(&entry, problems).fields(settings) else { return };
    plan.warnings.extend(entry.unreadable("filePermission", fields.mode));
    if plan.target.hsm && fields.kind != ObjectKind::Key {
        problems.push(
            Problem::config(format!("{}a Managed HSM holds keys alone", fields.label))
                .at(entry.spot_of("objectType"))
                .hint("write objectType: key, or name a vault"),
        );
    }
    let (kind, name, version) = (fields.kind, fields.name.clone(), fields.version.clone());
    match &fields.history {
        None => {
            let read = plan.read(Read::Object { kind, name, version });
            plan.outputs.extend(outputs(settings, &fields, read, &entry.spot()));
        }
        Some(history) => {
            let list = plan.read(Read::Versions { kind, name });
            plan.series.push(Series {
                list,
                read: Read::version,
                at: plan.outputs.len(),
                start: (!version.is_empty()).then_some(version),
                most: history.most,
                surplus: Some((history.asked, history.word(*index))),
                outputs: outputs(settings, &fields, list, &entry.spot()),
            });
        }
    }
}

/// The files of one object: split ones stand before the whole (azure.md 7).
fn outputs(settings: &Settings, fields: &Fields, read: usize, spot: &Spot) -> Vec<Output> {
    let output = |suffix: &str, only: Only, pick: Option<Step>| {
        Some(Output {
            read,
            only,
            steps: steps(settings, fields, pick),
            path: RelPath::new(&format!("{}{suffix}", fields.path)).ok()?,
            mode: fields.mode,
            id: fields.id.clone(),
            missing: match (&fields.missing, only) {
                // What stands in for a missing object is the whole file alone.
                (Missing::Gives(_), Only::Certificates) => Missing::Skips,
                (missing, _) => missing.clone(),
            },
            label: fields.label.clone(),
            spot: spot.clone(),
        })
    };
    let mut all = Vec::new();
    if fields.form.split && fields.kind == ObjectKind::Secret {
        all.extend(output(".crt", Only::Certificates, Some(Step::Certificates)));
        all.extend(output(".key", Only::Certificates, Some(Step::Keys)));
    }
    all.extend(output("", Only::Always, None));
    all
}

/// What is done to the value; blocks are picked before the encoding step, which is the last one.
fn steps(settings: &Settings, fields: &Fields, pick: Option<Step>) -> Vec<Step> {
    let CertificateForm { pfx, part, order, .. } = &fields.form;
    let pem = Step::Pem {
        order_chain: order.unwrap_or(settings.order_chain),
        // A part of a chain has an order, whatever form the store keeps it in.
        order_pem: order.unwrap_or(part.is_some()),
    };
    let form = match (fields.kind, part) {
        (ObjectKind::Key, _) => vec![Step::PublicKey],
        (ObjectKind::Certificate, _) => vec![Step::Base64, Step::Certificate],
        (ObjectKind::Secret, Some(Part::Pfx)) => vec![Step::Part(Part::Pfx)],
        (ObjectKind::Secret, Some(part)) => vec![pem, Step::Part(*part)],
        (ObjectKind::Secret, None) if *pfx => match pick {
            // Split files come out of the PFX itself, so its encoding is not theirs (azure.md 16 row 20).
            Some(pick) => return vec![pem, pick],
            None => vec![],
        },
        (ObjectKind::Secret, None) => vec![pem],
    };
    form.into_iter().chain(pick).chain(fields.encoding.clone()).collect()
}

/// Reads the fields of one entry, collecting what is wrong (azure.md 6).
struct Checker<'a> {
    entry: &'a Entry<'a>,
    problems: &'a mut Vec<Problem>,
    name: String,
    kind: String,
    label: String,
    version: String,
}

impl<'a> Checker<'a> {
    fn new(entry: &'a Entry<'a>, problems: &'a mut Vec<Problem>) -> Self {
        let mut text = |field| entry.text(field, problems);
        let (name, kind, version) = (text("objectName"), text("objectType"), text("objectVersion"));
        let label = format!("failed to get objectType:{kind}, objectName:{name}, objectVersion:{version}: ");
        Self { entry, problems, name, kind, label, version }
    }

    fn text(&mut self, field: &str) -> String {
        self.entry.text(field, self.problems)
    }

    fn wrong(&mut self, field: &str, what: &str, hint: &str) {
        let problem = Problem::config(format!("{}{what}", self.label));
        self.problems.push(problem.at(self.entry.spot_of(field)).hint(hint));
    }

    /// The entry, or nothing where it cannot be planned.
    fn fields(mut self, settings: &Settings) -> Option<Fields> {
        let kind = self.kind();
        let part = self.part();
        let pfx = self.format(part);
        let encoding = self.encoding(part);
        let order = self.choice("orderChain");
        let split = self.choice("splitFiles");
        if split == Some(true) && part.is_some() {
            let what = "splitFiles and objectPart exclude each other";
            self.wrong("splitFiles", what, "ask for the parts as entries of their own");
        }
        let history = self.history();
        let path = self.path(history.is_some());
        if path.is_some() || !self.name.is_empty() {
            self.names();
        }
        let mode = self.mode();
        let missing = self.entry.missing(self.problems);
        let Self { name, kind: word, label, version, .. } = self;
        let version = if version.eq_ignore_ascii_case("latest") { String::new() } else { version };
        let id = format!("{word}/{name}");
        let split = split.unwrap_or(settings.split && part.is_none());
        let form = CertificateForm { pfx, part, order, split };
        // The certificate object has no key and no chain; both stand in the secret of its name.
        let kind = if part.is_some() { Some(ObjectKind::Secret) } else { kind };
        Some(Fields {
            kind: kind?,
            name,
            version,
            form,
            encoding,
            path: path?,
            history,
            mode,
            missing,
            id,
            label,
        })
    }

    /// A boolean that says something about certificates with their keys.
    fn choice(&mut self, field: &str) -> Option<bool> {
        let choice = self.entry.choice(field, self.problems);
        if choice.is_some() && !matches!(self.kind.as_str(), "secret" | "cert") {
            self.wrong(field, &format!("{field} is for certificates"), "leave it out");
        }
        choice
    }

    fn kind(&mut self) -> Option<ObjectKind> {
        match self.kind.as_str() {
            "secret" => return Some(ObjectKind::Secret),
            "key" => return Some(ObjectKind::Key),
            "cert" => return Some(ObjectKind::Certificate),
            _ => {}
        }
        let found = self.kind.clone();
        let near = match found.to_lowercase().as_str() {
            "certificate" | "certificates" | "certs" => ", did you mean \"cert\"?".to_owned(),
            lower => nearest(lower, &["secret", "key", "cert"]),
        };
        let what = format!("Invalid vaultObjectTypes. Should be secret, key, or cert; found {found:?}{near}");
        self.wrong("objectType", &what, "write secret, key or cert");
        None
    }

    /// What of a certificate's secret is wanted (azure.md 16 row 33).
    fn part(&mut self) -> Option<Part> {
        let word = self.text("objectPart");
        let part = match word.as_str() {
            "" => return None,
            "key" => Part::Key,
            "leaf" => Part::Leaf,
            "chain" => Part::Chain,
            "ca" => Part::Authorities,
            "pfx" => Part::Pfx,
            _ => {
                let near = nearest(&word, &["key", "leaf", "chain", "ca", "pfx"]);
                let what = format!("objectPart {word:?} is unknown{near}");
                self.wrong("objectPart", &what, "write key, leaf, chain, ca or pfx, or leave it out");
                return None;
            }
        };
        if !matches!(self.kind.as_str(), "secret" | "cert") {
            self.wrong("objectPart", "objectPart is for certificates", "leave it out");
        }
        Some(part)
    }

    /// Whether a PFX is wanted as it is.
    fn format(&mut self, part: Option<Part>) -> bool {
        let format = self.text("objectFormat");
        let pfx = format.eq_ignore_ascii_case("pfx");
        if !(format.is_empty() || pfx || format.eq_ignore_ascii_case("pem")) {
            let what = format!("invalid objectFormat: {format}, should be PEM or PFX");
            self.wrong("objectFormat", &what, "write pem or pfx, or leave it out");
        } else if pfx && part.is_some() {
            let what = "objectFormat: pfx and objectPart exclude each other";
            self.wrong("objectFormat", what, "objectPart: pfx gives the PFX as a binary file");
        } else if format == "pfx" && self.kind != "secret" {
            // In capitals the peer lets it pass without effect, and so do we.
            let what = "PFX format only supported for objectType: secret";
            self.wrong(
                "objectFormat",
                what,
                "ask for the certificate as objectType: secret, or with objectPart",
            );
        }
        pfx
    }

    fn encoding(&mut self, part: Option<Part>) -> Option<Step> {
        let encoding = self.text("objectEncoding");
        if !encoding.is_empty() && part.is_some() {
            let what = "objectEncoding and objectPart exclude each other";
            self.wrong("objectEncoding", what, "leave objectEncoding out");
            return None;
        }
        if !encoding.is_empty() && self.kind != "secret" {
            let what = "objectEncoding only supported for objectType: secret";
            self.wrong("objectEncoding", what, "leave objectEncoding out");
            return None;
        }
        match encoding.to_lowercase().as_str() {
            "" | "utf-8" => None,
            "base64" => Some(Step::Base64),
            "hex" => Some(Step::Hex),
            _ => {
                let what = format!("invalid objectEncoding: {encoding}, should be hex, base64 or utf-8");
                self.wrong("objectEncoding", &what, "write hex, base64 or utf-8");
                None
            }
        }
    }

    /// The file, or the first one in the folder of a history, which the peer cleans (azure.md 7).
    fn path(&mut self, folder: bool) -> Option<RelPath> {
        let alias = self.text("objectAlias");
        let (field, text) =
            if alias.is_empty() { ("objectName", self.name.clone()) } else { ("objectAlias", alias) };
        // The peer refuses two dots anywhere, also inside a name (azure.md 6).
        let checked = if text.contains("..") {
            Err("file name must not contain '..'")
        } else if folder {
            first_of(&text)
        } else {
            RelPath::new(&text)
        };
        let unknown: Vec<_> = self.entry.unknown().into_iter().map(|odd| odd.what).collect();
        let hint = match text.as_str() {
            "" if unknown.is_empty() => "name the object".to_owned(),
            "" => unknown.join("; "),
            _ => "give a clean relative path as objectAlias".to_owned(),
        };
        checked.map_err(|rule| self.wrong(field, rule, &hint)).ok()
    }

    /// Key Vault's own rules, so that no name can leave its place in the address.
    fn names(&mut self) {
        let plain = |text: &str, most| {
            text.len() <= most && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if self.name.is_empty() {
            self.wrong("objectName", "parameter name cannot be empty", "name the object");
        } else if !plain(&self.name, 127) {
            let what = format!("objectName {:?} is no name that Key Vault knows", self.name);
            self.wrong("objectName", &what, "1 to 127 letters, digits and hyphens");
        }
        if !plain(&self.version, 64) {
            let what = format!("objectVersion {:?} is no version id", self.version);
            self.wrong("objectVersion", &what, "give a version id, or leave it out for the latest");
        }
    }

    fn mode(&mut self) -> Option<Mode> {
        let text = self.text("filePermission");
        let mode = Mode::from_octal(&text);
        if mode.is_none() && !text.is_empty() {
            let what = format!("filePermission {text:?} is not an octal mode above 0");
            self.wrong("filePermission", &what, "write octal digits such as 0644");
        }
        mode
    }

    /// How many versions; nothing where it is one (azure.md 6, 8).
    fn history(&mut self) -> Option<History> {
        let exact = self.entry.flag("objectVersionHistoryExact", self.problems);
        let node = self.entry.node("objectVersionHistory")?;
        match node.int32() {
            Ok(number) => {
                let asked = usize::try_from(number).ok().filter(|asked| *asked > 1)?;
                Some(History { asked, most: if exact { asked } else { asked + 1 } })
            }
            Err(tag) => {
                let what = format!("cannot unmarshal {tag} into int32");
                self.wrong("objectVersionHistory", &what, "write a whole number without quotes");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::backends::azure::params;
    use crate::call::{Occasion, Parameters, Pod, Tokens};

    fn call(objects: &str) -> Call {
        let pairs = [
            ("keyvaultName", "shopkv"),
            ("tenantID", "t"),
            ("useVMManagedIdentity", "true"),
            ("objects", objects),
        ];
        let map: BTreeMap<_, _> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        Call {
            parameters: Parameters::new(&map),
            pod: Pod { name: "p".into(), namespace: "n".into(), ..Pod::default() },
            class: None,
            tokens: Tokens::default(),
            secrets: None,
            mode: Mode::DEFAULT,
            deadline: tokio::time::Instant::now(),
            occasion: Occasion::First,
        }
    }

    fn field() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("secret".to_owned()),
            Just("2".to_owned()),
            Just("true".to_owned()),
            "[ -~]{0,12}"
        ];
        (prop::sample::select(&ENTRY_NAMES[..]), value)
            .prop_map(|(name, value)| format!("  {name}: {value:?}\n"))
    }

    proptest! {
        #[test]
        fn what_is_planned_is_one_file_or_more_for_each_entry_and_nothing_panics(
            entries in prop::collection::vec(prop::collection::btree_set(field(), 1..6), 1..4),
            text in ".{0,80}",
        ) {
            let entries: String = entries.iter().map(|fields| format!("-\n{}", fields.iter().cloned().collect::<String>())).collect();
            let settings = Settings::default();
            for objects in [entries, text] {
                let (plan, problems) = params::plan(&settings, &call(&objects));
                if problems.is_empty() {
                    prop_assert!(!plan.outputs.is_empty() || !plan.series.is_empty());
                    for output in plan.outputs.iter().chain(plan.series.iter().flat_map(|series| &series.outputs)) {
                        prop_assert!(output.read < plan.reads.len());
                        prop_assert!(!output.path.as_str().contains(".."));
                    }
                }
            }
        }
    }
}
