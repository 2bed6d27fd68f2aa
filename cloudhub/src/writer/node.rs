//! One node's task: lease, node status, pod statuses, for as long as its session lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt as _};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Writer, diff, micro_timestamp, timestamp};
use crate::kube_api::{ApiError, As, Send};
use crate::reports::{Departure, PodRef};

/// kubelet renews its lease as often (nodeLeaseDurationSeconds 40).
const LEASE: Duration = Duration::from_secs(10);
/// After a write that failed.
pub const RETRY: Duration = Duration::from_secs(1);
/// How often it is tried to write that a node is away: an API that restarts is back by then.
const DEPARTED_TRIES: u32 = 60;

/// What was written of a report.
struct Write {
    report: Value,
    /// The API's version before the write.
    version: u64,
    /// What the API made of it: it may say the same in other words (a quantity of `1000m` becomes `1`).
    result: Option<Value>,
}

/// Pod statuses of one node that are written at once; NodeRestriction reads the pod for each.
const PODS_AT_ONCE: usize = 8;

type Written = HashMap<String, Write>;

struct Task {
    writer: Writer,
    node: String,
    wake: Arc<Notify>,
    epoch: u64,
    written: Written,
    lease_at: Instant,
    announced: bool,
}

/// Runs until the session with `epoch` is over.
pub(super) async fn run(writer: Writer, node: String, epoch: u64) {
    let Some(wake) = writer
        .lock()
        .get(&node)
        .filter(|l| l.info.epoch == epoch)
        .map(|l| l.wake.clone())
    else {
        return;
    };
    let mut changed = writer.registry.changed();
    let lease_at = Instant::now();
    let mut task = Task {
        writer,
        node,
        wake,
        epoch,
        written: HashMap::new(),
        lease_at,
        announced: false,
    };
    while task.is_live() {
        let done = task.step().await;
        let next = if done {
            task.lease_at
        } else {
            (Instant::now() + RETRY).min(task.lease_at)
        };
        tokio::select! {
            () = task.wake.notified() => {}
            _ = changed.changed() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

impl Task {
    fn is_live(&self) -> bool {
        self.writer
            .lock()
            .get(&self.node)
            .is_some_and(|live| live.info.epoch == self.epoch)
    }

    /// Brings the API to what is reported; `false` when something is to be tried again.
    async fn step(&mut self) -> bool {
        let result = async {
            self.renew_lease().await?;
            self.write_node().await?;
            self.write_pods().await
        };
        match result.await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(node = self.node, %error, "a report could not be written; trying again");
                // What failed was not written; what was is compared with the API again.
                self.written.clear();
                false
            }
        }
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
                        {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node.object["metadata"]["uid"]}]},
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
        self.lease_at = Instant::now() + LEASE;
        Ok(())
    }

    async fn write_node(&mut self) -> Result<(), ApiError> {
        let Some(report) = self.writer.lock().get(&self.node).and_then(|live| live.node.clone()) else {
            return Ok(());
        };
        let Some(node) = self.writer.registry.node(&self.node) else {
            return Ok(());
        };
        self.write_metadata(&report, &node.object).await?;
        let mut status = report["status"].clone();
        let connected = self.connected(&node.object);
        complete(&mut status, self.writer.kubelet.of(&self.node).await, &connected);
        if !self.is_due("node", &status, (&node.object["status"], node.version)) {
            return Ok(());
        }
        stamp(&mut status, &node.object["status"]);
        let path = format!("/api/v1/nodes/{}/status", self.node);
        let patch = json!({"status": status});
        let result = self
            .writer
            .api
            .call(As::Node(&self.node), Method::PATCH, &path, Send::Strategic(&patch))
            .await?;
        self.wrote("node", &result["status"]);
        let before = condition(&node.object, "EdgeConnected");
        let news = before["status"] != "True" || before["reason"] != connected["reason"];
        if news && !std::mem::replace(&mut self.announced, true) {
            let reason = connected["reason"].as_str().unwrap_or_default();
            announce(
                &self.writer,
                &self.node,
                reason,
                connected["message"].as_str().unwrap_or_default(),
            )
            .await;
        }
        Ok(())
    }

    /// Labels and annotations that the edge knows best.
    async fn write_metadata(&mut self, report: &Value, node: &Value) -> Result<(), ApiError> {
        let metadata =
            json!({"labels": report["metadata"]["labels"], "annotations": report["metadata"]["annotations"]});
        if diff::says(&node["metadata"], &metadata) {
            return Ok(());
        }
        let version = crate::registry::list_watch::version(node);
        if !self.is_due("metadata", &metadata, (&node["metadata"], version)) {
            return Ok(());
        }
        let path = format!("/api/v1/nodes/{}", self.node);
        let patch = json!({"metadata": metadata});
        let result = self
            .writer
            .api
            .call(As::Node(&self.node), Method::PATCH, &path, Send::Merge(&patch))
            .await?;
        self.wrote("metadata", &result["metadata"]);
        Ok(())
    }

    /// The condition EdgeConnected of a live session: why it is back, by what the API says of its last absence.
    fn connected(&self, node: &Value) -> Value {
        let before = condition(node, "EdgeConnected");
        let boot = self
            .writer
            .lock()
            .get(&self.node)
            .map(|live| live.info.boot_id.clone())
            .unwrap_or_default();
        let known = node["status"]["nodeInfo"]["bootID"].as_str().unwrap_or_default();
        let was_away = before["status"] == "False";
        let (reason, message) = if before["status"] == "True" && (known.is_empty() || known == boot) {
            (
                before["reason"].as_str().unwrap_or("Connected"),
                before["message"].as_str().unwrap_or_default(),
            )
        } else if !known.is_empty() && known != boot {
            ("PowerLost", "the machine was started again")
        } else if was_away && before["reason"] == "AgentStopped" {
            ("AgentRestarted", "the agent was started again")
        } else {
            ("Connected", "the session answers")
        };
        json!({"type": "EdgeConnected", "status": "True", "reason": reason, "message": message})
    }

    /// Writes what is due, a few pods at once: one after the other, the last of twenty would wait for nineteen round trips.
    async fn write_pods(&mut self) -> Result<(), ApiError> {
        let reports: Vec<(PodRef, Value)> = match self.writer.lock().get(&self.node) {
            Some(live) => live
                .pods
                .iter()
                .map(|(pod, status)| (pod.clone(), status.clone()))
                .collect(),
            None => return Ok(()),
        };
        let due: Vec<(PodRef, Value)> = reports
            .into_iter()
            .filter(|(pod, status)| self.is_pod_due(pod, status))
            .collect();
        let (writer, node) = (self.writer.clone(), self.node.clone());
        let writes = due.into_iter().map(|(pod, status)| {
            let (writer, node) = (&writer, &node);
            async move { (pod.uid.clone(), write_pod(writer, node, &pod, &status).await) }
        });
        let mut writes = stream::iter(writes).buffer_unordered(PODS_AT_ONCE);
        let mut first_error = None;
        while let Some((uid, result)) = writes.next().await {
            match result {
                Ok(Some(status)) => self.wrote(&uid, &status),
                Ok(None) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn is_pod_due(&mut self, pod: &PodRef, status: &Value) -> bool {
        let Some(known) = self.writer.registry.pod(&pod.namespace, &pod.name) else {
            return false;
        };
        known.uid == pod.uid && self.is_due(&pod.uid, status, (&known.object["status"], known.version))
    }

    /// Whether the API says something else than the report, and not only because it has not shown our last write yet.
    fn is_due(&mut self, what: &str, report: &Value, (actual, version): (&Value, u64)) -> bool {
        if diff::says(actual, report) {
            self.written.remove(what);
            return false;
        }
        if let Some(last) = self.written.get(what).filter(|last| last.report == *report) {
            let stands = last.result.as_ref().is_some_and(|result| diff::says(actual, result));
            if stands || last.version == version {
                return false;
            }
        }
        let write = Write {
            report: report.clone(),
            version,
            result: None,
        };
        self.written.insert(what.to_owned(), write);
        true
    }

    /// Keeps what the API made of a write.
    fn wrote(&mut self, what: &str, result: &Value) {
        if let Some(write) = self.written.get_mut(what) {
            write.result = Some(result.clone());
        }
    }
}

/// One pod's status, as the node; what the API made of it, or None when that pod is gone or was replaced meanwhile.
async fn write_pod(writer: &Writer, node: &str, pod: &PodRef, status: &Value) -> Result<Option<Value>, ApiError> {
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
    let patch = diff::pod_patch(&pod.uid, status);
    match writer
        .api
        .call(As::Node(node), Method::PATCH, &path, Send::Strategic(&patch))
        .await
    {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(None),
        other => Ok(Some(other?["status"].take())),
    }
}

fn condition<'a>(node: &'a Value, kind: &str) -> &'a Value {
    let conditions = node["status"]["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
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

/// Gives conditions their times: when looked at, and when changed.
fn stamp(status: &mut Value, actual: &Value) {
    let now = timestamp(SystemTime::now());
    let known = json!({"status": actual});
    for new in status["conditions"].as_array_mut().into_iter().flatten() {
        let kind = new["type"].as_str().unwrap_or_default().to_owned();
        let old = condition(&known, &kind);
        let since = if old["status"] == new["status"] {
            old["lastTransitionTime"].clone()
        } else {
            Value::Null
        };
        new["lastHeartbeatTime"] = now.clone().into();
        new["lastTransitionTime"] = if since.is_null() { now.clone().into() } else { since };
    }
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
    let condition = json!({"type": "EdgeConnected", "status": "False", "reason": reason, "message": message,
                           "lastHeartbeatTime": time, "lastTransitionTime": time});
    let path = format!("/api/v1/nodes/{node}/status");
    let patch = json!({"status": {"conditions": [condition]}});
    for _ in 0..DEPARTED_TRIES {
        if writer.lock().contains_key(node) {
            return; // It is back already; its session says so.
        }
        match writer
            .api
            .call(As::Node(node), Method::PATCH, &path, Send::Strategic(&patch))
            .await
        {
            Ok(_) => break,
            Err(error) => tracing::warn!(node, reason, %error, "could not write that the node is away; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
    announce(writer, node, reason, &message).await;
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
