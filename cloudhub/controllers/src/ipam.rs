//! Node ipam: a range of pod addresses for each node, never the same twice.
//!
//! * Nodes → queue (the node's name) → ConfigMap kedge-system/node-ranges (name → range) → `spec.podCIDR`
//!
//! A robot keeps its range in its own store, so a range that was given away stays given away, also when the Node object is
//! deleted: a Node of the same name gets its old range, another one never. The ConfigMap is written before the Node, with its
//! resourceVersion, so that a crash between the two loses nothing and two writers cannot give the same range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Config;
use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::Cache;
use crate::pods::is_deleting;
use crate::queue::{Key, Queue, Reconciled, work};

const NAMESPACE: &str = "kedge-system";
const RANGES: &str = "node-ranges";

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let to = Arc::clone(&queue);
    informers.nodes.on(move |change| {
        if change.before().is_none() {
            to.add(Key::of(change.object()));
        }
    });
    let context = Arc::clone(context);
    // One at a time: all share one ConfigMap.
    tasks.add(
        "node ipam",
        work("node ipam", queue, 1, move |key| {
            let context = Arc::clone(&context);
            async move { reconcile(&context, &key).await }
        }),
    );
}

fn range_of(node: &Node) -> Option<&String> {
    let spec = node.spec.as_ref()?;
    spec.pod_cidr.as_ref().filter(|range| !range.is_empty())
}

async fn reconcile(context: &Context, key: &Key) -> Reconciled {
    let Some(node) = context.nodes.by_key(key).filter(|node| !is_deleting(&node.metadata)) else {
        return Ok(None);
    };
    let api = context.api::<ConfigMap>(NAMESPACE);
    let stored = api.get_opt(RANGES).await.doing("get the nodes' ranges")?;
    let mut given = stored.as_ref().and_then(|map| map.data.clone()).unwrap_or_default();
    // What nodes have already, given by whomever, is taken too.
    for other in context.nodes.state() {
        if let Some(range) = range_of(&other) {
            given.insert(other.name_any(), range.clone());
        }
    }
    let range = match given.get(&key.name) {
        Some(range) => range.clone(),
        None => {
            let Some(range) = next_free(&context.config, given.values()) else {
                let text = "no range of pod addresses is left".to_owned();
                let recorder = context.recorder.of("cidrAllocator");
                recorder.warning(&*node, "CIDRNotAvailable", text.clone());
                return Err(Error::Invalid(text));
            };
            given.insert(key.name.clone(), range.clone());
            range
        }
    };
    store(context, stored, given).await?;
    if range_of(&node).is_some() {
        return Ok(None);
    }
    let patch = json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": range, "podCIDRs": [range]}});
    context
        .all::<Node>()
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .if_there("write a node's range")?;
    tracing::info!(node = key.name, range, "node has a range of pod addresses");
    Ok(None)
}

async fn store(context: &Context, stored: Option<ConfigMap>, given: BTreeMap<String, String>) -> Result<(), Error> {
    let api = context.api::<ConfigMap>(NAMESPACE);
    let Some(mut map) = stored else {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(RANGES.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(given),
            ..ConfigMap::default()
        };
        return api
            .create(&PostParams::default(), &map)
            .await
            .map(|_| ())
            .doing("make the record of the nodes' ranges");
    };
    if map.data.as_ref() == Some(&given) {
        return Ok(());
    }
    map.data = Some(given);
    api.replace(RANGES, &PostParams::default(), &map)
        .await
        .map(|_| ())
        .doing("write the record of the nodes' ranges")
}

/// The lowest range that overlaps none of `given`.
fn next_free<'a>(config: &Config, given: impl Iterator<Item = &'a String>) -> Option<String> {
    let (network, prefix) = config.cluster_cidr;
    let mask = u32::from(config.node_mask);
    let size = 1_u64 << (32 - mask);
    let first = u64::from(network.to_bits());
    let end = first + (1_u64 << (32 - u32::from(prefix)));
    let taken: BTreeSet<(u64, u64)> = given.filter_map(|range| bounds(range)).collect();
    let mut start = first;
    while start + size <= end {
        let overlap = taken.iter().find(|(from, to)| *from < start + size && start < *to);
        let Some((_, to)) = overlap else {
            let address = Ipv4Addr::from_bits(u32::try_from(start).ok()?);
            return Some(format!("{address}/{mask}"));
        };
        start = to.div_ceil(size) * size;
    }
    None
}

/// First address of `range` and the one after its last.
fn bounds(range: &str) -> Option<(u64, u64)> {
    let (address, prefix) = range.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let size = 1_u64 << (32 - prefix);
    let start = u64::from(address.to_bits()) / size * size;
    Some((start, start + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(given: &[&str]) -> Option<String> {
        let given: Vec<String> = given.iter().map(|range| (*range).to_owned()).collect();
        next_free(&Config::default(), given.iter())
    }

    #[test]
    fn each_range_is_given_once() {
        assert_eq!(next(&[]).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(
            next(&["10.244.0.0/24", "10.244.2.0/24"]).as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(next(&["10.244.0.0/23", "nonsense"]).as_deref(), Some("10.244.2.0/24"));
        let all: Vec<String> = (0..256).map(|i| format!("10.244.{i}.0/24")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(next(&all), None);
        assert_eq!(next(&all[..255]).as_deref(), Some("10.244.255.0/24"));
    }
}
