//! From a class to findings: its form, the backend's own parser, its `secretObjects`.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::finding::{self, Finding, Level};
use super::secrets;
use crate::call::{Call, Occasion, Parameters, Pod, Tokens};
use crate::class::{Class, Manifests, Unread};
use crate::entry::nearest;
use crate::error::{Problem, Rule, Spot};
use crate::gather::{Gather, Outline};
use crate::path::Mode;
use crate::plan::{Account, Output};
use crate::secret::SecretText;
use crate::yaml::{Content, Node, Place, Within};

/// Providers of the driver whose classes are known to be right elsewhere.
const PEERS: [&str; 5] = ["azure", "vault", "openbao", "gcp", "aws"];

/// What a class that is right would do.
pub(super) struct Planned {
    /// `namespace/name`.
    pub(super) class: String,
    pub(super) provider: String,
    pub(super) account: Account,
    pub(super) files: Vec<Output>,
    /// Files that the store's versions number: the first, and at most how many.
    pub(super) series: Vec<(Output, usize)>,
}

impl Planned {
    /// Every file with the words for its path.
    pub(super) fn paths(&self) -> impl Iterator<Item = (String, &Output)> {
        let numbered = self.series.iter().map(|(output, most)| {
            let last = output.path.numbered(u32::try_from(most.saturating_sub(1)).unwrap_or(u32::MAX));
            (format!("{} to {last}", output.path), output)
        });
        self.files.iter().map(|output| (output.path.to_string(), output)).chain(numbered)
    }
}

/// Everything found so far.
#[derive(Default)]
pub(super) struct Report {
    pub(super) classes: usize,
    pub(super) findings: Vec<Finding>,
    pub(super) plans: Vec<Planned>,
}

/// Looks at manifests.
pub(super) struct Judge {
    pub(super) backends: Vec<Arc<dyn Gather>>,
    /// The classes come from a cluster: places count in the text of a parameter, not in a file.
    pub(super) live: bool,
}

impl Judge {
    /// Adds what is to be said of `manifests`.
    pub(super) fn all(&self, manifests: &Manifests, report: &mut Report) {
        let start = report.findings.len();
        for (document, why) in &manifests.unread {
            report.findings.push(match why {
                Unread::Template(place) => {
                    let what = "a template of Helm, not checked";
                    Finding::of_document(Level::Note, "file/template", document, Some(*place), what)
                        .hint("check what it renders to: helm template CHART | keyferry check -")
                }
                Unread::Broken(error) => {
                    let what = format!("the document is no YAML: {}", error.message);
                    Finding::of_document(Level::Error, "file/yaml", document, error.place, what)
                }
            });
        }
        let mut secrets = secrets::Seen::default();
        for class in &manifests.classes {
            report.classes += 1;
            let mut sheet = Sheet { class, live: self.live, texts: HashMap::new(), findings: Vec::new() };
            report.plans.extend(self.class(&mut sheet, &mut secrets));
            report.findings.append(&mut sheet.findings);
        }
        // In the order of the file, whoever found it.
        report.findings[start..]
            .sort_by(|a, b| (&a.file, a.document, a.place).cmp(&(&b.file, b.document, b.place)));
    }

    fn class(&self, sheet: &mut Sheet, secrets: &mut secrets::Seen) -> Option<Planned> {
        let class = sheet.class;
        if let Some(place) = class.template() {
            let what = "a template of Helm, not checked";
            sheet.file(Level::Note, "file/template", "", place, what);
            sheet.hint("check what it renders to: helm template CHART | keyferry check -");
            return None;
        }
        form(sheet);
        let backend = self.backends.iter().find(|backend| backend.name() == class.provider);
        let known = backend.is_some();
        let backend = backend.filter(|_| !class.parameters.is_empty());
        let outline = backend.map(|backend| backend.check(&call(class)));
        match &outline {
            Some(outline) => sheet.outline(outline),
            None if !(known || class.provider.is_empty()) => self.stranger(sheet),
            None => {}
        }
        let files = outline.as_ref().map(|outline| {
            let objects = |p: &Problem| p.spot.as_ref().is_some_and(|spot| spot.field.starts_with("objects"));
            secrets::Files {
                list: &outline.files,
                series: &outline.series,
                complete: !outline.problems.iter().any(objects),
            }
        });
        secrets::check(sheet, files, secrets);
        let Outline { account, files, series, .. } = outline?;
        let (class, provider) = (sheet.name(), class.provider.clone());
        Some(Planned {
            class,
            provider,
            account: account.filter(|_| sheet.class.problems.is_empty())?,
            files,
            series,
        })
    }

