//! Pods that nobody else would take away: bound to a node that is missing, or deleted before they got a node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::context::{Context, Tasks};
use crate::error::{Doing, Error};
use crate::informer::Cache;
use crate::pods::{self, is_deleting};
use crate::queue::Key;

/// As often as kube-controller-manager looks.
const PERIOD: Duration = Duration::from_secs(20);
/// Deadline of one round; what is left is done in the next.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn start(context: &Arc<Context>, tasks: &mut Tasks) {
    let context = Arc::clone(context);
    tasks.add("pod garbage collection", async move {
        let mut missing: HashMap<String, Instant> = HashMap::new();
        // A short quarantine is looked at as often.
        let mut tick = interval(PERIOD.min(context.config.orphan_quarantine.max(Duration::from_millis(100))));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match timeout(DEADLINE, round(&context, &mut missing)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = error.chain(), "pod garbage collection"),
                Err(_) => tracing::warn!("pod garbage collection passed its deadline"),
            }
        }
    });
}

async fn round(context: &Context, missing: &mut HashMap<String, Instant>) -> Result<(), Error> {
    let all = context.pods.state();
    missing.retain(|node, _| {
        context.nodes.by_key(&Key::new("", node)).is_none() && all.iter().any(|pod| pods::node_of(pod) == Some(node))
    });
    for pod in &all {
        match pods::node_of(pod) {
            None if is_deleting(&pod.metadata) => delete(context, pod).await?,
            None => {}
            Some(node) if context.nodes.by_key(&Key::new("", node)).is_some() => {}
            Some(node) => {
                let since = *missing.entry(node.to_owned()).or_insert_with(Instant::now);
                if since.elapsed() >= context.config.orphan_quarantine && is_gone(context, node).await? {
                    fail(context, pod).await?;
                    delete(context, pod).await?;
                }
            }
        }
    }
    Ok(())
}

/// Asks the API itself: a cache that is behind must not cost a pod.
async fn is_gone(context: &Context, node: &str) -> Result<bool, Error> {
    Ok(context.all::<Node>().get_opt(node).await.doing("get a node")?.is_none())
}

async fn fail(context: &Context, pod: &Pod) -> Result<(), Error> {
    if pods::is_finished(pod) {
        return Ok(());
    }
    let text = "PodGC: node no longer exists";
    let condition = pods::disruption("DeletionByPodGC", text.into(), Timestamp::now());
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": [condition]}});
    context
        .api::<Pod>(&pod.namespace().unwrap_or_default())
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .if_there("fail a pod of a missing node")?;
    Ok(())
}

async fn delete(context: &Context, pod: &Pod) -> Result<(), Error> {
    let params = DeleteParams::default().grace_period(0).preconditions(Preconditions {
        uid: pod.uid(),
        resource_version: None,
    });
    context
        .api::<Pod>(&pod.namespace().unwrap_or_default())
        .delete(&pod.name_any(), &params)
        .await
        .if_there("delete a pod that has no node")?;
    Ok(())
}
