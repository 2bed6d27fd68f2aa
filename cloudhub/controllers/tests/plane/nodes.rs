//! Fake nodes: leases, status, and pods that run at once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::interval;

/// How often leases are renewed and silent nodes looked at.
const BEAT: Duration = Duration::from_millis(300);

/// The node that is cut off by one of the scenarios; no other's pods are scheduled there.
pub(crate) const AWAY: &str = "edge-3";
/// The taint that keeps them off.
pub(crate) const ALONE: &str = "kedge.dev/alone";

/// The fake nodes; a clone is a handle.
#[derive(Clone)]
pub(crate) struct Nodes {
    client: Client,
    names: Vec<String>,
    silent: Arc<Mutex<HashSet<String>>>,
}

impl Nodes {
    pub(crate) fn new(client: &Client, names: &[&str]) -> Self {
        Self {
            client: client.clone(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            silent: Arc::default(),
        }
    }

    /// Cuts a node off, or brings it back.
    pub(crate) fn set_silent(&self, name: &str, silent: bool) {
        let mut all = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent {
            all.insert(name.to_owned());
        } else {
            all.remove(name);
        }
    }

    fn is_silent(&self, name: &str) -> bool {
        self.silent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(name)
    }

    /// Lives for ever.
    pub(crate) async fn run(self) {
        let beats = async {
            let mut tick = interval(BEAT);
            let mut away = HashSet::new();
            loop {
                tick.tick().await;
                for name in &self.names {
                    if self.is_silent(name) {
                        away.insert(name);
                        continue;
                    }
                    if away.remove(name) {
                        self.catch_up(name).await;
                    }
                    if let Err(error) = self.beat(name).await {
                        eprintln!("node {name}: {error:#}");
                    }
                }
            }
        };
        let pods = async {
            let api: Api<Pod> = Api::all(self.client.clone());
            let mut events = watcher(api, watcher::Config::default())
                .default_backoff()
                .applied_objects()
                .boxed();
            loop {
                if let Ok(Some(pod)) = events.try_next().await {
                    self.serve(&pod).await;
                }
            }
        };
        tokio::join!(beats, pods);
    }

    /// Does what was missed while the node was away.
    async fn catch_up(&self, name: &str) {
        let api: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={name}"));
        for pod in api.list(&params).await.into_iter().flatten() {
            self.serve(&pod).await;
        }
    }

    async fn beat(&self, name: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        if nodes.get_opt(name).await?.is_none() {
            let alone = json!([{"key": ALONE, "effect": "NoSchedule"}]);
            let taints = if name == AWAY { alone } else { json!([]) };
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {"taints": taints}});
            nodes
                .create(&PostParams::default(), &serde_json::from_value(node)?)
                .await?;
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let now = Timestamp::now().to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "renewTime": format!("{:.26}Z", now.trim_end_matches('Z'))},
        });
        match leases.patch(name, &PatchParams::default(), &Patch::Merge(&lease)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                leases
                    .create(&PostParams::default(), &serde_json::from_value(lease)?)
                    .await?;
            }
            other => drop(other?),
        }
        let ready = nodes
            .get(name)
            .await?
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        if ready
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        {
            return Ok(());
        }
        let conditions: Vec<_> = [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")]
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status, "reason": "Fake", "message": "fake", "lastHeartbeatTime": now, "lastTransitionTime": now}))
            .collect();
        let size = json!({"cpu": "4", "memory": "4Gi", "pods": "50", "example.com/gpu": "1"});
        let status = json!({"status": {"conditions": conditions, "capacity": size, "allocatable": size}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await?;
        Ok(())
    }

    async fn serve(&self, pod: &Pod) {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            return;
        };
        if !self.names.contains(&node) || self.is_silent(&node) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api
                .delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
                .await;
            return;
        }
        let broken = pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .any(|c| c.image.as_deref() == Some("never-ready"));
        let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        if broken || running {
            return;
        }
        let now = Timestamp::now().to_string();
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": now},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": now}]}});
        let _ = api
            .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status))
            .await;
    }
}
