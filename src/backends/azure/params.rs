//! From a class to a plan: parameters, identity and entries, every problem collected (azure.md 3 to 7).

use std::path::Path;

use super::cloud::{self, Cloud};
use super::{Azure, Identity, ObjectKind, Read, Settings, Target};
use crate::call::Call;
use crate::entry::{Entry, boolean, nearest};
use crate::error::{Problem, Problems, Spot};
use crate::path::{Mode, RelPath};
use crate::plan::{Credential, Missing, Only, Output, Plan, Step, check_paths};
use crate::secret::SecretText;
use crate::yaml::{self, Content, Node};

const PARAMETERS: &[&str] = &[
    "keyvaultName",
    "tenantID",
    "tenantId",
    "cloudName",
    "cloudEnvFileName",
    "usePodIdentity",
    "useVMManagedIdentity",
    "useAzureTokenProxy",
    "userAssignedIdentityID",
    "clientID",
    "clientId",
    "objects",
    "maxAge",
    "resourceGroup",
    "subscriptionId",
];

const FIELDS: &[&str] = &[
    "objectName",
    "objectType",
    "objectVersion",
    "objectVersionHistory",
    "objectAlias",
    "objectFormat",
    "objectEncoding",
    "filePermission",
];

/// Audience of workload identity (azure.md 11.2).
const AUDIENCE: &str = "api://AzureADTokenExchange";

pub(super) fn plan(settings: &Settings, call: &Call) -> Result<Plan<Azure>, Problems> {
    let mut problems = Vec::new();
    pod(call, &mut problems);
    let mode = mode(call, &mut problems);
    let cloud = cloud(settings, call, &mut problems);
    let vault = vault(call, &mut problems);
    let tenant = tenant(call, &mut problems);
    let (identity, credential) = identity(call, mode, &mut problems);
    let host = format!("{vault}.{}", cloud.suffix);
    let login_at = match identity {
        Identity::Machine { .. } => "the instance metadata service (169.254.169.254)".to_owned(),
        Identity::App { .. } => cloud.authority.clone(),
    };
    let mut plan = Plan {
        target: Target {
            vault: host.clone(),
            resource: cloud.resource,
            authority: cloud.authority,
            tenant,
            identity,
        },
        credential,
        login_at,
        read_at: host,
        reads: Vec::new(),
        outputs: Vec::new(),
        warnings: Vec::new(),
    };
    for key in call.parameters.keys().filter(|key| !PARAMETERS.contains(key)) {
        let near = nearest(key, PARAMETERS);
        plan.warnings.push(format!("parameter {key:?} is unknown and ignored{near}"));
    }
    for (index, (node, offset)) in entries(call, &mut problems).iter().enumerate() {
        entry(&mut plan, settings, node, *offset, index, &mut problems);
    }
    problems.extend(check_paths(&plan.outputs, false, &mut plan.warnings));
    match Problems::some(problems) {
        Some(problems) => Err(problems),
        None => Ok(plan),
    }
}

fn pod(call: &Call, problems: &mut Vec<Problem>) {
    for (text, name) in [(&call.pod.name, "pod name"), (&call.pod.namespace, "pod namespace")] {
        if text.is_empty() {
            problems.push(
                Problem::config(format!("{name} is not provided"))
                    .hint("the CSIDriver object needs podInfoOnMount: true"),
            );
        }
    }
}

/// Ways to an identity that a class can switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flagged {
    None,
    Pod,
    Machine,
    Proxy,
}

fn mode(call: &Call, problems: &mut Vec<Problem>) -> Flagged {
    let mut on = Vec::new();
    for (key, mode) in [
        ("usePodIdentity", Flagged::Pod),
        ("useVMManagedIdentity", Flagged::Machine),
        ("useAzureTokenProxy", Flagged::Proxy),
    ] {
        let text = call.parameters.text(key);
        match boolean(text) {
            Some(true) => on.push((key, mode)),
            Some(false) => {}
            None => problems.push(
                Problem::config(format!("failed to parse {key} flag, error: {text:?} is no boolean"))
                    .at(Spot::field(key))
                    .hint("write \"true\" or \"false\""),
            ),
        }
    }
    if on.len() > 1 {
        let keys: Vec<_> = on.iter().map(|(key, _)| *key).collect();
        problems.push(
            Problem::config(
                "only one identity mode can be enabled at a time: usePodIdentity, useVMManagedIdentity, useAzureTokenProxy",
            )
            .at(Spot::field(keys.join(", ")))
            .hint("keep one of them true"),
        );
    }
    on.first().map_or(Flagged::None, |(_, mode)| *mode)
}

