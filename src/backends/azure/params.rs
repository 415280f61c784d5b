//! From a class to a plan: parameters and identity, every problem collected (azure.md 3, 4, 11.1).

use std::path::Path;

use super::cloud::{self, Cloud};
use super::fields::PARAMETER_NAMES;
use super::{Azure, Identity, Settings, Target, entries};
use crate::call::Call;
use crate::entry::{boolean, unknown_parameters};
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
    let vault = vault(call, &mut problems);
    let tenant = tenant(call, &mut problems);
    let (identity, credential) = identity(call, mode, &mut problems);
    let host = format!("{vault}.{}", cloud.suffix);
    let login_at = match identity {
        Identity::Machine { .. } => "the instance metadata service (169.254.169.254)".to_owned(),
        Identity::App { .. } => cloud.authority.clone(),
    };
    let mut plan = Plan {
        target: Target {
            vault: host.clone(),
            resource: cloud.resource,
            authority: cloud.authority,
            tenant,
            identity,
        },
        credential,
        login_at,
        read_at: host,
        reads: Vec::new(),
        outputs: Vec::new(),
        slips: Vec::new(),
        warnings: unknown_parameters(&call.parameters, &PARAMETER_NAMES),
    };
    if !call.parameters.text("clientId").is_empty() {
        let what = "clientId is read as clientID by keyferry alone: write clientID";
        plan.warnings.push(Warning::new(Rule::Spelling, what, Spot::field("clientId")));
    }
    for entry in &entries::entries(call, &mut problems) {
        entries::entry(&mut plan, settings, entry, &mut problems);
    }
    problems.extend(check_paths(plan.outputs.iter(), Some(&mut plan.slips)));
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
    if name.is_empty() {
        return settings.cloud.clone();
    }
    let found = if cloud::is_stack(name) {
        let named = call.parameters.text("cloudEnvFileName");
        let file =
            if named.is_empty() { settings.environment_file.as_deref() } else { Some(Path::new(named)) };
        match file {
            None => Err("AzureStackCloud needs cloudEnvFileName".to_owned()),
            Some(file) if settings.offline => Ok(cloud::assumed(file)),
            Some(file) => cloud::from_file(file),
        }
    } else {
        cloud::by_name(name).ok_or_else(|| format!("there is no cloud named {:?}", name.to_ascii_uppercase()))
    };
    found.unwrap_or_else(|reason| {
        problems.push(
            Problem::config(format!("cloudName {name} is not valid, error: {reason}"))
                .at(Spot::field("cloudName"))
                .hint("allowed are AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, AzureGermanCloud and AzureStackCloud"),
        );
        settings.cloud.clone()
    })
}

fn vault(call: &Call, problems: &mut Vec<Problem>) -> String {
    let name = call.parameters.text("keyvaultName");
    let spot = Spot::field("keyvaultName");
    if name.is_empty() {
        problems.push(Problem::config("keyvaultName is not provided").at(spot).hint("name the vault"));
    } else if !(3..=24).contains(&name.len()) {
        problems.push(
            Problem::config(format!(
                "failed to get vault: Invalid vault name: {name:?}, must be between 3 and 24 chars"
            ))
            .at(spot)
            .hint("give the vault's name, not its address"),
        );
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        problems.push(
            Problem::config(format!(
                "failed to get vault: Invalid vault name: {name:?}, must match [-a-zA-Z0-9]{{3,24}}"
            ))
            .at(spot)
            .hint("give the vault's name, not its address"),
        );
    }
    name.to_owned()
}

fn tenant(call: &Call, problems: &mut Vec<Problem>) -> String {
    let tenant = match call.parameters.text("tenantID") {
        "" => call.parameters.text("tenantId"),
        tenant => tenant,
    };
    let spot = Spot::field("tenantID");
    if tenant.is_empty() {
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

/// azure.md 11.1, first match; `clientId` counts as `clientID` (16 row 13).
fn identity(call: &Call, mode: Flagged, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let client_id = match call.parameters.text("clientID") {
        "" => call.parameters.text("clientId"),
        id => id,
    };
    match mode {
        Flagged::Machine => {
            let id = call.parameters.text("userAssignedIdentityID");
            let client_id = (!id.is_empty()).then(|| id.to_owned());
            (Identity::Machine { client_id }, Credential::Node)
        }
        Flagged::Pod | Flagged::Proxy => {
            let key = if mode == Flagged::Pod { "usePodIdentity" } else { "useAzureTokenProxy" };
            problems.push(
                Problem::config(format!("{key} is not supported by this version of keyferry"))
                    .at(Spot::field(key))
                    .hint("use workload identity (clientID) or useVMManagedIdentity"),
            );
            (Identity::Machine { client_id: None }, Credential::Node)
        }
        Flagged::None if !client_id.is_empty() => {
            let credential = call.tokens.for_audience(AUDIENCE).unwrap_or_else(|mut problem| {
                problem.what = format!(
                    "failed to build auth config for mode None: failed to parse workload identity tokens, error: {}",
                    problem.what
                );
                problems.push(problem.at(Spot::field("clientID")));
                SecretText::default()
            });
            (Identity::App { client_id: client_id.to_owned() }, Credential::Token(credential))
        }
        Flagged::None => principal(call, problems),
    }
}

fn principal(call: &Call, problems: &mut Vec<Problem>) -> (Identity, Credential) {
    let ways = "choose one way: clientID (workload identity), useVMManagedIdentity: \"true\", useAzureTokenProxy, or a Secret \
                with clientid and clientsecret named by the volume's nodePublishSecretRef";
    let mut missing = |what: &str| {
        problems
            .push(Problem::config(format!("failed to build auth config for mode None: {what}")).hint(ways));
    };
    let Some(secrets) = &call.secrets else {
        missing("failed to get credentials, nodePublishSecretRef secret is not set");
        return (Identity::App { client_id: String::new() }, Credential::Node);
    };
    let find = |name: &str| {
        let found = secrets.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    let (id, secret) = (find("clientid"), find("clientsecret"));
    if id.is_none() {
        missing("could not find clientid in secrets");
    }
    if secret.is_none() {
        missing("could not find clientsecret in secrets");
    }
    let client_id = id.map_or(String::new(), |id| id.expose().to_owned());
    (Identity::App { client_id }, Credential::Password(secret.unwrap_or_default()))
}
