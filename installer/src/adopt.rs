//! `kedge adopt`: an edge that doubts this API (DesiredStateSuspect: another database, or an older one) takes it as the truth.
//!
//! What would stop is what the node runs (asked through its kubelet API) and this API has not bound to it. With --yes the annotation `kedge.dev/adopt` is put on the Node, with the uid of
//! namespace kube-system. The session carries it to the edge, which then sweeps by this API's word and clears the condition; then
//! the annotation is taken away again, because it is one decision, not one for every later doubt.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition, Pod};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};

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
    match stops(&cluster.client, name).await {
        Ok(stops) if stops.is_empty() => println!("nothing that runs there would stop"),
        Ok(stops) => println!(
            "this API does not have, so that there would stop:\n{}",
            stops.join("\n")
        ),
        Err(error) => {
            println!("every pod there that this API does not have would stop; the node does not say which: {error:#}")
        }
    }
    if !args.yes {
        println!("run 'kedge adopt {name} --yes' to take this API as the truth");
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

/// The pods that the node has and this API does not, a line each.
async fn stops(client: &Client, node: &str) -> Result<Vec<String>> {
    let path = format!("/api/v1/nodes/{node}/proxy/pods");
    let request = http::Request::get(path).body(Vec::new()).context("make a request")?;
    let held: serde_json::Value = client.request(request).await.context("ask the node what it has")?;
    let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let bound = Api::<Pod>::all(client.clone()).list(&bound).await;
    let bound = bound.with_context(|| format!("list the pods of node {node}"))?;
    let known = bound.items.into_iter().filter_map(|pod| pod.metadata.uid).collect();
    Ok(unknown(&held, &known))
}

fn unknown(held: &serde_json::Value, known: &BTreeSet<String>) -> Vec<String> {
    let pods = held["items"].as_array().into_iter().flatten();
    let mut lines: Vec<String> = pods
        .filter_map(|pod| {
            let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
            let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
            (!known.contains(uid)).then(|| format!("  {namespace}/{name} (uid {uid})"))
        })
        .collect();
    lines.sort();
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_is_what_the_api_does_not_have_under_this_uid() {
        let pod = |name: &str, uid: &str| serde_json::json!({"metadata": {"namespace": "d", "name": name, "uid": uid}});
        let held = serde_json::json!({"items": [pod("b", "2"), pod("c", "3"), pod("a", "1")]});
        let known = BTreeSet::from(["3".to_owned(), "9".to_owned()]);
        assert_eq!(unknown(&held, &known), ["  d/a (uid 1)", "  d/b (uid 2)"]);
    }
}
