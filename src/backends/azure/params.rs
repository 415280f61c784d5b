//! From a class to a plan: parameters and identity, every problem collected (azure.md 3, 4, 11.1).

use std::path::Path;

use http::Uri;

use super::certificate::Signer;
use super::cloud::{self, Cloud};
use super::fields::PARAMETER_NAMES;
use super::{Azure, Identity, MachineId, Settings, Target, binding, entries};
use crate::call::Call;
use crate::entry::{boolean, nearest, unknown_parameters};
use crate::error::{Problem, Rule, Spot, Warning};
use crate::plan::{Credential, Plan, check_paths};
use crate::secret::SecretText;

/// Audience of workload identity (azure.md 11.2).
const AUDIENCE: &str = "api://AzureADTokenExchange";

pub(super) fn plan(settings: &Settings, call: &Call) -> (Plan<Azure>, Vec<Problem>) {
    let mut problems = Vec::new();
    pod(call, &mut problems);
    let mode = mode(call, &mut problems);
    let cloud = cloud(settings, call, &mut problems);
    let store = store(call, &cloud, &mut problems);
    let annotated = mode == Flagged::None && annotated(settings, call);
    let tenant = tenant(call, annotated, &mut problems);
    let (identity, credential) =
        if annotated { of_service_account(call, &mut problems) } else { identity(call, mode, &mut problems) };
    let login_at = match identity {
        Identity::Machine(_) => "the instance metadata service (169.254.169.254)".to_owned(),
        Identity::Pod { .. } => "the pod identity service (localhost:2579)".to_owned(),
        Identity::Bound { .. } => settings.token_proxy.url.to_string(),
        Identity::App { .. } | Identity::Annotated { .. } => cloud.authority.clone(),
    };
    let Store { host, hsm, resource } = store;
    let target = Target { vault: host.clone(), hsm, resource, authority: cloud.authority, tenant, identity };
    let mut plan = Plan::new(target, credential, login_at, host);
    plan.warnings = unknown_parameters(&call.parameters, &PARAMETER_NAMES);
    if !call.parameters.text("clientId").is_empty() {
        let what = "clientId is read as clientID by keyferry alone: write clientID";
        plan.warnings.push(Warning::new(Rule::Spelling, what, Spot::field("clientId")));
    }
    if mode == Flagged::None && !annotated && client_id(call).is_empty() {
        let what = "no identity is named, so each pod has to bring a Secret with clientid and clientsecret in nodePublishSecretRef; \
                    the other ways are clientID, useVMManagedIdentity and useAzureTokenProxy";
        plan.warnings.push(Warning::new(Rule::Identity, what, Spot::default()));
    }
    for entry in &entries::entries(call, &mut problems) {
        entries::entry(&mut plan, settings, entry, &mut problems);
    }
    let series = plan.series.iter().flat_map(|series| &series.outputs);
    problems.extend(check_paths(plan.outputs.iter().chain(series), Some(&mut plan.slips)));
    (plan, problems)
}

fn pod(call: &Call, problems: &mut Vec<Problem>) {
    for (text, name) in [(&call.pod.name, "pod name"), (&call.pod.namespace, "pod namespace")] {
        if text.is_empty() {
            problems.push(
                Problem::config(format!("{name} is not provided"))
                    .hint("the CSIDriver object needs podInfoOnMount: true"),
            );
        }
    }
}

/// Ways to an identity that a class can switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flagged {
    None,
    Pod,
    Machine,
    Proxy,
}

fn mode(call: &Call, problems: &mut Vec<Problem>) -> Flagged {
    let mut on = Vec::new();
    for (key, mode) in [
        ("usePodIdentity", Flagged::Pod),
        ("useVMManagedIdentity", Flagged::Machine),
        ("useAzureTokenProxy", Flagged::Proxy),
    ] {
        let text = call.parameters.text(key);
        match boolean(text) {
            Some(true) => on.push((key, mode)),
            Some(false) => {}
            None => problems.push(
                Problem::config(format!("failed to parse {key} flag, error: {text:?} is no boolean"))
                    .at(Spot::field(key))
                    .hint("write \"true\" or \"false\""),
            ),
        }
    }
    if on.len() > 1 {
        let keys: Vec<_> = on.iter().map(|(key, _)| *key).collect();
        problems.push(
            Problem::config(
                "only one identity mode can be enabled at a time: usePodIdentity, useVMManagedIdentity, useAzureTokenProxy",
            )
            .at(Spot::field(keys.join(", ")))
            .hint("keep one of them true"),
        );
    }
    on.first().map_or(Flagged::None, |(_, mode)| *mode)
}

