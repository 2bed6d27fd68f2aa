//! Deployments.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::World;
use crate::plane::Kubectl;

fn ready(count: u64) -> impl Fn(&Value) -> bool {
    move |deployment| {
        let status = &deployment["status"];
        status["readyReplicas"].as_u64().unwrap_or(0) == count
            && status["replicas"].as_u64().unwrap_or(0) == count
            && status["observedGeneration"] == deployment["metadata"]["generation"]
    }
}

fn rolled(kubectl: &Kubectl, name: &str) -> Result<()> {
    let said = kubectl.run(&["rollout", "status", "deployment", name, "--timeout=40s"])?;
    ensure!(said.contains("successfully rolled out"), "{said}");
    Ok(())
}

fn image(kubectl: &Kubectl) -> Result<Value> {
    let deployment = kubectl.get(&["deployment", "web"])?.unwrap_or_default();
    Ok(deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone())
}

pub(crate) fn life(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("life")?;
    kubectl.run(&["create", "deployment", "web", "--image=v1", "--replicas=3"])?;
    rolled(&kubectl, "web")?;
    kubectl.run(&["scale", "deployment", "web", "--replicas=5"])?;
    kubectl.wait(&["deployment", "web"], "5 are ready", ready(5))?;
    kubectl.run(&["set", "image", "deployment/web", "*=v2"])?;
    rolled(&kubectl, "web")?;
    kubectl.run(&["rollout", "restart", "deployment", "web"])?;
    rolled(&kubectl, "web")?;
    let history = kubectl.run(&["rollout", "history", "deployment", "web"])?;
    ensure!(
        history.contains("\n1 ") && history.contains("\n2 ") && history.contains("\n3 "),
        "{history}"
    );
    kubectl.run(&["rollout", "undo", "deployment", "web", "--to-revision=1"])?;
    rolled(&kubectl, "web")?;
    ensure!(image(&kubectl)? == "v1", "undone");
    let history = kubectl.run(&["rollout", "history", "deployment", "web"])?;
    ensure!(!history.contains("\n1 ") && history.contains("\n4 "), "{history}");
    pause(&kubectl)?;
    let done = kubectl.wait(&["deployment", "web"], "is complete", |d| {
        d["status"]["updatedReplicas"] == 5 && ready(5)(d)
    })?;
    let conditions = done["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let reason = |kind: &str| {
        let found = conditions.iter().find(|c| c["type"] == kind);
        found.map(|c| c["reason"].clone()).unwrap_or_default()
    };
    ensure!(reason("Available") == "MinimumReplicasAvailable", "{conditions:?}");
    ensure!(reason("Progressing") == "NewReplicaSetAvailable", "{conditions:?}");
    ensure!(
        done["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "5",
        "{done}"
    );
    let events = kubectl.run(&["get", "events"])?;
    ensure!(
        events.contains("ScalingReplicaSet") && events.contains("SuccessfulCreate"),
        "{events}"
    );
    let pods = kubectl.get(&["pods"])?.unwrap_or_default();
    ensure!(pods["items"].as_array().map(Vec::len) == Some(5), "no pod too many");
    Ok(())
}

fn pause(kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["rollout", "pause", "deployment", "web"])?;
    kubectl.run(&["set", "image", "deployment/web", "*=v3"])?;
    kubectl.wait(&["deployment", "web"], "is seen paused", |d| {
        d["status"]["observedGeneration"] == d["metadata"]["generation"]
            && d["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|c| c["reason"] == "DeploymentPaused"))
    })?;
    let sets = kubectl.get(&["replicasets"])?.unwrap_or_default();
    ensure!(
        !sets.to_string().contains("\"image\":\"v3\""),
        "nothing is rolled while paused"
    );
    kubectl.run(&["rollout", "resume", "deployment", "web"])?;
    rolled(kubectl, "web")
}

pub(crate) fn deadline(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("deadline")?;
    kubectl.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "stuck"},
        "spec": {"progressDeadlineSeconds": 1, "selector": {"matchLabels": {"app": "stuck"}},
                 "template": {"metadata": {"labels": {"app": "stuck"}}, "spec": {"containers": [{"name": "c", "image": "never-ready"}]}}},
    }))?;
    let said = kubectl.run(&["rollout", "status", "deployment", "stuck", "--timeout=40s"]);
    let said = said.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(said.contains("exceeded its progress deadline"), "{said}");
    kubectl.run(&["set", "image", "deployment/stuck", "*=v1"])?;
    rolled(&kubectl, "stuck")
}

pub(crate) fn recreate(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("recreate")?;
    kubectl.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
    }))?;
    rolled(&kubectl, "web")?;
    kubectl.run(&["set", "image", "deployment/web", "*=v2"])?;
    rolled(&kubectl, "web")?;
    kubectl.run(&["rollout", "undo", "deployment", "web"])?;
    rolled(&kubectl, "web")?;
    ensure!(image(&kubectl)? == "v1", "undone");
    Ok(())
}

pub(crate) fn cascades(world: &World) -> Result<()> {
    let kubectl = world.kubectl.in_new("cascades")?;
    for name in ["background", "orphan", "foreground"] {
        kubectl.run(&["create", "deployment", name, "--image=v1", "--replicas=2"])?;
    }
    for name in ["background", "orphan", "foreground"] {
        rolled(&kubectl, name)?;
        kubectl.run(&[
            "delete",
            "deployment",
            name,
            &format!("--cascade={name}"),
            "--timeout=40s",
        ])?;
    }
    let left = kubectl.get(&["pods", "-l", "app=foreground"])?.unwrap_or_default();
    ensure!(
        left["items"].as_array().is_some_and(Vec::is_empty),
        "foreground: pods went first"
    );
    kubectl.gone(&["replicasets", "-l", "app=background"])?;
    kubectl.gone(&["pods", "-l", "app=background"])?;
    kubectl.gone(&["replicasets", "-l", "app=foreground"])?;
    let kept = kubectl
        .get(&["replicasets,pods", "-l", "app=orphan"])?
        .unwrap_or_default();
    let kept = kept["items"].as_array().cloned().unwrap_or_default();
    ensure!(kept.len() == 3, "a ReplicaSet and two pods stay: {kept:?}");
    ensure!(
        kept.iter()
            .filter(|o| o["kind"] == "ReplicaSet")
            .all(|o| o["metadata"]["ownerReferences"].is_null()),
        "without an owner"
    );
    // A new Deployment of the same selector adopts what is left.
    kubectl.run(&["create", "deployment", "orphan", "--image=v1", "--replicas=2"])?;
    rolled(&kubectl, "orphan")?;
    let sets = kubectl.get(&["replicasets", "-l", "app=orphan"])?.unwrap_or_default();
    ensure!(sets["items"].as_array().map(Vec::len) == Some(1), "adopted: {sets}");
    Ok(())
}
