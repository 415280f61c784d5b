//! A plan in words, for `check --explain` (azure.md 11, 12, 15).

use super::{Azure, Identity, MachineId, ObjectKind, Read, Target, binding};
use crate::plan::{Account, Credential, Plan};

pub(super) fn account(plan: &Plan<Azure>) -> Account {
    let target = &plan.target;
    let mut permissions: Vec<_> = plan.reads.iter().map(|read| right(read, target)).collect();
    if let Identity::Bound { client_id } = &target.identity {
        permissions.push(format!(
            "in the cluster: verb use-managed-identity on {client_id} of cid.wi.aks.azure.com for the pod's service account"
        ));
    }
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
    let tenant = &target.tenant;
    match &target.identity {
        Identity::Machine(MachineId::System) => "the node's system-assigned managed identity".to_owned(),
        Identity::Machine(MachineId::Client(id)) => {
            format!("the node's managed identity with client id {id}")
        }
        Identity::Machine(MachineId::Object(id)) => {
            format!("the node's managed identity with object id {id}")
        }
        Identity::Machine(MachineId::Resource(id)) => format!("the node's managed identity {id}"),
        Identity::App { client_id } => match credential {
            Credential::Token(_) | Credential::Node => format!(
                "application or managed identity {client_id} of tenant {tenant}, proven by a token of the pod's \
                 service account for api://AzureADTokenExchange"
            ),
            // Whose it is stands in the Secret, which is not at hand.
            Credential::Password(_) | Credential::Certificate(_) => format!(
                "the service principal in the Secret that the volume's nodePublishSecretRef names (clientid, and \
                 clientsecret or clientcertificate), in tenant {tenant}"
            ),
        },
        Identity::Bound { client_id } => format!(
            "managed identity {client_id} of tenant {tenant}, bound to the cluster: proven by a token of the pod's \
             service account for {}",
            binding::AUDIENCE
        ),
        Identity::Annotated { .. } => {
            "the application that the annotations of the pod's service account name".to_owned()
        }
        Identity::Pod { .. } => "what the node's pod identity service gives to the pod".to_owned(),
    }
}

fn login(target: &Target, login_at: &str) -> String {
    match target.identity {
        Identity::Machine(_) | Identity::Pod { .. } => {
            format!("GET a token for {} from {login_at}", target.resource)
        }
        Identity::App { .. } | Identity::Bound { .. } | Identity::Annotated { .. } => format!(
            "POST {}/{}/oauth2/v2.0/token for {}/.default",
            login_at.trim_end_matches('/'),
            target.tenant,
            target.resource
        ),
    }
}

fn request(target: &Target, read: &Read) -> String {
    match read {
        Read::Object { kind, name, version } => {
            let note = if version.is_empty() { " (latest version)" } else { "" };
            format!("GET https://{}/{}/{name}/{version}{note}", target.vault, kind.folder())
        }
        Read::Versions { kind, name } => {
            format!("GET https://{}/{}/{name}/versions, and each version", target.vault, kind.folder())
        }
    }
}

fn right(read: &Read, target: &Target) -> String {
    let (Read::Object { kind, .. } | Read::Versions { kind, .. }) = read;
    if target.hsm {
        return format!("on {}: role Managed HSM Crypto User, or another that reads keys", target.vault);
    }
    let list = if matches!(read, Read::Versions { .. }) { " and list" } else { "" };
    let (role, action) = match kind {
        ObjectKind::Secret => ("Key Vault Secrets User", "secrets/getSecret/action"),
        ObjectKind::Key => ("Key Vault Crypto User", "keys/read"),
        ObjectKind::Certificate => ("Key Vault Certificate User", "certificates/read"),
    };
    format!(
        "on {}: role {role} (data action Microsoft.KeyVault/vaults/{action}), or access policy get{list} on {}",
        target.vault,
        kind.folder()
    )
}
