//! Nodes and namespaces.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::World;
use crate::plane::{ALONE, AWAY};

/// The node's taints beside its own.
fn taints(node: &Value) -> String {
    let all = node["spec"]["taints"].as_array();
    let others = all.into_iter().flatten().filter(|taint| taint["key"] != ALONE);
    others.map(Value::to_string).collect()
}

fn ready(object: &Value) -> &str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

pub(crate) fn silence(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("silence")?;
    kubectl.wait(&["node", "edge-3"], "is ready and untainted", |n| {
        ready(n) == "True" && taints(n).is_empty()
    })?;
    let on = |name: &str, tolerations: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
               "spec": {"nodeName": AWAY, "tolerations": tolerations, "containers": [{"name": "c", "image": "v1"}]}})
    };
    let for_ever = json!([{"operator": "Exists"}]);
    let soon = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    kubectl.create(&on("stays", for_ever))?;
    kubectl.create(&on("goes", soon))?;
    kubectl.wait(&["pod", "stays"], "is ready", |pod| ready(pod) == "True")?;
    kubectl.wait(&["pod", "goes"], "is ready", |pod| ready(pod) == "True")?;
    world.nodes.set_silent(AWAY, true);
    let node = kubectl.wait(&["node", "edge-3"], "is unreachable", |node| {
        ready(node) == "Unknown" && taints(node).contains("unreachable") && taints(node).contains("NoExecute")
    })?;
    ensure!(node.to_string().contains("NodeStatusUnknown"), "{node}");
    kubectl.wait(&["pod", "stays"], "is not ready", |pod| ready(pod) == "False")?;
    kubectl.wait(&["pod", "goes"], "must go", |pod| {
        pod["metadata"]["deletionTimestamp"].is_string()
    })?;
    let stays = kubectl.get(&["pod", "stays"])?.unwrap_or_default();
    ensure!(stays["metadata"]["deletionTimestamp"].is_null(), "{stays}");
    world.nodes.set_silent(AWAY, false);
    kubectl.wait(&["node", "edge-3"], "is back", |node| {
        ready(node) == "True" && taints(node).is_empty()
    })?;
    kubectl.run(&["cordon", "edge-3"])?;
    kubectl.wait(&["node", "edge-3"], "is cordoned", |node| {
        taints(node).contains("unschedulable")
    })?;
    kubectl.run(&["uncordon", "edge-3"])?;
    kubectl.wait(&["node", "edge-3"], "is uncordoned", |node| taints(node).is_empty())?;
    kubectl.gone(&["pod", "goes"])
}

pub(crate) fn namespace(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("doomed")?;
    let ca = kubectl.wait(&["configmap", "kube-root-ca.crt"], "exists", |_| true)?;
    ensure!(ca["data"]["ca.crt"] == "-----BEGIN CERTIFICATE-----", "{ca}");
    kubectl.run(&["delete", "configmap", "kube-root-ca.crt"])?;
    kubectl.wait(&["configmap", "kube-root-ca.crt"], "is back", |_| true)?;
    kubectl.run(&["create", "deployment", "web", "--image=v1", "--replicas=2"])?;
    kubectl.run(&["create", "secret", "generic", "key", "--from-literal=a=b"])?;
    kubectl.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["kedge.dev/test"]}}))?;
    kubectl.run(&["rollout", "status", "deployment", "web", "--timeout=40s"])?;
    kubectl.run(&["delete", "namespace", "doomed", "--wait=false"])?;
    kubectl.wait(&["namespace", "doomed"], "says what holds it", |namespace| {
        namespace["status"]["phase"] == "Terminating"
            && namespace.to_string().contains("kedge.dev/test in 1 resource instances")
    })?;
    kubectl.run(&[
        "patch",
        "configmap",
        "held",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ])?;
    kubectl.gone(&["namespace", "doomed"])?;
    world
        .kubectl
        .in_new("doomed")
        .context("the name can be used again")
        .map(|_| ())
}

pub(crate) fn ranges(world: &World) -> Result<()> {
    let kubectl = &world.kubectl;
    let range = |name: &str| -> Result<String> {
        let node = kubectl.wait(&["node", name], "has a range", |node| {
            node["spec"]["podCIDR"].is_string()
        })?;
        Ok(node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned())
    };
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    kubectl.create(&node("passing"))?;
    let first = range("passing")?;
    kubectl.run(&["delete", "node", "passing"])?;
    kubectl.create(&node("another"))?;
    kubectl.create(&node("passing"))?;
    let all = [
        range("edge-1")?,
        range("edge-2")?,
        range("edge-3")?,
        range("another")?,
        first.clone(),
    ];
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    ensure!(distinct.len() == 5, "{all:?}");
    ensure!(range("passing")? == first, "its old range");
    kubectl.run(&["delete", "node", "passing", "another"])?;
    Ok(())
}

pub(crate) fn orphans(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("orphans")?;
    kubectl.create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost"},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "c", "image": "v1"}]}}))?;
    kubectl.gone(&["pod", "lost"])
}
