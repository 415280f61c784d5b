//! The operator's page: one HTML text without scripts, made from [`Overview`]. Everything that comes from
//! elsewhere (names of pods and classes, texts of errors) passes `escape`; the content policy allows
//! this page's own style and nothing else, should anything ever slip through.

use std::fmt::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::overview::{Failure, Login, Overview, Socket, State, Store, Volume};

/// Failing volumes whose errors are shown without a click.
const MOST_OPEN: usize = 10;
const STYLE: &str = include_str!("page.css");

/// The `Content-Security-Policy` of the page.
pub static CONTENT_POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; img-src data:; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    )
});

/// The page.
pub fn html(overview: &Overview) -> String {
    let mut page = String::with_capacity(4096 + 512 * overview.volumes.len());
    // Writing into a String cannot fail.
    let _ = write(&mut page, overview);
    page
}

fn write(page: &mut String, overview: &Overview) -> std::fmt::Result {
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"30\"><title>keyferry</title><link rel=\"icon\" href=\"data:,\">\
         <style>{STYLE}</style></head>\n<body><header><h1>keyferry</h1>"
    )?;
    summary(page, overview)?;
    page.push_str("</header>\n<main>");
    volumes(page, overview)?;
    table(page, "Stores", &STORE, &overview.stores, store)?;
    table(page, "Identities", &IDENTITY, &overview.identities, identity)?;
    table(page, "Sockets", &SOCKET, &overview.sockets, socket)?;
    page.push_str(
        "<section aria-labelledby=\"actions\"><h2 id=\"actions\">Actions</h2>\
         <form method=\"post\" action=\"/forget\"><button>Forget all values and sessions</button> \
         <span class=\"note\">The next calls ask the stores. Running pods keep their files.</span></form>\
         <p class=\"note\">The page loads itself anew every 30 seconds. <a href=\"/\">Now</a> · \
         <a href=\"/status.json\">status.json</a> · <a href=\"/metrics\">metrics</a></p></section></main></body></html>\n",
    );
    Ok(())
}

fn summary(page: &mut String, overview: &Overview) -> std::fmt::Result {
    let failing = overview.count(State::Failing);
    let serving = overview.count(State::Ok);
    let (class, word) = if overview.not_ready.is_some() { ("bad", "not ready") } else { ("good", "ready") };
    write!(page, "<p><strong class=\"{class}\">{word}</strong> · ")?;
    match failing {
        0 => write!(page, "no volume fails")?,
        n => write!(page, "<strong class=\"bad\">{n} failing</strong>")?,
    }
    let (version, uptime) = (overview.version, time(overview.uptime));
    write!(page, " · {serving} served · version {version} · up {uptime}</p>")?;
    if let Some(reason) = &overview.not_ready {
        write!(page, "<pre class=\"error\">{}</pre>", escape(reason))?;
    }
    match &overview.policy {
        None => write!(page, "<p class=\"note\">No policy: every namespace may use every store.</p>"),
        Some(policy) => {
            let file = escape(&policy.file);
            write!(page, "<p class=\"note\">Policy {file}: {} rules. ", policy.rules)?;
            page.push_str(if policy.ok {
                "In force.</p>"
            } else {
                "<strong class=\"bad\">The file is broken; the rules read before it are in force, see the log.</strong></p>"
            });
            Ok(())
        }
    }
}

fn volumes(page: &mut String, overview: &Overview) -> std::fmt::Result {
    let open = overview.count(State::Failing) <= MOST_OPEN;
    let asked = overview.volumes.iter().filter(|volume| volume.state != State::Gone);
    table(page, "Volumes", &VOLUME, asked, |page, one| volume(page, one, open))?;
    let gone = overview.count(State::Gone);
    if gone > 0 {
        write!(
            page,
            "<details><summary>{gone} not asked for in the last 10 minutes: the pod is gone, or the driver does not \
             rotate</summary>"
        )?;
        let all = overview.volumes.iter().filter(|volume| volume.state == State::Gone);
        table(page, "", &VOLUME, all, |page, one| volume(page, one, false))?;
        page.push_str("</details>");
    }
    Ok(())
}

