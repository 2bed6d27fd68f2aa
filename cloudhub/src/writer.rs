//! Writes to the Kubernetes API what edges report, as those nodes.
//!
//! - [`Writer`] implements [`Reports`]: it keeps what each live session last reported and wakes that node's task
//! - a node's task ([`node`]) compares the reports with what the registry says the API has, and writes where they differ:
//!   a status change and its repair after an absence are one path. It renews the node's lease too
//! - one task for the fleet ([`fleet`]): nodes that joined and are missing, tolerations of newly bound pods
//!
//! State: [`Live`] per node with a session, behind one lock. While its session is dormant nobody speaks for the node: its task ends, and
//! begins anew when the session goes on. A write that fails is tried again with the next wake-up, at
//! the latest after [`node::RETRY`].

pub mod diff;
pub mod fleet;
mod heartbeat;
pub mod node;
pub mod report;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::identity::Identity;
use crate::kube_api::{ApiError, As, KubeApi, Send};
use crate::packed::Packed;
use crate::registry::Registry;
use crate::reports::{Departure, PodRef, ReportError, Reports, SessionInfo};

/// Sessions that wait for their task; each takes one place.
const STARTS: usize = 1024;

/// Nodes and pods that are written at once; each has its report and what the API has in its hands, parsed: about 40 KiB a node.
/// After the hub's start all nodes have something to be written.
const TURNS: usize = 32;
/// Nodes whose absence is written at once: when a whole fleet goes away, those that are there must not wait behind it.
const DEPARTURES: usize = 16;

/// Where a node's kubelet API is served by this hub.
#[async_trait]
pub trait KubeletAddress: std::marker::Send + Sync {
    /// Address and port for `node`; made on the first call.
    async fn of(&self, node: &str) -> Option<(String, u16)>;
}

/// What a live session has reported.
#[derive(Debug)]
struct Live {
    info: SessionInfo,
    node: Option<Packed>,
    pods: BTreeMap<PodRef, Packed>,
    wake: Arc<Notify>,
    /// Its task: another one each time that the session is there again.
    task: u64,
    /// The session is dormant.
    away: bool,
    /// And the API says so.
    told: bool,
}

impl Live {
    fn is(&self, info: &SessionInfo) -> bool {
        self.info.epoch == info.epoch && self.info.incarnation == info.incarnation
    }
}

/// The writer; clones share it.
#[derive(Clone)]
pub struct Writer {
    api: KubeApi,
    registry: Registry,
    identity: Arc<Identity>,
    kubelet: Arc<dyn KubeletAddress>,
    live: Arc<Mutex<HashMap<String, Live>>>,
    turns: Arc<Semaphore>,
    departures: Arc<Semaphore>,
    /// A node's name and the number of its task.
    starts: mpsc::Sender<(String, u64)>,
    started: Arc<tokio::sync::Mutex<mpsc::Receiver<(String, u64)>>>,
    /// Tasks so far.
    tasks: Arc<AtomicU64>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer; [`Self::run`] does the work.
    pub fn new(api: KubeApi, registry: Registry, identity: Arc<Identity>, kubelet: Arc<dyn KubeletAddress>) -> Self {
        let (starts, started) = mpsc::channel(STARTS);
        let started = Arc::new(tokio::sync::Mutex::new(started));
        Self {
            api,
            registry,
            identity,
            kubelet,
            live: Arc::default(),
            turns: Arc::new(Semaphore::new(TURNS)),
            departures: Arc::new(Semaphore::new(DEPARTURES)),
            starts,
            started,
            tasks: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the tasks until it is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        tasks.spawn(fleet::run(self.clone()));
        let mut started = self.started.lock().await;
        while let Some((node, task)) = started.recv().await {
            tasks.spawn(node::run(self.clone(), node, task));
            while tasks.try_join_next().is_some() {}
        }
    }

    /// Whether a session of the node is there, and speaks for it.
    fn is_present(&self, node: &str) -> bool {
        self.lock().get(node).is_some_and(|live| !live.away)
    }

    async fn start_task(&self, node: &str, task: u64) {
        if self.starts.send((node.to_owned(), task)).await.is_err() {
            tracing::error!(node, "the writer has stopped");
        }
    }

    fn next_task(&self) -> u64 {
        self.tasks.fetch_add(1, Ordering::Relaxed)
    }

    fn with_live(&self, node: &str, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.lock().get_mut(node) {
            change(live);
            live.wake.notify_one();
        }
    }

    /// A token for a pod's service account, asked for as the node (TokenRequest).
    ///
    /// # Errors
    /// What the API answers.
    pub async fn token(&self, node: &str, account: (&str, &str), request: &Value) -> Result<Value, ApiError> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", account.0, account.1);
        self.api
            .call(As::Node(node), Method::POST, &path, Send::Json(request))
            .await
    }

    fn failed(operation: &'static str, node: &str, source: ApiError) -> ReportError {
        ReportError {
            operation,
            node: node.to_owned(),
            source: Box::new(source),
        }
    }
}

/// A merge leaves what is not named: node-lifecycle's NodeLost would stay after the return, and why a pod was not Ready after
/// it is.
fn name_what_a_merge_would_leave(status: &mut Value) {
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    for fields in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert_with(|| "".into());
        }
    }
    if let Some(fields) = status.as_object_mut() {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
}

