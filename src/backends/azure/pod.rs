//! A token from the node's pod identity service (azure.md 11.5), which answers for the pod that is named.

use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Login, Session, entra, errors, machine};
use crate::error::{Kind, Problem, Retry};
use crate::http::Http;
use crate::secret::SecretText;

const ENDPOINT: &str = "http://localhost:2579/host/token/";

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    token: Option<Token<'a>>,
    clientid: Option<String>,
}

#[derive(Deserialize)]
struct Token<'a> {
    access_token: Option<SecretText>,
    /// Seconds since 1970, as a number or as text.
    #[serde(borrow)]
    expires_on: Option<&'a RawValue>,
}

/// Logs in as whatever identity is bound to the pod. The service verified that binding, so the client id it
/// names is the principal.
pub(super) async fn login(
    http: &Http,
    namespace: &str,
    name: &str,
    resource: &str,
) -> Result<Login<Session>, Problem> {
    let url = format!("{ENDPOINT}?resource={}", resource.trim_end_matches('/'));
    let request = Request::get(&url).header("podname", name).header("podns", namespace).body(Bytes::new());
    let request = request.map_err(|error| Problem::config(format!("nmi request: {error}")))?;
    let answer = http.send(request).await.map_err(|failure| {
        errors::transport(&format!("Get {url:?}"), &failure, "").hint(
            "usePodIdentity needs the node's pod identity service (NMI) on localhost, and hostNetwork for keyferry",
        )
    })?;
    let status = answer.status.as_u16();
    if status != 200 {
        // The body is left out: it may hold anything.
        let passing = status >= 500 || status == 429;
        let kind = if passing { Kind::Unavailable } else { Kind::Unauthenticated };
        let problem = Problem::new(kind, format!("nmi response failed with status code: {status}"))
            .hint(format!("check AzureIdentity and AzureIdentityBinding for pod {namespace}/{name}"));
        return Err(if passing { problem.retry(Retry::After(None)) } else { problem });
    }
    let parsed = serde_json::from_slice(answer.body.expose());
    let (token, life, client_id) = match parsed {
        Ok(Answer { token: Some(Token { access_token: Some(token), expires_on }), clientid: Some(id) })
            if !token.is_empty() && !id.is_empty() =>
        {
            let ends = expires_on.map_or("", RawValue::get).trim_matches(['"', ' ']);
            (token, machine::until(ends), id)
        }
        _ => {
            return Err(Problem::new(Kind::Unavailable, "nmi did not return expected values")
                .hint("look at the log of the pod identity service on this node"));
        }
    };
    let principal = format!("pod identity {client_id}");
    Ok(Login { session: Session { token }, principal, lasts: entra::renew_after(life) })
}
