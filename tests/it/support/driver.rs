//! Plays the CSI driver against an in-process server on a real socket.

use std::sync::Arc;
use std::time::Duration;

use keyferry::gather::Gather;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::proto::{MountRequest, MountResponse};
use keyferry::server::dial::{self, Channel};
use keyferry::server::volumes::Volumes;
use keyferry::server::{self, Running, Served};
use keyferry::telemetry::metrics::Metrics;
use tonic::{Request, Status};

/// A server and a connection to it.
pub struct Driver {
    client: CsiDriverProviderClient<Channel>,
    pub metrics: Arc<Metrics>,
    _running: Running,
    _dir: tempfile::TempDir,
}

impl Driver {
    pub async fn start(backend: Arc<dyn Gather>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::default());
        let settings = server::Settings {
            directories: vec![dir.path().to_owned()],
            budget: Duration::from_secs(110),
            grace: Duration::from_secs(5),
            most_answer: 4 << 20,
            wait_for_socket: Duration::ZERO,
        };
        let served = Served { backend, volumes: Arc::new(Volumes::new(100, Duration::from_secs(60))) };
        let running = server::open(&[served], &metrics, &settings, &Arc::default()).await.unwrap();
        let channel = dial::connect(&running.sockets[0]).await.unwrap();
        let client = CsiDriverProviderClient::with_origin(channel, dial::origin());
        Self { client, metrics, _running: running, _dir: dir }
    }

    /// Mounts as pod `pod` with the caller's deadline.
    pub async fn mount(
        &self,
        pod: &str,
        parameters: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<MountResponse, Status> {
        let mut attributes: serde_json::Map<_, _> =
            parameters.iter().map(|(k, v)| ((*k).to_owned(), serde_json::Value::from(*v))).collect();
        for (key, value) in [
            ("csi.storage.k8s.io/pod.name", pod),
            ("csi.storage.k8s.io/pod.namespace", "shop"),
            ("csi.storage.k8s.io/pod.uid", pod),
            ("secretProviderClass", "vault"),
        ] {
            attributes.insert(key.to_owned(), value.into());
        }
        let mut request = Request::new(MountRequest {
            attributes: serde_json::Value::from(attributes).to_string(),
            secrets: "null".into(),
            target_path: format!("/pods/{pod}/mount"),
            permission: "420".into(),
            current_object_version: vec![],
        });
        request.set_timeout(deadline);
        self.client.clone().mount(request).await.map(tonic::Response::into_inner)
    }
}
