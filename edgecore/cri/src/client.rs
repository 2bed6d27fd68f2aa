//! The CRI client: [`CriRuntime`] over containerd's unix socket.
//!
//! The channel connects when first used and again after the runtime restarted; a call that finds the socket dead fails with
//! [`ErrorKind::Unavailable`] and its caller decides. Every call has a deadline, after which it is cancelled in the runtime too; a pull has
//! none. Answers are limited to 16 MiB, as kubelet limits them.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::container::{Container, ContainerConfig, ContainerFilter, ContainerStatus, ExecOutput, Resources, Streams};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{EventPump, HintSource, Hints};
use crate::image::{Auth, FilesystemUsage, Image, ImageSpec};
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;
use crate::proto::{self};
use crate::runtime::Runtime;
use crate::sandbox::{Sandbox, SandboxConfig, SandboxFilter, SandboxStatus};
use crate::stats::{CgroupDriver, ContainerStats, RuntimeStatus, RuntimeVersion};

/// Reads: they take a millisecond; 10 s is a runtime that hangs.
const READ: Duration = Duration::from_secs(10);
/// Changes: kubelet's two minutes, since an SD card can be that slow.
const CHANGE: Duration = Duration::from_secs(120);
/// A sandbox runs CNI plugins: kubelet's four minutes.
const SANDBOX: Duration = Duration::from_secs(240);
/// The largest answer.
const MAX_ANSWER: usize = 16 << 20;

/// A container runtime behind a CRI socket. Clone = another handle on the same connection.
#[derive(Debug, Clone)]
pub struct CriRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    hints: HintSource,
}

/// A channel to a unix socket that connects on use and again after a break. Must be called inside a tokio runtime.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    let dial = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // grpc-go accepts any authority on a unix socket; kubelet says localhost too.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(dial)
}

impl CriRuntime {
    /// A client for the socket at `socket`, and the pump of its events, which the caller runs as a task. Nothing is dialled yet.
    pub fn new(socket: &Path) -> (Self, EventPump) {
        let hints = HintSource::default();
        let channel = channel(socket);
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        (
            Self {
                runtime,
                images,
                hints: hints.clone(),
            },
            EventPump::new(socket, hints),
        )
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }
}

/// Runs one call with its deadline.
async fn call<T>(
    operation: &'static str,
    object: &str,
    deadline: Duration,
    answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error(operation, object, &status)),
        Err(_) => Err(Error::new(
            operation,
            object,
            ErrorKind::Deadline,
            format!("no answer within {deadline:?}"),
        )),
    }
}

fn error(operation: &'static str, object: &str, status: &Status) -> Error {
    Error {
        code: go_name(status.code()),
        ..Error::new(operation, object, kind(operation, status), status.message())
    }
}

/// What grpc-go calls a status code.
fn go_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// What a status means. containerd says `Unknown` for much, so two cases are known by their words.
fn kind(operation: &str, status: &Status) -> ErrorKind {
    let text = status.message();
    match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::Deadline,
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::Unauthenticated | Code::PermissionDenied => ErrorKind::Unauthorized,
        // A status made on our side: the connection broke under the call.
        _ if std::error::Error::source(status).is_some() => ErrorKind::Unavailable,
        // containerd 1.6's "name … is reserved for …" has no code of its own.
        _ if text.contains("is reserved for") => ErrorKind::AlreadyExists,
        // containerd 1.6's ExecSync: "timeout 1s exceeded: context deadline exceeded".
        _ if operation == "ExecSync" && text.contains("timeout") && text.contains("exceeded") => ErrorKind::Deadline,
        _ if operation == "PullImage"
            && (text.contains("401 Unauthorized") || text.contains("authorization failed")) =>
        {
            ErrorKind::Unauthorized
        }
        _ => ErrorKind::Other,
    }
}

