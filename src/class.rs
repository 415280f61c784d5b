//! Reads SecretProviderClass and Pod manifests as they are.

use std::collections::BTreeMap;

use crate::error::Spot;
use crate::yaml::{self, Content, Node};

/// A class, as far as a provider is concerned.
#[derive(Debug, Clone, Default)]
pub struct Class {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// `spec.provider`.
    pub provider: String,
    /// `spec.parameters`.
    pub parameters: BTreeMap<String, String>,
    /// File and line on which it begins.
    pub origin: (String, usize),
    /// Line of the file on which the text of each parameter begins.
    pub lines: BTreeMap<String, usize>,
}

impl Class {
    /// Line of the file for a place inside a parameter's text, as far as it is known.
    pub fn line_of(&self, spot: Option<&Spot>) -> usize {
        let line = spot.and_then(|spot| {
            let key = spot.field.split(['[', '.', ',']).next().unwrap_or_default();
            Some(self.lines.get(key)? + spot.line.unwrap_or(1) - 1)
        });
        line.unwrap_or(self.origin.1)
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

/// What a file of manifests holds for us.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    /// Its classes.
    pub classes: Vec<Class>,
    /// Its pods.
    pub pods: Vec<PodManifest>,
}

/// Reads all documents of `text`; problems name `file` and the line.
pub fn read(file: &str, text: &str) -> Result<Manifests, Vec<String>> {
    let documents = yaml::parse_all(text).map_err(|error| vec![format!("{file}: {error}")])?;
    let mut found = Manifests::default();
    let mut problems = Vec::new();
    for node in documents {
        match node.get("kind").and_then(Node::text).unwrap_or_default() {
            "SecretProviderClass" => class(file, &node, &mut found, &mut problems),
            "Pod" => found.pods.push(pod(&node)),
            _ => {}
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn text(node: Option<&Node>, key: &str) -> Option<String> {
    node?.get(key)?.text().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

fn class(file: &str, node: &Node, found: &mut Manifests, problems: &mut Vec<String>) {
    let (metadata, spec) = (node.get("metadata"), node.get("spec"));
    let name = text(metadata, "name").unwrap_or_default();
    let Some(provider) = text(spec, "provider") else {
        problems.push(format!("{file}:{}: class {name:?} has no spec.provider", node.place.line));
        return;
    };
    let namespace = text(metadata, "namespace").unwrap_or_else(|| "default".to_owned());
    let (mut parameters, mut lines) = (BTreeMap::new(), BTreeMap::new());
    if let Some(Content::Map(fields)) = spec.and_then(|spec| spec.get("parameters")).map(|p| &p.content) {
        for (key, value) in fields {
            match (&value.content, value.kind()) {
                (Content::Text { text, .. }, "!!str") => {
                    parameters.insert(key.name.clone(), text.clone());
                    lines.insert(key.name.clone(), value.place.line);
                }
                (_, kind) => problems.push(format!(
                    "{file}:{}: class {name:?}: parameter {:?} is a {kind}; the API server takes only texts, put it in quotes",
                    value.place.line, key.name
                )),
            }
        }
    }
    let origin = (file.to_owned(), node.place.line);
    found.classes.push(Class { name, namespace, provider, parameters, origin, lines });
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
