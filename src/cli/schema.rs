//! JSON schemas for editors, made from the tables that the parsers use.
//!
//! Draft 7, which the YAML language servers know. A schema cannot look into a text, so a class and the
//! text of its `objects` have one each.

use serde_json::{Map, Value, json};

use super::check::SECRET_TYPES;
use super::{Failed, say};
use crate::backends;
use crate::entry::{Dialect, Field};
use crate::fetch;
use crate::http::Http;

/// Prints the schema called `name`.
pub(super) fn run(name: &str) -> Result<(), Failed> {
    let all = all();
    match all.iter().find(|(known, _)| known == name) {
        Some((_, schema)) => {
            say(&format!("{schema:#}\n"));
            Ok(())
        }
        None => {
            let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
            Err(Failed::input(format!("no schema is named {name:?}; there are: {}", names.join(", "))))
        }
    }
}

/// All schemas: of the class, and of the `objects` of each backend.
fn all() -> Vec<(String, Value)> {
    let settings = backends::Settings { local_root: Some("/".into()), ..backends::Settings::default() };
    let http = Http::new(crate::http::Settings::default());
    let backends = backends::open(&settings, &http, &fetch::Settings::default());
    let dialects: Vec<_> = backends.iter().map(|backend| (backend.name(), backend.dialect())).collect();
    let mut all = vec![("secretproviderclass".to_owned(), class(&dialects))];
    all.extend(dialects.iter().map(|(name, dialect)| (format!("{name}-objects"), objects(name, dialect))));
    all
}

const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

fn class(dialects: &[(&str, Dialect)]) -> Value {
    let names: Vec<_> = dialects.iter().map(|(name, _)| *name).collect();
    let conditions: Vec<_> = dialects
        .iter()
        .map(|(name, dialect)| {
            json!({
                "if": {"properties": {"provider": {"const": name}}, "required": ["provider"]},
                "then": {"properties": {"parameters": parameters(dialect)}},
            })
        })
        .collect();
    json!({
        "$schema": DRAFT,
        "title": "SecretProviderClass of the Secrets Store CSI driver, as keyferry reads it",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"enum": ["secrets-store.csi.x-k8s.io/v1", "secrets-store.csi.x-k8s.io/v1alpha1"]},
            "kind": {"const": "SecretProviderClass"},
            "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "required": ["provider", "parameters"],
                "additionalProperties": false,
                "properties": {
                    "provider": {
                        "description": "Name of the store.",
                        "type": "string",
                        "pattern": "^[a-zA-Z0-9_-]{1,30}$",
                        "examples": names,
                    },
                    "parameters": {
                        "type": "object",
                        "minProperties": 1,
                        "additionalProperties": {"type": "string"},
                    },
                    "secretObjects": {"type": "array", "items": secret()},
                },
                "allOf": conditions,
            },
        },
    })
}

/// Only `objects` is required: what else a class needs has several spellings.
fn parameters(dialect: &Dialect) -> Value {
    let required = dialect.parameters.iter().filter(|f| f.accepts == "YAML" && f.default == "required");
    let properties = dialect.parameters.iter().map(|field| (field.name.to_owned(), parameter(field)));
    json!({
        "properties": properties.collect::<Map<_, _>>(),
        "required": required.map(|field| field.name).collect::<Vec<_>>(),
        "additionalProperties": false,
    })
}

fn secret() -> Value {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let conditions: Vec<_> = SECRET_TYPES
        .iter()
        .filter(|kind| !(kind.all.is_empty() && kind.any.is_empty()))
        .map(|kind| {
            let holds = |key: &&str| json!({"contains": {"properties": {"key": {"const": key}}, "required": ["key"]}});
            let mut data = Map::new();
            if !kind.all.is_empty() {
                data.insert("allOf".into(), kind.all.iter().map(holds).collect());
            }
            if !kind.any.is_empty() {
                data.insert("anyOf".into(), kind.any.iter().map(holds).collect());
            }
            json!({
                "if": {"properties": {"type": {"const": kind.name}}, "required": ["type"]},
                "then": {"properties": {"data": data}},
            })
        })
        .collect();
    json!({
        "description": "Kubernetes Secret that the driver writes from files of the volume.",
        "type": "object",
        "required": ["secretName", "type", "data"],
        "additionalProperties": false,
        "properties": {
            "secretName": {
                "type": "string",
                "maxLength": 253,
                "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            },
            "type": {
                "type": "string",
                "minLength": 1,
                "examples": SECRET_TYPES.iter().map(|kind| kind.name).collect::<Vec<_>>(),
            },
            "labels": texts,
            "annotations": texts,
            "data": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["objectName", "key"],
                    "additionalProperties": false,
                    "properties": {
                        "objectName": {
                            "description": "Name of the file in the volume: the alias, where an entry has one.",
                            "type": "string",
                            "minLength": 1,
                        },
                        "key": {
                            "description": "Key of the Kubernetes Secret.",
                            "type": "string",
                            "maxLength": 253,
                            "pattern": "^(?!\\.\\.|\\.$)[-._a-zA-Z0-9]+$",
                        },
                    },
                },
            },
        },
        "allOf": conditions,
    })
}

