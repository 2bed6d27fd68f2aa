//! metrics.k8s.io/v1beta1, for `kubectl top`: what nodes and pods use now.
//!
//! * a request → each node's kubelet, `/metrics/resource` → two samples of cumulative CPU time → a rate, as metrics-server does
//!
//! Nobody asks the kubelets while nobody asks us: a robot's link may be metered. So the first request in a while takes two samples a few
//! seconds apart, and those after it compare with the last. State: two samples a node ([`Samples`]). A node that does not answer in time has
//! no metrics, which is what `kubectl top` shows.

mod resource;
pub(crate) mod show;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use crate::kinds;
use crate::kubelet::Kubelets;
use crate::object;
use crate::selector::Labels;
use crate::status::Status;
use crate::store::{Key, Store, Stored};
use resource::{Sample, Usage};
use show::{Found, Metric};

/// API group.
const GROUP: &str = "metrics.k8s.io";

/// A node's kubelet answers within this, or it has no metrics.
const NODE: Duration = Duration::from_secs(3);
/// So long an answer is given again: metrics-server's resolution.
const CACHED: Duration = Duration::from_secs(15);
/// Between the two samples of a first request: a rate over less is noise, and a person waits for it.
const GAP: Duration = Duration::from_secs(2);
/// A rate since longer ago says little about now.
const OLD: Duration = Duration::from_secs(120);
/// Nodes that are asked at once.
const AT_ONCE: usize = 16;
/// 250 pods of a few containers have less than a tenth of it.
const MAX_ANSWER: usize = 8 << 20;

/// What is known of a node.
#[derive(Debug, Default)]
struct Samples {
    previous: Option<Arc<Sample>>,
    last: Option<(Instant, Arc<Sample>)>,
    asked: Option<Instant>,
}

/// Two samples: the earlier one, and the later.
type Pair = (Arc<Sample>, Arc<Sample>);

/// The last samples of each node.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    nodes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Samples>>>>,
}

impl Metrics {
    /// The metrics of node `name`, or of the nodes that `labels` select.
    ///
    /// # Errors
    /// 404: there is no node `name`, or it has no metrics.
    pub(crate) async fn nodes(
        &self,
        kubelets: &Kubelets,
        store: &Store,
        name: Option<&str>,
        labels: &Labels,
    ) -> Result<Found, Status> {
        let Some(name) = name else {
            let nodes = all(store, "nodes", None);
            self.forget_others(&nodes);
            let chosen: Vec<Arc<Stored>> = nodes.into_iter().filter(|node| labels.matches(node)).collect();
            let names = chosen.iter().map(|node| node.key.name.clone()).collect();
            let samples = self.samples(kubelets, names).await;
            let items = chosen
                .iter()
                .filter_map(|node| node_metrics(&node.value(), samples.get(&node.key.name)?));
            return Ok(Found::list("NodeMetrics", items.collect()));
        };
        let none = || Status::not_found(GROUP, "nodes", name);
        let node = one(store, "nodes", "", name).ok_or_else(none)?;
        let pair = self.sampled(kubelets, name).await.ok_or_else(none)?;
        let metric = node_metrics(&node.value(), &pair).ok_or_else(none)?;
        Ok(Found::one("NodeMetrics", metric))
    }

    /// The metrics of the pod that is named, or of the pods of one namespace or all that `labels` select.
    ///
    /// # Errors
    /// 404: there is no such pod, or it has no metrics.
    pub(crate) async fn pods(
        &self,
        kubelets: &Kubelets,
        store: &Store,
        (namespace, name): (Option<&str>, Option<&str>),
        labels: &Labels,
    ) -> Result<Found, Status> {
        let Some(name) = name else {
            let pods = all(store, "pods", namespace);
            let chosen: Vec<Value> = pods
                .iter()
                .filter(|pod| labels.matches(pod))
                .map(|pod| pod.value())
                .collect();
            let nodes: HashSet<&str> = chosen.iter().map(node_of).filter(|node| !node.is_empty()).collect();
            let names = nodes.into_iter().map(str::to_owned).collect();
            let samples = self.samples(kubelets, names).await;
            let items = chosen
                .iter()
                .filter_map(|pod| pod_metrics(pod, samples.get(node_of(pod))?));
            return Ok(Found::list("PodMetrics", items.collect()));
        };
        let namespace = namespace.unwrap_or_default();
        let none = || Status::not_found(GROUP, "pods", &format!("{namespace}/{name}"));
        let pod = one(store, "pods", namespace, name).ok_or_else(none)?.value();
        let pair = self.sampled(kubelets, node_of(&pod)).await.ok_or_else(none)?;
        let metric = pod_metrics(&pod, &pair).ok_or_else(none)?;
        Ok(Found::one("PodMetrics", metric))
    }

