//! The Azure stand-in as most tests want it.

use keyferry::http::{self, Http, Roots};

use crate::standins::azure::content::{Identity, Managed, ObjectVersion};
use crate::standins::azure::{AzureStandIn, CLIENT};

/// Starts one with an empty vault and one identity that can be had in each way.
pub async fn start() -> AzureStandIn {
    let store = AzureStandIn::empty().await;
    let identity = Identity::new(CLIENT).federated("shop", "web").client_secret("right");
    store.identity(identity.managed(Managed::User));
    store.vault("shopkv");
    store
}

/// Sets a version of a secret in the vault.
pub fn secret(store: &AzureStandIn, name: &str, version: &str, value: &str) {
    store.vault("shopkv").set_secret(name, version, value, ObjectVersion::default());
}

/// Gives the settings of a client that reaches the stand-in in place of the services.
pub fn settings(store: &AzureStandIn) -> http::Settings {
    http::Settings {
        connect_to: store.connect_to(),
        roots: Roots::Pem(store.ca_pem().as_bytes().to_vec()),
        ..http::Settings::default()
    }
}

/// Gives such a client.
pub fn client(store: &AzureStandIn) -> Http {
    Http::new(settings(store))
}
