//! What the runtime has of one pod. Rebuilt from lists and labels each time; nothing here outlives a read.

use futures::future::try_join_all;

use cri::{ContainerState, ContainerStatus, Runtime, Sandbox, SandboxFilter, SandboxState, SandboxStatus, StringMap};

/// Labels and annotations that carry a pod's identity through the runtime; kubelet's names, so that other tools read them.
pub mod label {
    /// The pod's name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// The pod's namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// The pod's uid.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// The container's name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// The node that made it, so that two agents on one runtime leave each other's pods alone.
    pub const NODE: &str = "kedge.dev/node";
    /// Annotation: [`crate::pods::api::Container::hash`].
    pub const HASH: &str = "io.kubernetes.container.hash";
    /// Annotation: how often the container was started before.
    pub const RESTARTS: &str = "io.kubernetes.container.restartCount";
    /// Annotation: the message file inside the container.
    pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    /// Annotation: `File` or `FallbackToLogsOnError`.
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Annotation: the message file on the node.
    pub const MESSAGE_FILE: &str = "kedge.dev/termination-log";
    /// Annotation: the pod's grace period, for a pod whose object is gone.
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// A container with its sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The sandbox.
    pub sandbox_id: String,
    /// All the rest.
    pub status: ContainerStatus,
}

impl Seen {
    /// Whether its process may live.
    pub fn is_running(&self) -> bool {
        self.status.state == ContainerState::Running
    }
    /// Whether it ended (or the runtime lost it, which is the same to us).
    pub fn is_over(&self) -> bool {
        matches!(self.status.state, ContainerState::Exited | ContainerState::Unknown)
    }
    /// How often this container was started before.
    pub fn restarts(&self) -> u32 {
        self.status
            .annotations
            .get(label::RESTARTS)
            .and_then(|t| t.parse().ok())
            .unwrap_or(self.status.metadata.attempt)
    }
    /// 0 for success.
    pub fn exit_code(&self) -> i32 {
        if self.status.state == ContainerState::Unknown {
            137
        } else {
            self.status.exit_code
        }
    }
}

/// What the runtime has of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The newest sandbox.
    pub sandbox: Option<SandboxStatus>,
    /// Older ones.
    pub old_sandboxes: Vec<Sandbox>,
    /// All containers of all its sandboxes, newest first.
    pub containers: Vec<Seen>,
}

impl Observed {
    /// Reads a pod by its uid. `known` saves a call for each container that was over when it was read before.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn read(runtime: &dyn Runtime, uid: &str, known: &Self) -> cri::Result<Self> {
        let labels = StringMap::from([(label::POD_UID.to_owned(), uid.to_owned())]);
        let filter = SandboxFilter {
            labels: labels.clone(),
            ..SandboxFilter::default()
        };
        let containers = cri::ContainerFilter {
            labels,
            ..cri::ContainerFilter::default()
        };
        let (mut sandboxes, containers) =
            tokio::try_join!(runtime.list_sandboxes(&filter), runtime.list_containers(&containers))?;
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.metadata.attempt, s.created_at)));
        let mut sandboxes = sandboxes.into_iter();
        let newest = sandboxes.next();
        let sandbox = async {
            match &newest {
                Some(newest) => found(runtime.sandbox_status(&newest.id).await),
                None => Ok(None),
            }
        };
        let containers = try_join_all(containers.into_iter().map(|listed| seen(runtime, listed, known)));
        let (sandbox, containers) = tokio::try_join!(sandbox, containers)?;
        let mut containers: Vec<Seen> = containers.into_iter().flatten().collect();
        containers.sort_by_key(|c| std::cmp::Reverse((c.status.created_at, c.status.metadata.attempt)));
        Ok(Self {
            sandbox,
            old_sandboxes: sandboxes.collect(),
            containers,
        })
    }

    /// The newest sandbox, if containers can be started in it.
    pub fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandbox.as_ref().filter(|s| s.state == SandboxState::Ready)
    }

    /// Containers of that name, newest first.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Seen> {
        self.containers.iter().filter(move |c| c.status.metadata.name == name)
    }

    /// The container of that name in the sandbox that counts.
    pub fn current<'a>(&'a self, name: &'a str) -> Option<&'a Seen> {
        let sandbox = self.ready_sandbox()?;
        self.named(name).find(|c| c.sandbox_id == sandbox.id)
    }

    /// All sandbox ids, newest first.
    pub fn sandbox_ids(&self) -> impl Iterator<Item = &String> {
        self.sandbox
            .iter()
            .map(|s| &s.id)
            .chain(self.old_sandboxes.iter().map(|s| &s.id))
    }

    /// Whether anything of the pod may use CPU, memory or an address.
    pub fn is_live(&self) -> bool {
        self.containers.iter().any(Seen::is_running)
            || self.ready_sandbox().is_some()
            || self.old_sandboxes.iter().any(|s| s.state == SandboxState::Ready)
    }

    /// The attempt number of the next sandbox.
    pub fn next_attempt(&self) -> u32 {
        self.sandbox.as_ref().map_or(0, |s| s.metadata.attempt + 1)
    }
}

/// A container's status, unless it went since it was listed.
async fn seen(runtime: &dyn Runtime, listed: cri::Container, known: &Observed) -> cri::Result<Option<Seen>> {
    let before = known
        .containers
        .iter()
        .find(|c| c.status.id == listed.id && c.is_over());
    let status = match before {
        Some(seen) if listed.state == seen.status.state => Some(seen.status.clone()),
        _ => found(runtime.container_status(&listed.id).await)?,
    };
    Ok(status.map(|status| Seen {
        sandbox_id: listed.sandbox_id,
        status,
    }))
}

/// None for what the runtime no longer has.
fn found<T>(answer: cri::Result<T>) -> cri::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
