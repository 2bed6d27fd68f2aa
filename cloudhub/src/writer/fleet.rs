//! What the hub does for the whole fleet: nodes that joined and are missing, patience of pods on absent nodes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::node::{condition, departed};
use super::{Writer, diff, parse_timestamp};
use crate::kube_api::{As, Send};
use crate::registry::{EDGE_LABEL, Pod};
use crate::reports::Departure;

/// Label of pods that may be replaced when their node is away.
const FAILOVER_LABEL: &str = "kedge.dev/failover";
/// Looks again though nothing changed: a record of a join is not part of the registry.
const LOOK: Duration = Duration::from_secs(1);
/// A write that failed, or whose effect has not come back yet, is not repeated sooner.
const PAUSE: Duration = Duration::from_secs(2);

/// A robot whose last word to an earlier hub was that it is connected has so long to come back to this one: edges try again
/// after 5 s at most.
const RETURN: Duration = Duration::from_secs(30);

pub(super) async fn run(writer: Writer) {
    let mut changed = writer.registry.changed();
    let started = Instant::now();
    let mut tried: HashMap<String, Instant> = HashMap::new();
    loop {
        tried.retain(|_, at| at.elapsed() < PAUSE);
        if writer.registry.is_synced() {
            restore_nodes(&writer, &mut tried).await;
            make_patient(&writer, &mut tried).await;
            if started.elapsed() > RETURN {
                notice_absent(&writer, &mut tried).await;
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn first_try(tried: &mut HashMap<String, Instant>, what: String) -> bool {
    // The time of the try stays, else a look a second would put the next try off for ever.
    match tried.entry(what) {
        Entry::Occupied(_) => false,
        Entry::Vacant(entry) => {
            entry.insert(Instant::now());
            true
        }
    }
}

/// A robot that joined has a Node, also when somebody deleted it: leaving is `kedge node revoke`.
async fn restore_nodes(writer: &Writer, tried: &mut HashMap<String, Instant>) {
    for (node, record) in writer.identity.nodes().all() {
        if record.revoked || writer.registry.node(&node).is_some() || !first_try(tried, format!("node {node}")) {
            continue;
        }
        let mut labels = json!({"kubernetes.io/hostname": node, "kubernetes.io/os": "linux"});
        labels[EDGE_LABEL] = "true".into();
        for (key, value) in &record.labels {
            labels[key] = value.clone().into();
        }
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}});
        match writer
            .api
            .call(As::Node(&node), Method::POST, "/api/v1/nodes", Send::Json(&object))
            .await
        {
            Ok(_) => tracing::info!(node, "created the Node"),
            Err(error) if error.code() == Some(409) => {}
            Err(error) => tracing::warn!(node, %error, "could not create the Node; trying again"),
        }
    }
}

/// A robot that went while no hub was there to see it.
async fn notice_absent(writer: &Writer, tried: &mut HashMap<String, Instant>) {
    for (name, _) in writer.identity.nodes().all() {
        let Some(node) = writer.registry.node(&name) else {
            continue;
        };
        let connected = condition(&node.object, "EdgeConnected");
        let claims = connected["status"] == "True" && !writer.lock().contains_key(&name);
        if claims && first_try(tried, format!("absent {name}")) {
            let last = connected["lastHeartbeatTime"].as_str().and_then(parse_timestamp);
            departed(
                writer,
                &name,
                &Departure::LinkLost,
                last.unwrap_or_else(SystemTime::now),
            )
            .await;
        }
    }
}

/// Pods of a robot stay bound to it however long it is away, unless they ask for failover.
async fn make_patient(writer: &Writer, tried: &mut HashMap<String, Instant>) {
    for pod in writer.registry.pods() {
        if pod.object["metadata"]["labels"][FAILOVER_LABEL] != "true" && is_edge(writer, &pod) {
            patch_tolerations(writer, &pod, tried).await;
        }
    }
}

fn is_edge(writer: &Writer, pod: &Pod) -> bool {
    let node = writer.registry.node(&pod.node);
    node.is_some_and(|node| node.object["metadata"]["labels"][EDGE_LABEL] == "true")
}

async fn patch_tolerations(writer: &Writer, pod: &Pod, tried: &mut HashMap<String, Instant>) {
    let Some(tolerations) = diff::patient_tolerations(&pod.object) else {
        return;
    };
    if !first_try(tried, format!("pod {}", pod.uid)) {
        return;
    }
    let metadata = &pod.object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{}", text("namespace"), text("name"));
    let patch = json!({"metadata": {"uid": pod.uid}, "spec": {"tolerations": tolerations}});
    if let Err(error) = writer
        .api
        .call(As::Hub, Method::PATCH, &path, Send::Merge(&patch))
        .await
        && !matches!(error.code(), Some(404 | 409))
    {
        tracing::warn!(pod = text("name"), %error, "could not drop a pod's time limits for an absent node");
    }
}