fn cloud(settings: &Settings, call: &Call, problems: &mut Vec<Problem>) -> Cloud {
    let name = call.parameters.text("cloudName");
    if name.is_empty() {
        return settings.cloud.clone();
    }
    let found = if cloud::is_stack(name) {
        let named = call.parameters.text("cloudEnvFileName");
        let file =
            if named.is_empty() { settings.environment_file.as_deref() } else { Some(Path::new(named)) };
        file.map_or_else(|| Err("AzureStackCloud needs cloudEnvFileName".to_owned()), cloud::from_file)
    } else {
        cloud::by_name(name).ok_or_else(|| format!("there is no cloud named {:?}", name.to_ascii_uppercase()))
    };
    found.unwrap_or_else(|reason| {
        problems.push(
            Problem::config(format!("cloudName {name} is not valid, error: {reason}"))
                .at(Spot::field("cloudName"))
                .hint("allowed are AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, AzureGermanCloud and AzureStackCloud"),
        );
        settings.cloud.clone()
    })
}

fn vault(call: &Call, problems: &mut Vec<Problem>) -> String {
    let name = call.parameters.text("keyvaultName");
    let spot = Spot::field("keyvaultName");
    if name.is_empty() {
        problems.push(Problem::config("keyvaultName is not provided").at(spot).hint("name the vault"));
    } else if !(3..=24).contains(&name.len()) {
        problems.push(
            Problem::config(format!(
                "failed to get vault: Invalid vault name: {name:?}, must be between 3 and 24 chars"
            ))
            .at(spot)
            .hint("give the vault's name, not its address"),
        );
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        problems.push(
            Problem::config(format!(
                "failed to get vault: Invalid vault name: {name:?}, must match [-a-zA-Z0-9]{{3,24}}"
            ))
            .at(spot)
            .hint("give the vault's name, not its address"),
        );
    }
    name.to_owned()
}

fn tenant(call: &Call, problems: &mut Vec<Problem>) -> String {
    let tenant = match call.parameters.text("tenantID") {
        "" => call.parameters.text("tenantId"),
        tenant => tenant,
    };
    let spot = Spot::field("tenantID");
    if tenant.is_empty() {
        problems.push(
            Problem::config("tenantId is not provided")
                .at(spot)
                .hint("give tenantID, the id of the Entra tenant"),
        );
    } else if !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        problems.push(
            Problem::config(format!("failed to get keyvault client: invalid tenantID {tenant:?}"))
                .at(spot)
                .hint("only letters, digits, '-' and '.' can stand in it"),
        );
    }
    tenant.to_owned()
}

/// azure.md 11.1, first match; `clientId` counts as `clientID` (16 row 13).
fn identity(call: &Call, mode: Flagged, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let client_id = match call.parameters.text("clientID") {
        "" => call.parameters.text("clientId"),
        id => id,
    };
    match mode {
        Flagged::Machine => {
            let id = call.parameters.text("userAssignedIdentityID");
            let client_id = (!id.is_empty()).then(|| id.to_owned());
            (Identity::Machine { client_id }, Credential::Node)
        }
        Flagged::Pod | Flagged::Proxy => {
            let key = if mode == Flagged::Pod { "usePodIdentity" } else { "useAzureTokenProxy" };
            problems.push(
                Problem::config(format!("{key} is not supported by this version of keyferry"))
                    .at(Spot::field(key))
                    .hint("use workload identity (clientID) or useVMManagedIdentity"),
            );
            (Identity::Machine { client_id: None }, Credential::Node)
        }
        Flagged::None if !client_id.is_empty() => {
            let credential = call.tokens.for_audience(AUDIENCE).unwrap_or_else(|mut problem| {
                problem.what = format!(
                    "failed to build auth config for mode None: failed to parse workload identity tokens, error: {}",
                    problem.what
                );
                problems.push(problem.at(Spot::field("clientID")));
                SecretText::default()
            });
            (Identity::App { client_id: client_id.to_owned() }, Credential::Token(credential))
        }
        Flagged::None => principal(call, problems),
    }
}

