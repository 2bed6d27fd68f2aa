//! `kubectl` as the embedded hub's administrator.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::up::layout::Layout;

/// The workload that shows the node.
const DEMO: &str = include_str!("../../deploy/demo.yaml");
const DEMO_LABEL: &str = "app.kubernetes.io/part-of=kedge-demo";

/// kubectl with a kubeconfig.
#[derive(Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    pub(super) fn new(program: &Path, layout: &Layout, kubeconfig: PathBuf) -> Result<Self> {
        let ours = layout.bin().join("kubectl");
        let program = if ours.exists() { ours } else { program.to_owned() };
        let kubectl = Self {
            program,
            kubeconfig,
            cache: layout.state.join("hub/kubectl-cache"),
        };
        kubectl.run(&["version", "--client"])?;
        Ok(kubectl)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--request-timeout=15s")
            .args(args);
        // Its cache of discovery belongs to this cluster, and nobody's ~/.kube is touched.
        command.env("KUBECACHEDIR", &self.cache);
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let done = self.command(args).output();
        let done = done.with_context(|| format!("run {}", self.program.display()))?;
        if !done.status.success() {
            bail!(
                "kubectl {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn json(&self, args: &[&str]) -> Result<Value, String> {
        let text = self.run(args).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    pub(super) fn apply_demo(&self) -> Result<()> {
        let mut child = self
            .command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl apply")?;
        child
            .stdin
            .take()
            .context("kubectl's stdin")?
            .write_all(DEMO.as_bytes())?;
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }

    pub(super) fn node_ready(&self, node: &str) -> Result<(), String> {
        let node = self.json(&["get", "node", node, "-o", "json"])?;
        condition(&node, "Ready")
    }

    pub(super) fn demo_ready(&self) -> Result<(), String> {
        demo_ready(
            &self.json(&["get", "deployments,daemonsets", "-l", DEMO_LABEL, "-o", "json"])?,
            &self.json(&["get", "pods", "-l", DEMO_LABEL, "-o", "json"])?,
        )
    }
}

/// Whether a condition is True, and else why not.
fn condition(object: &Value, kind: &str) -> Result<(), String> {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    match found {
        Some(condition) if condition["status"] == "True" => Ok(()),
        Some(condition) => {
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            Err(format!(
                "{kind} is {}: {} {}",
                text("status"),
                text("reason"),
                text("message")
            ))
        }
        None => Err(format!("no condition {kind} yet")),
    }
}

/// Whether every workload has all its replicas ready.
fn demo_ready(workloads: &Value, pods: &Value) -> Result<(), String> {
    let items = workloads["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.len() < 2 {
        return Err("the workloads are not there yet".to_owned());
    }
    let ready = items.iter().all(|item| {
        let status = &item["status"];
        if item["kind"] == "DaemonSet" {
            let desired = status["desiredNumberScheduled"].as_u64().unwrap_or(0);
            desired > 0 && status["numberReady"].as_u64() == Some(desired)
        } else {
            status["readyReplicas"].as_u64() == item["spec"]["replicas"].as_u64()
        }
    });
    if ready {
        return Ok(());
    }
    let pods = pods["items"].as_array().into_iter().flatten();
    let all: Vec<String> = pods.map(why_not_ready).collect();
    Err(if all.is_empty() {
        "no pods yet".to_owned()
    } else {
        all.join(", ")
    })
}

fn why_not_ready(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let waiting = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|status| status["state"]["waiting"]["reason"].as_str());
    let phase = pod["status"]["phase"].as_str().unwrap_or("not bound");
    format!("{name} {}", waiting.unwrap_or(phase))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_demo_is_ready_when_each_workload_has_all() {
        let workloads = |ready: u64| {
            json!({"items": [
                {"kind": "Deployment", "spec": {"replicas": 2}, "status": {"readyReplicas": ready}},
                {"kind": "DaemonSet", "status": {"desiredNumberScheduled": 1, "numberReady": 1}},
            ]})
        };
        let pods = json!({"items": [{"metadata": {"name": "a"}, "status": {"phase": "Pending",
            "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}}]});
        assert_eq!(demo_ready(&workloads(2), &pods), Ok(()));
        assert_eq!(demo_ready(&workloads(1), &pods), Err("a ErrImagePull".to_owned()));
        assert!(demo_ready(&json!({"items": []}), &pods).is_err());
    }

    #[test]
    fn a_condition_that_is_not_true_says_why() {
        let node =
            json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "R", "message": "m"}]}});
        assert_eq!(condition(&node, "Ready"), Err("Ready is False: R m".to_owned()));
    }

    #[test]
    fn the_demo_is_yaml_with_what_it_promises() {
        let documents: Vec<Value> = DEMO
            .split("\n---\n")
            .map(|text| serde_yaml_ng::from_str(text).unwrap())
            .collect();
        let kinds: Vec<&str> = documents
            .iter()
            .map(|document| document["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["ConfigMap", "Secret", "Deployment", "DaemonSet"]);
    }
}
