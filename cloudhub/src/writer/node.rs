//! One node's task: lease, node status, pod statuses, for as long as its session is there.

use std::collections::{HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::heartbeat::{self, Heartbeat, stamp};
use super::{Writer, diff, micro_timestamp, timestamp};
use crate::kube_api::{ApiError, As, Send};
use crate::packed::Packed;
use crate::registry::{Node, Pod};
use crate::reports::{Departure, PodRef};

/// kubelet renews its lease as often (nodeLeaseDurationSeconds 40); here up to a fifth sooner.
const LEASE: Duration = Duration::from_secs(10);
/// A node that nobody renewed the lease of for so long has no session with any hub.
const LEASE_STALE: Duration = Duration::from_secs(25);
/// Annotation of a Node: the agent's process that the hub spoke with last.
const AGENT_ANNOTATION: &str = "kedge.dev/agent";
/// After a write that failed.
pub const RETRY: Duration = Duration::from_secs(1);
/// A lease that is due and could not be renewed is tried again after this.
const LEASE_RETRY: Duration = Duration::from_millis(200);
/// How often it is tried to write that a node is away: an API that restarts is back by then.
const DEPARTED_TRIES: u32 = 60;

/// What was written of a report.
struct Write {
    report: Packed,
    /// The API's version before the write.
    version: u64,
    /// What the API made of it: it may say the same in other words (a quantity of `1000m` becomes `1`).
    result: Option<Packed>,
}

/// A report and what the API had when they were compared.
struct Compared<T> {
    report: Packed,
    actual: Arc<T>,
}

impl<T> Compared<T> {
    fn is(&self, report: &Packed, actual: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.actual, actual) && self.report == *report
    }
}

/// Pod statuses of one node that are written at once; NodeRestriction reads the pod for each.
const PODS_AT_ONCE: usize = 8;
/// How the edge's condition Ready begins when its container runtime does not answer.
const RUNTIME_DOWN: &str = "container runtime is down";

/// Under which names the node's own status and metadata are remembered beside the pods' uids.
const NODE: &str = "node";
const METADATA: &str = "metadata";

type Written = HashMap<String, Write>;

struct Task {
    writer: Writer,
    node: String,
    wake: Arc<Notify>,
    /// Its number.
    task: u64,
    written: Written,
    /// What was compared last and asks for nothing more until one of the two is another: a change of either, or of another pod,
    /// wakes this task.
    compared: Option<Compared<Node>>,
    /// The same by a pod's uid.
    compared_pods: HashMap<String, Compared<Pod>>,
    /// Pod statuses that are being written, at most [`PODS_AT_ONCE`], one a pod: the uid, and what the API made of it.
    writes: JoinSet<(String, Result<Option<Value>, ApiError>)>,
    writing: HashSet<String>,
    /// What could not be written, by a pod's uid or [`NODE`], and when it is tried again.
    retries: HashMap<String, Instant>,
    lease_at: Instant,
    heartbeat: Heartbeat,
    /// Why the node is back, judged once by what the API said of it before this session.
    connected: Option<Packed>,
    /// An event says so, still to be made.
    announce: bool,
    /// Whether the node's container runtime was down when it reported last.
    runtime_down: bool,
}