fn cloud(settings: &Settings, call: &Call, problems: &mut Vec<Problem>) -> Cloud {
    let name = call.parameters.text("cloudName");
    let found = match (name, &settings.cloud) {
        ("", Some(cloud)) => return cloud.clone(),
        ("", None) => stack(settings, call),
        _ if cloud::is_stack(name) => stack(settings, call),
        _ => cloud::by_name(name)
            .ok_or_else(|| format!("there is no cloud named {:?}", name.to_ascii_uppercase())),
    };
    found.unwrap_or_else(|reason| {
        let name = if name.is_empty() { "AzureStackCloud" } else { name };
        problems.push(
            Problem::config(format!("cloudName {name} is not valid, error: {reason}"))
                .at(Spot::field("cloudName"))
                .hint("allowed are AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, AzureGermanCloud and AzureStackCloud"),
        );
        Cloud::public()
    })
}

/// The cloud that a file describes: the class's, else the process's (azure.md 10).
fn stack(settings: &Settings, call: &Call) -> Result<Cloud, String> {
    let named = call.parameters.text("cloudEnvFileName");
    let file = if named.is_empty() { settings.environment_file.as_deref() } else { Some(Path::new(named)) };
    match file {
        None => Err("AzureStackCloud needs cloudEnvFileName".to_owned()),
        Some(file) if settings.offline => Ok(cloud::assumed(file)),
        Some(file) => cloud::from_file(file),
    }
}

/// What is read.
struct Store {
    host: String,
    hsm: bool,
    resource: String,
}

fn store(call: &Call, cloud: &Cloud, problems: &mut Vec<Problem>) -> Store {
    let (name, address) = (call.parameters.text("keyvaultName"), call.parameters.text("vaultURI"));
    if address.is_empty() {
        let name = vault(name, problems);
        return Store {
            host: format!("{name}.{}", cloud.suffix),
            hsm: false,
            resource: cloud.resource.clone(),
        };
    }
    if !name.is_empty() {
        problems.push(
            Problem::config("keyvaultName and vaultURI exclude each other")
                .at(Spot::field("vaultURI"))
                .hint("keep one of them"),
        );
    }
    vault_at(address, cloud).unwrap_or_else(|what| {
        problems.push(
            Problem::config(format!("failed to get vault: vaultURI {address:?} {what}"))
                .at(Spot::field("vaultURI"))
                .hint(format!("write https://NAME.{}, and set cloudName for another cloud", cloud.suffix)),
        );
        Store { host: String::new(), hsm: false, resource: cloud.resource.clone() }
    })
}

/// A vault or a Managed HSM by its address. The token of the cloud goes there, so the host must be the
/// cloud's.
fn vault_at(address: &str, cloud: &Cloud) -> Result<Store, String> {
    let uri: Uri = address.parse().map_err(|_| "is no address".to_owned())?;
    let plain = uri.path() == "/" && uri.query().is_none() && uri.port().is_none();
    let host = match (uri.scheme_str(), uri.authority()) {
        (Some("https"), Some(authority)) if plain && !authority.as_str().contains('@') => {
            authority.host().to_ascii_lowercase()
        }
        _ => return Err("must be https://HOST and nothing else".to_owned()),
    };
    let (name, rest) = host.split_once('.').unwrap_or((&host, ""));
    if !is_vault_name(name) {
        return Err(format!("names {name:?}, which must match [-a-zA-Z0-9]{{3,24}}"));
    }
    if rest.eq_ignore_ascii_case(&cloud.suffix) {
        return Ok(Store { hsm: false, resource: cloud.resource.clone(), host });
    }
    match &cloud.hsm {
        Some(suffix) if rest.eq_ignore_ascii_case(suffix) => {
            Ok(Store { hsm: true, resource: format!("https://{suffix}"), host })
        }
        Some(suffix) => {
            Err(format!("is not in this cloud, whose stores are NAME.{} and NAME.{suffix}", cloud.suffix))
        }
        None => Err(format!("is not in this cloud, whose vaults are NAME.{}", cloud.suffix)),
    }
}

