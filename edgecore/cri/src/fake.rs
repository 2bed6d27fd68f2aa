//! A container runtime in memory, for the tests of whoever uses [`Runtime`](crate::Runtime).
//!
//! It behaves as containerd does where callers can tell: names are reserved, a container needs its sandbox and its image, stopping a sandbox
//! ends its containers, hints are sent. Containers run until the test ends them. Time is the test's: it moves by [`FakeRuntime::advance`] and by
//! one millisecond a call, so that creation times differ.

mod calls;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::container::{ContainerConfig, ContainerState, ContainerStatus, ExecOutput};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{HintSource, PodHint};
use crate::image::Image;
use crate::sandbox::{SandboxConfig, SandboxState, SandboxStatus};

/// The in-memory runtime.
#[derive(Debug, Default)]
pub struct FakeRuntime {
    state: Mutex<State>,
    hints: HintSource,
}

/// A container as the fake keeps it.
#[derive(Debug, Clone)]
pub struct FakeContainer {
    /// Its sandbox.
    pub sandbox_id: String,
    /// What it was made from.
    pub config: ContainerConfig,
    /// What a status call answers.
    pub status: ContainerStatus,
    /// The grace periods of the stops that it got.
    pub stops: Vec<Duration>,
}

/// A sandbox as the fake keeps it.
#[derive(Debug, Clone)]
pub struct FakeSandbox {
    /// What it was made from.
    pub config: SandboxConfig,
    /// What a status call answers.
    pub status: SandboxStatus,
}

type ExecHandler = Box<dyn Fn(&str, &[String]) -> Result<ExecOutput> + Send>;

#[derive(Default)]
struct State {
    now: i64,
    next: u64,
    down: bool,
    sandboxes: BTreeMap<String, FakeSandbox>,
    containers: BTreeMap<String, FakeContainer>,
    images: Vec<Image>,
    registry: Vec<String>,
    exits_at_start: HashMap<String, VecDeque<i32>>,
    failures: HashMap<String, VecDeque<Error>>,
    calls: HashMap<String, usize>,
    log: Vec<String>,
    exec: Option<ExecHandler>,
    stream_base: Option<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("sandboxes", &self.sandboxes.keys())
            .field("containers", &self.containers.keys())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Counts a call, moves time, and takes an injected failure.
    fn enter(&mut self, operation: &'static str, object: &str) -> Result<()> {
        self.now += 1_000_000;
        *self.calls.entry(operation.to_owned()).or_default() += 1;
        self.log.push(format!("{operation} {object}"));
        if let Some(error) = self.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        if self.down {
            return Err(Error::new(
                operation,
                object,
                ErrorKind::Unavailable,
                "the fake runtime is down",
            ));
        }
        Ok(())
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}-{}", self.next)
    }

    fn end(&mut self, id: &str, exit_code: i32, reason: &str) -> bool {
        let now = self.now;
        let Some(container) = self.containers.get_mut(id) else {
            return false;
        };
        if container.status.state == ContainerState::Exited {
            return false;
        }
        let status = &mut container.status;
        (status.state, status.finished_at, status.exit_code) = (ContainerState::Exited, now, exit_code);
        status.reason = reason.to_owned();
        true
    }
}

/// What containerd calls an end.
fn reason_of(exit_code: i32) -> &'static str {
    if exit_code == 0 { "Completed" } else { "Error" }
}

fn missing(operation: &'static str, id: &str) -> Error {
    Error::new(
        operation,
        id,
        ErrorKind::NotFound,
        format!("an error occurred when try to find {id:?}: not found"),
    )
}

fn matches(labels: &crate::StringMap, wanted: &crate::StringMap) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What the tests do to it.
impl FakeRuntime {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty runtime in which each of these images is present.
    pub fn with_images(images: &[&str]) -> Self {
        let fake = Self::default();
        for image in images {
            fake.add_image(image);
        }
        fake
    }

    /// Puts an image here.
    pub fn add_image(&self, name: &str) {
        let mut state = self.lock();
        let (id, digest) = (
            format!("sha256:{:064x}", state.images.len() + 1),
            format!("{name}@sha256:{:064x}", state.images.len() + 1),
        );
        state.images.push(Image {
            id,
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![digest],
            size: 1 << 20,
            ..Image::default()
        });
    }

    /// Lets this image be pulled.
    pub fn add_to_registry(&self, name: &str) {
        self.lock().registry.push(name.to_owned());
    }

    /// Makes the next call of this operation fail; more than once queues.
    pub fn fail_next(&self, operation: &'static str, kind: ErrorKind, message: &str) {
        let error = Error::new(operation, "", kind, message);
        self.lock()
            .failures
            .entry(operation.to_owned())
            .or_default()
            .push_back(error);
    }