/// Runs until the session that it was started for is over or dormant.
pub(super) async fn run(writer: Writer, node: String, task: u64) {
    let Some(wake) = writer
        .lock()
        .get(&node)
        .filter(|live| live.task == task && !live.away)
        .map(|l| l.wake.clone())
    else {
        return;
    };
    let lease_at = Instant::now();
    let mut task = Task {
        writer,
        node,
        wake,
        task,
        written: HashMap::new(),
        compared: None,
        compared_pods: HashMap::new(),
        writes: JoinSet::new(),
        writing: HashSet::new(),
        retries: HashMap::new(),
        lease_at,
        heartbeat: Heartbeat::new(),
        connected: None,
        announce: false,
        runtime_down: false,
    };
    while task.is_live() {
        task.step().await;
        // Overdue: there is no Node yet, or the API did not take it.
        let lease_at = task.lease_at.max(Instant::now() + LEASE_RETRY);
        let next = task.retries.values().copied().fold(lease_at, Instant::min);
        tokio::select! {
            () = task.wake.notified() => {}
            Some(done) = task.writes.join_next(), if !task.writes.is_empty() => task.pod_written(done),
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

impl Task {
    fn is_live(&self) -> bool {
        self.writer
            .lock()
            .get(&self.node)
            .is_some_and(|live| live.task == self.task && !live.away)
    }

    /// Brings the API to what is reported; what fails is tried again in its time.
    async fn step(&mut self) {
        self.retries.retain(|_, at| *at > Instant::now());
        self.write_pods();
        if self.retries.contains_key(NODE) {
            return;
        }
        if Instant::now() < self.lease_at && self.news().is_none() {
            return;
        }
        let turns = self.writer.turns.clone();
        let _turn = turns.acquire().await;
        // On the heap, for as long as there is something to do: this task waits nearly always.
        let result = Box::pin(async {
            self.renew_lease().await?;
            self.write_node().await?;
            self.beat().await
        });
        if let Err(error) = result.await {
            self.failed(NODE, &error);
            self.written.remove(METADATA);
        }
    }

    fn failed(&mut self, what: &str, error: &ApiError) {
        tracing::warn!(node = self.node, what, %error, "a report could not be written; trying again");
        self.written.remove(what);
        self.compared_pods.remove(what);
        if what == NODE {
            self.compared = None;
        }
        self.retries.insert(what.to_owned(), Instant::now() + RETRY);
    }

    async fn renew_lease(&mut self) -> Result<(), ApiError> {
        if Instant::now() < self.lease_at {
            return Ok(());
        }
        let Some(node) = self.writer.registry.node(&self.node) else {
            return Ok(());
        };
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let renew = json!({"spec": {"renewTime": micro_timestamp(SystemTime::now())}});
        let who = As::Node(&self.node);
        let patched = format!("{path}/{}", self.node);
        match self
            .writer
            .api
            .call(who, Method::PATCH, &patched, Send::Merge(&renew))
            .await
        {
            Err(error) if error.code() == Some(404) => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.node, "namespace": "kube-node-lease", "ownerReferences": [
                        {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node.object.value()["metadata"]["uid"]}]},
                    "spec": {"holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": renew["spec"]["renewTime"]},
                });
                self.writer
                    .api
                    .call(who, Method::POST, path, Send::Json(&lease))
                    .await?;
            }
            other => {
                other?;
            }
        }
        // Those of a fleet that came back together spread out.
        self.lease_at = Instant::now() + LEASE.mul_f64(rand::rng().random_range(0.8..1.0));
        Ok(())
    }

    /// The node's report and what the API has, when they are not those that were compared last.
    fn news(&self) -> Option<(Packed, Arc<Node>)> {
        let report = self.writer.lock().get(&self.node)?.node.clone()?;
        let node = self.writer.registry.node(&self.node)?;
        let known = self.compared.as_ref().is_some_and(|last| last.is(&report, &node));
        (!known).then_some((report, node))
    }

    async fn write_node(&mut self) -> Result<(), ApiError> {
        let Some((packed, node)) = self.news() else {
            return Ok(());
        };
        let (report, actual) = (packed.value(), node.object.value());
        let mut status = report["status"].clone();
        let connected = match &self.connected {
            Some(connected) => connected.value(),
            None => {
                let (boot, agent) = self.peer();
                let (connected, news) = came_back(&actual, &boot, &agent);
                self.announce = news;
                self.connected = Some((&connected).into());
                connected
            }
        };
        let down = runtime_down(&status);
        let told = std::mem::replace(&mut self.runtime_down, down.is_some());
        let shown = down.clone().unwrap_or_else(|| connected.clone());
        let kubelet = self.writer.kubelet.of(&self.node).await;
        let has_port = kubelet.is_some();
        complete(&mut status, kubelet, &shown);
        if self.is_due(NODE, &status, (&actual["status"], node.version)) {
            self.write_status(status, &actual).await?;
        }
        let came_back = std::mem::take(&mut self.announce).then_some(connected);
        for condition in came_back.into_iter().chain(down.filter(|_| !told)) {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            announce(&self.writer, &self.node, text("reason"), text("message")).await;
        }
        // After the status: by what the annotation said before, it is known whether the agent is another one.
        self.write_metadata(&report, &actual).await?;
        self.compared = has_port.then_some(Compared {
            report: packed,
            actual: node,
        });
        Ok(())
    }

    /// After the status: what it says stands in the API.
    async fn beat(&mut self) -> Result<(), ApiError> {
        if self.heartbeat.is_due() {
            heartbeat::tell(&self.writer, &self.node).await?;
            self.heartbeat.told();
        }
        Ok(())
    }

    async fn write_status(&mut self, mut status: Value, node: &Value) -> Result<(), ApiError> {
        stamp(&mut status, &node["status"]);
        let result = patch_status(&self.writer, &self.node, &json!({"status": status})).await?;
        self.wrote(NODE, &result["status"]);
        self.heartbeat.told();
        Ok(())
    }

    /// Labels and annotations that the edge knows best, and which process of its agent this is.
    async fn write_metadata(&mut self, report: &Value, node: &Value) -> Result<(), ApiError> {
        let mut annotations = report["metadata"]["annotations"].clone();
        let (_, agent) = self.peer();
        if !annotations.is_object() {
            annotations = json!({});
        }
        if !agent.is_empty() {
            annotations[AGENT_ANNOTATION] = agent.into();
        }
        let metadata = json!({"labels": report["metadata"]["labels"], "annotations": annotations});
        if diff::says(&node["metadata"], &metadata) {
            self.written.remove(METADATA);
            return Ok(());
        }
        let version = crate::registry::list_watch::version(node);
        if !self.is_due(METADATA, &metadata, (&node["metadata"], version)) {
            return Ok(());
        }
        let path = format!("/api/v1/nodes/{}", self.node);
        let patch = json!({"metadata": metadata});
        let result = self
            .writer
            .api
            .call(As::Node(&self.node), Method::PATCH, &path, Send::Merge(&patch))
            .await?;
        self.wrote(METADATA, &result["metadata"]);
        Ok(())
    }

    /// Boot id and process of the node's agent in this session.
    fn peer(&self) -> (String, String) {
        let live = self.writer.lock();
        live.get(&self.node)
            .map(|live| (live.info.boot_id.clone(), live.info.agent.clone()))
            .unwrap_or_default()
    }

    /// Starts to write what is due, a few pods at once: one after the other, the last of twenty would wait for nineteen round
    /// trips. A pod whose status changes while it is written is written again after that, with the newest.
    fn write_pods(&mut self) {
        let reports: Vec<(PodRef, Packed)> = match self.writer.lock().get(&self.node) {
            Some(live) => live
                .pods
                .iter()
                .map(|(pod, status)| (pod.clone(), status.clone()))
                .collect(),
            None => return,
        };
        self.forget_pods(&reports);
        for (pod, status) in reports {
            if self.writes.len() >= PODS_AT_ONCE {
                return;
            }
            if self.writing.contains(&pod.uid) || self.retries.contains_key(&pod.uid) {
                continue;
            }
            if !self.is_pod_due(&pod, &status) {
                continue;
            }
            self.writing.insert(pod.uid.clone());
            let (writer, node) = (self.writer.clone(), self.node.clone());
            self.writes.spawn(async move {
                let _turn = writer.turns.acquire().await;
                let written = Box::pin(write_pod(&writer, &node, &pod, status.value())).await;
                (pod.uid, written)
            });
        }
    }

    /// What is remembered of pods that are reported no more.
    fn forget_pods(&mut self, reports: &[(PodRef, Packed)]) {
        let reported: HashSet<&str> = reports.iter().map(|(pod, _)| pod.uid.as_str()).collect();
        self.compared_pods.retain(|uid, _| reported.contains(uid.as_str()));
        let writing = &self.writing;
        self.written.retain(|what, _| {
            matches!(what.as_str(), NODE | METADATA) || reported.contains(what.as_str()) || writing.contains(what)
        });
    }

    /// A pod's status was written, or not.
    fn pod_written(&mut self, done: Result<(String, Result<Option<Value>, ApiError>), JoinError>) {
        let (uid, result) = match done {
            Ok(done) => done,
            Err(error) => resume_unwind(error.into_panic()),
        };
        self.writing.remove(&uid);
        match result {
            Ok(Some(status)) => self.wrote(&uid, &status),
            Ok(None) => {}
            Err(error) => self.failed(&uid, &error),
        }
    }

    fn is_pod_due(&mut self, pod: &PodRef, report: &Packed) -> bool {
        let Some(known) = self.writer.registry.pod(&self.node, &pod.namespace, &pod.name) else {
            return false;
        };
        let last = self.compared_pods.get(&pod.uid);
        if known.uid != pod.uid || last.is_some_and(|last| last.is(report, &known)) {
            return false;
        }
        let actual = known.object.value();
        let due = self.is_due(&pod.uid, &report.value(), (&actual["status"], known.version));
        let compared = Compared {
            report: report.clone(),
            actual: known,
        };
        self.compared_pods.insert(pod.uid.clone(), compared);
        due
    }

    /// Whether the API says something else than the report, and not only because it has not shown our last write yet.
    fn is_due(&mut self, what: &str, report: &Value, (actual, version): (&Value, u64)) -> bool {
        if diff::says(actual, report) {
            self.written.remove(what);
            return false;
        }
        let report = Packed::from(report);
        if let Some(last) = self.written.get(what).filter(|last| last.report == report) {
            let says = |result: &Packed| diff::says(actual, &result.value());
            if last.version == version || last.result.as_ref().is_some_and(says) {
                return false;
            }
        }
        let write = Write {
            report,
            version,
            result: None,
        };
        self.written.insert(what.to_owned(), write);
        true
    }

    /// Keeps what the API made of a write.
    fn wrote(&mut self, what: &str, result: &Value) {
        if let Some(write) = self.written.get_mut(what) {
            write.result = Some(result.into());
        }
    }
}