    /// Lets go of nodes that are no more.
    fn forget_others(&self, nodes: &[Arc<Stored>]) {
        let names: HashSet<&str> = nodes.iter().map(|node| node.key.name.as_str()).collect();
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| names.contains(name.as_str()));
    }

    async fn samples(&self, kubelets: &Kubelets, nodes: Vec<String>) -> HashMap<String, Pair> {
        let asked = nodes.into_iter().map(|node| {
            let asked: BoxFuture<'_, _> = Box::pin(async move {
                let pair = self.sampled(kubelets, &node).await?;
                Some((node, pair))
            });
            asked
        });
        let asked: Vec<_> = asked.collect();
        let answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        answers.filter_map(std::future::ready).collect().await
    }

    /// The two last samples of a node, fresh enough.
    async fn sampled(&self, kubelets: &Kubelets, node: &str) -> Option<Pair> {
        if node.is_empty() {
            return None;
        }
        let samples = {
            let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            known.entry(node.to_owned()).or_default().clone()
        };
        // Whoever asks meanwhile waits here and gets the same answer.
        let mut samples = samples.lock().await;
        if samples.asked.is_none_or(|asked| asked.elapsed() >= CACHED) {
            samples.refresh(|| sample(kubelets, node)).await;
        }
        let (_, last) = samples.last.clone()?;
        Some((samples.previous.clone()?, last))
    }
}

impl Samples {
    /// A new last sample, and one before it that is not old.
    async fn refresh<F: Future<Output = Option<Arc<Sample>>>>(&mut self, mut take: impl FnMut() -> F) {
        let before = self.last.take().filter(|(at, _)| at.elapsed() < OLD);
        self.previous = before.map(|(_, sample)| sample);
        let mut taken = take().await;
        if let (None, Some(first)) = (&self.previous, &taken) {
            self.previous = Some(first.clone());
            sleep(GAP).await;
            taken = take().await;
        }
        // Asked is what has been answered: a caller that goes away meanwhile leaves it to the next.
        self.asked = Some(Instant::now());
        self.last = taken.map(|sample| (Instant::now(), sample));
    }
}

async fn sample(kubelets: &Kubelets, node: &str) -> Option<Arc<Sample>> {
    let answer = timeout(NODE, kubelets.fetch(node, "/metrics/resource", MAX_ANSWER)).await;
    match answer {
        Ok(Ok(text)) => {
            let text = String::from_utf8_lossy(&text);
            Some(Arc::new(resource::parse(&text, object::now())))
        }
        Ok(Err(error)) => {
            tracing::debug!(node, %error, "no metrics");
            None
        }
        Err(_) => {
            tracing::debug!(node, "no metrics within {NODE:?}");
            None
        }
    }
}

fn all(store: &Store, plural: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
    let row = kinds::row("", "v1", plural);
    row.map(|row| store.list(row.storage, namespace, None, usize::MAX).1)
        .unwrap_or_default()
}

fn one(store: &Store, plural: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
    let row = kinds::row("", "v1", plural)?;
    store.get(&Key::new(row.storage, namespace, name))
}

fn node_of(pod: &Value) -> &str {
    object::text(pod, "/spec/nodeName")
}

fn node_metrics(node: &Value, (previous, last): &Pair) -> Option<Metric> {
    let usage = resource::usage(previous.node.as_ref(), last.node.as_ref()?)?;
    let object = json!({"metadata": metadata(node), "timestamp": object::timestamp(usage.time),
                        "window": resource::window(usage.window), "usage": quantities(&usage)});
    Some(Metric { object, sum: usage })
}

/// None unless every container of the pod has metrics, for the sum would lie.
fn pod_metrics(pod: &Value, (previous, last): &Pair) -> Option<Metric> {
    let of = (object::namespace(pod).to_owned(), object::name(pod).to_owned());
    let mut containers = Vec::new();
    let mut sum: Option<Usage> = None;
    for (name, point) in last.pods.get(&of)? {
        let before = previous.pods.get(&of).and_then(|containers| containers.get(name));
        let usage = resource::usage(before, point)?;
        containers.push(json!({"name": name, "usage": quantities(&usage)}));
        sum = Some(sum.map_or(usage, |sum| sum.with(&usage)));
    }
    let sum = sum?;
    let object = json!({"metadata": metadata(pod), "timestamp": object::timestamp(sum.time),
                        "window": resource::window(sum.window), "containers": containers});
    Some(Metric { object, sum })
}

