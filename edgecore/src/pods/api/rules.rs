//! What Kubernetes' rules make of a pod's fields: defaults, and what follows from several of them.

use serde::{Deserialize, Serialize};

use super::{Container, Pod, Probe};

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Always.
    #[default]
    Always,
    /// When it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// IntOrString of a port: a number, or the name of one of the container's ports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Port {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl Default for Port {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Port {
    /// The number, looked up among the container's ports where it is a name.
    pub fn resolve(&self, container: &Container) -> Option<u16> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Name(name) => container
                .ports
                .iter()
                .find(|p| &p.name == name)
                .map(|p| p.container_port)
                .or_else(|| name.parse().ok()),
        }
    }
}

/// kubelet's grace period where the pod names none.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;

impl Pod {
    /// Reads a Pod.
    ///
    /// # Errors
    /// When a field that the node acts on has the wrong type; the text names the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// All containers, init containers first, ephemeral ones last.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec
            .init_containers
            .iter()
            .chain(&self.spec.containers)
            .chain(&self.spec.ephemeral_containers)
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|c| c.name == name)
    }

    /// Whether that container is a plain init container (one that must end).
    pub fn is_init(&self, name: &str) -> bool {
        self.spec
            .init_containers
            .iter()
            .any(|c| c.name == name && !c.is_sidecar())
    }

    /// Whether the API asked for the pod's end.
    pub fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers have after SIGTERM: the deletion's grace, else the spec's, else 30 s.
    pub fn grace_seconds(&self) -> i64 {
        self.metadata
            .deletion_grace_period_seconds
            .filter(|_| self.is_deleted())
            .or(self.spec.termination_grace_period_seconds)
            .unwrap_or(DEFAULT_GRACE_SECONDS)
            .max(0)
    }
}

impl Container {
    /// An init container that keeps running beside the others.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }

    /// The probe's or hook's termination message file inside the container.
    pub fn message_path(&self) -> &str {
        self.termination_message_path
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or("/dev/termination-log")
    }

    /// What decides whether a running container is still the one asked for: name and image, as in kubelet since 1.31.
    pub fn hash(&self) -> String {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in self.name.bytes().chain([0]).chain(self.image.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{hash:x}")
    }

    /// The pull policy with its default: Always for `:latest` or no tag.
    pub fn pull_policy(&self) -> PullPolicy {
        match self.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ => {
                let name = self.image.rsplit('/').next().unwrap_or_default();
                if !name.contains('@') && (!name.contains(':') || name.ends_with(":latest")) {
                    PullPolicy::Always
                } else {
                    PullPolicy::IfNotPresent
                }
            }
        }
    }
}

/// imagePullPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Only when the image is not here.
    IfNotPresent,
    /// Never.
    Never,
}

impl Probe {
    /// Seconds between two tries.
    pub fn period(&self) -> u64 {
        self.period_seconds.unwrap_or(10).max(1)
    }
    /// Seconds for one try.
    pub fn timeout(&self) -> u64 {
        self.timeout_seconds.unwrap_or(1).max(1)
    }
    /// Failures in a row that count as failed.
    pub fn failures(&self) -> u32 {
        self.failure_threshold.unwrap_or(3).max(1)
    }
    /// Successes in a row that count as passed.
    pub fn successes(&self) -> u32 {
        self.success_threshold.unwrap_or(1).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_defaults_by_tag() {
        let image = |s: &str| {
            Container {
                image: s.into(),
                ..Container::default()
            }
            .pull_policy()
        };
        assert_eq!(image("busybox"), PullPolicy::Always);
        assert_eq!(image("r:5000/busybox"), PullPolicy::Always);
        assert_eq!(image("busybox:latest"), PullPolicy::Always);
        assert_eq!(image("busybox:1"), PullPolicy::IfNotPresent);
        assert_eq!(image("busybox@sha256:abc"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn reads_a_pod_with_kubernetes_spelling() {
        let pod = Pod::parse(
            br#"{"metadata":{"name":"a","uid":"u","creationTimestamp":null},"spec":{"hostPID":true,"restartPolicy":"Never","unknown":{"x":1},
            "containers":[{"name":"c","ports":[{"containerPort":80,"hostIP":"1.2.3.4","name":"web"}],"livenessProbe":{"httpGet":{"port":"web"}}}]}}"#,
        )
        .expect("parse");
        assert!(pod.spec.host_pid);
        assert_eq!(pod.spec.restart_policy, RestartPolicy::Never);
        let c = &pod.spec.containers[0];
        let port = &c
            .liveness_probe
            .as_ref()
            .expect("probe")
            .http_get
            .as_ref()
            .expect("get")
            .port;
        assert_eq!(port.resolve(c), Some(80));
        assert_eq!(pod.grace_seconds(), 30);
    }
}