    fn stranger(&self, sheet: &mut Sheet) {
        let provider = &sheet.class.provider;
        let mut known: Vec<_> = self.backends.iter().map(|backend| backend.name()).collect();
        known.extend(PEERS.iter().filter(|name| !known.contains(name)).copied().collect::<Vec<_>>());
        if PEERS.contains(&provider.as_str()) {
            let what = format!("parameters not checked: the backend {provider} is not built in yet");
            sheet.spec(Level::Note, "class/not-checked", "provider", &what);
        } else {
            let near = nearest(provider, &known);
            let what = format!("provider {provider:?} is unknown{near}");
            sheet.spec(Level::Error, "class/provider", "provider", &what);
            sheet.hint(format!("known are: {}", known.join(", ")));
        }
    }
}

/// The call of a pod that has what a class can ask for, so that only the class is judged.
fn call(class: &Class) -> Call {
    let secrets = [("clientid", "x"), ("clientsecret", "x")];
    let token = json!({"token": "x", "expirationTimestamp": "2100-01-01T00:00:00Z"});
    let tokens = json!({"api://AzureADTokenExchange": token, "api://AKSIdentityBinding": token});
    Call {
        parameters: Parameters::new(&class.parameters),
        pod: Pod {
            name: "check".into(),
            namespace: class.namespace.clone(),
            uid: "check".into(),
            service_account: "default".into(),
        },
        class: Some(class.name.clone()),
        tokens: Tokens::new(Some(tokens.to_string())),
        secrets: Some(secrets.map(|(k, v)| (k.to_owned(), SecretText::new(v.to_owned()))).into()),
        mode: Mode::DEFAULT,
        deadline: tokio::time::Instant::now(),
        occasion: Occasion::First,
    }
}

const VERSIONS: [&str; 2] = ["secrets-store.csi.x-k8s.io/v1", "secrets-store.csi.x-k8s.io/v1alpha1"];

/// What the API server would refuse, drop or frown at (driver.md 10).
fn form(sheet: &mut Sheet) {
    let class = sheet.class;
    let node = &class.node;
    let version = node.get("apiVersion").and_then(Node::text).unwrap_or_default();
    let place = sheet.place(node.get("apiVersion").unwrap_or(node));
    match VERSIONS.iter().position(|known| *known == version) {
        Some(0) => {}
        Some(_) => {
            sheet.file(Level::Warning, "class/api-version", "apiVersion", place, "v1alpha1 is deprecated");
            sheet.hint(format!("write {}", VERSIONS[0]));
        }
        None => {
            let what = format!("apiVersion {version:?} is none of this kind");
            let what = if version.is_empty() { "apiVersion is missing" } else { &what };
            sheet.file(Level::Error, "class/api-version", "apiVersion", place, what);
            sheet.hint(format!("write {}", VERSIONS[0]));
        }
    }
    let metadata = node.get("metadata");
    let named = metadata.and_then(|metadata| metadata.get("name"));
    let generated = metadata.is_some_and(|metadata| metadata.get("generateName").is_some());
    if !(secrets::is_object_name(&class.name) || class.name.is_empty() && generated) {
        let place = sheet.place(named.filter(|name| !name.is_null()).or(metadata).unwrap_or(node));
        let what = format!("metadata.name {:?} is no name of an object", class.name);
        let what = if class.name.is_empty() { "metadata.name is missing" } else { &what };
        sheet.file(Level::Error, "class/name", "metadata.name", place, what);
        sheet.hint(secrets::NAME_HINT);
    }
    sheet.unknown(node, "", &["apiVersion", "kind", "metadata", "spec", "status"]);
    if let Some(spec) = node.get("spec") {
        sheet.unknown(spec, "spec.", &["provider", "parameters", "secretObjects"]);
    }
    for problem in &class.problems {
        let spot = problem.spot.as_ref();
        let field = spot.map_or("", |spot| &spot.field);
        let rule = if field == "spec.provider" { "class/provider" } else { "class/parameters" };
        let place = spot.and_then(|spot| spot.place).unwrap_or_else(|| class.place());
        sheet.file(Level::Error, rule, field, place, &problem.what);
        if let Some(hint) = &problem.hint {
            sheet.hint(hint.as_str());
        }
    }
}

/// Findings about one class, while they are gathered.
pub(super) struct Sheet<'a> {
    pub(super) class: &'a Class,
    live: bool,
    /// Where the texts of parameters lie.
    texts: HashMap<String, Option<Within<'a>>>,
    findings: Vec<Finding>,
}