const VOLUME: [&str; 8] =
    ["State", "Namespace", "Pod", "Class", "Objects", "Age", "Last success", "Store asked again"];
const STORE: [&str; 7] =
    ["Store", "Backend", "Requests", "Failed", "Time, median / p99", "Last success", "Throttled"];
const IDENTITY: [&str; 5] = ["Identity", "Backend", "Proven at", "Sessions", "Last ends in"];
const SOCKET: [&str; 3] = ["Path", "Answers", "Whose"];

/// A section with one table; without a title the table alone.
fn table<'a, T: 'a>(
    page: &mut String,
    title: &str,
    columns: &[&str],
    rows: impl IntoIterator<Item = &'a T>,
    row: impl Fn(&mut String, &T) -> std::fmt::Result,
) -> std::fmt::Result {
    let mut rows = rows.into_iter().peekable();
    if !title.is_empty() {
        let id = title.to_ascii_lowercase();
        write!(page, "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{title}</h2>")?;
    }
    if rows.peek().is_none() {
        page.push_str("<p class=\"note\">None yet.</p>");
    } else {
        let label = if title.is_empty() { "Volumes not asked for" } else { title };
        write!(
            page,
            "<div class=\"wide\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\"><table><thead><tr>"
        )?;
        for column in columns {
            write!(page, "<th scope=\"col\">{column}</th>")?;
        }
        page.push_str("</tr></thead><tbody>\n");
        for one in rows {
            row(page, one)?;
        }
        page.push_str("</tbody></table></div>");
    }
    page.push_str(if title.is_empty() { "" } else { "</section>\n" });
    Ok(())
}

fn volume(page: &mut String, volume: &Volume, open: bool) -> std::fmt::Result {
    let (class, word) = match volume.state {
        State::Failing => ("bad", "failing"),
        State::Ok => ("good", "ok"),
        State::Gone => ("note", "gone"),
    };
    let pod = if volume.pod.is_empty() { "(sync controller)" } else { &volume.pod };
    write!(
        page,
        "<tr class=\"{word}\"><td class=\"{class}\">{word}</td><td>{}</td><th scope=\"row\">{}</th><td>{} \
         <span class=\"note\">{}</span></td><td>",
        escape(&volume.namespace),
        escape(pod),
        escape(&volume.class),
        volume.backend,
    )?;
    objects(page, volume)?;
    let success = volume.success.map_or("never".to_owned(), |ago| format!("{} ago", time(ago)));
    let refresh = match volume.refresh {
        rest if rest > 0.0 => format!("in {}", time(rest)),
        _ => "at the next call".to_owned(),
    };
    write!(page, "</td><td>{}</td><td>{success}</td><td>{refresh}</td></tr>", time(volume.age))?;
    failure(page, VOLUME.len(), volume.error.as_ref(), open && volume.state == State::Failing)
}

fn objects(page: &mut String, volume: &Volume) -> std::fmt::Result {
    if volume.objects.is_empty() {
        return write!(page, "{}", volume.count);
    }
    write!(page, "<details><summary>{}</summary><ul>", volume.count)?;
    for (id, version) in &volume.objects {
        write!(page, "<li>{} <span class=\"note\">{}</span></li>", escape(id), escape(version))?;
    }
    if volume.count > volume.objects.len() {
        write!(page, "<li>and {} more</li>", volume.count - volume.objects.len())?;
    }
    page.push_str("</ul></details>");
    Ok(())
}

/// The last error in a row of its own: open if it still holds.
fn failure(page: &mut String, columns: usize, failure: Option<&Failure>, open: bool) -> std::fmt::Result {
    let Some(failure) = failure else { return Ok(()) };
    let (ago, kind, text) = (time(failure.ago), failure.kind.unwrap_or_default(), escape(&failure.text));
    let open = if open { " open" } else { "" };
    writeln!(
        page,
        "<tr class=\"more\"><td colspan=\"{columns}\"><details{open}><summary>last error {ago} ago {kind}</summary>\
         <pre class=\"error\">{text}</pre></details></td></tr>"
    )
}

