//! The report for people: place, words, the line with a mark below, the next step.

use super::finding::{Finding, Level};
use super::judge::Planned;
use super::{Summary, mode_of};

/// Characters of a line that are shown.
const WIDTH: usize = 110;

/// Colours, where the output is a terminal.
pub(super) struct Paint(pub(super) bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn level(&self, level: Level) -> String {
        let code = match level {
            Level::Error => "1;31",
            Level::Warning => "1;33",
            Level::Note => "1;36",
        };
        self.with(code, level.name())
    }
}

/// The whole report.
pub(super) fn report(findings: &[Finding], plans: &[Planned], summary: &Summary, paint: &Paint) -> String {
    let mut text: String = findings.iter().map(|finding| one(finding, paint)).collect();
    text.extend(plans.iter().map(|plan| explain(plan, paint)));
    text.push_str(&summary.to_string());
    text.push('\n');
    text
}

fn one(finding: &Finding, paint: &Paint) -> String {
    let place = finding.place.map_or(String::new(), |place| format!(":{}:{}", place.line, place.column));
    let head = paint.with("1", &format!("{}{place}", line_of(&finding.file)));
    let field = finding.field.as_ref().map_or(String::new(), |field| format!(" [{}]", line_of(field)));
    let class = match &finding.class {
        Some(class) if **class != *finding.file => format!("{}: ", line_of(class)),
        _ => String::new(),
    };
    let what: Vec<_> = finding.what.trim_end().split('\n').map(line_of).collect();
    let mut text = format!(
        "{head}: {}: {class}{}{field} ({})\n",
        paint.level(finding.level),
        what.join("\n"),
        line_of(&finding.rule)
    );
    if let (Some(place), Some(line)) = (finding.place, &finding.line) {
        let (shown, column) = window(line, place.column);
        let number = place.line.to_string();
        let gutter = " ".repeat(number.len());
        text.push_str(&format!("  {} {shown}\n", paint.with("34", &format!("{number} |"))));
        let mark = paint.with("1;31", "^");
        text.push_str(&format!(
            "  {} {}{mark}\n",
            paint.with("34", &format!("{gutter} |")),
            " ".repeat(column)
        ));
    }
    if let Some(hint) = &finding.hint {
        text.push_str(&format!("  {} {}\n", paint.with("1;32", "help:"), hint.replace('\n', "\n    ")));
    }
    text
}

/// A text as one line that no terminal and no log takes for a command.
fn line_of(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The part of a line around a column, and the column in it from 0; control characters become spaces.
fn window(line: &str, column: usize) -> (String, usize) {
    let start = if column > WIDTH { column - WIDTH / 2 } else { 0 };
    let shown: String = line_of(line).chars().skip(start).take(WIDTH).collect();
    (shown.trim_end().to_owned(), column - 1 - start)
}

fn explain(plan: &Planned, paint: &Paint) -> String {
    let mut rows = vec![("as", plan.account.identity.clone())];
    rows.extend(plan.account.logins.iter().map(|login| ("asks", login.clone())));
    rows.extend(plan.account.requests.iter().map(|request| ("reads", request.clone())));
    rows.extend(plan.account.permissions.iter().map(|right| ("needs", right.clone())));
    rows.extend(plan.paths().map(|(path, file)| {
        let text = format!("{path}  {}  {}  of {}", mode_of(file), file.id, file.spot.field);
        ("file", text)
    }));
    let head = paint.with("1", &format!("class {} ({})", line_of(&plan.class), plan.provider));
    let mut text = format!("{head}\n");
    let mut before = "";
    for (name, value) in rows {
        let name = if name == before { "" } else { name };
        text.push_str(&format!("  {name:<6}{}\n", line_of(&value)));
        before = if name.is_empty() { before } else { name };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let line = format!("{}x{}", "a".repeat(500), "b".repeat(500));
        let (shown, column) = window(&line, 501);
        assert_eq!(shown.chars().nth(column), Some('x'));
        assert_eq!(shown.chars().count(), WIDTH);
        assert_eq!(window("\tab", 2), (" ab".to_owned(), 1));
        assert_eq!(window("", 1), (String::new(), 0));
    }
}