fn quantities(usage: &Usage) -> Value {
    json!({"cpu": resource::nano_cores(usage.nano_cores), "memory": resource::bytes(usage.memory)})
}

/// Metrics are made when they are asked for; they have their object's name and labels.
fn metadata(object: &Value) -> Value {
    let mut metadata = json!({"name": object::name(object)});
    if !object::namespace(object).is_empty() {
        metadata["namespace"] = object::namespace(object).into();
    }
    metadata["creationTimestamp"] = object::timestamp(object::now()).into();
    if let Some(labels) = object.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    metadata
}

/// Reads a kubelet's text, for [`crate::fuzzing`].
pub(crate) fn fuzz(text: &str) {
    let sample = resource::parse(text, OffsetDateTime::UNIX_EPOCH);
    let earlier = resource::parse(text, OffsetDateTime::UNIX_EPOCH - Duration::from_secs(15));
    if let (Some(earlier), Some(last)) = (&earlier.node, &sample.node)
        && let Some(usage) = resource::usage(Some(earlier), last)
    {
        resource::nano_cores(usage.nano_cores);
        resource::bytes(usage.memory);
        resource::window(usage.window);
    }
    for point in sample.pods.values().flat_map(|containers| containers.values()) {
        resource::usage(None, point);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "1700000000000";

    fn pair(seconds: f64) -> Pair {
        let sample = |cpu: f64, at: u64| {
            let text = format!(
                "node_cpu_usage_seconds_total {cpu} {at}\nnode_memory_working_set_bytes 1.048576e+06 {at}\n\
                 container_cpu_usage_seconds_total{{container=\"a\",namespace=\"n\",pod=\"p\"}} {cpu} {at}\n\
                 container_memory_working_set_bytes{{container=\"a\",namespace=\"n\",pod=\"p\"}} 1500 {at}\n"
            );
            Arc::new(resource::parse(&text, OffsetDateTime::UNIX_EPOCH))
        };
        let at: u64 = AT.parse().unwrap();
        (sample(10.0, at), sample(10.0 + seconds, at + 10_062))
    }

    #[test]
    fn a_nodes_metrics_are_a_rate_with_its_window() {
        let node = json!({"metadata": {"name": "n1", "labels": {"a": "b"}}});
        let metric = node_metrics(&node, &pair(5.031)).unwrap();
        let metrics = &metric.object;
        assert_eq!(metrics["window"], "10.062s");
        assert_eq!(metrics["timestamp"], "2023-11-14T22:13:30Z");
        assert_eq!(metrics["usage"], json!({"cpu": "500m", "memory": "1Mi"}));
        assert_eq!(metrics["metadata"]["labels"], json!({"a": "b"}));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_in_a_while_takes_two_samples() {
        let (first, last) = pair(1.0);
        let mut samples = Samples::default();
        let mut taken = 0;
        let mut take = |_: ()| {
            taken += 1;
            std::future::ready(Some(if taken == 1 { first.clone() } else { last.clone() }))
        };
        samples.refresh(|| take(())).await;
        assert!(Arc::ptr_eq(samples.previous.as_ref().unwrap(), &first));
        samples.refresh(|| take(())).await;
        assert!(Arc::ptr_eq(samples.previous.as_ref().unwrap(), &last));
        tokio::time::advance(OLD).await;
        samples.refresh(|| take(())).await;
        assert_eq!(taken, 5, "2, then 1, then 2 again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_has_no_metrics_and_is_not_waited_for_twice() {
        let mut samples = Samples::default();
        let begun = Instant::now();
        samples.refresh(|| std::future::ready(None)).await;
        assert!(samples.last.is_none() && samples.asked.is_some());
        assert!(begun.elapsed() < GAP);
    }

    #[test]
    fn a_pod_with_a_container_that_has_no_rate_has_no_metrics() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}});
        let (previous, last) = pair(1.0);
        let metrics = pod_metrics(&pod, &(previous.clone(), last.clone())).unwrap().object;
        assert_eq!(metrics["containers"][0]["name"], "a");
        assert_eq!(metrics["containers"][0]["usage"]["memory"], "1500");
        let empty = Arc::new(resource::parse("", OffsetDateTime::UNIX_EPOCH));
        assert!(pod_metrics(&pod, &(empty, last)).is_none());
        let other = json!({"metadata": {"name": "q", "namespace": "n"}});
        assert!(pod_metrics(&other, &pair(1.0)).is_none());
    }
}