fn objects(name: &str, dialect: &Dialect) -> Value {
    let properties = dialect.entry.iter().map(|field| (field.name.to_owned(), member(field)));
    let required = dialect.entry.iter().filter(|field| field.default == "required");
    let entry = json!({
        "type": "object",
        "properties": properties.collect::<Map<_, _>>(),
        "required": required.map(|field| field.name).collect::<Vec<_>>(),
        "additionalProperties": false,
    });
    let item = json!({"$ref": "#/definitions/entry"});
    let list = |item| json!({"type": "array", "minItems": 1, "items": item});
    let mut schema = json!({
        "$schema": DRAFT,
        "title": format!("Text of the parameter objects of a class of provider {name}"),
        "definitions": {"entry": entry},
    });
    if dialect.array {
        let text = json!({"type": "string", "description": "An entry as a text of its own."});
        let items = list(json!({"anyOf": [item, text]}));
        schema["anyOf"] = json!([
            {"type": "object", "required": ["array"], "properties": {"array": items}},
            items,
        ]);
    } else {
        schema["type"] = json!("array");
        schema["minItems"] = json!(1);
        schema["items"] = item;
    }
    schema
}

/// Spellings of azure.md 4.
const BOOLEANS: [&str; 13] =
    ["true", "false", "True", "False", "TRUE", "FALSE", "t", "f", "T", "F", "1", "0", ""];

/// A parameter: always a text.
fn parameter(field: &Field) -> Value {
    let mut schema = match choices(field) {
        Some(words) => json!({"type": "string", "enum": words}),
        None if field.accepts == "boolean" => json!({"type": "string", "enum": BOOLEANS}),
        None => json!({"type": "string"}),
    };
    schema["description"] = describe(field);
    schema
}

/// A field of an entry: any scalar, as its source text counts (azure.md 5).
fn member(field: &Field) -> Value {
    let mut schema = match choices(field) {
        Some(words) => json!({"enum": words}),
        None => json!({"type": ["string", "number", "boolean", "null"]}),
    };
    schema["description"] = describe(field);
    schema
}

fn describe(field: &Field) -> Value {
    let default = match field.default {
        "-" => String::new(),
        "required" => " Required.".to_owned(),
        default => format!(" Default: {default}."),
    };
    format!("{} Accepts: {}.{default}", field.says, field.accepts).into()
}

/// The words of a field that accepts these and nothing else: `` `a`, `b` ``, and nothing where it may be
/// left out.
fn choices(field: &Field) -> Option<Vec<&'static str>> {
    let word = |part: &'static str| part.strip_prefix('`')?.strip_suffix('`');
    let mut words = field.accepts.split(", ").map(word).collect::<Option<Vec<_>>>()?;
    if field.default != "required" {
        words.push("");
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_of_words_are_choices() {
        let choices = |accepts, default| choices(&Field::new("x", accepts, default, ""));
        assert_eq!(choices("`a`, `b-c`", "required"), Some(vec!["a", "b-c"]));
        assert_eq!(choices("`a`", "-"), Some(vec!["a", ""]));
        assert_eq!(choices("`pem`, `pfx`, any case", "-"), None);
        assert_eq!(choices("boolean", "-"), None);
    }

    #[test]
    fn the_schemas_in_the_repository_are_those_of_the_tables() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        for (name, schema) in all() {
            let path = folder.join(format!("{name}.json"));
            let text = format!("{schema:#}\n");
            if std::env::var_os("KEYFERRY_BLESS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let stored = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(stored == text, "{} is old: KEYFERRY_BLESS=1 writes it anew", path.display());
        }
    }
}
