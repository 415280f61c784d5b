//! The `objects` text: entries in any of their forms, and the fields of one (azure.md 5, 6).

use super::fields::ENTRY_NAMES;
use super::{Azure, ObjectKind, Read, Settings};
use crate::call::Call;
use crate::entry::{Entry, nearest};
use crate::error::{Problem, Spot};
use crate::path::{Mode, RelPath};
use crate::plan::{Missing, Only, Output, Plan, Step};
use crate::yaml::{self, Content, Node, Place, Within};

const SAMPLE: &str = "write\narray:\n  - |\n    objectName: db-password\n    objectType: secret";

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
    pfx: bool,
    encoding: Option<Step>,
    path: RelPath,
    mode: Option<Mode>,
    id: String,
    label: String,
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
    let Some(fields) = Checker::new(&entry, problems).fields() else { return };
    plan.warnings.extend(entry.unreadable("filePermission", fields.mode));
    let read =
        plan.read(Read { kind: fields.kind, name: fields.name.clone(), version: fields.version.clone() });
    let output = |suffix: &str, only: Only, pick: Option<Step>| {
        Some(Output {
            read,
            only,
            steps: steps(settings, &fields, pick),
            path: RelPath::new(&format!("{}{suffix}", fields.path)).ok()?,
            mode: fields.mode,
            id: fields.id.clone(),
            missing: Missing::Fails,
            label: fields.label.clone(),
            spot: entry.spot(),
        })
    };
    if settings.split && fields.kind == ObjectKind::Secret {
        plan.outputs.extend(output(".crt", Only::Certificates, Some(Step::Certificates)));
        plan.outputs.extend(output(".key", Only::Certificates, Some(Step::Keys)));
    }
    plan.outputs.extend(output("", Only::Always, None));
}

/// What is done to the value; blocks are picked before the encoding step, which is the last one.
fn steps(settings: &Settings, fields: &Fields, pick: Option<Step>) -> Vec<Step> {
    let form = match fields.kind {
        ObjectKind::Key => vec![Step::PublicKey],
        ObjectKind::Certificate => vec![Step::Base64, Step::Certificate],
        ObjectKind::Secret if fields.pfx => vec![],
        ObjectKind::Secret => vec![Step::Pem { order_chain: settings.order_chain }],
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
    fn fields(mut self) -> Option<Fields> {
        let kind = self.kind();
        let pfx = self.format();
        let encoding = self.encoding();
        let path = self.path();
        if path.is_some() || !self.name.is_empty() {
            self.names();
        }
        let mode = self.mode();
        self.history();
        let Self { name, kind: word, label, version, .. } = self;
        let version = if version.eq_ignore_ascii_case("latest") { String::new() } else { version };
        let id = format!("{word}/{name}");
        Some(Fields { kind: kind?, name, version, pfx, encoding, path: path?, mode, id, label })
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

    /// Whether a PFX is wanted as it is.
    fn format(&mut self) -> bool {
        let format = self.text("objectFormat");
        let pfx = format.eq_ignore_ascii_case("pfx");
        if !(format.is_empty() || pfx || format.eq_ignore_ascii_case("pem")) {
            let what = format!("invalid objectFormat: {format}, should be PEM or PFX");
            self.wrong("objectFormat", &what, "write pem or pfx, or leave it out");
        } else if format == "pfx" && self.kind != "secret" {
            // In capitals the peer lets it pass without effect, and so do we.
            let what = "PFX format only supported for objectType: secret";
            self.wrong("objectFormat", what, "ask for the certificate as objectType: secret");
        }
        pfx
    }

    fn encoding(&mut self) -> Option<Step> {
        let encoding = self.text("objectEncoding");
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

    fn path(&mut self) -> Option<RelPath> {
        let alias = self.text("objectAlias");
        let (field, text) =
            if alias.is_empty() { ("objectName", self.name.clone()) } else { ("objectAlias", alias) };
        // The peer refuses two dots anywhere, also inside a name (azure.md 6).
        let checked =
            if text.contains("..") { Err("file name must not contain '..'") } else { RelPath::new(&text) };
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

    fn history(&mut self) {
        let text = self.text("objectVersionHistory");
        match text.parse::<f64>() {
            Ok(number) if number >= 2.0 => {
                let what =
                    format!("objectVersionHistory {text} is not supported by this version of keyferry");
                self.wrong(
                    "objectVersionHistory",
                    &what,
                    "leave it out, and list versions as entries of their own",
                );
            }
            Err(_) if !text.is_empty() => {
                let what = "cannot unmarshal !!str into int32";
                self.wrong("objectVersionHistory", what, "write a number without quotes");
            }
            Ok(_) | Err(_) => {}
        }
    }
}
