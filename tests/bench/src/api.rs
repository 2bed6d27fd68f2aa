//! The Kubernetes API as a measuring client sees it: pods are made, and a watch says when what became of them.
//!
//! - [`Pods`] owns one watch task; it notes the instant at which each pod was first seen Running, and when it was gone
//! - waiting is on the watch's news, never on a clock

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// No step of a measurement takes as long, also on a machine that does other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A client of the API that `kubeconfig` names.
///
/// # Errors
/// When the file cannot be used.
pub(crate) async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// A pod of the demo image, as people write one.
pub(crate) fn demo_pod(name: &str) -> Pod {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "image": "kedge.dev/demo:1"}]},
    });
    serde_json::from_value(pod).expect("it is a pod")
}

/// What the watch has seen of a pod.
#[derive(Debug, Clone, Default)]
struct Seen {
    phase: String,
    running: Option<Instant>,
    gone: bool,
}

#[derive(Debug, Default)]
struct Table {
    pods: HashMap<String, Seen>,
    /// Why the watch ended, if it did: nothing can be waited for any more.
    broken: Option<String>,
}

/// The pods of namespace default.
#[derive(Debug)]
pub(crate) struct Pods {
    api: Api<Pod>,
    table: Arc<Mutex<Table>>,
    news: watch::Receiver<u64>,
    _watch: JoinSet<()>,
}

impl Pods {
    /// Starts the watch.
    pub(crate) fn new(client: kube::Client) -> Self {
        let api: Api<Pod> = Api::namespaced(client, "default");
        let table: Arc<Mutex<Table>> = Arc::default();
        let (changed, news) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(api.clone(), table.clone(), changed));
        Self {
            api,
            table,
            news,
            _watch: tasks,
        }
    }

    /// Creates these pods, all at once, and waits until each was seen Running: how long that took, each from the moment
    /// at which the first was written.
    ///
    /// # Errors
    /// When the API refuses one, or one does not run in time: it is named with its phase.
    pub(crate) async fn start(&self, names: &[String]) -> Result<Vec<Duration>> {
        let start = Instant::now();
        let creates = names.iter().map(|name| self.create(name));
        futures::future::try_join_all(creates).await?;
        self.wait("is Running", names, |seen| seen.is_some_and(|s| s.running.is_some()))
            .await?;
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let took = names.iter().filter_map(|name| table.pods.get(name)?.running);
        Ok(took.map(|at| at.duration_since(start)).collect())
    }

    async fn create(&self, name: &str) -> Result<()> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pods
            .remove(name);
        self.api
            .create(&PostParams::default(), &demo_pod(name))
            .await
            .with_context(|| format!("create pod {name}"))?;
        Ok(())
    }

    /// Deletes these pods and waits until they are gone.
    ///
    /// # Errors
    /// When the API refuses, or one is not gone in time.
    pub(crate) async fn remove(&self, names: &[String]) -> Result<()> {
        let deletes = names.iter().map(|name| async move {
            let deleted = self.api.delete(name, &DeleteParams::default()).await;
            deleted.map(drop).with_context(|| format!("delete pod {name}"))
        });
        futures::future::try_join_all(deletes).await?;
        self.wait("is gone", names, |seen| seen.is_none_or(|s| s.gone)).await
    }

    async fn wait(&self, what: &str, names: &[String], done: impl Fn(Option<&Seen>) -> bool) -> Result<()> {
        let mut news = self.news.clone();
        let all = async {
            loop {
                news.borrow_and_update();
                {
                    let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(why) = &table.broken {
                        bail!("the watch of pods ended: {why}");
                    }
                    if names.iter().all(|name| done(table.pods.get(name))) {
                        return Ok(());
                    }
                }
                if news.changed().await.is_err() {
                    bail!("the watch of pods ended");
                }
            }
        };
        match tokio::time::timeout(LIMIT, all).await {
            Ok(result) => result,
            Err(_) => {
                let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
                let left: Vec<String> = names
                    .iter()
                    .filter(|name| !done(table.pods.get(*name)))
                    .map(|name| format!("{name} ({})", table.pods.get(name).map_or("unseen", |s| &s.phase)))
                    .collect();
                bail!("not after {LIMIT:?}: {} {what}", left.join(", "))
            }
        }
    }
}

/// Names with a number each.
pub(crate) fn names(prefix: &str, count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("{prefix}-{n}")).collect()
}

async fn follow(api: Api<Pod>, table: Arc<Mutex<Table>>, changed: watch::Sender<u64>) {
    let mut events = watcher(api, watcher::Config::default()).boxed();
    let mut failures = 0;
    loop {
        // The watcher lists again after an error; one that only fails has nothing more to say.
        match events.try_next().await {
            Ok(Some(event)) => {
                failures = 0;
                note(&mut table.lock().unwrap_or_else(PoisonError::into_inner), event);
            }
            Ok(None) => {
                table.lock().unwrap_or_else(PoisonError::into_inner).broken = Some("no more events".into());
                changed.send_modify(|n| *n += 1);
                return;
            }
            Err(error) => {
                failures += 1;
                if failures > 50 {
                    table.lock().unwrap_or_else(PoisonError::into_inner).broken = Some(error.to_string());
                    changed.send_modify(|n| *n += 1);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        changed.send_modify(|n| *n += 1);
    }
}

fn note(table: &mut Table, event: Event<Pod>) {
    let now = Instant::now();
    match event {
        Event::Apply(pod) | Event::InitApply(pod) => {
            let seen = table.pods.entry(pod.metadata.name.unwrap_or_default()).or_default();
            seen.phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
            seen.gone = false;
            if seen.phase == "Running" {
                seen.running.get_or_insert(now);
            }
        }
        Event::Delete(pod) => {
            let seen = table.pods.entry(pod.metadata.name.unwrap_or_default()).or_default();
            seen.gone = true;
        }
        Event::Init | Event::InitDone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str) -> Pod {
        let mut pod = demo_pod("a");
        pod.status = serde_json::from_value(json!({"phase": phase})).unwrap();
        pod
    }

    #[test]
    fn the_first_sight_of_running_counts() {
        let mut table = Table::default();
        note(&mut table, Event::Apply(pod("Pending")));
        assert!(table.pods["a"].running.is_none());
        note(&mut table, Event::Apply(pod("Running")));
        let first = table.pods["a"].running.unwrap();
        note(&mut table, Event::Apply(pod("Running")));
        assert_eq!(table.pods["a"].running, Some(first));
        note(&mut table, Event::Delete(pod("Running")));
        assert!(table.pods["a"].gone);
        note(&mut table, Event::Apply(pod("Pending")));
        assert!(!table.pods["a"].gone, "another pod of that name");
    }
}