/// One pod's status, as the node; what the API made of it, or None when that pod is gone or was replaced meanwhile.
async fn write_pod(writer: &Writer, node: &str, pod: &PodRef, status: Value) -> Result<Option<Value>, ApiError> {
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
    let patch = diff::pod_patch(&pod.uid, &status);
    match writer
        .api
        .call(As::Node(node), Method::PATCH, &path, Send::Strategic(&patch))
        .await
    {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(None),
        other => Ok(Some(other?["status"].take())),
    }
}

pub(super) fn condition<'a>(node: &'a Value, kind: &str) -> &'a Value {
    condition_in(&node["status"], kind)
}

pub(super) fn condition_in<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
}

/// EdgeConnected of a node that reports and whose container runtime is down: nothing can be done there, as if it were away.
fn runtime_down(report: &Value) -> Option<Value> {
    let ready = condition_in(report, "Ready")["message"].as_str()?;
    ready
        .starts_with(RUNTIME_DOWN)
        .then(|| json!({"type": "EdgeConnected", "status": "False", "reason": "RuntimeDown", "message": ready}))
}

/// EdgeConnected of a session with this boot and agent, after what `node` said before it; and whether that is news: the agent
/// may have been started again twice, which is the same condition and two events.
fn came_back(node: &Value, boot: &str, agent: &str) -> (Value, bool) {
    let before = condition(node, "EdgeConnected");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let differs = |known: &Value, now: &str| {
        known
            .as_str()
            .is_some_and(|k| !k.is_empty() && !now.is_empty() && k != now)
    };
    let since = match before["status"].as_str() {
        Some("False") => format!("; it was away since {}", text(&before["lastTransitionTime"])),
        _ => String::new(),
    };
    let (reason, message, news) = if differs(&node["status"]["nodeInfo"]["bootID"], boot) {
        (
            "PowerLost".to_owned(),
            format!("the machine was started again{since}"),
            true,
        )
    } else if differs(&node["metadata"]["annotations"][AGENT_ANNOTATION], agent) {
        (
            "AgentRestarted".to_owned(),
            format!("the agent was started again{since}"),
            true,
        )
    } else if before["status"] == "True" {
        (text(&before["reason"]), text(&before["message"]), false)
    } else {
        ("Connected".to_owned(), format!("the session answers{since}"), true)
    };
    let condition = json!({"type": "EdgeConnected", "status": "True", "reason": reason, "message": message});
    (condition, news)
}

