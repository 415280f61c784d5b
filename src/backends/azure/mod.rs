//! Azure Key Vault, as the vendor's provider answers (azure.md), and better where azure.md 16 says so.
//!
//! Credentials come from `azure_identity` over our transport; objects are read over our own client:
//! docs/decisions/0001-key-vault-reads.md says why.

pub mod cloud;
mod entra;
mod entries;
mod errors;
mod explain;
pub mod fields;
mod machine;
mod params;
mod read;

use std::path::PathBuf;

use super::{Backend, Login};
use crate::call::Call;
use crate::entry::Dialect;
use crate::error::Problem;
use crate::http::Http;
use crate::plan::{Account, Credential, Plan, Reading};
use crate::policy::Reach;
use crate::secret::SecretText;

/// Settings of the backend.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cloud of classes that name none.
    pub cloud: cloud::Cloud,
    /// File that describes the `AzureStackCloud` of classes that name none (azure.md 10).
    pub environment_file: Option<PathBuf>,
    /// Order the certificates of a PFX (azure.md 9.2).
    pub order_chain: bool,
    /// Certificate and key in files of their own as well (azure.md 9.3).
    pub split: bool,
    /// The files of a node are not at hand: a cloud that one describes is taken for granted.
    pub offline: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cloud: cloud::Cloud::public(),
            environment_file: None,
            order_chain: true,
            split: false,
            offline: false,
        }
    }
}

/// The backend.
pub struct Azure {
    http: Http,
    settings: Settings,
    resources: read::Resources,
}

impl Azure {
    /// Reads over `http`.
    pub fn new(http: Http, settings: Settings) -> Self {
        Self { http, settings, resources: read::Resources::default() }
    }
}

/// Vault, and the identity that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Host of the vault.
    vault: String,
    /// Token resource that the cloud gives; the vault may correct it once.
    resource: String,
    /// Authority, such as `https://login.microsoftonline.com/`.
    authority: String,
    tenant: String,
    identity: Identity,
}

/// Whom the store will see.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    /// The node's machine; with a client id, or system-assigned.
    Machine { client_id: Option<String> },
    /// An application, proven by a service-account token or a client secret.
    App { client_id: String },
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Read {
    kind: ObjectKind,
    name: String,
    version: String,
}

/// Kind of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ObjectKind {
    Secret,
    Key,
    Certificate,
}

/// An access token.
pub struct Session {
    token: SecretText,
}

impl Backend for Azure {
    const NAME: &'static str = "azure";
    const ERROR_PREFIX: &'static str = "failed to mount objects, error: ";
    const DIALECT: Dialect = Dialect { parameters: &fields::PARAMETERS, entry: &fields::ENTRY, array: true };
    type Target = Target;
    type Read = Read;
    type Session = Session;

    fn plan(&self, call: &Call) -> (Plan<Self>, Vec<Problem>) {
        params::plan(&self.settings, call)
    }

    fn explain(&self, plan: &Plan<Self>) -> Account {
        explain::account(plan)
    }

    fn reach(plan: &Plan<Self>) -> Reach {
        let identity = match &plan.target.identity {
            Identity::Machine { client_id: None } => "system-assigned",
            Identity::Machine { client_id: Some(client_id) } | Identity::App { client_id } => client_id,
        };
        Reach { addresses: vec![plan.target.vault.clone()], identity: identity.to_owned(), caseless: true }
    }

    async fn login(&self, target: &Target, credential: &Credential) -> Result<Login<Session>, Problem> {
        let resource = self.resources.of(target);
        match &target.identity {
            Identity::Machine { client_id } => {
                machine::login(&self.http, client_id.as_deref(), &resource).await
            }
            Identity::App { client_id } => {
                entra::login(&self.http, target, client_id, &resource, credential).await
            }
        }
    }

    async fn read(&self, target: &Target, session: &Session, read: &Read) -> Result<Reading, Problem> {
        read::read(&self.http, &self.resources, target, session, read).await
    }
}
