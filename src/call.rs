//! One request, as every door hands it to the engine: parameters, pod, credentials, time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::error::{Problem, Spot};
use crate::path::Mode;
use crate::secret::SecretText;

/// Prefix of the keys that the kubelet adds; never parameters of a class (driver.md 3.3).
pub const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";
/// Key under which tokens arrive.
pub const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// The class's parameters, overlaid with the pod's attributes: one untrusted map (driver.md 3.3).
#[derive(Clone, Default)]
pub struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Keeps what is a parameter, drops what the kubelet added.
    pub fn new(attributes: &BTreeMap<String, String>) -> Self {
        let own = |key: &str| !key.starts_with(KUBELET_PREFIX) && key != "secretProviderClass";
        Self(attributes.iter().filter(|(k, _)| own(k)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    /// The value without surrounding white space; empty where the key is absent.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value.trim())
    }

    /// The value as it was written.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// All pairs, sorted, to tell one set of parameters from another.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// `maxAge`: how old a value may be in a later mount of the same volume.
    pub fn max_age(&self) -> Result<Option<Duration>, Problem> {
        self.age("maxAge", "0 switches caching off")
    }

    /// The ages that a class allows, or all that is wrong with them.
    pub fn ages(&self) -> Result<ClassAges, Vec<Problem>> {
        match (self.max_age(), self.age("lastGoodMaxAge", "0 allows no last good value")) {
            (Ok(max_age), Ok(last_good)) => Ok(ClassAges { max_age, last_good }),
            (max_age, last_good) => Err(max_age.err().into_iter().chain(last_good.err()).collect()),
        }
    }

    fn age(&self, key: &str, zero: &str) -> Result<Option<Duration>, Problem> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let age = if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() };
        match age.filter(|age| *age <= MOST_AGE) {
            Some(age) => Ok(Some(age)),
            None => Err(Problem::config(format!("{key} {text:?} is not a time of at most 24h"))
                .at(Spot::field(key))
                .hint(format!("write a number with a unit, such as 30s, 5m or 1h; {zero}"))),
        }
    }
}

/// Greatest age of a value that a class may allow.
pub const MOST_AGE: Duration = Duration::from_secs(24 * 3600);

/// Ages of values, as a class sets them.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClassAges {
    /// `maxAge`.
    pub max_age: Option<Duration>,
    /// `lastGoodMaxAge`: how old a value may be while the store is down.
    pub last_good: Option<Duration>,
}

/// The pod a mount is for, as the kubelet describes it.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Name; empty where a caller has none.
    pub name: String,
    /// Namespace of the pod, and so of its class.
    pub namespace: String,
    /// Uid; empty where a caller has none.
    pub uid: String,
    /// Name of its service account.
    pub service_account: String,
}

/// Service-account tokens by audience, as text of the request; read when one is needed.
#[derive(Clone, Default, Debug)]
pub struct Tokens(Option<SecretText>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: SecretText,
    #[serde(default)]
    #[allow(dead_code, reason = "a stamp that is not text is an error, its value is not used")]
    expiration_timestamp: Option<String>,
}

impl Tokens {
    /// Takes the JSON text of the request, if there is any.
    pub fn new(json: Option<String>) -> Self {
        Self(json.filter(|text| !text.trim().is_empty()).map(SecretText::new))
    }

    /// Whether the request has none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The token for `audience`; the errors keep the words of azure.md 11.1.
    pub fn for_audience(&self, audience: &str) -> Result<SecretText, Problem> {
        let more = format!(
            "have the CSIDriver object secrets-store.csi.k8s.io request one: spec.tokenRequests: [{{audience: \
             {audience}}}]"
        );
        let Some(json) = &self.0 else {
            return Err(Problem::config("service account tokens not found").hint(more));
        };
        let all: BTreeMap<String, Token> = serde_json::from_str(json.expose()).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            Problem::config(format!(
                "failed to unmarshal service account tokens, error: not an object of audience to token ({place})"
            ))
            .hint("remove the key csi.storage.k8s.io/serviceAccount.tokens from class and volumeAttributes")
        })?;
        match all.get(audience).filter(|t| !t.token.is_empty()) {
            Some(token) => Ok(token.token.clone()),
            None => {
                let present: Vec<_> = all.keys().map(|a| format!("{a:?}")).collect();
                Err(Problem::config(format!(
                    "token for audience {audience} not found; the request has: {}",
                    if present.is_empty() { "none".to_owned() } else { present.join(", ") }
                ))
                .hint(more))
            }
        }
    }
}

/// How old a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A volume not seen before, or a call that belongs to none.
    First,
    /// A later mount of the same volume with the same parameters.
    Repeat,
}

/// One request for the files of a class.
#[derive(Clone)]
pub struct Call {
    /// Class parameters and pod attributes.
    pub parameters: Parameters,
    /// The pod.
    pub pod: Pod,
    /// Name of the class where the caller gave it.
    pub class: Option<String>,
    /// Tokens of the pod's service account.
    pub tokens: Tokens,
    /// Data of the Secret behind nodePublishSecretRef; `None` where there is none.
    pub secrets: Option<BTreeMap<String, SecretText>>,
    /// Mode of files whose entry gives none.
    pub mode: Mode,
    /// When an answer must be there.
    pub deadline: Instant,
    /// First mount or repeat.
    pub occasion: Occasion,
}

impl Call {
    /// `namespace/class`, as errors and logs name it.
    pub fn class_name(&self) -> Option<String> {
        self.class.as_ref().map(|class| format!("{}/{class}", self.pod.namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t30_missing_audience_names_what_is_there_and_token_requests() {
        let tokens = Tokens::new(Some(r#"{"vault":{"token":"canary","expirationTimestamp":"x"}}"#.into()));
        let text = tokens.for_audience("api://AzureADTokenExchange").unwrap_err().to_string();
        assert!(text.contains("token for audience api://AzureADTokenExchange not found"), "{text}");
        assert!(text.contains("\"vault\"") && text.contains("tokenRequests"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }

    #[test]
    fn kubelet_keys_are_no_parameters() {
        let map = [("a", " x "), (TOKENS_KEY, "t"), ("secretProviderClass", "c")];
        let parameters = Parameters::new(&map.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(parameters.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(parameters.text("a"), "x");
    }

    #[test]
    fn max_age_is_bounded() {
        let with = |v: &str| Parameters([("maxAge".to_owned(), v.to_owned())].into()).max_age();
        assert_eq!(with("30s").unwrap(), Some(Duration::from_secs(30)));
        assert_eq!(with("0").unwrap(), Some(Duration::ZERO));
        assert!(with("2days").is_err() && with("soon").is_err());
    }

    #[test]
    fn both_ages_are_complained_of_at_once() {
        let map = [("maxAge", "soon"), ("lastGoodMaxAge", "2days")];
        let problems = Parameters(map.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).ages().unwrap_err();
        let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains("maxAge \"soon\"") && text.contains("lastGoodMaxAge \"2days\""), "{text}");
    }
}
