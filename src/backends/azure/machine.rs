//! A token from the machine's metadata service (azure.md 11.3).
//!
//! One plain request of our own: the identity crate repeats it for up to 72 seconds by itself, past the
//! engine's pace and deadline, and lets variables of the process choose another service.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Login, MachineId, Session, entra, errors};
use crate::error::{Kind, Problem, Retry};
use crate::http::Http;
use crate::secret::SecretText;

const NAME: &str = "ManagedIdentityCredential authentication failed.";
const ENDPOINT: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01";

/// What must be escaped in a query: all but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Deserialize)]
struct Answer {
    access_token: SecretText,
    /// Seconds since 1970, as text.
    expires_on: String,
}

impl MachineId {
    /// Its words in a request, and in texts.
    fn query(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::System => None,
            Self::Client(id) => Some(("client_id", id)),
            Self::Object(id) => Some(("object_id", id)),
            Self::Resource(id) => Some(("msi_res_id", id)),
        }
    }
}

/// Logs in as the machine.
pub(super) async fn login(http: &Http, id: &MachineId, resource: &str) -> Result<Login<Session>, Problem> {
    let (token, life) = token(http, id, resource).await?;
    let principal = match id.query() {
        None => "machine system".to_owned(),
        Some((name, id)) => format!("machine {name} {id}"),
    };
    Ok(Login { session: Session { token }, principal, lasts: entra::renew_after(life) })
}

/// Asks for a token of one of the machine's identities for `resource`.
async fn token(http: &Http, id: &MachineId, resource: &str) -> Result<(SecretText, Duration), Problem> {
    let encode = |text| utf8_percent_encode(text, RESERVED);
    let mut url = format!("{ENDPOINT}&resource={}", encode(resource));
    if let Some((name, id)) = id.query() {
        url.push_str(&format!("&{name}={}", encode(id)));
    }
    let request = Request::get(&url)
        .header("metadata", "true")
        .body(Bytes::new())
        .map_err(|error| Problem::config(format!("{NAME} {error}")))?;
    let answer = http.send(request).await.map_err(|failure| {
        errors::transport(NAME, &failure, "").hint(
            "the metadata service of the node does not answer: the pod of keyferry needs hostNetwork or a route to \
             169.254.169.254",
        )
    })?;
    let status = answer.status.as_u16();
    if status != 200 {
        return Err(refused(id, status, errors::retry_after(&answer.headers)));
    }
    let Answer { access_token, expires_on } = serde_json::from_slice(answer.body.expose()).map_err(|_| {
        Problem::new(Kind::Unavailable, format!("{NAME} the answer of the metadata service cannot be read"))
            .retry(Retry::After(None))
    })?;
    Ok((access_token, until(expires_on.trim())))
}

/// Time to a moment given in seconds since 1970.
pub(super) fn until(ends: &str) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ends: u64 = ends.parse().unwrap_or(now);
    Duration::from_secs(ends.saturating_sub(now))
}

fn refused(id: &MachineId, status: u16, wait: Option<Duration>) -> Problem {
    let client = id.query().map_or("system-assigned", |(_, id)| id);
    let what = format!(
        "{NAME}\nGET http://169.254.169.254/metadata/identity/oauth2/token\nRESPONSE {status} (client {client})"
    );
    match status {
        404 | 410 | 429 | 500..=599 => Problem::new(
            if status == 429 { Kind::Throttled } else { Kind::Unavailable },
            what,
        )
        .hint("the metadata service is busy or being updated; the kubelet will try again")
        .retry(Retry::After(wait)),
        _ => Problem::new(
            Kind::Unauthenticated,
            what.replacen(NAME, &format!("{NAME} the requested identity isn't assigned to this resource"), 1),
        )
        .hint(
            "assign the identity to the virtual machine scale set of this node, and give its client id as \
             userAssignedIdentityID (userAssignedIdentityObjectID and userAssignedIdentityResourceID take its other ids)",
        ),
    }
}