/// RFC 3339 with seconds, as Kubernetes' `Time`.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time::OffsetDateTime::from(at).format(format).unwrap_or_default()
}

/// RFC 3339 with microseconds, as Kubernetes' `MicroTime`.
pub(crate) fn micro_timestamp(at: SystemTime) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    time::OffsetDateTime::from(at).format(format).unwrap_or_default()
}

#[async_trait]
impl Reports for Writer {
    async fn pod_status(&self, node: &str, pod: PodRef, status: Bytes) {
        match report::parse(&status) {
            Ok(mut report) => {
                let status = &mut report["status"];
                name_what_a_merge_would_leave(status);
                let status = Packed::from(&*status);
                self.with_live(node, |live| _ = live.pods.insert(pod, status));
            }
            Err(error) => tracing::warn!(node, pod = pod.name, %error, "a pod status makes no sense"),
        }
    }

    async fn node_status(&self, node: &str, status: Bytes) {
        match report::parse(&status) {
            Ok(report) => {
                let report = Packed::from(&report);
                self.with_live(node, |live| live.node = Some(report));
            }
            Err(error) => tracing::warn!(node, %error, "a node status makes no sense"),
        }
    }

    async fn pod_gone(&self, node: &str, pod: PodRef) -> Result<(), ReportError> {
        self.with_live(node, |live| {
            live.pods.remove(&pod);
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}});
        // Only a pod that is being deleted goes; a finished one stays until somebody deletes it.
        match self
            .api
            .call(As::Node(node), Method::DELETE, &path, Send::Json(&options))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
            Err(error) => Err(Self::failed("delete a pod that is gone", node, error)),
        }
    }

    async fn event(&self, node: &str, event: Bytes) -> Result<(), ReportError> {
        let Ok(event) = serde_json::from_slice::<Value>(&event) else {
            return Ok(());
        };
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default");
        let name = event["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let made = self
            .api
            .call(As::Node(node), Method::POST, &path, Send::Json(&event))
            .await;
        let done = match made {
            Err(error) if error.code() == Some(409) => {
                let counted = json!({"count": event["count"], "lastTimestamp": event["lastTimestamp"], "message": event["message"]});
                self.api
                    .call(
                        As::Node(node),
                        Method::PATCH,
                        &format!("{path}/{name}"),
                        Send::Merge(&counted),
                    )
                    .await
            }
            made => made,
        };
        match done {
            Ok(_) => Ok(()),
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| (400..500).contains(&code) && code != 429) =>
            {
                tracing::warn!(node, event = name, %error, "the API refuses an event; it is dropped");
                Ok(())
            }
            Err(error) => Err(Self::failed("create an event", node, error)),
        }
    }

    async fn session_up(&self, node: &str, info: SessionInfo) {
        let task = self.next_task();
        let wake = Arc::new(Notify::new());
        self.registry.wake_on_change(node, wake.clone());
        let live = Live {
            info,
            node: None,
            pods: BTreeMap::new(),
            wake,
            task,
            away: false,
            told: false,
        };
        if let Some(replaced) = self.lock().insert(node.to_owned(), live) {
            replaced.wake.notify_one();
        }
        self.start_task(node, task).await;
    }

    async fn session_away(&self, node: &str, info: &SessionInfo, at: SystemTime) {
        let goes = {
            let mut all = self.lock();
            let live = all.get_mut(node).filter(|live| live.is(info) && !live.away);
            live.map(|live| {
                (live.away, live.told) = (true, false);
                live.wake.notify_one();
            })
        };
        if goes.is_some() {
            node::departed(self, node, &Departure::LinkLost, at).await;
            if let Some(live) = self.lock().get_mut(node).filter(|live| live.is(info)) {
                live.told = live.away;
            }
        }
    }

    async fn session_back(&self, node: &str, info: &SessionInfo) {
        let task = self.next_task();
        let comes = {
            let mut all = self.lock();
            let live = all.get_mut(node).filter(|live| live.is(info) && live.away);
            live.map(|live| {
                (live.away, live.task) = (false, task);
                live.wake = Arc::new(Notify::new());
                live.wake.clone()
            })
        };
        if let Some(wake) = comes {
            self.registry.wake_on_change(node, wake);
            self.start_task(node, task).await;
        }
    }

    async fn session_down(&self, node: &str, info: &SessionInfo, why: Departure, at: SystemTime) {
        let gone = {
            let mut all = self.lock();
            match all.get(node).is_some_and(|live| live.is(info)) {
                true => all.remove(node),
                false => None,
            }
        };
        if let Some(gone) = gone {
            gone.wake.notify_one();
            self.registry.forget_wake(node, &gone.wake);
            if !(gone.told && why == Departure::LinkLost) {
                node::departed(self, node, &why, at).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_no_longer_holds_is_written_over() {
        let actual = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "ContainersNotReady"}]});
        let mut status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert!(diff::says(&actual, &status));
        name_what_a_merge_would_leave(&mut status);
        assert!(!diff::says(&actual, &status));
        let right = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert!(diff::says(&right, &status));
    }
}
