//! Faults that a test arms: the first that matches and has times left decides the answer.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;

/// What happens to the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// `status` with `headers` and `body` if a status is set, else the ordinary answer.
    #[default]
    Answer,
    /// No answer, for as long as the client waits.
    Hang,
    /// The connection (in HTTP/2 the stream) ends before the answer.
    Close,
    /// The ordinary answer's header and half of its body, then the end of the connection or stream.
    Cut,
    /// Status 200 and half of the ordinary answer's body as if it were all.
    BrokenJson,
    /// Status 200 and a JSON object of 5 MiB.
    Huge,
}

/// A fault: which requests it meets, how often, and what it does to them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// Only requests with this method.
    pub method: Option<String>,
    /// Only requests to this host.
    pub host: Option<String>,
    /// Only requests whose path begins so.
    pub path: Option<String>,
    /// How often; without it until cleared.
    pub times: Option<u32>,
    /// What happens to the answer.
    pub how: How,
    /// The status to answer with.
    pub status: Option<u16>,
    /// The service's error code in the body; each service has one for each status.
    pub code: Option<String>,
    /// The code of the inner error in a vault's body.
    pub inner: Option<String>,
    /// Headers beside the usual ones.
    pub headers: BTreeMap<String, String>,
    /// The body in place of the service's usual error body.
    pub body: Option<String>,
    /// How long the answer is held back; alone, it only slows.
    pub delay_ms: u64,
}

impl Fault {
    /// Answers with a status, once.
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), times: Some(1), ..Self::default() }
    }

    /// Does something else to the answer, once.
    pub fn how(how: How) -> Self {
        Self { how, times: Some(1), ..Self::default() }
    }

    /// Slows answers until cleared.
    pub fn delay(delay: Duration) -> Self {
        Self { delay_ms: u64::try_from(delay.as_millis()).unwrap(), ..Self::default() }
    }

    /// Meets only requests whose path begins so.
    pub fn path(self, prefix: &str) -> Self {
        Self { path: Some(prefix.to_owned()), ..self }
    }

    /// Meets only requests to this host.
    pub fn host(self, host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..self }
    }

    /// Meets this many requests.
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Sets the error code: `Throttled` for vaults, `AADSTS70021` for Entra.
    pub fn code(self, code: &str) -> Self {
        Self { code: Some(code.to_owned()), ..self }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the whole body.
    pub fn body(self, body: &str) -> Self {
        Self { body: Some(body.to_owned()), ..self }
    }

    fn meets(&self, method: &str, host: &str, path: &str) -> bool {
        self.method.as_ref().is_none_or(|m| m.eq_ignore_ascii_case(method))
            && self.host.as_ref().is_none_or(|h| h.eq_ignore_ascii_case(host))
            && self.path.as_ref().is_none_or(|p| path.starts_with(p.as_str()))
            && self.times != Some(0)
    }
}

/// The armed faults.
#[derive(Default)]
pub struct Faults {
    list: Mutex<Vec<Fault>>,
    /// So that requests of a store without faults take no lock.
    armed: AtomicBool,
}

impl Faults {
    /// Arms one, after those armed before.
    pub fn arm(&self, fault: Fault) {
        self.list.lock().unwrap().push(fault);
        self.armed.store(true, Ordering::Release);
    }

    /// Takes all away.
    pub fn clear(&self) {
        self.list.lock().unwrap().clear();
        self.armed.store(false, Ordering::Release);
    }

    /// Takes those away that name this host.
    pub fn clear_of(&self, host: &str) {
        self.list.lock().unwrap().retain(|fault| fault.host.as_deref() != Some(host));
    }

    /// Finds the fault for a request and counts it.
    pub fn meet(&self, method: &str, host: &str, path: &str) -> Option<Fault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut list = self.list.lock().unwrap();
        let fault = list.iter_mut().find(|fault| fault.meets(method, host, path))?;
        fault.times = fault.times.map(|times| times - 1);
        Some(fault.clone())
    }
}
