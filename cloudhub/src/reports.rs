//! The way back: what edges report, on its way to the Kubernetes API.
//!
//! The session calls [`Reports`] for each message of its edge; the writer implements it and writes as that node.
//! Status is level-triggered: a call replaces what the same object reported before, and the writer repeats it against
//! the API for as long as the session lives. So status calls cannot fail from the session's point of view, and the
//! session may acknowledge at once: an edge sends all its statuses again at the start of each session.

use std::net::SocketAddr;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

/// A pod incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Who is at the other end of a new session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Random id of the edge's store, made with the store.
    pub incarnation: [u8; 16],
    /// Grows with each session of an incarnation.
    pub epoch: u64,
    /// `/proc/sys/kernel/random/boot_id` of the edge.
    pub boot_id: String,
    /// The agent's process; another one means that it was started again.
    pub agent: String,
    /// Where its packets come from.
    pub remote: Option<SocketAddr>,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departure {
    /// No answer any more: the link, the machine or the agent died.
    LinkLost,
    /// The edge said goodbye, with its reason.
    AgentStopped {
        /// What it said.
        text: String,
    },
    /// A newer session of the same node took over.
    Replaced,
    /// The node's certificate was revoked, or it was put under quarantine.
    Revoked,
    /// This hub stops.
    HubStopping,
}

/// A report that could not be delivered; the edge keeps it and sends it again.
#[derive(Debug, thiserror::Error)]
#[error("{operation} for node {node}")]
pub struct ReportError {
    /// What was tried.
    pub operation: &'static str,
    /// For which node.
    pub node: String,
    /// What the API answered.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Takes what edges report.
#[async_trait]
pub trait Reports: Send + Sync {
    /// The newest status of a pod: JSON `{"metadata":{"uid":…},"status":{PodStatus}}`.
    async fn pod_status(&self, node: &str, pod: PodRef, status: Bytes);

    /// The newest status of the node: JSON `{"metadata":{"labels","annotations"},"spec":{"taints"},"status":{NodeStatus}}`.
    async fn node_status(&self, node: &str, status: Bytes);

    /// A pod's containers are stopped and its volumes removed: its API object may go. Idempotent.
    ///
    /// # Errors
    /// The API could not be asked; do not acknowledge.
    async fn pod_gone(&self, node: &str, pod: PodRef) -> Result<(), ReportError>;

    /// A v1 Event, as JSON, of which the edge keeps the name stable when it counts it up.
    ///
    /// # Errors
    /// The API could not be asked; do not acknowledge. An event that the API refuses for good is dropped with a log line.
    async fn event(&self, node: &str, event: Bytes) -> Result<(), ReportError>;

    /// A session came up. Called before any other report of that session.
    async fn session_up(&self, node: &str, info: SessionInfo);

    /// No uplink of the session answers since about `at`; the session waits, and with it what it has reported.
    async fn session_away(&self, node: &str, info: &SessionInfo, at: SystemTime);

    /// The same session goes on.
    async fn session_back(&self, node: &str, info: &SessionInfo);

    /// The session with this epoch ended at `at`. A late call for a session that was replaced already changes nothing.
    async fn session_down(&self, node: &str, info: &SessionInfo, why: Departure, at: SystemTime);
}
