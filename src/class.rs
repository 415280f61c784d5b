//! Reads SecretProviderClass and Pod manifests as they are: several documents, lists, JSON.
//!
//! A document that does not name what we look for is passed over unread, so that files of others, such
//! as templates, cost nothing and break nothing. Every place is one of the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Problem, Spot};
use crate::yaml::{self, Content, Limits, Node, Place, Within};

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// Name of the file.
    pub file: Arc<str>,
    /// Number in the file, from 1.
    pub number: usize,
    /// Lines of the file before it.
    before: usize,
    text: String,
}

impl Document {
    /// A place of the document as one of the file.
    pub fn in_file(&self, place: Place) -> Place {
        Place { line: place.line + self.before, ..place }
    }

    /// A line of the file, if it belongs to this document.
    pub fn line(&self, number: usize) -> Option<&str> {
        self.text.lines().nth(number.checked_sub(self.before + 1)?)
    }
}

/// A class, as far as a provider is concerned.
#[derive(Debug, Clone)]
pub struct Class {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// `spec.provider`; empty where it is missing.
    pub provider: String,
    /// `spec.parameters`.
    pub parameters: BTreeMap<String, String>,
    /// The whole manifest.
    pub node: Node,
    /// Where it stands.
    pub document: Arc<Document>,
    /// What no provider could make up for.
    pub problems: Vec<Problem>,
}

impl Class {
    /// Where the text of a parameter lies in its document.
    pub fn within(&self, parameter: &str) -> Option<Within<'_>> {
        let value = self.node.get("spec")?.get("parameters")?.get(parameter)?;
        Some(Within::whole().scalar(&self.document.text, value))
    }

    /// Place in the file of a parameter that is known by its name alone: of its value, or of its name where
    /// that is meant or the value says nothing, or of all parameters where it is not there.
    pub fn place_of(&self, parameter: &str, name: bool) -> Place {
        let parameters = self.node.get("spec").and_then(|spec| spec.field("parameters"));
        let Some((title, map)) = parameters else { return self.place() };
        let same = || map.fields().iter().find(|(key, _)| key.name.eq_ignore_ascii_case(parameter));
        let place = match map.field(parameter).or_else(same) {
            Some((key, value)) if name || value.is_block() || value.is_null() => key.place,
            Some((_, value)) => value.place,
            None => title.place,
        };
        self.document.in_file(place)
    }

    /// Where the class holds a mark of a template that is still to be filled in.
    pub fn template(&self) -> Option<Place> {
        fn find(node: &Node) -> Option<Place> {
            match &node.content {
                Content::Null => None,
                Content::Text { text, .. } => text.contains("{{").then_some(node.place),
                Content::List(items) => items.iter().find_map(find),
                Content::Map(fields) => fields.iter().find_map(|(_, value)| find(value)),
            }
        }
        find(&self.node).map(|place| self.document.in_file(place))
    }

    /// Place in the file at which the class begins.
    pub fn place(&self) -> Place {
        self.document.in_file(self.node.place)
    }
}

/// A pod that mounts classes.
#[derive(Debug, Clone, Default)]
pub struct PodManifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// `spec.serviceAccountName`, or `default`.
    pub service_account: String,
    /// Attributes of the volumes of our driver.
    pub volumes: Vec<BTreeMap<String, String>>,
}

/// What files of manifests hold for us.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Classes, also those with problems.
    pub classes: Vec<Class>,
    /// Pods.
    pub pods: Vec<PodManifest>,
    /// Documents that cannot be read, and why.
    pub unread: Vec<(Arc<Document>, Unread)>,
}

/// Why a document was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// It is a template of Helm.
    Template(Place),
    /// It is no YAML.
    Broken(yaml::Error),
}

/// Reads the documents of `text` that name a class or, if `pods`, a pod, into `found`.
pub fn read(file: &str, text: &str, pods: bool, found: &mut Manifests) {
    let file: Arc<str> = file.into();
    for (index, (before, piece)) in yaml::split(text).into_iter().enumerate() {
        if !(piece.contains(KIND) || pods && piece.contains("Pod")) {
            continue;
        }
        let (file, text) = (file.clone(), piece.to_owned());
        let document = Arc::new(Document { file, number: index + 1, before, text });
        match (yaml::parse_all(piece, Limits::MANIFESTS), template(piece)) {
            (Ok(nodes), _) => nodes.into_iter().for_each(|node| sort(&document, node, found)),
            (Err(_), Some(place)) => {
                found.unread.push((document.clone(), Unread::Template(document.in_file(place))));
            }
            (Err(mut error), None) => {
                error.place = error.place.map(|place| document.in_file(place));
                found.unread.push((document, Unread::Broken(error)));
            }
        }
    }
}

