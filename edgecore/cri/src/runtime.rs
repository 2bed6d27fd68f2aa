//! The trait in front of the container runtime: [`crate::CriRuntime`] is the real one, [`crate::fake::FakeRuntime`] the one for tests.
//!
//! Every call has a deadline of its own (none for [`Runtime::pull_image`]); a call that fails tells its operation and object. Stop and remove
//! are idempotent: an object that is not there is success.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::container::{Container, ContainerConfig, ContainerFilter, ContainerStatus, ExecOutput, Resources, Streams};
use crate::error::Result;
use crate::events::Hints;
use crate::image::{Auth, FilesystemUsage, Image, ImageSpec};
use crate::sandbox::{Sandbox, SandboxConfig, SandboxFilter, SandboxStatus};
use crate::stats::{CgroupDriver, ContainerStats, RuntimeStatus, RuntimeVersion};

/// What Kedge needs of a container runtime.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Who it is.
    async fn version(&self) -> Result<RuntimeVersion>;
    /// How it is.
    async fn status(&self) -> Result<RuntimeStatus>;
    /// Who makes cgroups; None where the runtime cannot say (containerd < 2): then the configuration decides.
    async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>>;
    /// Hints that something happened; a new subscription each call. Subscribe before the first list.
    fn events(&self) -> Hints;

    /// Makes and starts a sandbox; `handler` is the RuntimeClass's, or empty. Returns its id. Never repeat blindly: list first.
    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String>;
    /// Stops a sandbox with all in it and gives its address back. Idempotent.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a sandbox with all in it. Idempotent.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// One sandbox in full.
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus>;
    /// All sandboxes that match.
    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>>;

    /// Makes a container in a sandbox. Returns its id.
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, and SIGKILL after `grace`. Returns when it ended. Idempotent.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container, by force where it runs. Its log stays. Idempotent.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// One container in full.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// All containers that match.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>>;
    /// Changes limits in place.
    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()>;
    /// Opens the log file anew after it was renamed.
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Runs a command and waits; past `timeout` it is killed and the error's kind is Deadline.
    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;
    /// A one-time URL on loopback that streams a command.
    async fn exec_url(&self, id: &str, command: &[String], streams: Streams) -> Result<String>;
    /// A one-time URL on loopback that streams the container's own process.
    async fn attach_url(&self, id: &str, streams: Streams) -> Result<String>;
    /// A one-time URL on loopback that streams ports of a sandbox.
    async fn port_forward_url(&self, sandbox_id: &str, ports: &[u16]) -> Result<String>;

    /// What all containers that match use.
    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>>;

    /// Pulls an image, however long it takes: dropping the future cancels. Returns the runtime's reference to it.
    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&Auth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String>;
    /// One image by name, digest or id; None if it is not here.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;
    /// All images.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// Removes an image by name, digest or id. Idempotent.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// The space that images take.
    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>>;
}
