//! From the wire to a [`Call`]: JSON texts, deadline, volume.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::call::{Call, KUBELET_PREFIX, Occasion, Parameters, Pod, TOKENS_KEY, Tokens};
use crate::error::{Problem, Problems};
use crate::path::Mode;
use crate::proto::MountRequest;
use crate::secret::SecretText;

/// What the caller leaves us at least between our answer and its own deadline.
const MARGIN: Duration = Duration::from_secs(10);
/// Where the sync controller says it mounts, for every object alike (driver.md 3.1).
const SYNC_TARGET: &str = "/mnt/secrets-store";

/// The volume of a call: where it is and whose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    /// Path of the mount on the node.
    pub target_path: String,
    /// Uid of the pod.
    pub pod_uid: String,
}

/// Reads a request. The call's occasion is still to be decided by the volumes seen before.
pub fn parse(
    request: MountRequest,
    metadata: &MetadataMap,
    budget: Duration,
) -> Result<(Call, Option<Volume>), Problems> {
    let mut attributes: BTreeMap<String, String> = object(&request.attributes, "attributes")?;
    let secrets: Option<BTreeMap<String, SecretText>> = json(&request.secrets, "secrets")?;
    let mode: Option<u32> = json(&request.permission, "file permission")?;
    let tokens = Tokens::new(attributes.remove(TOKENS_KEY));
    let kubelet = |key: &str| {
        let text = attributes.get(&format!("{KUBELET_PREFIX}{key}"));
        text.map_or(String::new(), |text| text.trim().to_owned())
    };
    let pod = Pod {
        name: kubelet("pod.name"),
        namespace: kubelet("pod.namespace"),
        uid: kubelet("pod.uid"),
        service_account: kubelet("serviceAccount.name"),
    };
    let volume = volume(&request.target_path, &pod);
    let call = Call {
        parameters: Parameters::new(&attributes),
        class: attributes.remove("secretProviderClass"),
        pod,
        tokens,
        // From Kubernetes 1.35 the tokens may stand among the secrets too; they are no credential.
        secrets: secrets.map(|all| all.into_iter().filter(|(k, _)| !k.starts_with(KUBELET_PREFIX)).collect()),
        mode: mode.and_then(|bits| Mode::from_bits(bits & 0o7777)).unwrap_or(Mode::DEFAULT),
        deadline: Instant::now() + time_left(metadata, budget),
        occasion: Occasion::First,
    };
    Ok((call, volume))
}

fn object(text: &str, field: &str) -> Result<BTreeMap<String, String>, Problems> {
    Ok(json::<Option<BTreeMap<String, String>>>(text, field)?.unwrap_or_default())
}

/// The error says where the text is wrong, never what it holds (azure.md 1).
fn json<T: DeserializeOwned>(text: &str, field: &str) -> Result<T, Problems> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let reason = match error.classify() {
            serde_json::error::Category::Data => "a value of another type than the contract says",
            serde_json::error::Category::Eof => "the text ends too early",
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => "not JSON",
        };
        Problem::config(format!(
            "failed to unmarshal {field}, error: {reason} at line {line} column {column}"
        ))
        .hint("the caller must send what driver.md 3 says; class parameters must be texts")
        .into()
    })
}

/// A volume is known by its path and its pod. The sync controller has none: it names one fixed path.
fn volume(target_path: &str, pod: &Pod) -> Option<Volume> {
    let none = target_path.is_empty() || target_path == SYNC_TARGET || pod.uid.is_empty();
    (!none).then(|| Volume { target_path: target_path.to_owned(), pod_uid: pod.uid.clone() })
}

/// The caller's time less a margin, at most the budget; a short time is halved instead.
fn time_left(metadata: &MetadataMap, budget: Duration) -> Duration {
    let asked = metadata.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
    asked.map_or(budget, |asked| asked.saturating_sub(MARGIN).max(asked / 2).min(budget))
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let digits = text.get(..text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match text.as_bytes().last()? {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(110);

    fn request(attributes: &str, secrets: &str, permission: &str) -> MountRequest {
        MountRequest {
            attributes: attributes.into(),
            secrets: secrets.into(),
            permission: permission.into(),
            target_path: "/pods/u1/mount".into(),
            ..Default::default()
        }
    }

    #[test]
    fn azure_1_json_fields_are_checked_in_order() {
        for (attributes, secrets, permission, fragment) in [
            ("", "", "", "failed to unmarshal attributes, error: "),
            ("[]", "null", "420", "failed to unmarshal attributes, error: "),
            (r#"{"a":1}"#, "null", "420", "failed to unmarshal attributes, error: "),
            ("null", "canary", "420", "failed to unmarshal secrets, error: "),
            ("{}", "null", "", "failed to unmarshal file permission, error: "),
            ("{}", "null", "\"420\"", "failed to unmarshal file permission, error: "),
            ("{}", "null", "-1", "failed to unmarshal file permission, error: "),
            ("{}", "null", "4.2", "failed to unmarshal file permission, error: "),
        ] {
            let text = parse(request(attributes, secrets, permission), &MetadataMap::new(), BUDGET)
                .err()
                .unwrap()
                .to_string();
            assert!(text.starts_with(fragment), "{text}");
            assert!(!text.contains("canary"), "{text}");
        }
    }

    #[tokio::test]
    async fn driver_3_4_null_secrets_are_not_empty_ones() {
        let of =
            |secrets| parse(request("{}", secrets, "420"), &MetadataMap::new(), BUDGET).unwrap().0.secrets;
        assert!(of("null").is_none());
        assert!(of("{}").is_some());
        let with = r#"{"csi.storage.k8s.io/serviceAccount.tokens":"t","clientid":"x"}"#;
        assert_eq!(of(with).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_mode_of_zero_becomes_the_default() {
        let of = |text| parse(request("{}", "null", text), &MetadataMap::new(), BUDGET).unwrap().0.mode;
        assert_eq!((of("0"), of("null"), of("256").bits()), (Mode::DEFAULT, Mode::DEFAULT, 256));
    }

    #[test]
    fn the_deadline_leaves_a_margin() {
        let left = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            time_left(&metadata, BUDGET)
        };
        assert_eq!(left("120S"), BUDGET);
        assert_eq!(left("60S"), Duration::from_secs(50));
        assert_eq!(left("4000m"), Duration::from_secs(2));
        assert_eq!(left("rubbish"), BUDGET);
        assert_eq!(time_left(&MetadataMap::new(), BUDGET), BUDGET);
    }

    #[test]
    fn the_sync_controller_has_no_volume() {
        let pod = Pod { uid: "u1".into(), ..Pod::default() };
        assert!(volume("/pods/u1/mount", &pod).is_some());
        assert!(volume(SYNC_TARGET, &pod).is_none());
        assert!(volume("/pods/u1/mount", &Pod::default()).is_none());
    }
}
