//! The reports for programs: one JSON document of our own, and SARIF 2.1.0.

use serde_json::{Value, json};

use super::finding::{Finding, RULES};
use super::judge::Planned;
use super::{Summary, mode_of};

/// Our own form.
pub(super) fn json(findings: &[Finding], plans: Option<&[Planned]>, summary: &Summary) -> String {
    let findings: Vec<_> = findings.iter().map(finding).collect();
    let mut document = json!({
        "classes": summary.classes,
        "files": summary.files,
        "filesWithoutClasses": summary.without,
        "errors": summary.errors,
        "warnings": summary.warnings,
        "notes": summary.notes,
        "findings": findings,
    });
    if let Some(plans) = plans {
        document["plans"] = plans.iter().map(plan).collect();
    }
    format!("{document:#}\n")
}

fn finding(finding: &Finding) -> Value {
    json!({
        "file": &*finding.file,
        "document": finding.document,
        "line": finding.place.map(|place| place.line),
        "column": finding.place.map(|place| place.column),
        "level": finding.level.name(),
        "rule": finding.rule,
        "class": finding.class,
        "field": finding.field,
        "text": finding.what,
        "hint": finding.hint,
    })
}

fn plan(plan: &Planned) -> Value {
    let file = |(path, file): (String, &crate::plan::Output)| json!({"path": path, "mode": mode_of(file).to_string(), "object": file.id, "entry": file.spot.field});
    json!({
        "class": plan.class,
        "provider": plan.provider,
        "identity": plan.account.identity,
        "logins": plan.account.logins,
        "requests": plan.account.requests,
        "permissions": plan.account.permissions,
        "files": plan.paths().map(file).collect::<Vec<_>>(),
    })
}

/// SARIF 2.1.0, for code hosts and editors.
pub(super) fn sarif(findings: &[Finding], complete: bool) -> String {
    let mut rules: Vec<(&str, String)> = RULES.iter().map(|(id, text)| (*id, (*text).to_owned())).collect();
    for finding in findings {
        if !rules.iter().any(|(id, _)| *id == finding.rule) {
            let (backend, field) = finding.rule.split_once('/').unwrap_or(("", &finding.rule));
            rules.push((&finding.rule, format!("What the backend {backend} refuses about {field}.")));
        }
    }
    let descriptors: Vec<_> =
        rules.iter().map(|(id, text)| json!({"id": id, "shortDescription": {"text": text}})).collect();
    let results: Vec<_> = findings.iter().map(|finding| result(finding, &rules)).collect();
    let document = json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "keyferry",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": descriptors,
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{"executionSuccessful": complete}],
            "results": results,
        }],
    });
    format!("{document:#}\n")
}

fn result(finding: &Finding, rules: &[(&str, String)]) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": uri(&finding.file)}});
    if let Some(place) = finding.place {
        physical["region"] = json!({"startLine": place.line, "startColumn": place.column});
    }
    let mut location = json!({"physicalLocation": physical});
    if let Some(class) = &finding.class {
        let field = finding.field.as_ref().map_or(String::new(), |field| format!("/{field}"));
        location["logicalLocations"] = json!([{"fullyQualifiedName": format!("{class}{field}")}]);
    }
    let hint = finding.hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
    json!({
        "ruleId": finding.rule,
        "ruleIndex": rules.iter().position(|(id, _)| *id == finding.rule),
        "level": finding.level.name(),
        "message": {"text": format!("{}{hint}", finding.what)},
        "locations": [location],
    })
}

/// A file's name as a URI reference; standard input has none, so it gets a name.
fn uri(file: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    if file == "-" {
        return "stdin".to_owned();
    }
    let path = utf8_percent_encode(file.trim_start_matches("./"), &PLAIN);
    if file.starts_with('/') { format!("file://{path}") } else { path.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_become_uris() {
        assert_eq!(uri("./a b/ü.yaml"), "a%20b/%C3%BC.yaml");
        assert_eq!(uri("/etc/x.yaml"), "file:///etc/x.yaml");
        assert_eq!(uri("-"), "stdin");
    }
}
