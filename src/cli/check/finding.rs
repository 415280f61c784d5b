//! One finding of `check`, and the closed list of rules that findings carry.

use std::sync::Arc;

use crate::class::Document;
use crate::error::Rule;
use crate::yaml::Place;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// A mount or a Secret would fail.
    Error,
    /// It works, but hardly as it was meant.
    Warning,
    /// Something was not looked at.
    Note,
}

impl Level {
    /// Word in every form of the report; SARIF's as well.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Rules of `check` itself. What a backend refuses is told apart by the parameter or field that it is
/// about: `azure/keyvaultName`, `azure/objects.objectType`.
pub(super) const RULES: &[(&str, &str)] = &[
    ("file/unreadable", "A file or folder cannot be read."),
    ("file/too-large", "A file is larger than what is read of one."),
    ("file/yaml", "A document that names a SecretProviderClass is no YAML."),
    ("file/template", "A template that is still to be rendered; check what it renders to."),
    ("class/api-version", "apiVersion is missing, unknown or deprecated."),
    ("class/name", "metadata.name is missing or no name of an object."),
    ("class/unknown-field", "A field of the manifest that Kubernetes drops."),
    ("class/provider", "spec.provider is missing or unknown."),
    ("class/parameters", "spec.parameters is missing, empty, or holds what is no text."),
    (
        "class/not-checked",
        "The backend of this provider is not built in, so its parameters were not checked.",
    ),
    ("class/unknown-parameter", "A parameter that the provider ignores."),
    ("class/unknown-entry-field", "A field of an entry that the provider ignores."),
    ("class/unreadable-file", "A mode that lets root alone read the file."),
    ("class/spelling", "A spelling that works with keyferry alone."),
    ("class/odd", "Something else that works, but hardly as meant."),
    ("secret/form", "secretObjects or an item of it is not of the right form."),
    ("secret/name", "secretName is missing, no name of an object, or taken."),
    ("secret/type", "The type of a Kubernetes Secret is missing or hardly meant."),
    ("secret/data", "data is empty, or an item lacks objectName or key."),
    ("secret/key", "A key that no Kubernetes Secret can hold, or that stands twice."),
    ("secret/unknown-file", "objectName names a file that no entry of the class makes."),
    ("secret/optional-file", "objectName names a file that may be missing."),
    ("secret/type-needs", "The data does not fit the type of the Kubernetes Secret."),
];

/// Rule of a backend's warning.
pub(super) fn of_warning(rule: Rule) -> &'static str {
    match rule {
        Rule::UnknownParameter => "class/unknown-parameter",
        Rule::UnknownField => "class/unknown-entry-field",
        Rule::Unreadable => "class/unreadable-file",
        Rule::Spelling => "class/spelling",
        Rule::Identity => "class/identity",
        Rule::Other => "class/odd",
    }
}

/// Rule of what a backend refuses: the field without the numbers of entries.
pub(super) fn of_problem(backend: &str, field: Option<&str>) -> String {
    let first = field.and_then(|field| field.split(',').next()).unwrap_or("class");
    let mut inside = false;
    let plain: String = first
        .chars()
        .filter(|c| {
            inside = (inside || *c == '[') && *c != ']';
            !inside && *c != ']'
        })
        .collect();
    format!("{backend}/{plain}")
}

/// One thing to tell.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) rule: String,
    /// File, or namespace and name of a class in a cluster.
    pub(super) file: Arc<str>,
    /// Number of the document in the file, from 1.
    pub(super) document: Option<usize>,
    pub(super) place: Option<Place>,
    /// The line at `place`.
    pub(super) line: Option<String>,
    /// `namespace/name`.
    pub(super) class: Option<String>,
    pub(super) field: Option<String>,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Finding {
    /// Something about a whole file.
    pub(super) fn of_file(level: Level, rule: &str, file: &str, what: impl Into<String>) -> Self {
        Self {
            level,
            rule: rule.to_owned(),
            file: file.into(),
            document: None,
            place: None,
            line: None,
            class: None,
            field: None,
            what: what.into(),
            hint: None,
        }
    }

    /// Something at a place of a document.
    pub(super) fn of_document(
        level: Level,
        rule: &str,
        document: &Document,
        place: Option<Place>,
        what: impl Into<String>,
    ) -> Self {
        let line = place.and_then(|place| document.line(place.line)).map(ToOwned::to_owned);
        let file = document.file.clone();
        Self { file, document: Some(document.number), place, line, ..Self::of_file(level, rule, "", what) }
    }

    /// Adds the next step.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_problems_have_no_numbers() {
        assert_eq!(of_problem("azure", Some("objects[12].objectType")), "azure/objects.objectType");
        assert_eq!(of_problem("azure", Some("usePodIdentity, useVMManagedIdentity")), "azure/usePodIdentity");
        assert_eq!(of_problem("local", None), "local/class");
    }
}