fn store(page: &mut String, store: &Store) -> std::fmt::Result {
    let times = match (store.median, store.p99) {
        (Some(median), Some(p99)) => format!("{} / {}", millis(median), millis(p99)),
        _ => String::new(),
    };
    let success = store.success.map_or("never".to_owned(), |ago| format!("{} ago", time(ago)));
    let throttled = store
        .throttled
        .map_or("no".to_owned(), |rest| format!("<strong class=\"bad\">{} more</strong>", time(rest)));
    write!(
        page,
        "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{times}</td><td>{success}</td><td>{throttled}</td></tr>",
        escape(&store.name),
        store.backend,
        store.requests,
        store.failures,
    )?;
    failure(page, STORE.len(), store.error.as_ref(), false)
}

fn identity(page: &mut String, login: &Login) -> std::fmt::Result {
    writeln!(
        page,
        "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        escape(&login.identity),
        login.backend,
        escape(&login.login_at),
        login.sessions,
        login.lasts.map_or("never".to_owned(), time),
    )
}

fn socket(page: &mut String, socket: &Socket) -> std::fmt::Result {
    let (class, answers) = match &socket.failure {
        None => ("good", "yes".to_owned()),
        Some(failure) => ("bad", escape(failure)),
    };
    let whose = if socket.ours { "this process" } else { "another process" };
    writeln!(
        page,
        "<tr><th scope=\"row\">{}</th><td class=\"{class}\">{answers}</td><td>{whose}</td></tr>",
        escape(&socket.path)
    )
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86400.0),
    }
}

fn millis(seconds: f64) -> String {
    let ms = seconds * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Text as HTML takes it, in elements and in quoted attributes. Characters that steer the direction or
/// cannot be seen become visible marks, so that no name looks like another.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push('\n'),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                safe.push('\u{fffd}');
            }
            control if control.is_control() => safe.push('\u{fffd}'),
            plain => safe.push(plain),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile(n: usize) -> Volume {
        let bad = "</td><script>alert(1)</script>\"'&\u{202e}\0";
        Volume {
            state: if n.is_multiple_of(2) { State::Failing } else { State::Ok },
            backend: "local",
            namespace: bad.into(),
            pod: format!("{bad}{n}"),
            class: bad.into(),
            count: 30,
            objects: vec![(bad.into(), bad.into())],
            age: 1.0,
            asked: 1.0,
            success: None,
            refresh: 0.0,
            error: Some(Failure { ago: 1.0, kind: Some("denied"), text: bad.into() }),
        }
    }

    fn overview(volumes: Vec<Volume>) -> Overview {
        let bad = || "<img src=x onerror=alert(1)>".to_owned();
        Overview {
            version: "1",
            uptime: 5.0,
            not_ready: Some(bad()),
            sockets: vec![Socket { path: bad(), ours: false, failure: Some(bad()) }],
            policy: None,
            volumes,
            stores: vec![Store {
                backend: "azure",
                name: bad(),
                requests: 1,
                failures: 1,
                median: Some(0.02),
                p99: Some(0.5),
                throttled: Some(7.0),
                success: None,
                error: Some(Failure { ago: 1.0, kind: None, text: bad() }),
            }],
            identities: vec![Login {
                backend: "azure",
                identity: bad(),
                login_at: bad(),
                sessions: 1,
                lasts: None,
            }],
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let page = html(&overview((0..3).map(hostile).collect()));
        for tag in ["<script", "<img", "onerror=alert(1)>"] {
            assert!(!page.contains(tag), "{tag}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}"));
        assert_eq!(page.matches("<td").count(), page.matches("</td>").count());
    }

    #[test]
    fn five_hundred_volumes_are_one_page_of_moderate_size() {
        let page = html(&overview((0..500).map(hostile).collect()));
        assert_eq!(page.matches("<th scope=\"row\">&lt;/td&gt;").count(), 500);
        assert!(page.len() < 1 << 20, "{}", page.len());
    }

    #[test]
    fn times_are_for_people() {
        assert_eq!([3.2, 150.0, 10_000.0, 400_000.0].map(time), ["3 s", "2 min", "3 h", "5 days"]);
    }
}