impl Sheet<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.class.namespace, self.class.name)
    }

    /// Place of a node in the file.
    pub(super) fn place(&self, node: &Node) -> Place {
        self.class.document.in_file(node.place)
    }

    /// Adds a finding at a place of the file.
    pub(super) fn file(&mut self, level: Level, rule: &str, field: &str, place: Place, what: &str) {
        let place = Some(place).filter(|_| !self.live);
        let found = Finding::of_document(level, rule, &self.class.document, place, what);
        self.push(found, field);
    }

    fn push(&mut self, mut finding: Finding, field: &str) {
        finding.class = Some(self.name());
        finding.field = Some(field.to_owned()).filter(|field| !field.is_empty());
        if self.live {
            finding.file = self.name().into();
            finding.document = None;
        }
        self.findings.push(finding);
    }

    /// Adds a finding at the value of a field of `spec`.
    fn spec(&mut self, level: Level, rule: &str, field: &str, what: &str) {
        let node = self.class.node.get("spec").and_then(|spec| spec.get(field)).unwrap_or(&self.class.node);
        self.file(level, rule, &format!("spec.{field}"), self.place(node), what);
    }

    /// Adds the next step to the latest finding.
    pub(super) fn hint(&mut self, hint: impl Into<String>) {
        if let Some(latest) = self.findings.last_mut() {
            latest.hint = Some(hint.into());
        }
    }

    /// Names the fields of `node` that Kubernetes drops.
    pub(super) fn unknown(&mut self, node: &Node, prefix: &str, known: &[&str]) {
        for (key, _) in node.fields().iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let what = format!("field {:?} is unknown and dropped{}", key.name, nearest(&key.name, known));
            let place = self.class.document.in_file(key.place);
            self.file(Level::Warning, "class/unknown-field", &format!("{prefix}{}", key.name), place, &what);
        }
    }

    /// Adds what the backend says, in its own words; of a parameter that is no text all is said.
    fn outline(&mut self, outline: &Outline) {
        let wrong: Vec<_> = self.class.problems.iter().filter_map(|problem| problem.spot.as_ref()).collect();
        for problem in &outline.problems {
            let spot = problem.spot.as_ref();
            let said = |spot: &Spot| {
                spot.place.is_none()
                    && wrong.iter().any(|s| s.field == format!("spec.parameters.{}", spot.field))
            };
            if spot.is_some_and(said) {
                continue;
            }
            let rule = finding::of_problem(&self.class.provider, spot.map(|spot| spot.field.as_str()));
            self.spot(Level::Error, &rule, spot, false, &problem.what);
            if let Some(hint) = &problem.hint {
                self.hint(hint.as_str());
            }
        }
        for warning in &outline.warnings {
            let name = matches!(warning.rule, Rule::UnknownParameter | Rule::Spelling);
            // Right for pods with nodePublishSecretRef, which the class does not show.
            let level = if warning.rule == Rule::Identity { Level::Note } else { Level::Warning };
            self.spot(level, finding::of_warning(warning.rule), warning.spot.as_ref(), name, &warning.what);
        }
    }

    fn spot(&mut self, level: Level, rule: &str, spot: Option<&Spot>, name: bool, what: &str) {
        let field = spot.map_or("", |spot| &spot.field);
        let parameter = field.split(['[', '.', ',']).next().unwrap_or_default();
        let place = spot.and_then(|spot| spot.place);
        if !self.live {
            let place = match place {
                Some(place) => self.in_parameter(parameter, place),
                None if field.is_empty() => self.class.place(),
                None => self.class.place_of(parameter, name),
            };
            return self.file(level, rule, field, place, what);
        }
        let mut found = Finding::of_document(level, rule, &self.class.document, None, what);
        let text = self.class.parameters.get(parameter);
        found.line = place.and_then(|p| text?.lines().nth(p.line - 1).map(ToOwned::to_owned));
        found.place = place;
        self.push(found, field);
    }

    /// Place in the file of a place in the text of a parameter.
    fn in_parameter(&mut self, parameter: &str, place: Place) -> Place {
        let class = self.class;
        let within = self.texts.entry(parameter.to_owned()).or_insert_with(|| class.within(parameter));
        within.as_ref().map_or(class.place(), |within| class.document.in_file(within.place(place)))
    }
}

/// The items of a sequence that is a field; what is no sequence is told.
pub(super) fn list<'a>(sheet: &mut Sheet, node: &'a Node, field: &str) -> &'a [Node] {
    match &node.content {
        Content::List(items) => items,
        Content::Null => &[],
        _ => {
            let what = format!("{field} is a {}, not a list", node.kind());
            sheet.file(Level::Error, "secret/form", field, sheet.place(node), &what);
            &[]
        }
    }
}
