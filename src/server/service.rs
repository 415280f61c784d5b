//! The CSI door: `Version` and `Mount` of one backend.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::request;
use super::status;
use super::volumes::{self, Outcome, Volumes};
use crate::call::{Call, Occasion};
use crate::error::{Kind, Problem, Problems};
use crate::fetch::Tally;
use crate::gather::{Gather, Gathered};
use crate::proto::csi_driver_provider_server::CsiDriverProvider;
use crate::proto::{File, MountRequest, MountResponse, ObjectVersion, VersionRequest, VersionResponse};
use crate::telemetry::metrics::{Metrics, Mounted};

/// Name of this provider in answers to `Version`; by it one keyferry knows another.
pub(super) const RUNTIME_NAME: &str = "keyferry";
/// Version of the contract.
pub(super) const CONTRACT: &str = "v1alpha1";

/// What the volumes know of a call's volume.
struct Seat {
    /// There is none: the sync controller calls.
    sync: bool,
    /// It was mounted before, perhaps with other parameters.
    mounted_before: bool,
}

/// One backend behind the driver's contract.
#[derive(Clone)]
pub struct Provider {
    backend: Arc<dyn Gather>,
    volumes: Arc<Volumes>,
    metrics: Arc<Metrics>,
    budget: Duration,
    most_bytes: usize,
}

impl Provider {
    /// Serves `backend`; a mount may take `budget` and its answer `most_bytes`.
    pub fn new(
        backend: Arc<dyn Gather>,
        volumes: Arc<Volumes>,
        metrics: Arc<Metrics>,
        budget: Duration,
        most_bytes: usize,
    ) -> Self {
        Self { backend, volumes, metrics, budget, most_bytes }
    }

    async fn serve(&self, request: Request<MountRequest>) -> Result<MountResponse, Status> {
        let start = Instant::now();
        let (metadata, _, message) = request.into_parts();
        let parsed = request::parse(message, &metadata, self.budget);
        let (mut call, volume) = match parsed {
            Ok(parsed) => parsed,
            Err(problems) => {
                self.metrics.mounted(self.backend.name(), Some(problems.kind()), start.elapsed());
                tracing::warn!(backend = self.backend.name(), error = problems.one_line(), "bad request");
                return Err(status::of(&problems));
            }
        };
        let shape = volumes::shape(&call.parameters);
        let (occasion, mounted_before) = self.volumes.occasion(volume.as_ref(), &shape);
        call.occasion = occasion;
        let tally = Tally::default();
        let result = self.gather(&call, &tally).await;
        let seat = Seat { sync: volume.is_none(), mounted_before };
        self.report(&call, &seat, &tally, &result, start);
        let outcome = match &result {
            Ok(response) => Outcome::Mounted {
                objects: &response.object_version,
                asked_store: tally.requests.load(Ordering::Relaxed) + tally.joined.load(Ordering::Relaxed)
                    > 0,
            },
            Err(problems) => Outcome::Failed(problems),
        };
        self.volumes.note(volume, &call, shape, &outcome);
        result.map_err(|problems| status::of(&problems))
    }

    async fn gather(&self, call: &Call, tally: &Tally) -> Result<MountResponse, Problems> {
        let gathered = self.backend.gather(call, tally).await?;
        for warning in &gathered.warnings {
            tracing::warn!(backend = self.backend.name(), class = call.class_name(), "{warning}");
        }
        respond(&gathered, self.most_bytes).map_err(|problem| {
            Problems::from(problem).of("", self.backend.name(), call.class_name().as_deref())
        })
    }

    fn report(
        &self,
        call: &Call,
        seat: &Seat,
        tally: &Tally,
        result: &Result<MountResponse, Problems>,
        start: Instant,
    ) {
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let (requests, hits) = (count(&tally.requests), count(&tally.hits));
        let (joined, logins) = (count(&tally.joined), count(&tally.logins));
        self.metrics.reads(self.backend.name(), &Mounted { requests, hits, joined, logins });
        let kind = result.as_ref().err().map(Problems::kind);
        self.metrics.mounted(self.backend.name(), kind, start.elapsed());
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        if let Some(kind) = kind.filter(|_| seat.mounted_before) {
            self.metrics.repeat_failed(self.backend.name(), kind);
        }
        let occasion = match call.occasion {
            Occasion::First if seat.mounted_before => "changed",
            Occasion::First => "first",
            Occasion::Repeat => "repeat",
        };
        let (backend, pod) = (self.backend.name(), format!("{}/{}", call.pod.namespace, call.pod.name));
        let class = call.class.as_deref().unwrap_or("");
        let sync = seat.sync;
        match result {
            Ok(response) => {
                let objects = response.object_version.len();
                tracing::info!(
                    backend, pod, class, objects, ms, requests, hits, joined, logins, occasion, sync,
                    "mounted"
                );
            }
            Err(problems) => {
                let kind = problems.kind().name();
                tracing::error!(
                    backend,
                    pod,
                    class,
                    ms,
                    requests,
                    hits,
                    joined,
                    logins,
                    occasion,
                    sync,
                    kind,
                    error = problems.one_line(),
                    "mount failed"
                );
            }
        }
    }
}

/// Builds the answer, unless it is more than the driver accepts (driver.md 1.3).
pub(crate) fn respond(gathered: &Gathered, most: usize) -> Result<MountResponse, Problem> {
    let size: usize = gathered.files.iter().map(|file| file.contents.len()).sum();
    let too_large = |size: usize| {
        let mut files: Vec<_> = gathered.files.iter().map(|f| (f.contents.len(), f.path.as_str())).collect();
        files.sort_unstable_by_key(|file| std::cmp::Reverse(file.0));
        let named: Vec<_> =
            files.iter().take(3).map(|(size, path)| format!("{path:?} ({size} bytes)")).collect();
        Problem::new(
            Kind::Shape,
            format!("the files have {size} bytes, the driver accepts {most}; largest: {}", named.join(", ")),
        )
        .hint("mount fewer objects in one class, or raise --max-call-recv-msg-size of the driver and --max-answer-bytes of keyferry")
    };
    if size > most {
        return Err(too_large(size));
    }
    if gathered.versions.is_empty() {
        return Err(Problem::config("the class selects no object").hint("list one object at least"));
    }
    let response = MountResponse {
        object_version: gathered
            .versions
            .iter()
            .map(|(id, version)| ObjectVersion { id: id.clone(), version: version.clone() })
            .collect(),
        error: None,
        files: gathered
            .files
            .iter()
            .map(|file| File {
                path: file.path.to_string(),
                mode: i32::try_from(file.mode.bits()).unwrap_or(0o644),
                contents: file.contents.to_bytes(),
            })
            .collect(),
    };
    let encoded = response.encoded_len();
    if encoded > most { Err(too_large(encoded)) } else { Ok(response) }
}

#[tonic::async_trait]
impl CsiDriverProvider for Provider {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: CONTRACT.to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        }))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
        // A panic that unwinds through tonic resets the stream: CANCELLED for the caller, and an empty
        // volume in the pod (cluster.md 7). Caught here it is one failed mount with a final code.
        match AssertUnwindSafe(self.serve(request)).catch_unwind().await {
            Ok(Ok(response)) => Ok(Response::new(response)),
            Ok(Err(status)) => Err(status::final_only(status)),
            Err(_) => {
                self.metrics.mounted(self.backend.name(), Some(Kind::Bug), Duration::ZERO);
                Err(Status::internal(format!(
                    "{}: keyferry panicked in this mount; others go on. Please report it with the log of this node",
                    self.backend.name()
                )))
            }
        }
    }
}
