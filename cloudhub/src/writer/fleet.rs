//! What the hub does for the whole fleet: nodes that joined and are missing, patience of pods on absent nodes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Writer, diff, node};
use crate::kube_api::{As, Send};
use crate::registry::{EDGE_LABEL, Pod};
use crate::reports::Departure;

/// Looks again though nothing changed: a record of a join is not part of the registry.
const LOOK: Duration = Duration::from_secs(1);
/// Looks take a tenth of a core at most: after each a pause of so many times its length, at most [`LOOK`].
const LOOK_SHARE: u32 = 9;
/// Absent nodes are looked for this often; each costs a read of its lease while the API says that it is connected.
const ABSENT_LOOK: Duration = Duration::from_secs(5);
/// A write that failed, or whose effect has not come back yet, is not repeated sooner.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(writer: Writer) {
    let mut changed = writer.registry.changed();
    let mut tried: HashMap<String, Instant> = HashMap::new();
    let (mut departures, mut looked_at) = (JoinSet::new(), Instant::now());
    loop {
        let start = Instant::now();
        tried.retain(|_, at| at.elapsed() < PAUSE);
        if writer.registry.is_synced() {
            restore_nodes(&writer, &mut tried).await;
            make_patient(&writer, &mut tried).await;
            if looked_at.elapsed() > ABSENT_LOOK && departures.is_empty() {
                looked_at = Instant::now();
                departures.spawn(tell_unseen_departures(writer.clone()));
            }
            while departures.try_join_next().is_some() {}
        }
        // Each change in a large fleet would make it look through all of it.
        tokio::time::sleep((start.elapsed() * LOOK_SHARE).min(LOOK)).await;
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Nodes that went away while no hub was there to see it. What the session of a node that is there says comes first.
async fn tell_unseen_departures(writer: Writer) {
    for (node, record) in writer.identity.nodes().all() {
        if record.revoked {
            continue;
        }
        if let Some(seen) = node::unseen_departure(&writer, &node).await {
            node::departed(&writer, &node, &Departure::LinkLost, seen).await;
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
    let missing = |node: &str| writer.registry.node(node).is_none();
    for (node, record) in writer.identity.nodes().among(missing) {
        if record.revoked || !first_try(tried, format!("node {node}")) {
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

/// Pods of a robot stay bound to it however long it is away, unless they ask for failover.
async fn make_patient(writer: &Writer, tried: &mut HashMap<String, Instant>) {
    for pod in writer.registry.impatient_pods() {
        if is_edge(writer, &pod) {
            patch_tolerations(writer, &pod, tried).await;
        }
    }
}

fn is_edge(writer: &Writer, pod: &Pod) -> bool {
    let node = writer.registry.node(&pod.node);
    node.is_some_and(|node| node.is_edge)
}

async fn patch_tolerations(writer: &Writer, pod: &Pod, tried: &mut HashMap<String, Instant>) {
    let object = pod.object.value();
    let Some(tolerations) = diff::patient_tolerations(&object) else {
        return;
    };
    if !first_try(tried, format!("pod {}", pod.uid)) {
        return;
    }
    let metadata = &object["metadata"];
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