/// Adds what the hub knows of a node: how its kubelet API is reached, and that it is connected.
fn complete(status: &mut Value, kubelet: Option<(String, u16)>, connected: &Value) {
    if let Some((host, port)) = kubelet {
        status["addresses"] = json!([{"type": "InternalIP", "address": host}]);
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.push(connected.clone());
    }
}

/// For `tests/fuzz`: what is made of a node's report before it is written.
#[doc(hidden)]
pub fn fuzz(report: &Value, actual: &Value) -> Value {
    let mut status = report["status"].clone();
    complete(
        &mut status,
        Some(("hub".into(), 10300)),
        &json!({"type": "EdgeConnected", "status": "True"}),
    );
    stamp(&mut status, actual);
    status
}

/// A strategic merge patch of a Node's status, as the node; what the API made of it.
pub(super) async fn patch_status(writer: &Writer, node: &str, patch: &Value) -> Result<Value, ApiError> {
    let path = format!("/api/v1/nodes/{node}/status");
    writer
        .api
        .call(As::Node(node), Method::PATCH, &path, Send::Strategic(patch))
        .await
}

/// Says in the API why a node is away.
pub(super) async fn departed(writer: &Writer, node: &str, why: &Departure, at: SystemTime) {
    let (reason, message) = match why {
        Departure::LinkLost => ("LinkLost", "no uplink answers".to_owned()),
        Departure::AgentStopped { text } => ("AgentStopped", text.clone()),
        Departure::Revoked => ("Revoked", "the node's identity was revoked".to_owned()),
        // Another session or another hub speaks for the node.
        Departure::Replaced | Departure::HubStopping => return,
    };
    let time = timestamp(at);
    // A session that was over before it was told of does not make the absence shorter.
    let known = writer
        .registry
        .node(node)
        .map(|n| condition(&n.object.value(), "EdgeConnected").clone());
    let since = known
        .filter(|c| c["status"] == "False")
        .map(|c| c["lastTransitionTime"].clone());
    let condition = json!({"type": "EdgeConnected", "status": "False", "reason": reason, "message": message,
                           "lastHeartbeatTime": time, "lastTransitionTime": since.unwrap_or_else(|| time.clone().into())});
    let patch = json!({"status": {"conditions": [condition]}});
    for _ in 0..DEPARTED_TRIES {
        let turn = writer.departures.acquire().await;
        if writer.is_present(node) {
            return; // It is back already; its session says so.
        }
        match patch_status(writer, node, &patch).await {
            Ok(_) => break,
            Err(error) => tracing::warn!(node, reason, %error, "could not write that the node is away; trying again"),
        }
        drop(turn);
        tokio::time::sleep(RETRY).await;
    }
    let _turn = writer.departures.acquire().await;
    announce(writer, node, reason, &message).await;
}

