//! `keyferry check`: the real parser over manifests, without any request.

use serde_json::json;

use super::args::{Check, Output};
use super::{Failed, mount, say, serve};
use crate::call::{Call, Occasion, Parameters, Pod, Tokens};
use crate::class::Class;
use crate::error::{Kind, Spot};
use crate::fetch;
use crate::gather::Gather;
use crate::path::Mode;

pub(super) fn run(args: Check) -> Result<(), Failed> {
    let manifests = mount::read_all(&args.files)?;
    if manifests.classes.is_empty() {
        return Err(Failed::input("the files hold no SecretProviderClass"));
    }
    let mut stores = args.stores.clone();
    // Nothing is read, so the local store needs no root to be checked.
    stores.local_root.get_or_insert_with(|| "/".into());
    let (backends, _) = serve::open(&stores, &fetch::Settings::default())?;
    let mut findings = Vec::new();
    for class in &manifests.classes {
        match backends.iter().find(|backend| backend.name() == class.provider) {
            Some(backend) => one(backend.as_ref(), class, &mut findings),
            None => {
                let text = format!("provider {:?} is unknown", class.provider);
                findings.push(Finding::new(class, "error", None, text));
            }
        }
    }
    let errors = findings.iter().filter(|finding| finding.level == "error").count();
    say(&report(&args, &findings, manifests.classes.len(), errors));
    if errors == 0 { Ok(()) } else { Err(Failed::input(format!("{errors} errors"))) }
}

struct Finding {
    file: String,
    line: usize,
    class: String,
    level: &'static str,
    text: String,
}

impl Finding {
    fn new(class: &Class, level: &'static str, spot: Option<&Spot>, text: String) -> Self {
        let line = class.line_of(spot);
        let (file, name) = (class.origin.0.clone(), format!("{}/{}", class.namespace, class.name));
        Self { file, line, class: name, level, text }
    }
}

fn one(backend: &dyn Gather, class: &Class, findings: &mut Vec<Finding>) {
    match backend.check(&call(class)) {
        Ok(outline) => {
            let warnings = outline.warnings.into_iter();
            findings.extend(warnings.map(|text| Finding::new(class, "warning", None, text)));
        }
        Err(problems) => {
            let wrong = problems.list().iter().filter(|p| p.kind == Kind::Config);
            findings.extend(wrong.map(|p| Finding::new(class, "error", p.spot.as_ref(), p.to_string())));
        }
    }
}

/// The call of a pod that has what a class can ask for, so that only the class is judged.
fn call(class: &Class) -> Call {
    let secrets = [("clientid", "x"), ("clientsecret", "x")];
    let tokens =
        json!({"api://AzureADTokenExchange": {"token": "x", "expirationTimestamp": "2100-01-01T00:00:00Z"}});
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
        secrets: Some(
            secrets.map(|(k, v)| (k.to_owned(), crate::secret::SecretText::new(v.to_owned()))).into(),
        ),
        mode: Mode::DEFAULT,
        deadline: tokio::time::Instant::now(),
        occasion: Occasion::First,
    }
}

fn report(args: &Check, findings: &[Finding], classes: usize, errors: usize) -> String {
    if args.output == Output::Json {
        let list: Vec<_> =
            findings.iter().map(|f| json!({"file": f.file, "line": f.line, "class": f.class, "level": f.level, "text": f.text})).collect();
        return format!("{:#}\n", json!({"classes": classes, "errors": errors, "findings": list}));
    }
    let lines =
        findings.iter().map(|f| format!("{}:{}: {}: {}: {}\n", f.file, f.line, f.level, f.class, f.text));
    let summary = format!("{classes} classes, {errors} errors, {} warnings\n", findings.len() - errors);
    lines.chain([summary]).collect()
}
