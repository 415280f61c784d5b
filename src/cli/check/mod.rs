//! `keyferry check`: the real parser over manifests, without any request.

mod finding;
mod human;
mod input;
mod judge;
mod machine;
mod secrets;

use std::fmt;
use std::io::IsTerminal;
use std::path::Path;

use super::args::{Check, Form, Stores};
use super::{Failed, say, serve};
use crate::class::{self, Manifests};
use crate::fetch;
use crate::path::Mode;
use crate::plan::Output;
use finding::Level;
use judge::{Judge, Report};
pub(super) use secrets::TYPES as SECRET_TYPES;

pub(super) fn run(args: Check) -> Result<(), Failed> {
    let judge = Judge { backends: offline(&args.stores)?, live: false };
    let mut report = Report::default();
    let (files, findings) = input::files(&args.files);
    report.findings = findings;
    let mut summary = Summary::default();
    for path in &files {
        summary.files += 1;
        let before = (report.classes, report.findings.len());
        match input::read(path) {
            Ok(text) => file(&judge, path, &text, &mut report),
            Err(finding) => report.findings.push(*finding),
        }
        summary.without += usize::from(before == (report.classes, report.findings.len()));
    }
    let shape = Shape { form: args.output, explain: args.explain, deny_warnings: args.deny_warnings };
    if report.classes == 0 && report.findings.is_empty() && !args.allow_empty {
        let files = count(summary.files, "file");
        return Err(Failed::input(format!(
            "no SecretProviderClass in {files}; --allow-empty takes that for right"
        )));
    }
    finish(report, summary, &shape)
}

/// Checks what kubectl printed: places count in the texts of the parameters.
pub(super) fn live(stores: &Stores, text: &str, shape: &Shape) -> Result<(), Failed> {
    let judge = Judge { backends: offline(stores)?, live: true };
    let mut report = Report::default();
    file(&judge, Path::new("kubectl"), text, &mut report);
    if report.classes == 0 && report.findings.is_empty() {
        return Err(Failed::input("there is no SecretProviderClass; -A looks into all namespaces"));
    }
    finish(report, Summary::default(), shape)
}

/// The backends, able to plan and to no more.
fn offline(stores: &Stores) -> Result<Vec<std::sync::Arc<dyn crate::gather::Gather>>, Failed> {
    let mut stores = stores.clone();
    // Nothing is read, so the local store needs no root to be checked.
    stores.local_root.get_or_insert_with(|| "/".into());
    Ok(serve::open(&stores, &fetch::Settings::default(), true)?.0)
}

fn file(judge: &Judge, path: &Path, text: &str, report: &mut Report) {
    let mut manifests = Manifests::default();
    let name = path.strip_prefix(".").unwrap_or(path).display().to_string();
    class::read(&name, text, false, &mut manifests);
    judge.all(&manifests, report);
}

/// How the report is wanted.
pub(super) struct Shape {
    pub(super) form: Form,
    pub(super) explain: bool,
    pub(super) deny_warnings: bool,
}

/// Prints the report and chooses the exit code: what could not be read counts for more than what is wrong.
fn finish(report: Report, mut summary: Summary, shape: &Shape) -> Result<(), Failed> {
    let Report { classes, findings, plans } = report;
    let level = |level| findings.iter().filter(|finding| finding.level == level).count();
    summary.classes = classes;
    (summary.errors, summary.warnings) = (level(Level::Error), level(Level::Warning));
    summary.notes = level(Level::Note);
    let unread = findings.iter().filter(|finding| finding.rule == "file/unreadable").count();
    let plans = shape.explain.then_some(plans);
    say(&match shape.form {
        Form::Human => {
            let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            human::report(&findings, plans.as_deref().unwrap_or_default(), &summary, &human::Paint(coloured))
        }
        Form::Json => machine::json(&findings, plans.as_deref(), &summary),
        Form::Sarif => machine::sarif(&findings, unread == 0),
    });
    if unread > 0 {
        return Err(Failed::outside(format!("{} could not be read", count(unread, "input"))));
    }
    match summary {
        Summary { errors, .. } if errors > 0 => Err(Failed::input(count(errors, "error"))),
        Summary { warnings, .. } if warnings > 0 && shape.deny_warnings => {
            Err(Failed::input(format!("{}, and --deny-warnings", count(warnings, "warning"))))
        }
        _ => Ok(()),
    }
}