/// Whether the API says that the node is connected although no hub has its session: it went away while no hub was there to see
/// it. Gives when it was last seen.
pub(super) async fn unseen_departure(writer: &Writer, node: &str) -> Option<SystemTime> {
    // All nodes are looked at: nothing of them is parsed.
    if writer.is_present(node) || !writer.registry.node(node)?.is_connected {
        return None;
    }
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
    let lease = writer.api.get(As::Node(node), &path).await.ok()?;
    let renewed = lease["spec"]["renewTime"].as_str()?;
    let format = &time::format_description::well_known::Rfc3339;
    let renewed = SystemTime::from(time::OffsetDateTime::parse(renewed, format).ok()?);
    let stale = renewed.elapsed().is_ok_and(|age| age > LEASE_STALE);
    (stale && !writer.is_present(node)).then_some(renewed)
}

async fn announce(writer: &Writer, node: &str, reason: &str, message: &str) {
    let now = SystemTime::now();
    let kind = if reason == "Connected" { "Normal" } else { "Warning" };
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message, "count": 1,
        "metadata": {"generateName": format!("{node}."), "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node, "uid": node}, "source": {"component": "cloudhub"},
        "firstTimestamp": timestamp(now), "lastTimestamp": timestamp(now),
    });
    let path = "/api/v1/namespaces/default/events";
    if let Err(error) = writer
        .api
        .call(As::Node(node), Method::POST, path, Send::Json(&event))
        .await
    {
        tracing::warn!(node, reason, %error, "could not create an event");
    }
}

#[cfg(test)]
mod tests;
