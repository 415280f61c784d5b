//! The native form of a class: a list of entries, checked completely before anything is read.

use super::{Local, Read};
use crate::call::Call;
use crate::entry::{Entry, Field, names, nearest, unknown_parameters};
use crate::error::{Problem, Spot};
use crate::path::{Mode, RelPath};
use crate::plan::{Credential, Only, Output, Plan, Step, check_paths};
use crate::yaml::{self, Content, Node, Within};

static PARAMETER_NAMES: [&str; PARAMETERS.len()] = names(&PARAMETERS);
static ENTRY_NAMES: [&str; ENTRY.len()] = names(&ENTRY);

/// Parameters of a class.
pub(super) const PARAMETERS: [Field; 3] = [
    Field::own("objects", "YAML", "required", "The entries."),
    Field::own(
        "maxAge",
        "`30s`, `5m`, `1h`, `0` and the like",
        "`--repeat-max-age`",
        "Age that a value may have in a later mount of the same volume.",
    ),
    Field::own(
        "lastGoodMaxAge",
        "`5m`, `30m`, `1h`, `0` and the like",
        "`--last-good-default`",
        "Age that a value may have while the store is down; at most `--last-good-max-age`.",
    ),
];

/// Fields of an entry.
pub(super) const ENTRY: [Field; 8] = [
    Field::own(
        "name",
        "clean relative path",
        "required",
        "File below the root, or a folder of numbered files.",
    ),
    Field::own("path", "clean relative path", "`name`", "File in the volume; may lie in folders."),
    Field::own("version", "whole number, or `latest`", "the newest", "Which file of a folder."),
    Field::own("key", "path of a member", "-", "Member of a JSON or YAML value."),
    Field::own("decode", "`base64`, `base64url`, `hex`", "-", "How the value is decoded."),
    Field::own("mode", "octal digits", "the caller's, mostly `0644`", "Mode of the file; quote it."),
    Field::own("optional", "boolean", "`false`", "Whether the file may be missing."),
    Field::own("default", "any text", "-", "What stands in for a missing file."),
];

const DECODINGS: &[&str] = &["base64", "base64url", "hex"];

pub(super) fn plan(call: &Call) -> (Plan<Local>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut plan = Plan::new((), Credential::Node, "local".to_owned(), "local".to_owned());
    plan.warnings = unknown_parameters(&call.parameters, &PARAMETER_NAMES);
    for (index, node) in entries(call, &mut problems).iter().enumerate() {
        entry(&mut plan, node, index, &mut problems);
    }
    problems.extend(check_paths(plan.outputs.iter(), None));
    (plan, problems)
}

const SAMPLE: &str = "write objects as a list, such as\n- name: db-password\n  path: creds/password";

fn entries(call: &Call, problems: &mut Vec<Problem>) -> Vec<Node> {
    let text = call.parameters.raw("objects").unwrap_or("");
    let list = match yaml::parse(text) {
        Ok(Some(Node { content: Content::List(list), .. })) => list,
        Ok(None) => Vec::new(),
        Ok(Some(node)) if matches!(node.content, Content::Null) => Vec::new(),
        Ok(Some(node)) => {
            problems.push(
                Problem::config(format!("objects is a {}, not a list", node.kind()))
                    .at(Spot::at("objects", node.place))
                    .hint(SAMPLE),
            );
            return Vec::new();
        }
        Err(error) => {
            let spot = Spot { field: "objects".into(), place: error.place };
            problems.push(Problem::config(format!("objects cannot be read: {error}")).at(spot).hint(SAMPLE));
            return Vec::new();
        }
    };
    if list.is_empty() {
        problems.push(
            Problem::config("objects is not set or lists no entry").at(Spot::field("objects")).hint(SAMPLE),
        );
    }
    list
}

fn entry(plan: &mut Plan<Local>, node: &Node, index: usize, problems: &mut Vec<Problem>) {
    let entry = Entry::new(node, format!("objects[{index}]"), Within::whole(), &ENTRY_NAMES);
    if !matches!(node.content, Content::Map(_)) {
        let found = format!("entry is a {}, not a mapping", node.kind());
        problems.push(Problem::config(found).at(entry.spot()).hint(SAMPLE));
        return;
    }
    plan.warnings.extend(entry.unknown());
    let name = entry.text("name", problems);
    if let Err(rule) = RelPath::new(&name) {
        let what =
            if name.is_empty() { "name is missing".to_owned() } else { format!("name {name:?}: {rule}") };
        problems.push(
            Problem::config(what)
                .at(entry.spot_of("name"))
                .hint("give the path of a file below the local root"),
        );
    }
    let version = version(&entry, problems);
    let key = entry.text("key", problems);
    let path = path(&entry, &name, problems);
    let mode = mode(&entry, "mode", problems);
    plan.warnings.extend(entry.unreadable("mode", mode));
    let steps = steps(&entry, &key, problems);
    let missing = entry.missing(problems);
    let Some(path) = path else { return };
    let read = plan.read(Read { name: name.clone(), version });
    let id = if key.is_empty() { format!("secret/{name}") } else { format!("secret/{name}#{key}") };
    let label = format!("failed to read secret {name:?}: ");
    plan.outputs.push(Output {
        read,
        only: Only::Always,
        steps,
        path,
        mode,
        id,
        missing,
        label,
        spot: entry.spot(),
    });
}

fn version(entry: &Entry, problems: &mut Vec<Problem>) -> Option<u64> {
    let text = entry.text("version", problems);
    if text.is_empty() || text == "latest" {
        return None;
    }
    let number = text.parse().ok();
    if number.is_none() {
        problems.push(
            Problem::config(format!("version {text:?} is not a number"))
                .at(entry.spot_of("version"))
                .hint("write a number, or leave it out for the newest"),
        );
    }
    number
}

/// The path in the volume: the field, else `default`.
fn path(entry: &Entry, default: &str, problems: &mut Vec<Problem>) -> Option<RelPath> {
    let text = entry.text("path", problems);
    if text.is_empty() {
        // A name that is no path is reported as a name already.
        return RelPath::new(default).ok();
    }
    RelPath::new(&text)
        .map_err(|rule| {
            problems.push(
                Problem::config(format!("path {text:?}: {rule}"))
                    .at(entry.spot_of("path"))
                    .hint("give a clean relative path"),
            );
        })
        .ok()
}

/// A mode in octal, or nothing where the field is absent.
fn mode(entry: &Entry, field: &str, problems: &mut Vec<Problem>) -> Option<Mode> {
    let text = entry.text(field, problems);
    if text.is_empty() {
        return None;
    }
    let mode = Mode::from_octal(&text);
    if mode.is_none() {
        problems.push(
            Problem::config(format!("{field} {text:?} is not an octal mode above 0"))
                .at(entry.spot_of(field))
                .hint("write four octal digits in quotes, such as \"0444\""),
        );
    }
    mode
}

fn steps(entry: &Entry, key: &str, problems: &mut Vec<Problem>) -> Vec<Step> {
    let mut steps = Vec::new();
    if !key.is_empty() {
        steps.push(Step::Field(key.to_owned()));
    }
    let decode = entry.text("decode", problems);
    match decode.as_str() {
        "" => {}
        "base64" => steps.push(Step::Base64),
        "base64url" => steps.push(Step::Base64Url),
        "hex" => steps.push(Step::Hex),
        other => problems.push(
            Problem::config(format!("decode {other:?} is unknown{}", nearest(other, DECODINGS)))
                .at(entry.spot_of("decode"))
                .hint("allowed are base64, base64url and hex"),
        ),
    }
    steps
}
