//! The stores: one folder each, behind four methods.
//!
//! A backend may use `http`, `kube`, `call`, `plan`, `error`, `secret`, `path` and `yaml`. It may not use
//! `server`, `fetch`, `cli`, the environment or tasks of its own: caching, retries, limits and
//! deadlines are the engine's. Adding one is a folder and a line in [`open`].

pub mod azure;
pub mod local;

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::call::Call;
use crate::entry::Dialect;
use crate::error::Problem;
use crate::fetch;
use crate::gather::{Gather, Store};
use crate::http::Http;
use crate::plan::{Account, Credential, Plan, Reading};
use crate::policy::Reach;

/// One kind of store.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Name in classes, sockets, metrics.
    const NAME: &'static str;
    /// Literal before every error, that the peer's users search for.
    const ERROR_PREFIX: &'static str;
    /// How its classes are written.
    const DIALECT: Dialect = Dialect::NONE;
    /// Where, and as whom.
    type Target: Clone + Eq + Hash + Send + Sync + 'static;
    /// One upstream request.
    type Read: Clone + Eq + Hash + Send + Sync + 'static;
    /// What a login gave.
    type Session: Send + Sync + 'static;

    /// Turns a class into requests and files, as far as it is right, and says all that is wrong with it.
    /// Pure: no request is made here.
    fn plan(&self, call: &Call) -> (Plan<Self>, Vec<Problem>);

    /// Says in words what a plan without problems would do.
    fn explain(&self, plan: &Plan<Self>) -> Account;

    /// Where a plan goes and as whom, as the cluster's policy and the operator's page name it.
    fn reach(plan: &Plan<Self>) -> Reach;

    /// Proves the caller's identity to the store.
    fn login(
        &self,
        target: &Self::Target,
        credential: &Credential,
    ) -> impl Future<Output = Result<Login<Self::Session>, Problem>> + Send;

    /// Makes one request; the engine decides about further tries.
    fn read(
        &self,
        target: &Self::Target,
        session: &Self::Session,
        read: &Self::Read,
    ) -> impl Future<Output = Result<Reading, Problem>> + Send;
}

/// A proven identity.
pub struct Login<S> {
    /// What the backend needs to read.
    pub session: S,
    /// Who the store took the caller for. Values are shared only between equal principals, so this
    /// holds nothing that the store has not verified.
    pub principal: String,
    /// How long the session is good.
    pub lasts: Duration,
}

/// Settings of all backends.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Root of the `local` store; without it that backend is off.
    pub local_root: Option<std::path::PathBuf>,
    /// Settings of the Azure backend.
    pub azure: azure::Settings,
}

/// Names of all backends, whether switched on or not.
pub const NAMES: [&str; 2] = [azure::Azure::NAME, local::Local::NAME];

/// Opens every backend that the settings switch on: the one list of them.
pub fn open(settings: &Settings, http: &Http, engine: &fetch::Settings) -> Vec<Arc<dyn Gather>> {
    let mut all: Vec<Arc<dyn Gather>> =
        vec![Arc::new(Store::new(azure::Azure::new(http.clone(), settings.azure.clone()), engine))];
    if let Some(root) = &settings.local_root {
        all.push(Arc::new(Store::new(local::Local::new(root.clone()), engine)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_list() {
        let settings = Settings { local_root: Some("/".into()), ..Settings::default() };
        let all = open(&settings, &Http::new(crate::http::Settings::default()), &fetch::Settings::default());
        assert_eq!(all.iter().map(|backend| backend.name()).collect::<Vec<_>>(), NAMES);
    }
}
