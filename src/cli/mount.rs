//! `keyferry mount`: one request by hand, in process or against a running server.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tonic::metadata::MetadataMap;

use super::args::{Mount, Output};
use super::{Failed, say, serve};
use crate::call::{KUBELET_PREFIX, TOKENS_KEY};
use crate::class::{self, Class, Manifests, Unread};
use crate::error::{Kind, Problem};
use crate::fetch::Tally;
use crate::path::RelPath;
use crate::proto::csi_driver_provider_client::CsiDriverProviderClient;
use crate::proto::{MountRequest, MountResponse};
use crate::server::{dial, request, service, status};

/// A uid of its own for each run, so that a server takes it for a first mount and reads anew.
fn uid() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!(
        "00000000-0000-0000-{:04x}-{:012x}",
        std::process::id() & 0xffff,
        now.as_micros() & 0xffff_ffff_ffff
    )
}

pub(super) fn run(args: Mount) -> Result<(), Failed> {
    let manifests = read_all(&args.files)?;
    let class = choose(&manifests, args.class.as_deref())?;
    let request = build(&args, &manifests, class)?;
    let start = Instant::now();
    let response = serve::runtime(2)?.block_on(async {
        match &args.socket {
            Some(path) => ask(path, request).await,
            None => in_process(&args, &class.provider, request).await,
        }
    })?;
    let elapsed = start.elapsed();
    if let Some(directory) = &args.to {
        write(directory, &response)?;
    }
    say(&report(&args, class, &response, elapsed));
    Ok(())
}

/// Reads all manifests; - is standard input. Whatever is wrong with one of them is an error.
fn read_all(files: &[PathBuf]) -> Result<Manifests, Failed> {
    let mut all = Manifests::default();
    let mut problems = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let text = if name == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        match text {
            Ok(text) => class::read(&name, &text, true, &mut all),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    for (document, why) in &all.unread {
        problems.push(match why {
            Unread::Template(place) => {
                format!("{}:{}: a template of Helm; mount what it renders to", document.file, place.line)
            }
            Unread::Broken(error) => format!("{}: {error}", document.file),
        });
    }
    for class in &all.classes {
        let line = |problem: &Problem| {
            problem.spot.as_ref().and_then(|spot| spot.place).map_or(class.place().line, |place| place.line)
        };
        problems.extend(class.problems.iter().map(|problem| {
            let hint = problem.hint.as_deref().unwrap_or_default();
            format!(
                "{}:{}: class {:?}: {}: {hint}",
                class.document.file,
                line(problem),
                class.name,
                problem.what
            )
        }));
    }
    if problems.is_empty() { Ok(all) } else { Err(Failed::input(problems.join("\n"))) }
}

fn choose<'a>(manifests: &'a Manifests, name: Option<&str>) -> Result<&'a Class, Failed> {
    let asked = |class: &&Class| name.is_none_or(|name| class.name == name);
    let found: Vec<_> = manifests.classes.iter().filter(asked).collect();
    let names = || manifests.classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    match found.as_slice() {
        [class] => Ok(class),
        [] if manifests.classes.is_empty() => Err(Failed::input("the files hold no SecretProviderClass")),
        [] => {
            Err(Failed::input(format!("no class is named {:?}; there are: {}", name.unwrap_or(""), names())))
        }
        _ => Err(Failed::input(format!(
            "the files hold several classes: {}; choose one with --class",
            names()
        ))),
    }
}

/// Makes the request that the driver would make (driver.md 3).
fn build(args: &Mount, manifests: &Manifests, class: &Class) -> Result<MountRequest, Failed> {
    let pod = manifests.pods.iter().find(|pod| {
        pod.volumes
            .iter()
            .any(|volume| volume.get("secretProviderClass").is_some_and(|name| *name == class.name))
    });
    let volume = pod.and_then(|pod| {
        pod.volumes
            .iter()
            .find(|volume| volume.get("secretProviderClass").is_some_and(|name| *name == class.name))
    });
    let named = args.pod.as_deref().map(|text| {
        text.split_once('/').ok_or_else(|| Failed::input(format!("--pod {text:?} is not NAMESPACE/NAME")))
    });
    let (namespace, name) = match (named.transpose()?, pod) {
        (Some(named), _) => named,
        (None, Some(pod)) => (pod.namespace.as_str(), pod.name.as_str()),
        (None, None) => (class.namespace.as_str(), "keyferry-mount"),
    };
    let account = args.service_account.as_deref().or(pod.map(|pod| pod.service_account.as_str()));
    let uid = uid();
    let mut attributes = class.parameters.clone();
    attributes.extend(volume.cloned().unwrap_or_default());
    attributes.extend(args.set.iter().cloned());
    attributes.insert("secretProviderClass".to_owned(), class.name.clone());
    for (key, value) in [
        ("pod.name", name),
        ("pod.namespace", namespace),
        ("pod.uid", uid.as_str()),
        ("serviceAccount.name", account.unwrap_or("default")),
        ("ephemeral", "true"),
    ] {
        attributes.insert(format!("{KUBELET_PREFIX}{key}"), value.to_owned());
    }
    if !args.token.is_empty() {
        attributes.insert(TOKENS_KEY.to_owned(), tokens(&args.token)?);
    }
    let secrets = match &args.secrets {
        Some(path) => read(path)?,
        None => "null".to_owned(),
    };
    let target = args.to.as_ref().map_or_else(|| "/nowhere".to_owned(), |to| to.display().to_string());
    Ok(MountRequest {
        attributes: json!(attributes).to_string(),
        secrets,
        target_path: target,
        permission: "420".to_owned(),
        current_object_version: Vec::new(),
    })
}

