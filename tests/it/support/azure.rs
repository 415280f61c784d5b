//! The stand-in for Azure with one vault and one identity, and our backend against it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyferry::backends::{self, Settings};
use keyferry::call::{Call, Occasion, Parameters, Pod, Tokens};
use keyferry::fetch;
use keyferry::gather::Gather;
use keyferry::http::{self, Http, Roots};
use keyferry::path::Mode;
use keyferry::secret::SecretText;

use crate::standins::azure::content::{Identity, Managed, ObjectVersion};
use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};

/// Audience of workload identity.
pub const AUDIENCE: &str = "api://AzureADTokenExchange";

/// A stand-in with an empty vault and one identity that can be had in each way.
pub async fn start() -> AzureStandIn {
    let store = AzureStandIn::empty().await;
    let identity = Identity::new(CLIENT).federated("shop", "web").client_secret("right");
    store.identity(identity.managed(Managed::User));
    store.vault("shopkv");
    store
}

/// Puts a version of a secret into the vault.
pub fn secret(store: &AzureStandIn, name: &str, version: &str, value: &str) {
    store.vault("shopkv").set_secret(name, version, value, ObjectVersion::default());
}

/// A client of ours that reaches the hosts that `serves` takes.
pub fn client(store: &AzureStandIn, serves: impl Fn(&str) -> bool) -> Http {
    Http::new(http::Settings {
        connect_to: store.connect_to().into_iter().filter(|(host, _)| serves(host)).collect(),
        roots: Roots::Pem(store.ca_pem().as_bytes().to_vec()),
        ..http::Settings::default()
    })
}

/// The backend behind the engine, with its defaults.
pub fn open(store: &AzureStandIn) -> Arc<dyn Gather> {
    backends::open(&Settings::default(), &client(store, |_| true), &fetch::Settings::default()).remove(0)
}

const ENTRY: &str = "array:\n  - |\n    objectName: db\n    objectType: secret\n";

/// What a call asks for; the rest is the pod shop/web-0 of service account web, and the vault shopkv.
pub struct Ask<'a> {
    /// Parameters of the class, besides tenant and vault.
    pub parameters: &'a [(&'a str, &'a str)],
    /// Its entries; without any, the secret db.
    pub objects: &'a str,
    /// Tokens by audience.
    pub tokens: BTreeMap<&'a str, String>,
    /// Data of the Secret behind nodePublishSecretRef.
    pub secrets: Option<BTreeMap<String, SecretText>>,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { parameters: &[], objects: ENTRY, tokens: BTreeMap::new(), secrets: None }
    }
}

impl Ask<'_> {
    /// As a first mount.
    pub fn call(self) -> Call {
        let mut map: BTreeMap<String, String> =
            self.parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        for (key, value) in [("tenantID", TENANT), ("objects", self.objects)] {
            map.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
        if !map.contains_key("vaultURI") {
            map.insert("keyvaultName".into(), "shopkv".into());
        }
        let tokens: serde_json::Map<_, _> = self
            .tokens
            .into_iter()
            .map(|(audience, token)| (audience.to_owned(), serde_json::json!({ "token": token })))
            .collect();
        Call {
            parameters: Parameters::new(&map),
            pod: Pod {
                name: "web-0".into(),
                namespace: "shop".into(),
                uid: "u".into(),
                service_account: "web".into(),
            },
            class: Some("vault".into()),
            tokens: Tokens::new((!tokens.is_empty()).then(|| serde_json::Value::from(tokens).to_string())),
            secrets: self.secrets,
            mode: Mode::DEFAULT,
            deadline: tokio::time::Instant::now() + Duration::from_secs(60),
            occasion: Occasion::First,
        }
    }
}
