//! The stand-in for Azure with one vault and one identity, and our backend against it.

use std::sync::Arc;

use keyferry::backends::{self, Settings};
use keyferry::fetch;
use keyferry::gather::Gather;
use keyferry::http::{self, Http, Roots};

use crate::standins::azure::content::{Identity, Managed, ObjectVersion};
use crate::standins::azure::{AzureStandIn, CLIENT};

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