/// The numbers of a run.
#[derive(Default)]
struct Summary {
    files: usize,
    /// Files that hold no class.
    without: usize,
    classes: usize,
    errors: usize,
    warnings: usize,
    notes: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = if self.classes == 1 { "class" } else { "classes" };
        write!(f, "{} {classes}, ", self.classes)?;
        write!(f, "{}, {}", count(self.errors, "error"), count(self.warnings, "warning"))?;
        if self.notes > 0 {
            write!(f, ", {}", count(self.notes, "note"))?;
        }
        if self.without > 0 {
            write!(f, "; {} without a class", count(self.without, "file"))?;
        }
        Ok(())
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Mode that a file gets.
fn mode_of(file: &Output) -> Mode {
    file.mode.unwrap_or(Mode::DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The broken classes of the integration tests.
    fn texts() -> Vec<String> {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/check");
        let files = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e != "txt")).collect();
        files.sort();
        files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn judge(live: bool) -> Judge {
        let settings = crate::backends::Settings {
            local_root: Some("/".into()),
            azure: crate::backends::azure::Settings { offline: true, ..Default::default() },
        };
        let http = crate::http::Http::new(crate::http::Settings::default());
        Judge { backends: crate::backends::open(&settings, &http, &fetch::Settings::default()), live }
    }

    /// Every way to report what is found in `text`; places must be inside it.
    fn report(text: &str, live: bool) {
        let mut report = Report::default();
        file(&judge(live), Path::new("x.yaml"), text, &mut report);
        for finding in report.findings.iter().filter(|_| !live) {
            let lines = text.lines().count() + 1;
            assert!(finding.place.is_none_or(|place| place.line <= lines), "{finding:?}");
        }
        let Report { findings, plans, .. } = report;
        human::report(&findings, &plans, &Summary::default(), &human::Paint(true));
        machine::json(&findings, Some(&plans), &Summary::default());
        machine::sarif(&findings, true);
    }

    /// A change of a text: at which of 1000 parts of it, how many characters go, what comes.
    fn change() -> impl Strategy<Value = (usize, usize, String)> {
        let piece = prop_oneof![
            Just("\n".to_owned()),
            Just("  ".to_owned()),
            Just("\t".to_owned()),
            Just("- |\n".to_owned()),
            Just("---\n".to_owned()),
            Just("\"".to_owned()),
            Just("'".to_owned()),
            Just("&a ".to_owned()),
            Just("*a ".to_owned()),
            Just("<<: ".to_owned()),
            Just("[{".to_owned()),
            Just(": ".to_owned()),
            Just(">-\n".to_owned()),
            Just("é\u{85}\u{2028}\r".to_owned()),
            "[ -~]{0,6}",
        ];
        (0..1000_usize, 0..12_usize, piece)
    }

    fn changed(text: &str, changes: &[(usize, usize, String)]) -> String {
        let mut text: Vec<char> = text.chars().collect();
        for (part, gone, piece) in changes {
            let at = text.len() * part / 1000;
            let end = (at + gone).min(text.len());
            text.splice(at..end, piece.chars());
        }
        text.into_iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn no_changed_class_makes_it_panic(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec(change(), 1..6),
            live: bool,
        ) {
            let texts = texts();
            report(&changed(&texts[which.index(texts.len())], &changes), live);
        }

        #[test]
        fn no_text_in_a_parameter_makes_it_panic(objects in "[-|>:\\[\\]{}\"' \na-c\\\\#&*!%]{0,60}", block: bool) {
            let objects = if block {
                format!("|\n{}", objects.lines().map(|line| format!("      {line}\n")).collect::<String>())
            } else {
                serde_json::json!(objects).to_string()
            };
            for provider in ["azure", "local"] {
                let head = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nspec:\n";
                report(&format!("{head}  provider: {provider}\n  parameters:\n    objects: {objects}\n"), false);
            }
        }
    }
}
