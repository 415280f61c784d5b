//! What users do. A case has a namespace and a vault of its own.

mod callers;
mod files;
mod manifests;
mod outage;
mod provider;
mod scale;
mod secrets;

use std::pin::Pin;
use std::rc::Rc;

use anyhow::Result;

use crate::cluster::Cluster;

/// Whether a case may run beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
    /// It touches nothing that others use.
    Others,
    /// It breaks or replaces what all use.
    Nobody,
}

type Running = Pin<Box<dyn Future<Output = Result<String>>>>;

/// One case; it gives figures worth reading, or nothing.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) with: With,
    pub(crate) run: Box<dyn Fn(Rc<Cluster>) -> Running>,
}

fn case<F>(name: &'static str, with: With, run: fn(Rc<Cluster>) -> F) -> Case
where
    F: Future<Output = Result<String>> + 'static,
{
    Case { name, with, run: Box::new(move |cluster| Box::pin(run(cluster))) }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(files::cases());
    all.extend(secrets::cases());
    all.extend(outage::cases());
    all.extend(callers::cases());
    all.extend(provider::cases());
    all.extend(scale::cases());
    all
}
