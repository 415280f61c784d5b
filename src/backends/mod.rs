//! The stores: one folder each, behind three methods.
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
use crate::error::{Problem, Problems};
use crate::fetch;
use crate::gather::{Gather, Store};
use crate::http::Http;
use crate::plan::{Credential, Plan, Reading};

/// One kind of store.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Name in classes, sockets, metrics.
    const NAME: &'static str;
    /// Literal before every error, that the peer's users search for.
    const ERROR_PREFIX: &'static str;
    /// Where, and as whom.
    type Target: Clone + Eq + Hash + Send + Sync + 'static;
    /// One upstream request.
    type Read: Clone + Eq + Hash + Send + Sync + 'static;
    /// What a login gave.
    type Session: Send + Sync + 'static;

    /// Turns a class into requests and files. Pure: no request is made here.
    fn plan(&self, call: &Call) -> Result<Plan<Self>, Problems>;

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

/// Opens every backend that the settings switch on: the one list of them.
pub fn open(settings: &Settings, http: &Http, engine: &fetch::Settings) -> Vec<Arc<dyn Gather>> {
    let mut all: Vec<Arc<dyn Gather>> =
        vec![Arc::new(Store::new(azure::Azure::new(http.clone(), settings.azure.clone()), engine))];
    if let Some(root) = &settings.local_root {
        all.push(Arc::new(Store::new(local::Local::new(root.clone()), engine)));
    }
    all
}
