//! The scheduler, and evictions.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::World;

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c", "image": "v1"}]);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn is_bound(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_string()
}

fn refused(pod: &Value) -> Option<&str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let condition = conditions
        .iter()
        .find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?;
    (condition["reason"] == "Unschedulable").then(|| condition["message"].as_str())?
}

pub(crate) fn waits(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("waits")?;
    kubectl.create(&pod("picky", json!({"nodeSelector": {"arm": "left"}})))?;
    let seen = kubectl.wait(&["pod", "picky"], "says why", |pod| refused(pod).is_some())?;
    let why = refused(&seen).unwrap_or_default();
    ensure!(
        why.contains("node(s) didn't match Pod's node affinity/selector"),
        "{why}"
    );
    kubectl.wait(&["events"], "an event says why", |events| {
        events.to_string().contains("FailedScheduling")
    })?;
    kubectl.run(&["label", "node", "edge-2", "arm=left"])?;
    let seen = kubectl.wait(&["pod", "picky"], "is bound", is_bound)?;
    ensure!(seen["spec"]["nodeName"] == "edge-2", "{seen}");
    kubectl.wait(&["events"], "an event says where", |events| {
        events
            .to_string()
            .contains("Successfully assigned waits/picky to edge-2")
    })?;
    Ok(())
}

pub(crate) fn counts(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("counts")?;
    let on_one = json!({"kubernetes.io/hostname": "edge-1"});
    let port = json!([{"name": "c", "image": "v1", "ports": [{"containerPort": 80, "hostPort": 8080}]}]);
    let gpu = json!([{"name": "c", "image": "v1", "resources": {"limits": {"example.com/gpu": "1"}}}]);
    for (first, second, containers, text) in [
        ("port", "port-too", port, "free ports"),
        ("gpu", "gpu-too", gpu, "Insufficient example.com/gpu"),
    ] {
        let spec = json!({"nodeSelector": on_one, "containers": containers});
        kubectl.create(&pod(first, spec.clone()))?;
        kubectl.wait(&["pod", first], "is bound", is_bound)?;
        kubectl.create(&pod(second, spec))?;
        kubectl.wait(&["pod", second], text, |pod| {
            refused(pod).is_some_and(|why| why.contains(text))
        })?;
        kubectl.run(&["delete", "pod", first, "--timeout=40s"])?;
        kubectl.wait(&["pod", second], "is bound once there is room", is_bound)?;
    }
    Ok(())
}

pub(crate) fn budgets(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("budgets")?;
    kubectl.run(&["create", "deployment", "web", "--image=v1", "--replicas=3"])?;
    kubectl.run(&["rollout", "status", "deployment", "web", "--timeout=40s"])?;
    kubectl.run(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=web",
        "--min-available=3",
    ])?;
    kubectl.wait(&["poddisruptionbudget", "web"], "allows none", |budget| {
        budget["status"]["currentHealthy"] == 3 && budget["status"]["disruptionsAllowed"] == 0
    })?;
    let pods = kubectl.get(&["pods", "-l", "app=web"])?.unwrap_or_default();
    let name = pods["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "budgets"}});
    let path = format!("/api/v1/namespaces/budgets/pods/{name}/eviction");
    let file = std::env::temp_dir().join(format!("kedge-eviction-{}.json", std::process::id()));
    std::fs::write(&file, eviction.to_string())?;
    let evict = || kubectl.run(&["create", "--raw", &path, "-f", &file.display().to_string()]);
    let answer = evict().err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(answer.contains("disruption budget"), "{answer}");
    kubectl.run(&["delete", "poddisruptionbudget", "web"])?;
    kubectl.run(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=web",
        "--max-unavailable=1",
    ])?;
    kubectl.wait(&["poddisruptionbudget", "web"], "allows one", |budget| {
        budget["status"]["disruptionsAllowed"] == 1
    })?;
    evict()?;
    std::fs::remove_file(&file)?;
    kubectl.gone(&["pod", &name])?;
    kubectl.wait(&["poddisruptionbudget", "web"], "recovers", |budget| {
        budget["status"]["currentHealthy"] == 3 && budget["status"]["expectedPods"] == 3
    })?;
    Ok(())
}