/// Makes "it is not there" a success.
fn gone_is_fine<T>(result: Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

/// CRI counts whole seconds and 0 means "no limit" for exec: round up, at least 1.
fn whole_seconds(duration: Duration) -> i64 {
    let up = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i64::try_from(up.max(1)).unwrap_or(i64::MAX)
}

fn required<T>(operation: &'static str, object: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::new(operation, object, ErrorKind::Other, "the runtime's answer is empty"))
}

#[async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        let request = proto::VersionRequest {
            version: "v1".to_owned(),
        };
        let v = call("Version", "", READ, self.runtime().version(request)).await?;
        Ok(RuntimeVersion {
            name: v.runtime_name,
            version: v.runtime_version,
            api_version: v.runtime_api_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let answer = call(
            "Status",
            "",
            READ,
            self.runtime().status(proto::StatusRequest { verbose: false }),
        )
        .await?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let is = |name: &str| conditions.iter().any(|c| c.r#type == name && c.status);
        let message = conditions
            .iter()
            .filter(|c| !c.status)
            .map(|c| format!("{}={}: {} {}", c.r#type, c.status, c.reason, c.message));
        Ok(RuntimeStatus {
            runtime_ready: is("RuntimeReady"),
            network_ready: is("NetworkReady"),
            message: message.collect::<Vec<_>>().join("; "),
            handlers: answer.runtime_handlers.into_iter().map(|h| h.name).collect(),
        })
    }

    async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        let answer = call(
            "RuntimeConfig",
            "",
            READ,
            self.runtime().runtime_config(proto::RuntimeConfigRequest {}),
        )
        .await;
        match answer {
            Ok(config) => Ok(config.linux.map(|linux| match linux.cgroup_driver() {
                proto::CgroupDriver::Systemd => CgroupDriver::Systemd,
                proto::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            })),
            Err(e) if e.kind == ErrorKind::Unimplemented => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn events(&self) -> Hints {
        self.hints.subscribe()
    }

    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String> {
        let request = proto::RunPodSandboxRequest {
            config: Some(config.into()),
            runtime_handler: handler.to_owned(),
        };
        let object = format!("{}/{}", config.metadata.namespace, config.metadata.name);
        Ok(call(
            "RunPodSandbox",
            &object,
            SANDBOX,
            self.runtime().run_pod_sandbox(request),
        )
        .await?
        .pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = proto::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        gone_is_fine(call("StopPodSandbox", id, CHANGE, self.runtime().stop_pod_sandbox(request)).await)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = proto::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        gone_is_fine(
            call(
                "RemovePodSandbox",
                id,
                CHANGE,
                self.runtime().remove_pod_sandbox(request),
            )
            .await,
        )
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        let request = proto::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = call("PodSandboxStatus", id, READ, self.runtime().pod_sandbox_status(request)).await?;
        Ok(required("PodSandboxStatus", id, answer.status)?.into())
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        let request = proto::ListPodSandboxRequest {
            filter: Some(filter.into()),
        };
        let answer = call("ListPodSandbox", "", READ, self.runtime().list_pod_sandbox(request)).await?;
        Ok(answer.items.into_iter().map(Into::into).collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String> {
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config.into()),
            sandbox_config: Some(sandbox.into()),
        };
        let name = &config.metadata.name;
        Ok(call(
            "CreateContainer",
            name,
            CHANGE,
            self.runtime().create_container(request),
        )
        .await?
        .container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let request = proto::StartContainerRequest {
            container_id: id.to_owned(),
        };
        call("StartContainer", id, CHANGE, self.runtime().start_container(request))
            .await
            .map(drop)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = if grace.is_zero() { 0 } else { whole_seconds(grace) };
        let request = proto::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        gone_is_fine(
            call(
                "StopContainer",
                id,
                CHANGE.saturating_add(grace),
                self.runtime().stop_container(request),
            )
            .await,
        )
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let request = proto::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        gone_is_fine(call("RemoveContainer", id, CHANGE, self.runtime().remove_container(request)).await)
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = proto::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = call("ContainerStatus", id, READ, self.runtime().container_status(request)).await?;
        Ok(required("ContainerStatus", id, answer.status)?.into())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let request = proto::ListContainersRequest {
            filter: Some(filter.into()),
        };
        let answer = call("ListContainers", "", READ, self.runtime().list_containers(request)).await?;
        Ok(answer.containers.into_iter().map(Into::into).collect())
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let request = proto::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources.into()),
        };
        call(
            "UpdateContainerResources",
            id,
            CHANGE,
            self.runtime().update_container_resources(request),
        )
        .await
        .map(drop)
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = proto::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        call(
            "ReopenContainerLog",
            id,
            READ,
            self.runtime().reopen_container_log(request),
        )
        .await
        .map(drop)
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let request = proto::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: whole_seconds(timeout),
        };
        let answer = call(
            "ExecSync",
            id,
            READ.saturating_add(timeout),
            self.runtime().exec_sync(request),
        )
        .await?;
        Ok(ExecOutput {
            stdout: answer.stdout,
            stderr: answer.stderr,
            exit_code: answer.exit_code,
        })
    }

    async fn exec_url(&self, id: &str, command: &[String], streams: Streams) -> Result<String> {
        let request = proto::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(call("Exec", id, READ, self.runtime().exec(request)).await?.url)
    }

    async fn attach_url(&self, id: &str, streams: Streams) -> Result<String> {
        let request = proto::AttachRequest {
            container_id: id.to_owned(),
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(call("Attach", id, READ, self.runtime().attach(request)).await?.url)
    }

    async fn port_forward_url(&self, sandbox_id: &str, ports: &[u16]) -> Result<String> {
        let request = proto::PortForwardRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            port: ports.iter().map(|&port| port.into()).collect(),
        };
        Ok(
            call("PortForward", sandbox_id, READ, self.runtime().port_forward(request))
                .await?
                .url,
        )
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let filter = proto::ContainerStatsFilter {
            id: filter.id.clone().unwrap_or_default(),
            pod_sandbox_id: filter.sandbox_id.clone().unwrap_or_default(),
            label_selector: filter.labels.clone(),
        };
        let request = proto::ListContainerStatsRequest { filter: Some(filter) };
        let answer = call(
            "ListContainerStats",
            "",
            READ,
            self.runtime().list_container_stats(request),
        )
        .await?;
        Ok(answer.stats.into_iter().map(Into::into).collect())
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&Auth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String> {
        let request = proto::PullImageRequest {
            image: Some(image.into()),
            auth: auth.map(Into::into),
            sandbox_config: sandbox.map(Into::into),
        };
        match self.images().pull_image(request).await {
            Ok(response) => Ok(response.into_inner().image_ref),
            Err(status) => Err(error("PullImage", &image.image, &status)),
        }
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = proto::ImageStatusRequest {
            image: Some((&ImageSpec::from(image)).into()),
            verbose: false,
        };
        let answer = call("ImageStatus", image, READ, self.images().image_status(request)).await?;
        Ok(answer.image.map(Into::into))
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let request = proto::ListImagesRequest { filter: None };
        let answer = call("ListImages", "", READ, self.images().list_images(request)).await?;
        Ok(answer.images.into_iter().map(Into::into).collect())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let request = proto::RemoveImageRequest {
            image: Some((&ImageSpec::from(image)).into()),
        };
        gone_is_fine(call("RemoveImage", image, CHANGE, self.images().remove_image(request)).await)
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        let answer = call(
            "ImageFsInfo",
            "",
            READ,
            self.images().image_fs_info(proto::ImageFsInfoRequest {}),
        )
        .await?;
        Ok(answer.image_filesystems.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_timeouts_are_never_without_limit() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(3)), 3);
    }

    #[test]
    fn containerds_unknown_errors_get_their_kind_by_their_words() {
        let reserved = Status::unknown("failed to reserve sandbox name \"a\": name \"a\" is reserved for \"b\"");
        assert_eq!(kind("RunPodSandbox", &reserved), ErrorKind::AlreadyExists);
        let late = Status::unknown("failed to exec in container: timeout 1s exceeded: context deadline exceeded");
        assert_eq!(kind("ExecSync", &late), ErrorKind::Deadline);
        assert_eq!(kind("StartContainer", &late), ErrorKind::Other);
    }

    #[tokio::test]
    async fn a_dead_socket_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let (runtime, _pump) = CriRuntime::new(&dir.path().join("none.sock"));
        let error = runtime.version().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
}