fn is_vault_name(name: &str) -> bool {
    (3..=24).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn vault(name: &str, problems: &mut Vec<Problem>) -> String {
    let spot = Spot::field("keyvaultName");
    let rule = if (3..=24).contains(&name.len()) {
        "must match [-a-zA-Z0-9]{3,24}"
    } else {
        "must be between 3 and 24 chars"
    };
    if name.is_empty() {
        problems.push(Problem::config("keyvaultName is not provided").at(spot).hint("name the vault"));
    } else if !is_vault_name(name) {
        problems.push(
            Problem::config(format!("failed to get vault: Invalid vault name: {name:?}, {rule}"))
                .at(spot)
                .hint("give the vault's name, not its address, which is vaultURI"),
        );
    }
    name.to_owned()
}

fn tenant(call: &Call, annotated: bool, problems: &mut Vec<Problem>) -> String {
    let tenant = match call.parameters.text("tenantID") {
        "" => call.parameters.text("tenantId"),
        tenant => tenant,
    };
    let spot = Spot::field("tenantID");
    if tenant.is_empty() && !annotated {
        problems.push(
            Problem::config("tenantId is not provided")
                .at(spot)
                .hint("give tenantID, the id of the Entra tenant"),
        );
    } else if !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        problems.push(
            Problem::config(format!("failed to get keyvault client: invalid tenantID {tenant:?}"))
                .at(spot)
                .hint("only letters, digits, '-' and '.' can stand in it"),
        );
    }
    tenant.to_owned()
}

/// `clientId` counts as `clientID` (azure.md 16 row 13).
fn client_id(call: &Call) -> &str {
    match call.parameters.text("clientID") {
        "" => call.parameters.text("clientId"),
        id => id,
    }
}

/// Whether the class leaves its identity to the service account, and may.
fn annotated(settings: &Settings, call: &Call) -> bool {
    settings.service_accounts.is_some() && client_id(call).is_empty() && call.secrets.is_none()
}

fn of_service_account(call: &Call, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let (namespace, account) = (call.pod.namespace.clone(), call.pod.service_account.clone());
    if account.is_empty() {
        problems.push(
            Problem::config("the request names no service account, and the class no identity")
                .hint("the CSIDriver object needs podInfoOnMount: true; or give clientID"),
        );
    }
    let credential = Credential::Token(token(call, problems));
    (Identity::Annotated { namespace, account }, credential)
}

/// The pod's token for workload identity.
fn token(call: &Call, problems: &mut Vec<Problem>) -> SecretText {
    token_for(
        AUDIENCE,
        "mode None: failed to parse workload identity tokens, error: ",
        "clientID",
        call,
        problems,
    )
}

fn token_for(
    audience: &str,
    doing: &str,
    field: &str,
    call: &Call,
    problems: &mut Vec<Problem>,
) -> SecretText {
    call.tokens.for_audience(audience).unwrap_or_else(|mut problem| {
        problem.what = format!("failed to build auth config for {doing}{}", problem.what);
        problems.push(problem.at(Spot::field(field)));
        SecretText::default()
    })
}

/// azure.md 11.1, first match.
fn identity(call: &Call, mode: Flagged, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let client_id = client_id(call);
    match mode {
        Flagged::Machine => (Identity::Machine(machine(call, problems)), Credential::Node),
        Flagged::Pod => {
            let (namespace, name) = (call.pod.namespace.clone(), call.pod.name.clone());
            (Identity::Pod { namespace, name }, Credential::Node)
        }
        Flagged::Proxy => bound(call, client_id, problems),
        Flagged::None if !client_id.is_empty() => {
            let credential = Credential::Token(token(call, problems));
            (Identity::App { client_id: client_id.to_owned() }, credential)
        }
        Flagged::None => principal(call, problems),
    }
}