fn tokens(files: &[(String, String)]) -> Result<String, Failed> {
    let mut all = BTreeMap::new();
    for (audience, file) in files {
        let token = read(Path::new(file))?.trim().to_owned();
        all.insert(audience, json!({"token": token, "expirationTimestamp": "2100-01-01T00:00:00Z"}));
    }
    Ok(json!(all).to_string())
}

fn read(path: &Path) -> Result<String, Failed> {
    std::fs::read_to_string(path).map_err(|error| Failed::input(format!("{}: {error}", path.display())))
}

async fn in_process(args: &Mount, provider: &str, request: MountRequest) -> Result<MountResponse, Failed> {
    let engine = serve::engine(&args.engine)?;
    let (backends, _) = serve::open(&args.stores, &engine, false)?;
    let Some(backend) = backends.iter().find(|backend| backend.name() == provider) else {
        let names: Vec<_> = backends.iter().map(|backend| backend.name()).collect();
        let hint = if provider == "local" { "; local needs --local-root" } else { "" };
        return Err(Failed::input(format!(
            "provider {provider:?} of the class is none of: {}{hint}",
            names.join(", ")
        )));
    };
    let code = |problems: &crate::error::Problems| match problems.kind() {
        Kind::Config => Failed::input(problems.to_string()),
        _ => Failed::outside(problems.to_string()),
    };
    let (call, _) = request::parse(request, &MetadataMap::new(), engine.budget).map_err(|p| code(&p))?;
    let gathered = backend.gather(&call, &Tally::default()).await.map_err(|p| code(&p))?;
    for warning in &gathered.warnings {
        super::say_error(&format!("warning: {warning}"));
    }
    for absent in &gathered.absent {
        super::say_error(&format!("warning: {} is optional and does not exist in the store", absent.object));
    }
    service::respond(&gathered, usize::MAX).map_err(|problem| Failed::outside(problem.to_string()))
}

async fn ask(path: &Path, request: MountRequest) -> Result<MountResponse, Failed> {
    let failed = |error: std::io::Error| {
        Failed::outside(format!(
            "cannot reach a server at {}: {error}; is keyferry serve running?",
            path.display()
        ))
    };
    let channel = dial::connect(path).await.map_err(failed)?;
    let mut client =
        CsiDriverProviderClient::with_origin(channel, dial::origin()).max_decoding_message_size(64 << 20);
    let answer = client.mount(request).await.map_err(|refused| {
        let text = format!("{}: {}", status::name(refused.code()), refused.message());
        if refused.code() == tonic::Code::InvalidArgument {
            Failed::input(text)
        } else {
            Failed::outside(text)
        }
    })?;
    Ok(answer.into_inner())
}

/// Writes each file under a temporary name and renames it, so that no reader sees half of one.
fn write(directory: &Path, response: &MountResponse) -> Result<(), Failed> {
    for file in &response.files {
        let failed = |error: std::io::Error| {
            Failed::outside(format!("{}: {error}", directory.join(&file.path).display()))
        };
        let path =
            RelPath::new(&file.path).map_err(|rule| Failed::outside(format!("{:?}: {rule}", file.path)))?;
        let target = directory.join(path.as_str());
        let parent = target.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).map_err(failed)?;
        let draft = parent.join(format!(".keyferry-{}", std::process::id()));
        let result = write_one(&draft, &target, &file.contents, u32::try_from(file.mode).unwrap_or(0o600));
        if result.is_err() {
            // The draft may not exist; the first error is the one to tell.
            let _ = std::fs::remove_file(&draft);
        }
        result.map_err(failed)?;
    }
    Ok(())
}

fn write_one(draft: &Path, target: &Path, contents: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(contents)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777))?;
    std::fs::rename(draft, target)
}

fn report(args: &Mount, class: &Class, response: &MountResponse, elapsed: Duration) -> String {
    let ms = elapsed.as_secs_f64() * 1000.0;
    let shown = |contents: &[u8]| args.show.then(|| String::from_utf8_lossy(contents).into_owned());
    if args.output == Output::Json {
        let files: Vec<_> = response
            .files
            .iter()
            .map(|f| json!({"path": f.path, "mode": format!("{:04o}", f.mode), "bytes": f.contents.len(), "value": shown(&f.contents)}))
            .collect();
        let versions: Vec<_> =
            response.object_version.iter().map(|v| json!({"id": v.id, "version": v.version})).collect();
        let document = json!({"class": class.name, "provider": class.provider, "files": files, "objects": versions, "milliseconds": ms});
        return format!("{document:#}\n");
    }
    let mut rows = vec![["FILE", "MODE", "BYTES", "OBJECT", "VERSION"].map(ToOwned::to_owned)];
    // Optional objects may have a version and no file, so the two lists are joined by place only
    // where they are of one length.
    let paired = response.files.len() == response.object_version.len();
    for (index, file) in response.files.iter().enumerate() {
        let object = response.object_version.get(index).filter(|_| paired);
        rows.push([
            file.path.clone(),
            format!("{:04o}", file.mode),
            file.contents.len().to_string(),
            object.map_or(String::new(), |o| o.id.clone()),
            object.map_or(String::new(), |o| o.version.clone()),
        ]);
    }
    let mut text = table(&rows);
    for file in response.files.iter().filter(|_| args.show) {
        text.push_str(&format!("--- {}\n{}\n", file.path, String::from_utf8_lossy(&file.contents)));
    }
    text.push_str(&format!("{} files of class {} in {ms:.1} ms\n", response.files.len(), class.name));
    text
}

/// Columns as wide as their widest cell.
fn table(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