const KIND: &str = "SecretProviderClass";

/// Where a template's first mark stands.
fn template(text: &str) -> Option<Place> {
    let lines = text.lines().enumerate();
    let mut marks = lines.filter_map(|(index, line)| {
        let (before, _) = line.split_once("{{")?;
        Some(Place { line: index + 1, column: before.chars().count() + 1 })
    });
    marks.next()
}

fn sort(document: &Arc<Document>, node: Node, found: &mut Manifests) {
    match node.get("kind").and_then(Node::text).unwrap_or_default() {
        KIND => found.classes.push(class(document, node)),
        "Pod" => found.pods.push(pod(&node)),
        kind if kind.ends_with("List") => {
            let Content::Map(fields) = node.content else { return };
            let items =
                fields.into_iter().find(|(key, _)| key.name == "items").map(|(_, items)| items.content);
            if let Some(Content::List(items)) = items {
                items.into_iter().for_each(|item| sort(document, item, found));
            }
        }
        _ => {}
    }
}

fn text(node: Option<&Node>, key: &str) -> Option<String> {
    node?.get(key)?.text().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

fn class(document: &Arc<Document>, node: Node) -> Class {
    let (metadata, spec) = (node.get("metadata"), node.get("spec"));
    let name = text(metadata, "name").unwrap_or_default();
    let namespace = text(metadata, "namespace").unwrap_or_else(|| "default".to_owned());
    let provider = text(spec, "provider").unwrap_or_default();
    let at = |field: &str, place| Spot::at(field, document.in_file(place));
    let mut problems = Vec::new();
    let inside = node.field("spec").map_or(node.place, |(key, _)| key.place);
    if provider.is_empty() {
        let place = spec.and_then(|spec| spec.field("provider")).map_or(inside, |(key, _)| key.place);
        problems.push(
            Problem::config("spec.provider is missing")
                .at(at("spec.provider", place))
                .hint("name the store: azure, local, ..."),
        );
    }
    let mut parameters = BTreeMap::new();
    match spec.and_then(|spec| spec.field("parameters")) {
        Some((_, map)) if !map.fields().is_empty() => {
            for (key, value) in map.fields() {
                match (&value.content, value.kind()) {
                    (Content::Text { text, .. }, "!!str") => {
                        parameters.insert(key.name.clone(), text.clone());
                    }
                    (_, kind) => {
                        let place = if value.is_null() { key.place } else { value.place };
                        problems.push(
                            Problem::config(format!("parameter {:?} is a {kind}, not a text", key.name))
                                .at(at(&format!("spec.parameters.{}", key.name), place))
                                .hint("the API server takes only texts: put it in quotes"),
                        );
                        // Meant as a text, so the backend need not miss it as well.
                        parameters.extend(value.text().map(|text| (key.name.clone(), text.to_owned())));
                    }
                }
            }
        }
        found => problems.push(
            Problem::config("spec.parameters is missing or empty")
                .at(at("spec.parameters", found.map_or(inside, |(key, _)| key.place)))
                .hint("the driver mounts no class without parameters"),
        ),
    }
    Class { name, namespace, provider, parameters, document: document.clone(), problems, node }
}

const DRIVER: &str = "secrets-store.csi.k8s.io";

fn pod(node: &Node) -> PodManifest {
    let (metadata, spec) = (node.get("metadata"), node.get("spec"));
    let volumes = match spec.and_then(|spec| spec.get("volumes")).map(|v| &v.content) {
        Some(Content::List(volumes)) => volumes.iter().filter_map(attributes).collect(),
        _ => Vec::new(),
    };
    PodManifest {
        name: text(metadata, "name").unwrap_or_default(),
        namespace: text(metadata, "namespace").unwrap_or_else(|| "default".to_owned()),
        service_account: text(spec, "serviceAccountName").unwrap_or_else(|| "default".to_owned()),
        volumes,
    }
}

fn attributes(volume: &Node) -> Option<BTreeMap<String, String>> {
    let csi = volume.get("csi")?;
    if csi.get("driver")?.text()? != DRIVER {
        return None;
    }
    let Content::Map(fields) = &csi.get("volumeAttributes")?.content else { return None };
    Some(
        fields.iter().filter_map(|(key, value)| Some((key.name.clone(), value.text()?.to_owned()))).collect(),
    )
}