fn principal(call: &Call, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let ways = "choose one way: clientID (workload identity), useVMManagedIdentity: \"true\", useAzureTokenProxy, or a Secret \
                with clientid and clientsecret named by the volume's nodePublishSecretRef";
    let mut missing = |what: &str| {
        problems
            .push(Problem::config(format!("failed to build auth config for mode None: {what}")).hint(ways));
    };
    let Some(secrets) = &call.secrets else {
        missing("failed to get credentials, nodePublishSecretRef secret is not set");
        return (Identity::App { client_id: String::new() }, Credential::Node);
    };
    let find = |name: &str| {
        let found = secrets.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    let (id, secret) = (find("clientid"), find("clientsecret"));
    if id.is_none() {
        missing("could not find clientid in secrets");
    }
    if secret.is_none() {
        missing("could not find clientsecret in secrets");
    }
    let client_id = id.map_or(String::new(), |id| id.expose().to_owned());
    (Identity::App { client_id }, Credential::Password(secret.unwrap_or_default()))
}

const SAMPLE: &str = "write\narray:\n  - |\n    objectName: db-password\n    objectType: secret";

/// The entries of `objects`, each with what its line numbers lack. Plain mappings and a list without
/// `array` are taken as well (azure.md 16 row 32).
fn entries(call: &Call, problems: &mut Vec<Problem>) -> Vec<(Node, usize)> {
    let text = call.parameters.text("objects");
    let spot = |line| Spot { field: "objects".into(), line };
    if text.is_empty() {
        problems.push(Problem::config("objects is not set").at(spot(None)).hint(SAMPLE));
        return Vec::new();
    }
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let line = error.place.map(|place| place.line);
            problems.push(
                Problem::config(format!("failed to yaml unmarshal objects, error: {error}"))
                    .at(spot(line))
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
        .at(spot(Some(line)))
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
    list.into_iter().enumerate().filter_map(|(index, node)| inner(node, index, problems)).collect()
}

/// An entry is a text that holds a mapping, or the mapping itself.
fn inner(node: Node, index: usize, problems: &mut Vec<Problem>) -> Option<(Node, usize)> {
    let failed = |line: usize, reason: String| {
        Problem::config(format!("unmarshal failed for keyVaultObjects at index {index}, error: {reason}"))
            .at(Spot { field: format!("objects[{index}]"), line: Some(line) })
            .hint(SAMPLE)
    };
    let text = match &node.content {
        Content::Map(_) => return Some((node, 0)),
        Content::Text { text, .. } => text,
        Content::List(_) | Content::Null => {
            let line = node.place.line;
            let what = format!(
                "failed to yaml unmarshal objects, error: yaml: unmarshal errors:\n  line {line}: cannot unmarshal {} into string",
                node.kind()
            );
            let spot = Spot { field: format!("objects[{index}]"), line: Some(line) };
            problems.push(Problem::config(what).at(spot).hint(SAMPLE));
            return None;
        }
    };
    let offset = node.place.line.saturating_sub(1);
    let empty = || Node { content: Content::Map(Vec::new()), ..node.clone() };
    match yaml::parse(text) {
        Ok(Some(entry)) if matches!(entry.content, Content::Map(_)) => Some((entry, offset)),
        Ok(None) => Some((empty(), 0)),
        Ok(Some(entry)) if matches!(entry.content, Content::Null) => Some((empty(), 0)),
        Ok(Some(entry)) => {
            let line = entry.place.line;
            let kind = entry.kind();
            let reason = format!(
                "yaml: unmarshal errors:\n  line {line}: cannot unmarshal {kind} into types.KeyVaultObject"
            );
            problems.push(failed(line + offset, reason));
            None
        }
        Err(error) => {
            let line = error.place.map_or(node.place.line, |place| place.line + offset);
            problems.push(failed(line, error.to_string()));
            None
        }
    }
}

struct Fields {
    kind: Option<ObjectKind>,
    name: String,
    version: String,
    pfx: bool,
    encoding: Option<Step>,
    path: Option<RelPath>,
    mode: Option<Mode>,
    id: String,
    label: String,
}

fn entry(
    plan: &mut Plan<Azure>,
    settings: &Settings,
    node: &Node,
    offset: usize,
    index: usize,
    problems: &mut Vec<Problem>,
) {
    let entry = Entry::new(node, format!("objects[{index}]"), offset, FIELDS);
    plan.warnings.extend(entry.unknown().into_iter().map(|(spot, text)| format!("{}: {text}", spot.field)));
    let fields = fields(&entry, problems);
    let (Some(kind), Some(path)) = (fields.kind, &fields.path) else { return };
    let read = plan.read(Read { kind, name: fields.name.clone(), version: fields.version.clone() });
    let steps = steps(settings, kind, &fields);
    let output = |suffix: &str, only: Only, pick: Option<Step>| {
        let path = RelPath::new(&format!("{path}{suffix}")).ok()?;
        let mut steps = steps.clone();
        if let Some(pick) = pick {
            // The blocks are picked before the encoding step, which is the last one.
            let at = steps.len() - usize::from(fields.encoding.is_some());
            steps.insert(at, pick);
        }
        Some(Output {
            read,
            only,
            steps,
            path,
            mode: fields.mode,
            id: fields.id.clone(),
            missing: Missing::Fails,
            label: fields.label.clone(),
            spot: entry.spot(),
        })
    };
    if settings.split && kind == ObjectKind::Secret {
        plan.outputs.extend(output(".crt", Only::Certificates, Some(Step::Certificates)));
        plan.outputs.extend(output(".key", Only::Certificates, Some(Step::Keys)));
    }
    plan.outputs.extend(output("", Only::Always, None));
}

fn steps(settings: &Settings, kind: ObjectKind, fields: &Fields) -> Vec<Step> {
    let mut steps = match kind {
        ObjectKind::Key => vec![Step::PublicKey],
        ObjectKind::Certificate => vec![Step::Certificate],
        ObjectKind::Secret if fields.pfx => Vec::new(),
        ObjectKind::Secret => vec![Step::Pem { order_chain: settings.order_chain }],
    };
    steps.extend(fields.encoding.clone());
    steps
}

fn fields(entry: &Entry, problems: &mut Vec<Problem>) -> Fields {
    let name = entry.text("objectName", problems);
    let kind_text = entry.text("objectType", problems);
    let version = entry.text("objectVersion", problems);
    let label = format!("failed to get objectType:{kind_text}, objectName:{name}, objectVersion:{version}: ");
    let mut found = Vec::new();
    let mut wrong = |field: &str, what: String, hint: &str| {
        found.push(Problem::config(format!("{label}{what}")).at(entry.spot_of(field)).hint(hint));
    };
    let kind = match kind_text.as_str() {
        "secret" => Some(ObjectKind::Secret),
        "key" => Some(ObjectKind::Key),
        "cert" => Some(ObjectKind::Certificate),
        other => {
            let near = match other.to_lowercase().as_str() {
                "certificate" | "certs" | "cert" => ", did you mean \"cert\"?".to_owned(),
                lower => nearest(lower, &["secret", "key", "cert"]),
            };
            let what =
                format!("Invalid vaultObjectTypes. Should be secret, key, or cert; found {other:?}{near}");
            wrong("objectType", what, "write secret, key or cert");
            None
        }
    };
    let format = entry.text("objectFormat", problems);
    let pfx = format.eq_ignore_ascii_case("pfx");
    if !(format.is_empty() || pfx || format.eq_ignore_ascii_case("pem")) {
        wrong(
            "objectFormat",
            format!("invalid objectFormat: {format}, should be PEM or PFX"),
            "write pem or pfx, or leave it out",
        );
    } else if format == "pfx" && kind_text != "secret" {
        wrong(
            "objectFormat",
            "PFX format only supported for objectType: secret".into(),
            "ask for the certificate as objectType: secret",
        );
    }
    let encoding_text = entry.text("objectEncoding", problems);
    let mut encoding = None;
    if !encoding_text.is_empty() && kind_text != "secret" {
        wrong(
            "objectEncoding",
            "objectEncoding only supported for objectType: secret".into(),
            "leave objectEncoding out",
        );
    } else {
        match encoding_text.to_lowercase().as_str() {
            "" | "utf-8" => {}
            "base64" => encoding = Some(Step::Base64),
            "hex" => encoding = Some(Step::Hex),
            _ => wrong(
                "objectEncoding",
                format!("invalid objectEncoding: {encoding_text}, should be hex, base64 or utf-8"),
                "write hex, base64 or utf-8",
            ),
        }
    }
    let alias = entry.text("objectAlias", problems);
    let near: Vec<_> = entry.unknown().into_iter().map(|(_, text)| text).collect();
    let path = path(&name, &alias, &near.join("; "), &mut wrong);
    if path.is_some() || !name.is_empty() {
        check_name(&name, &version, &mut wrong);
    }
    let mode_text = entry.text("filePermission", problems);
    let mode = Mode::from_octal(&mode_text);
    if mode.is_none() && !mode_text.is_empty() {
        wrong(
            "filePermission",
            format!("filePermission {mode_text:?} is not an octal mode above 0"),
            "write octal digits such as 0644",
        );
    }
    history(entry, problems, &mut wrong);
    problems.append(&mut found);
    let version = if version.eq_ignore_ascii_case("latest") { String::new() } else { version };
    let id = format!("{kind_text}/{name}");
    Fields { kind, name, version, pfx, encoding, path, mode, id, label }
}

fn path(
    name: &str,
    alias: &str,
    unknown: &str,
    wrong: &mut impl FnMut(&str, String, &str),
) -> Option<RelPath> {
    let (field, text) = if alias.is_empty() { ("objectName", name) } else { ("objectAlias", alias) };
    // The peer refuses two dots anywhere, also inside a name (azure.md 6).
    let checked =
        if text.contains("..") { Err("file name must not contain '..'") } else { RelPath::new(text) };
    let hint = match text {
        "" if unknown.is_empty() => "name the object",
        "" => unknown,
        _ => "give a clean relative path as objectAlias",
    };
    checked.map_err(|rule| wrong(field, rule.to_owned(), hint)).ok()
}

/// Key Vault's own rules, so that no name can leave its place in the address.
fn check_name(name: &str, version: &str, wrong: &mut impl FnMut(&str, String, &str)) {
    if name.is_empty() {
        wrong("objectName", "parameter name cannot be empty".into(), "name the object");
    } else if name.len() > 127 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        wrong(
            "objectName",
            format!("objectName {name:?} is no name that Key Vault knows"),
            "1 to 127 letters, digits and hyphens",
        );
    }
    let hex = version.len() <= 64 && version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !hex {
        wrong(
            "objectVersion",
            format!("objectVersion {version:?} is no version id"),
            "give a version id, or leave it out for the latest",
        );
    }
}

fn history(entry: &Entry, problems: &mut Vec<Problem>, wrong: &mut impl FnMut(&str, String, &str)) {
    let text = entry.text("objectVersionHistory", problems);
    match text.parse::<f64>() {
        Ok(number) if number >= 2.0 => wrong(
            "objectVersionHistory",
            format!("objectVersionHistory {text} is not supported by this version of keyferry"),
            "leave it out, and list versions as entries of their own",
        ),
        Err(_) if !text.is_empty() => {
            wrong(
                "objectVersionHistory",
                "cannot unmarshal !!str into int32".into(),
                "write a number without quotes",
            );
        }
        Ok(_) | Err(_) => {}
    }
}
