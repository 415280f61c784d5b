//! What a backend may ask the Kubernetes API: the annotations of a service account. Off unless a setting
//! needs it; then the provider's own service account needs `get` on `serviceaccounts`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::error::{Kind, Problem, Retry};
use crate::fetch::cache::{Cache, Started};
use crate::http::{Http, TrustFile};
use crate::secret::SecretText;

/// Age that annotations may have.
const AGE: Duration = Duration::from_secs(30);
/// Service accounts remembered.
const MOST_ACCOUNTS: usize = 1024;
/// Longest answer; the API allows 256 KiB of annotations.
const MOST_BYTES: usize = 512 << 10;

/// Where the API is, and as whom it is asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Host and port of the API server.
    pub authority: String,
    /// Folder with `token` and `ca.crt`, which the kubelet renews.
    pub credentials: PathBuf,
}

impl Settings {
    /// What every container of a cluster finds: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, and
    /// the mounted service account.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = set("KUBERNETES_SERVICE_HOST").unwrap_or_else(|| "kubernetes.default.svc".into());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let port = set("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
        Self {
            authority: format!("{host}:{port}"),
            credentials: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
        }
    }
}

/// The API of the provider's own cluster.
pub struct Kube {
    shared: Arc<Shared>,
    accounts: Arc<Cache<Account, Annotations>>,
}

struct Shared {
    settings: Settings,
    client: TrustFile,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Account {
    namespace: String,
    name: String,
}

/// Annotations of an object.
pub type Annotations = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: Annotations,
}

impl Kube {
    /// Nothing is read before the first question.
    pub fn new(http: &Http, settings: Settings) -> Self {
        let client = TrustFile::new(http.clone(), settings.credentials.join("ca.crt"));
        Self { shared: Arc::new(Shared { settings, client }), accounts: Arc::new(Cache::new(MOST_ACCOUNTS)) }
    }

    /// The annotations of a service account, at most half a minute old; one request serves all who ask.
    pub async fn annotations(&self, namespace: &str, name: &str) -> Result<Arc<Annotations>, Problem> {
        let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
        let (shared, asked) = (self.shared.clone(), account.clone());
        let read = move |sent: crate::fetch::cache::Sent| async move {
            sent.now();
            let value = shared.read(&asked).await?;
            Ok(Started { value, weight: 1, lasts: AGE })
        };
        Ok(self.accounts.get(account, AGE, read).await?.0)
    }
}

impl Shared {
    async fn read(&self, Account { namespace, name }: &Account) -> Result<Annotations, Problem> {
        let what = format!("GET serviceaccounts/{name} in namespace {namespace}");
        let outside = |text: String| {
            Problem::new(Kind::Unavailable, format!("{what}: {text}"))
                .hint("the provider needs its own service account mounted to read those of pods")
        };
        let escape = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let url = format!(
            "https://{}/api/v1/namespaces/{}/serviceaccounts/{}",
            self.settings.authority,
            escape(namespace),
            escape(name)
        );
        let file = self.settings.credentials.join("token");
        let token = tokio::fs::read_to_string(&file).await;
        let token = SecretText::new(token.map_err(|error| outside(format!("{}: {error}", file.display())))?);
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose().trim()))
            .map_err(|_| outside(format!("{} holds no token", file.display())))?;
        bearer.set_sensitive(true);
        let request = Request::get(&url)
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| outside(error.to_string()))?;
        let http = self.client.client(None).await.map_err(outside)?;
        let answer = http
            .send(request)
            .await
            .map_err(|failure| outside(failure.to_string()).retry(Retry::After(None)))?;
        match answer.status.as_u16() {
            200 if answer.body.len() > MOST_BYTES => Err(outside("the answer is too large".into())),
            200 => serde_json::from_slice::<Object>(answer.body.expose())
                .map(|object| object.metadata.annotations)
                .map_err(|_| outside("the answer is no service account".into())),
            404 => Err(Problem::new(Kind::NotFound, format!("{what}: RESPONSE 404"))
                .hint("the pod's service account does not exist any more")),
            status @ (401 | 403) => Err(Problem::new(Kind::Denied, format!("{what}: RESPONSE {status}"))
                .hint("let the provider's own service account get serviceaccounts (a ClusterRole), or name clientID in the class")),
            status => Err(outside(format!("RESPONSE {status}")).retry(Retry::After(None))),
        }
    }
}