    /// Makes all calls fail as with a dead socket, or no longer.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        if !down {
            self.hints.send(PodHint::Relist);
        }
    }

    /// The next container of this name ends with this code as soon as it starts; more than once queues.
    pub fn exit_at_start(&self, name: &str, exit_code: i32) {
        self.lock()
            .exits_at_start
            .entry(name.to_owned())
            .or_default()
            .push_back(exit_code);
    }

    /// Answers [`Runtime::exec_sync`](crate::Runtime::exec_sync); without it every command succeeds silently.
    pub fn on_exec(&self, handler: impl Fn(&str, &[String]) -> Result<ExecOutput> + Send + 'static) {
        self.lock().exec = Some(Box::new(handler));
    }

    /// Where the stream URLs lead; without it, to a closed port.
    pub fn set_stream_base(&self, base: &str) {
        self.lock().stream_base = Some(base.to_owned());
    }

    fn stream_url(&self, path: &str) -> String {
        let base = self.lock().stream_base.clone();
        format!("{}/{path}", base.unwrap_or_else(|| "http://127.0.0.1:1".to_owned()))
    }

    /// Ends a running container by id.
    pub fn exit_container(&self, id: &str, exit_code: i32) {
        self.exit_with_reason(id, exit_code, reason_of(exit_code));
    }

    /// Ends a running container by id with a reason, such as `OOMKilled`.
    pub fn exit_with_reason(&self, id: &str, exit_code: i32, reason: &str) {
        if self.lock().end(id, exit_code, reason) {
            self.hints.send(PodHint::Id(id.to_owned()));
        }
    }

    /// Ends all running containers of this name.
    pub fn exit_named(&self, name: &str, exit_code: i32) {
        let running = |c: &FakeContainer| c.config.metadata.name == name && c.status.state == ContainerState::Running;
        let ids: Vec<String> = self
            .lock()
            .containers
            .iter()
            .filter(|(_, c)| running(c))
            .map(|(id, _)| id.clone())
            .collect();
        ids.iter().for_each(|id| self.exit_container(id, exit_code));
    }

    /// Kills a sandbox from outside, with all in it.
    pub fn kill_sandbox(&self, id: &str) {
        let mut state = self.lock();
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.status.state = SandboxState::NotReady;
        }
        let inside: Vec<String> = state
            .containers
            .iter()
            .filter(|(_, c)| c.sandbox_id == id)
            .map(|(id, _)| id.clone())
            .collect();
        inside.iter().for_each(|id| _ = state.end(id, 137, "Error"));
        drop(state);
        self.hints.send(PodHint::Id(id.to_owned()));
    }

    /// Moves its clock.
    pub fn advance(&self, by: Duration) {
        self.lock().now += i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    }

    /// Sets its clock, nanoseconds since 1970.
    pub fn set_now(&self, now: i64) {
        self.lock().now = now;
    }

    /// Sends a hint.
    pub fn hint(&self, hint: PodHint) {
        self.hints.send(hint);
    }

    /// How often an operation was called, by CRI's name of it.
    pub fn calls(&self, operation: &str) -> usize {
        self.lock().calls.get(operation).copied().unwrap_or_default()
    }

    /// All calls so far, as `Operation object`.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// All containers by id.
    pub fn containers(&self) -> BTreeMap<String, FakeContainer> {
        self.lock().containers.clone()
    }

    /// All sandboxes by id.
    pub fn sandboxes(&self) -> BTreeMap<String, FakeSandbox> {
        self.lock().sandboxes.clone()
    }

    /// The newest container of this name.
    pub fn container_named(&self, name: &str) -> Option<FakeContainer> {
        let state = self.lock();
        let named = state.containers.values().filter(|c| c.config.metadata.name == name);
        named.max_by_key(|c| c.status.created_at).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;
    use crate::{ContainerMetadata, SandboxMetadata};

    #[tokio::test]
    async fn a_name_is_reserved_and_a_stop_ends_what_is_inside() {
        let fake = FakeRuntime::with_images(&["demo:1"]);
        let mut hints = fake.events();
        let sandbox = SandboxConfig {
            metadata: SandboxMetadata {
                name: "web".into(),
                ..Default::default()
            },
            ..Default::default()
        };
        let id = fake.run_sandbox(&sandbox, "").await.unwrap();
        assert_eq!(
            fake.run_sandbox(&sandbox, "").await.unwrap_err().kind,
            ErrorKind::AlreadyExists
        );
        let metadata = ContainerMetadata {
            name: "app".into(),
            attempt: 0,
        };
        let config = ContainerConfig {
            metadata,
            image: "demo:1".into(),
            ..Default::default()
        };
        let container = fake.create_container(&id, &config, &sandbox).await.unwrap();
        fake.start_container(&container).await.unwrap();
        assert_eq!(hints.next().await, PodHint::Id(container.clone()));
        fake.stop_sandbox(&id).await.unwrap();
        assert_eq!(
            fake.container_status(&container).await.unwrap().state,
            ContainerState::Exited
        );
        assert_eq!(fake.calls("RunPodSandbox"), 2);
    }

    #[tokio::test]
    async fn an_injected_failure_fails_once() {
        let fake = FakeRuntime::default();
        fake.fail_next("Version", ErrorKind::Unavailable, "boom");
        assert!(fake.version().await.is_err());
        assert!(fake.version().await.is_ok());
    }
}
