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
struct Shape {
    form: Form,
    explain: bool,
    deny_warnings: bool,
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
