//! DaemonSets.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::World;
use crate::plane::Kubectl;

fn nodes(kubectl: &Kubectl) -> Result<BTreeSet<String>> {
    let pods = kubectl.get(&["pods", "-l", "app=agent"])?.unwrap_or_default();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
        .collect())
}

fn rolled(kubectl: &Kubectl) -> Result<Value> {
    let said = kubectl.run(&["rollout", "status", "daemonset", "agent", "--timeout=40s"])?;
    ensure!(said.contains("successfully rolled out"), "{said}");
    kubectl.wait(&["daemonset", "agent"], "is whole", |ds| {
        let status = &ds["status"];
        status["observedGeneration"] == ds["metadata"]["generation"]
            && status["desiredNumberScheduled"] == 2
            && status["numberAvailable"] == 2
            && status["updatedNumberScheduled"] == 2
    })
}

pub(crate) fn life(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("daemons")?;
    // edge-3 goes away in another scenario.
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["edge-1", "edge-2"]}]}]}}});
    kubectl.create(&json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}},
                 "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"affinity": affinity, "containers": [{"name": "c", "image": "v1"}]}}},
    }))?;
    rolled(&kubectl)?;
    ensure!(
        nodes(&kubectl)? == BTreeSet::from(["edge-1".to_owned(), "edge-2".to_owned()]),
        "one on each"
    );
    kubectl.run(&["set", "image", "daemonset/agent", "*=v2"])?;
    rolled(&kubectl)?;
    let history = kubectl.run(&["rollout", "history", "daemonset", "agent"])?;
    ensure!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    kubectl.run(&["rollout", "undo", "daemonset", "agent"])?;
    let done = rolled(&kubectl)?;
    ensure!(
        done["spec"]["template"]["spec"]["containers"][0]["image"] == "v1",
        "undone: {done}"
    );
    kubectl.run(&["rollout", "restart", "daemonset", "agent"])?;
    rolled(&kubectl)?;
    let pods = kubectl.get(&["pods", "-l", "app=agent"])?.unwrap_or_default();
    ensure!(pods["items"].as_array().map(Vec::len) == Some(2), "no pod too many");
    kubectl.run(&["delete", "daemonset", "agent", "--timeout=40s"])?;
    kubectl.gone(&["pods", "-l", "app=agent"])?;
    kubectl.gone(&["controllerrevisions"])
}
