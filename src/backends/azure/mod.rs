//! Azure Key Vault, as the vendor's provider answers (azure.md), and better where azure.md 16 says so.
//!
//! Credentials come from `azure_identity` over our transport; objects are read over our own client:
//! docs/decisions/0001-key-vault-reads.md says why.

mod accounts;
pub mod binding;
mod certificate;
pub mod cloud;
mod entra;
mod entries;
mod errors;
mod explain;
pub mod fields;
mod machine;
mod params;
mod pod;
mod read;

use std::path::PathBuf;

use super::{Backend, Login};
use crate::call::Call;
use crate::entry::Dialect;
use crate::error::Problem;
use crate::http::Http;
use crate::kube::{self, Kube};
use crate::plan::{Account, Credential, Plan, Reading};
use crate::policy::Reach;
use crate::secret::SecretText;

/// Settings of the backend.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cloud of classes that name none; without one it is the `AzureStackCloud` of `environment_file`.
    pub cloud: Option<cloud::Cloud>,
    /// File that describes the `AzureStackCloud` of classes that name none (azure.md 10).
    pub environment_file: Option<PathBuf>,
    /// Order the certificates of a PFX (azure.md 9.2).
    pub order_chain: bool,
    /// Certificate and key in files of their own as well (azure.md 9.3).
    pub split: bool,
    /// The token proxy of identity binding (azure.md 11.6).
    pub token_proxy: binding::Settings,
    /// Take client and tenant from the annotations of the pod's service account where a class names no
    /// identity at all (tracker T05); off without it.
    pub service_accounts: Option<kube::Settings>,
    /// The files of a node are not at hand: a cloud that one describes is taken for granted.
    pub offline: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cloud: Some(cloud::Cloud::public()),
            environment_file: None,
            order_chain: true,
            split: false,
            token_proxy: binding::Settings::default(),
            service_accounts: None,
            offline: false,
        }
    }
}

/// The backend.
pub struct Azure {
    http: Http,
    settings: Settings,
    resources: read::Resources,
    proxy: binding::Proxy,
    kube: Option<Kube>,
}

impl Azure {
    /// Reads over `http`.
    pub fn new(http: Http, settings: Settings) -> Self {
        let proxy = binding::Proxy::new(&http, settings.token_proxy.clone());
        let kube = settings.service_accounts.clone().map(|settings| Kube::new(&http, settings));
        Self { http, settings, resources: read::Resources::default(), proxy, kube }
    }
}

/// Vault, and the identity that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Host of the vault.
    vault: String,
    /// Whether it is a Managed HSM, which holds keys alone.
    hsm: bool,
    /// Token resource that the cloud gives; the vault may correct it once.
    resource: String,
    /// Authority, such as `https://login.microsoftonline.com/`.
    authority: String,
    /// Tenant; empty where the service account names it.
    tenant: String,
    identity: Identity,
}

/// Whom the store will see.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    /// The node's machine, as one of its identities.
    Machine(MachineId),
    /// An application, proven by a service-account token, a client secret or a certificate.
    App { client_id: String },
    /// An application, proven to the cluster's token proxy (azure.md 11.6).
    Bound { client_id: String },
    /// The application that the annotations of the pod's service account name (tracker T05).
    Annotated { namespace: String, account: String },
    /// What the node's pod identity service gives to this pod (azure.md 11.5).
    Pod { namespace: String, name: String },
}

/// One of a machine's identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum MachineId {
    System,
    Client(String),
    Object(String),
    Resource(String),
}

/// One upstream request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Read {
    /// An object.
    Object {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
        /// Id of the version; empty for the latest.
        version: String,
    },
    /// The versions of an object.
    Versions {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
}

/// Kind of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A value.
    Secret,
    /// A public key.
    Key,
    /// A certificate without its key.
    Certificate,
}

impl ObjectKind {
    /// Its word in addresses and rights.
    fn folder(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Key => "keys",
            Self::Certificate => "certificates",
        }
    }
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
            Identity::Machine(MachineId::System) => "system-assigned".to_owned(),
            Identity::Machine(MachineId::Client(id) | MachineId::Object(id) | MachineId::Resource(id)) => {
                id.clone()
            }
            Identity::App { client_id } | Identity::Bound { client_id } => client_id.clone(),
            Identity::Annotated { namespace, account } => format!("service-account:{namespace}/{account}"),
            Identity::Pod { namespace, name } => format!("pod:{namespace}/{name}"),
        };
        Reach { addresses: vec![plan.target.vault.clone()], identity, caseless: true }
    }

    async fn login(&self, target: &Target, credential: &Credential) -> Result<Login<Session>, Problem> {
        let resource = self.resources.of(target);
        let app = |client_id| entra::App {
            authority: &target.authority,
            tenant: &target.tenant,
            client_id,
            resource: &resource,
        };
        match &target.identity {
            Identity::Machine(id) => machine::login(&self.http, id, &resource).await,
            Identity::App { client_id } => {
                entra::Entra::direct(&self.http).login(&app(client_id), credential).await
            }
            Identity::Bound { client_id } => {
                self.proxy.entra().await?.login(&app(client_id), credential).await
            }
            Identity::Annotated { namespace, account } => {
                let kube = self.kube.as_ref().expect("only planned where the setting is on");
                let named = accounts::read(kube, namespace, account).await?;
                let tenant = named.tenant(&target.tenant)?;
                let app = entra::App { tenant, ..app(&named.client_id) };
                entra::Entra::direct(&self.http).login(&app, credential).await
            }
            Identity::Pod { namespace, name } => pod::login(&self.http, namespace, name, &resource).await,
        }
    }

    async fn read(&self, target: &Target, session: &Session, read: &Read) -> Result<Reading, Problem> {
        let asker = read::Asker { http: &self.http, resources: &self.resources, target, session };
        asker.read(read).await
    }
}
