//! kubelet's HTTP API, served on any byte stream: the tunnel's streams today.
//!
//! * [`KubeletApi::serve`] speaks HTTP/1.1 on one stream until it ends, then, where a request was upgraded, carries its bytes.
//! * logs: [`logs`] from the CRI log file that the runtime names; exec, attach, port-forward: [`stream`] to the runtime's one-time URL.
//! * pods: [`pods`] from the store, so it answers with no cloud and after a restart; stats: [`stats`] from the runtime and /proc.
//!
//! It trusts its stream: who may call is decided by the hub, which authenticates and authorizes each caller before a request enters the
//! tunnel. Errors are text with kubelet's words and codes. Nothing here changes a pod.

pub mod answer;
pub mod logs;
pub mod pods;
pub mod query;
mod spdy;
pub mod stats;
pub mod stream;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cri::{ContainerFilter, ContainerState, Runtime, SandboxFilter, SandboxState};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::EdgecoreConfig;
use crate::metrics;
use answer::{Body, Refusal};
use logs::LogReader;
use pods::{PodEntry, PodSource};
use query::Query;
use stream::Pipe;

/// A request's head has to arrive within this.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// A request's head has at most this many bytes: exec carries its command in the URL.
const MAX_HEAD: usize = 128 * 1024;

type Answer = Result<Response<Body>, Refusal>;

/// The API. Clone = another handle.
#[derive(Debug, Clone)]
pub struct KubeletApi {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node_name: String,
    root_dir: PathBuf,
    config: Value,
    runtime: Arc<dyn Runtime>,
    pods: Arc<dyn PodSource>,
    stats: stats::Collector,
    metrics: OnceLock<metrics::Source>,
}

/// Where the connection finds the pipe that a request left behind.
type PipeSlot = Arc<Mutex<Option<Pipe>>>;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    namespace: &'a str,
    pod: &'a str,
    uid: Option<&'a str>,
    container: &'a str,
}

impl KubeletApi {
    /// The API over these parts.
    pub fn new(config: &EdgecoreConfig, runtime: Arc<dyn Runtime>, pods: Arc<dyn PodSource>) -> Self {
        let inner = Inner {
            node_name: config.node_name.clone(),
            root_dir: config.kubelet.root_dir.clone(),
            config: json!({"kubeletconfig": config.kubelet, "edgecoreconfig": config}),
            runtime,
            pods,
            stats: stats::Collector::default(),
            metrics: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What `/metrics` says beside the process's own; the first word counts.
    pub fn set_metrics(&self, metrics: metrics::Source) {
        let _ = self.inner.metrics.set(metrics);
    }

    /// Serves one stream to its end. A caller that breaks off is nobody's error.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let slot = PipeSlot::default();
        let service = service_fn(|request| {
            let (api, slot) = (self.clone(), slot.clone());
            async move { Ok::<_, Infallible>(api.answer(request, &slot).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(MAX_HEAD)
            .half_close(true);
        if let Err(error) = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
        {
            tracing::debug!(%error, "a kubelet API connection broke");
        }
        let pipe = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pipe) = pipe {
            pipe.run().await;
        }
    }

    async fn answer(&self, request: Request<Incoming>, slot: &PipeSlot) -> Response<Body> {
        let path = query::decode(request.uri().path());
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let answered = match segments.as_slice() {
            [what @ ("exec" | "attach" | "portForward"), rest @ ..] => match target(what, rest) {
                Some(target) => self.streams(what, target, request, slot).await,
                None => Err(no_page()),
            },
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                Err(Refusal::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"))
            }
            ["containerLogs", namespace, pod, container] => self.inner.logs(namespace, pod, container, &query).await,
            _ => self.inner.plain(&segments).await,
        };
        answered.unwrap_or_else(Refusal::into_response)
    }

    /// exec, attach and port-forward.
    async fn streams(&self, what: &str, target: Target<'_>, request: Request<Incoming>, slot: &PipeSlot) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(Refusal::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
        }
        // Before anything is started: a refusal must leave nothing behind.
        let protocol = stream::negotiate(request.headers())?;
        let query = &Query::parse(request.uri().query().unwrap_or_default());
        let url = match what {
            "portForward" => self.inner.port_forward_url(&target, query).await?,
            _ => self.inner.process_url(what, &target, query).await?,
        };
        let (response, pipe) = stream::pass_on(request, &url, protocol).await?;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = pipe;
        Ok(response)
    }
}

/// `{namespace}/{pod}[/{uid}]` and, but for port-forward, `/{container}`.
pub(crate) fn target<'a>(what: &str, rest: &[&'a str]) -> Option<Target<'a>> {
    let (namespace, pod, uid, container) = match (what, rest) {
        ("portForward", &[namespace, pod]) => (namespace, pod, None, ""),
        ("portForward", &[namespace, pod, uid]) => (namespace, pod, Some(uid), ""),
        ("exec" | "attach", &[namespace, pod, container]) => (namespace, pod, None, container),
        ("exec" | "attach", &[namespace, pod, uid, container]) => (namespace, pod, Some(uid), container),
        _ => return None,
    };
    Some(Target {
        namespace,
        pod,
        uid,
        container,
    })
}

