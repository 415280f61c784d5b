//! A plan in words, for `check --explain` (azure.md 11, 12, 15).

use super::{Azure, Identity, ObjectKind, Read, Target};
use crate::plan::{Account, Credential, Plan};

pub(super) fn account(plan: &Plan<Azure>) -> Account {
    let target = &plan.target;
    let mut permissions: Vec<_> = plan.reads.iter().map(|read| right(read.kind, target)).collect();
    permissions.sort();
    permissions.dedup();
    Account {
        identity: identity(target, &plan.credential),
        logins: vec![login(target, &plan.login_at)],
        requests: plan.reads.iter().map(|read| request(target, read)).collect(),
        permissions,
    }
}

fn identity(target: &Target, credential: &Credential) -> String {
    match (&target.identity, credential) {
        (Identity::Machine { client_id: Some(id) }, _) => {
            format!("the node's managed identity with client id {id}")
        }
        (Identity::Machine { client_id: None }, _) => {
            "the node's system-assigned managed identity".to_owned()
        }
        (Identity::App { .. }, Credential::Password(_)) => format!(
            "the service principal (clientid, clientsecret) in the Secret that the volume's nodePublishSecretRef names, in \
             tenant {}",
            target.tenant
        ),
        (Identity::App { client_id }, _) => format!(
            "application or managed identity {client_id} of tenant {}, proven by a token of the pod's service account for \
             api://AzureADTokenExchange",
            target.tenant
        ),
    }
}

fn login(target: &Target, login_at: &str) -> String {
    match target.identity {
        Identity::Machine { .. } => format!("GET a token for {} from {login_at}", target.resource),
        Identity::App { .. } => {
            format!("POST {login_at}{}/oauth2/v2.0/token for {}/.default", target.tenant, target.resource)
        }
    }
}

fn request(target: &Target, read: &Read) -> String {
    let folder = match read.kind {
        ObjectKind::Secret => "secrets",
        ObjectKind::Key => "keys",
        ObjectKind::Certificate => "certificates",
    };
    let version = if read.version.is_empty() { " (latest version)" } else { "" };
    format!("GET https://{}/{folder}/{}/{}{version}", target.vault, read.name, read.version)
}

fn right(kind: ObjectKind, target: &Target) -> String {
    let (policy, role, action) = match kind {
        ObjectKind::Secret => ("get on secrets", "Key Vault Secrets User", "secrets/getSecret/action"),
        ObjectKind::Key => ("get on keys", "Key Vault Crypto User", "keys/read"),
        ObjectKind::Certificate => ("get on certificates", "Key Vault Certificate User", "certificates/read"),
    };
    format!(
        "on {}: role {role} (data action Microsoft.KeyVault/vaults/{action}), or access policy {policy}",
        target.vault
    )
}
