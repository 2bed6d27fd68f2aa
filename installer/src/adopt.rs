//! `kedge adopt`: an edge that doubts this API (DesiredStateSuspect: another database, or an older one) takes it as the truth.
//!
//! The node's condition says what would stop. With --yes the annotation `kedge.dev/adopt` is put on the Node, with the uid of
//! namespace kube-system. The session carries it to the edge, which then sweeps by this API's word and clears the condition; then
//! the annotation is taken away again, because it is one decision, not one for every later doubt.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition};
use kube::api::{Api, Patch, PatchParams};

use crate::api;

/// The edge needs a round trip and a commit.
const DONE_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's name
    node: String,
    /// Do it; without this it is only shown what would happen
    #[arg(long)]
    yes: bool,
}

fn suspect(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "DesiredStateSuspect" && condition.status == "True")
}

fn has_annotation(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key("kedge.dev/adopt"))
}

pub(crate) async fn run(args: Args, kubeconfig: Option<&Path>) -> Result<()> {
    let name = &args.node;
    let cluster = api::connect(kubeconfig).await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = nodes.get_opt(name).await.with_context(|| format!("read Node {name}"))?;
    let node = node.with_context(|| format!("there is no Node {name}"))?;
    let Some(condition) = suspect(&node) else {
        if has_annotation(&node) {
            annotate(&nodes, name, serde_json::Value::Null).await?;
        }
        println!("node {name} does not doubt this API: nothing to adopt");
        return Ok(());
    };
    println!(
        "node {name} doubts this API: {}: {}",
        condition.reason.as_deref().unwrap_or("DesiredStateSuspect"),
        condition.message.as_deref().unwrap_or("no details")
    );
    if !args.yes {
        println!(
            "what this API does not have would stop there; run 'kedge adopt {name} --yes' to take it as the truth"
        );
        return Ok(());
    }
    let system = Api::<Namespace>::all(cluster.client).get("kube-system").await;
    let uid = system
        .context("read namespace kube-system")?
        .metadata
        .uid
        .unwrap_or_default();
    annotate(&nodes, name, serde_json::json!(uid)).await?;
    wait(&nodes, name).await?;
    annotate(&nodes, name, serde_json::Value::Null).await?;
    println!("node {name} took this API as the truth");
    Ok(())
}

async fn annotate(nodes: &Api<Node>, name: &str, value: serde_json::Value) -> Result<()> {
    let patch = serde_json::json!({"metadata": {"annotations": {"kedge.dev/adopt": value}}});
    let patched = nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.with_context(|| format!("annotate Node {name}"))?;
    Ok(())
}

/// Waits until the node has no doubt.
async fn wait(nodes: &Api<Node>, name: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < DONE_WITHIN {
        let node = nodes.get(name).await.with_context(|| format!("read Node {name}"))?;
        if suspect(&node).is_none() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bail!(
        "node {name} has not answered within {} s; it will when its link is back. Run this again then: it takes annotation kedge.dev/adopt away",
        DONE_WITHIN.as_secs()
    )
}