fn machine(call: &Call, problems: &mut Vec<Problem>) -> MachineId {
    let named: Vec<_> = [
        ("userAssignedIdentityID", MachineId::Client as fn(String) -> MachineId),
        ("userAssignedIdentityObjectID", MachineId::Object),
        ("userAssignedIdentityResourceID", MachineId::Resource),
    ]
    .into_iter()
    .filter(|(key, _)| !call.parameters.text(key).is_empty())
    .collect();
    if let [_, (second, _), ..] = named.as_slice() {
        problems.push(
            Problem::config("the machine's identity is named twice")
                .at(Spot::field(*second))
                .hint("keep one of userAssignedIdentityID, userAssignedIdentityObjectID, userAssignedIdentityResourceID"),
        );
    }
    named.first().map_or(MachineId::System, |(key, id)| id(call.parameters.text(key).to_owned()))
}

/// Identity binding (azure.md 11.6).
fn bound(call: &Call, client_id: &str, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let mut missing = |what: &str, hint: &str| {
        problems.push(
            Problem::config(format!("failed to build auth config for mode AzureTokenProxy: {what}"))
                .at(Spot::field("useAzureTokenProxy"))
                .hint(hint),
        );
    };
    if client_id.is_empty() {
        missing("clientID is required for identity binding", "give the managed identity's client id");
    }
    let identity = Identity::Bound { client_id: client_id.to_owned() };
    if call.tokens.is_empty() {
        let hint = format!(
            "have the CSIDriver object secrets-store.csi.k8s.io request one: spec.tokenRequests: [{{audience: {}}}]",
            binding::AUDIENCE
        );
        missing("service account tokens are required for identity binding", &hint);
        return (identity, Credential::Token(SecretText::default()));
    }
    let doing = "mode AzureTokenProxy: failed to parse service account token for identity binding, error: ";
    let token = token_for(binding::AUDIENCE, doing, "useAzureTokenProxy", call, problems);
    (identity, Credential::Token(token))
}

/// The ways to an identity, which of them the class has, and what looks like one and is none (tracker T06).
fn ways(call: &Call) -> String {
    const WAYS: [&str; 4] = ["clientID", "useVMManagedIdentity", "useAzureTokenProxy", "usePodIdentity"];
    let set = WAYS.iter().filter(|key| !call.parameters.text(key).is_empty());
    let mut seen: Vec<_> = set.map(|key| format!("{key}: {:?}", call.parameters.text(key))).collect();
    if call.secrets.is_some() {
        seen.push("a Secret of nodePublishSecretRef".to_owned());
    }
    let seen = if seen.is_empty() { "none of them".to_owned() } else { seen.join(", ") };
    let unknown = call.parameters.keys().filter(|key| !PARAMETER_NAMES.contains(key));
    let near = unknown.filter_map(|key| {
        let near = nearest(key, &WAYS);
        (!near.is_empty()).then(|| format!("; {key:?} is unknown{near}"))
    });
    format!(
        "choose one way: clientID (workload identity), useVMManagedIdentity: \"true\", useAzureTokenProxy, or a Secret with \
         clientid and clientsecret named by the volume's nodePublishSecretRef; the request has {seen}{}",
        near.collect::<String>()
    )
}

fn principal(call: &Call, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let ways = ways(call);
    let mut missing = |what: &str| {
        let problem = Problem::config(format!("failed to build auth config for mode None: {what}"));
        problems.push(problem.hint(&ways));
    };
    let Some(secrets) = &call.secrets else {
        missing("failed to get credentials, nodePublishSecretRef secret is not set");
        return (Identity::App { client_id: String::new() }, Credential::Node);
    };
    let find = |name: &str| {
        let found = secrets.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    let (id, secret, certificate) = (find("clientid"), find("clientsecret"), find("clientcertificate"));
    if id.is_none() {
        missing("could not find clientid in secrets");
    }
    let credential = match (secret, certificate) {
        (Some(secret), _) => Credential::Password(secret),
        (None, Some(pem)) => {
            if let Err(what) = Signer::read(pem.expose()) {
                missing(what);
            }
            Credential::Certificate(pem)
        }
        (None, None) => {
            missing("could not find clientsecret in secrets");
            Credential::Password(SecretText::default())
        }
    };
    let client_id = id.map_or(String::new(), |id| id.expose().to_owned());
    (Identity::App { client_id }, credential)
}