fn no_page() -> Refusal {
    Refusal::text(StatusCode::NOT_FOUND, "404: Page Not Found")
}

fn failed(error: &cri::Error) -> Refusal {
    let status = match error.kind {
        cri::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        cri::ErrorKind::Unavailable | cri::ErrorKind::Deadline => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::text(status, &error.to_string())
}

impl Inner {
    /// Everything that only reads.
    async fn plain(&self, segments: &[&str]) -> Answer {
        match segments {
            ["healthz"] | ["healthz", "ping" | "syncloop"] => Ok(answer::text(StatusCode::OK, "ok")),
            ["pods"] => Ok(answer::json(&pods::list(self.pods.pods().iter().map(PodEntry::whole)))),
            ["runningpods"] => self.running_pods().await,
            ["configz"] => Ok(answer::json(&self.config)),
            ["metrics"] => {
                let all = self
                    .metrics
                    .get()
                    .map_or_else(metrics::process, metrics::Source::with_process);
                Ok(answer::metrics(all))
            }
            ["metrics", "resource"] => Ok(answer::metrics(stats::resource_metrics(&self.usage().await))),
            ["stats", "summary"] => Ok(answer::json(&stats::summary(&self.node_name, &self.usage().await))),
            _ => Err(no_page()),
        }
    }

    async fn usage(&self) -> stats::Usage {
        self.stats.read(&*self.runtime, &*self.pods, &self.root_dir).await
    }

    /// What the runtime runs, which is not what should run.
    async fn running_pods(&self) -> Answer {
        let sandboxes = SandboxFilter {
            state: Some(SandboxState::Ready),
            ..SandboxFilter::default()
        };
        let containers = ContainerFilter {
            state: Some(ContainerState::Running),
            ..ContainerFilter::default()
        };
        let sandboxes = self.runtime.list_sandboxes(&sandboxes).await.map_err(|e| failed(&e))?;
        let containers = self
            .runtime
            .list_containers(&containers)
            .await
            .map_err(|e| failed(&e))?;
        let pod = |sandbox: cri::Sandbox| {
            let inside = containers.iter().filter(|c| c.sandbox_id == sandbox.id);
            let inside: Vec<Value> = inside
                .map(|c| json!({"name": c.metadata.name, "image": c.image, "resources": {}}))
                .collect();
            let m = sandbox.metadata;
            json!({"metadata": {"name": m.name, "namespace": m.namespace, "uid": m.uid}, "spec": {"containers": inside}, "status": {}})
        };
        Ok(answer::json(&pods::list(sandboxes.into_iter().map(pod))))
    }

    async fn logs(&self, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
        let options = query.log_options(OffsetDateTime::now_utc())?;
        let entry = self
            .pods
            .pod(namespace, pod)
            .ok_or_else(|| Refusal::not_found(format!("pod {pod:?} does not exist")))?;
        if !entry.has_container(container) {
            return Err(Refusal::not_found(format!(
                "container {container:?} not found in pod {pod:?}"
            )));
        }
        let bad = |message: String| Refusal {
            status: StatusCode::BAD_REQUEST,
            message,
        };
        let id = pods::log_container(&entry, container, options.previous).map_err(bad)?;
        let status = self.runtime.container_status(&id).await;
        let status =
            status.map_err(|e| bad(format!("unable to retrieve container logs for containerd://{id}: {e}")))?;
        let path = PathBuf::from(status.log_path);
        let reader = LogReader::open(&path, &id, options, self.runtime.clone())
            .await
            .map_err(|e| bad(e.to_string()))?;
        let pieces = futures::stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) });
        Ok(answer::text_stream(pieces))
    }

    /// The pod that a stream goes to.
    fn target_pod(&self, target: &Target<'_>) -> Result<PodEntry, Refusal> {
        let entry = self
            .pods
            .pod(target.namespace, target.pod)
            .ok_or_else(|| Refusal::not_found("pod does not exist".to_owned()))?;
        match target.uid {
            Some(uid) if uid != entry.metadata("uid") => Err(Refusal::not_found("pod not found".to_owned())),
            _ => Ok(entry),
        }
    }

    /// The URL of an exec or attach in the pod's running container.
    async fn process_url(&self, what: &str, target: &Target<'_>, query: &Query) -> Result<String, Refusal> {
        let streams = query.streams()?;
        let entry = self.target_pod(target)?;
        let mut filter = ContainerFilter {
            state: Some(ContainerState::Running),
            ..ContainerFilter::default()
        };
        filter
            .labels
            .insert("io.kubernetes.pod.uid".to_owned(), entry.metadata("uid").to_owned());
        filter
            .labels
            .insert("io.kubernetes.container.name".to_owned(), target.container.to_owned());
        let running = self.runtime.list_containers(&filter).await.map_err(|e| failed(&e))?;
        let Some(container) = running.into_iter().max_by_key(|c| c.created_at) else {
            let message = format!("container not found ({:?})", target.container);
            return Err(Refusal::text(StatusCode::INTERNAL_SERVER_ERROR, &message));
        };
        let url = if what == "exec" {
            let command: Vec<String> = query.all("command").map(str::to_owned).collect();
            self.runtime.exec_url(&container.id, &command, streams).await
        } else {
            self.runtime.attach_url(&container.id, streams).await
        };
        url.map_err(|e| failed(&e))
    }

    /// The URL of a port-forward to the pod's sandbox. SPDY names its ports later, a WebSocket in the query.
    async fn port_forward_url(&self, target: &Target<'_>, query: &Query) -> Result<String, Refusal> {
        let ports = query.all("port").flat_map(|p| p.split(',')).map(str::parse::<u16>);
        let ports = ports.collect::<Result<Vec<u16>, _>>();
        let ports =
            ports.map_err(|_| Refusal::text(StatusCode::BAD_REQUEST, "query parameter \"port\" must be a port"))?;
        let entry = self.target_pod(target)?;
        let mut filter = SandboxFilter {
            state: Some(SandboxState::Ready),
            ..SandboxFilter::default()
        };
        filter
            .labels
            .insert("io.kubernetes.pod.uid".to_owned(), entry.metadata("uid").to_owned());
        let ready = self.runtime.list_sandboxes(&filter).await.map_err(|e| failed(&e))?;
        let Some(sandbox) = ready.into_iter().max_by_key(|s| s.created_at) else {
            return Err(Refusal::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("pod not found (\"{}_{}\")", target.pod, target.namespace),
            ));
        };
        self.runtime
            .port_forward_url(&sandbox.id, &ports)
            .await
            .map_err(|e| failed(&e))
    }
}

#[cfg(test)]
mod tests;
