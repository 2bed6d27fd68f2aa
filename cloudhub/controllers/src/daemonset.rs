//! DaemonSets: a pod on each node that fits.
//!
//! * DaemonSets, nodes, pods, ControllerRevisions → queue → the template's ControllerRevision, found or made → [`plan`]
//!   (creations per node, deletions) → status
//!
//! A pod is tied to its node by node affinity on `metadata.name` and bound by the scheduler, as in Kubernetes. The rolling
//! update honours maxUnavailable by deleting old pods; maxSurge is not there yet: it updates one node at a time instead.

mod plan;
mod revision;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::expectations::Expectations;
use crate::informer::{Cache, Change};
use crate::pods::{self, controller_of, is_controlled_by, is_deleting};
use crate::queue::{Key, Queue, Reconciled, work};
use crate::replicaset::reason;
use crate::selector;

use plan::Plan;

/// DaemonSets reconciled at once.
const WORKERS: usize = 2;
/// Requests in flight for one DaemonSet.
const PARALLEL: usize = 8;
/// Wait before a failed pod is replaced, so that one that fails at once does not spin.
const FAILED_BACKOFF: Duration = Duration::from_secs(5);

struct Controller {
    context: Arc<Context>,
    expectations: Expectations,
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let controller = Arc::new(Controller {
        context: Arc::clone(context),
        expectations: Expectations::default(),
    });
    let to = Arc::clone(&queue);
    informers.daemon_sets.on(move |change| to.add(Key::of(change.object())));
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.nodes.on(move |change| {
        if change
            .before()
            .is_none_or(|before| plan::differs(before, change.object()))
        {
            by.daemon_sets.state().iter().for_each(|ds| to.add(Key::of(&**ds)));
        }
    });
    let (to, by) = (Arc::clone(&queue), Arc::clone(&controller));
    informers.pods.on(move |change| {
        by.expectations
            .seen(change.object(), matches!(change, Change::Deleted(_)));
        let pod = change.object();
        if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "DaemonSet") {
            to.add(Key::new(pod.namespace().unwrap_or_default(), &owner.name));
        }
    });
    let to = Arc::clone(&queue);
    informers.revisions.on(move |change| {
        let revision = change.object();
        if let Some(owner) = controller_of(&revision.metadata).filter(|owner| owner.kind == "DaemonSet") {
            to.add(Key::new(revision.namespace().unwrap_or_default(), &owner.name));
        }
    });
    tasks.add(
        "daemonset",
        work("daemonset", queue, WORKERS, move |key| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        }),
    );
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Reconciled {
        let Some(ds) = self.context.daemon_sets.by_key(key) else {
            return Ok(None);
        };
        let owner = ds.uid().unwrap_or_default();
        if is_deleting(&ds.metadata) {
            self.expectations.forget(&owner);
            return Ok(None);
        }
        let history = self.history(&ds);
        let Some(hash) = self.present_revision(&ds, &history).await? else {
            return Ok(None);
        };
        let pods = self.claim(&ds).await?;
        let nodes = self.context.nodes.state();
        let now = Timestamp::now();
        let wait = self.expectations.wait(&owner);
        let mut failure = None;
        let mut again = wait;
        if wait.is_none() {
            let plan = plan::plan(&ds, &nodes, &pods, &hash, now);
            if !plan.failed.is_empty() {
                again = Some(FAILED_BACKOFF);
            }
            failure = self.execute(&ds, plan, &hash, now).await.err();
        }
        let status = plan::status(&ds, &nodes, &pods, &hash, now);
        self.write_status(&ds, status).await?;
        self.prune(&ds, &history, &pods, &hash).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(pods::sooner(again, plan::next_look(&ds, &pods, now))),
        }
    }

    /// The pods of `ds`, orphans that match adopted.
    async fn claim(&self, ds: &DaemonSet) -> Result<Vec<Arc<Pod>>, Error> {
        let Some(spec) = &ds.spec else {
            return Ok(Vec::new());
        };
        let mut claimed = Vec::new();
        for pod in self.context.pods.in_namespace(&ds.namespace().unwrap_or_default()) {
            let matching = selector::matches(&spec.selector, &pods::labels(&pod.metadata));
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            if is_controlled_by(&pod.metadata, ds.uid().as_deref()) {
                if matching {
                    claimed.push(pod);
                    continue;
                }
                owners.retain(|owner| Some(&owner.uid) != ds.metadata.uid.as_ref());
            } else if matching && controller_of(&pod.metadata).is_none() && pods::is_active(&pod) {
                owners.push(pods::reference(ds));
                claimed.push(Arc::clone(&pod));
            } else {
                continue;
            }
            let patch = json!({"metadata": {
                "uid": pod.uid(), "resourceVersion": pod.resource_version(), "ownerReferences": owners,
            }});
            let api = self.context.api::<Pod>(&ds.namespace().unwrap_or_default());
            api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                .await
                .if_there("adopt or release a pod")?;
        }
        Ok(claimed)
    }

    async fn execute(&self, ds: &DaemonSet, plan: Plan, hash: &str, now: Timestamp) -> Result<(), Error> {
        let recorder = self.context.recorder.of("daemonset-controller");
        for pod in &plan.failed {
            let node = pods::node_of(pod).unwrap_or_default();
            let message = format!(
                "Found failed daemon pod {}/{} on node {node}, will try to kill it",
                pod.namespace().unwrap_or_default(),
                pod.name_any()
            );
            recorder.warning(ds, "FailedDaemonPod", message);
        }
        let ripe = plan.failed.into_iter().filter(|pod| {
            pods::created(&pod.metadata).is_none_or(|made| now.duration_since(made).unsigned_abs() >= FAILED_BACKOFF)
        });
        let deletions = stream::iter(ripe.chain(plan.delete)).map(|pod| self.delete(ds, pod));
        let deleted: Vec<_> = deletions.buffer_unordered(PARALLEL).collect().await;
        deleted.into_iter().collect::<Result<(), _>>()?;
        let creations = stream::iter(plan.create).map(|node| self.create(ds, node, hash));
        let created: Vec<_> = creations.buffer_unordered(PARALLEL).collect().await;
        created.into_iter().collect()
    }

    async fn create(&self, ds: &DaemonSet, node: String, hash: &str) -> Result<(), Error> {
        let namespace = ds.namespace().unwrap_or_default();
        let owner = ds.uid().unwrap_or_default();
        let pod = plan::pod_for(ds, &node, hash);
        let name = pod.name_any();
        let recorder = self.context.recorder.of("daemonset-controller");
        self.expectations.creating(&owner, &name);
        let api = self.context.api::<Pod>(&namespace);
        match api.create(&PostParams::default(), &pod).await.doing("create a pod") {
            Ok(_) => {
                recorder.normal(ds, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.failed(&owner, &name);
                let terminating = self
                    .context
                    .namespaces
                    .by_key(&Key::new("", &namespace))
                    .is_none_or(|namespace| is_deleting(&namespace.metadata));
                if terminating {
                    return Ok(());
                }
                recorder.warning(ds, "FailedCreate", format!("Error creating: {}", reason(&error)));
                Err(error)
            }
        }
    }

    async fn delete(&self, ds: &DaemonSet, pod: Arc<Pod>) -> Result<(), Error> {
        let (owner, uid, name) = (
            ds.uid().unwrap_or_default(),
            pod.uid().unwrap_or_default(),
            pod.name_any(),
        );
        self.expectations.deleting(&owner, &uid);
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        });
        let api = self.context.api::<Pod>(&ds.namespace().unwrap_or_default());
        let recorder = self.context.recorder.of("daemonset-controller");
        match api.delete(&name, &params).await.if_there("delete a pod") {
            Ok(_) => {
                recorder.normal(ds, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.failed(&owner, &uid);
                Err(error)
            }
        }
    }

    async fn write_status(&self, ds: &DaemonSet, status: DaemonSetStatus) -> Result<(), Error> {
        if ds.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut wanted = ds.clone();
        wanted.status = Some(status);
        let api = self.context.api::<DaemonSet>(&ds.namespace().unwrap_or_default());
        api.replace_status(&ds.name_any(), &PostParams::default(), &wanted)
            .await
            .if_there("write a DaemonSet's status")?;
        Ok(())
    }

    fn history(&self, ds: &DaemonSet) -> Vec<Arc<ControllerRevision>> {
        let uid = ds.uid();
        let mut all = self.context.revisions.in_namespace(&ds.namespace().unwrap_or_default());
        all.retain(|revision| is_controlled_by(&revision.metadata, uid.as_deref()));
        all.sort_by_key(|revision| revision.revision);
        all
    }

    /// The hash of the present template's ControllerRevision; `None` when it was just written and will come by the watch.
    async fn present_revision(
        &self,
        ds: &DaemonSet,
        history: &[Arc<ControllerRevision>],
    ) -> Result<Option<String>, Error> {
        let data = revision::data(ds)?;
        let next = history.last().map_or(0, |last| last.revision) + 1;
        let api = self
            .context
            .api::<ControllerRevision>(&ds.namespace().unwrap_or_default());
        // The newest of equal ones is the present one: there are several only if two controllers ran.
        let Some(present) = history.iter().rev().find(|revision| revision::is(revision, &data)) else {
            let made = revision::make(ds, &data, next);
            return match api.create(&PostParams::default(), &made).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
                    self.collide(ds, &made.name_any(), &data).await?;
                    Ok(None)
                }
                Err(error) => Err(error).doing("create a ControllerRevision"),
            };
        };
        if present.revision + 1 != next {
            let patch = json!({"revision": next});
            api.patch(&present.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                .await
                .if_there("renumber a ControllerRevision")?;
            return Ok(None);
        }
        Ok(Some(revision::hash_of(present)))
    }

    /// The name of a new revision is taken: by ourselves, or by another template with the same hash.
    async fn collide(&self, ds: &DaemonSet, name: &str, data: &serde_json::Value) -> Result<(), Error> {
        let api = self
            .context
            .api::<ControllerRevision>(&ds.namespace().unwrap_or_default());
        let there = api.get_opt(name).await.doing("get a ControllerRevision")?;
        let ours = there
            .as_ref()
            .is_some_and(|r| is_controlled_by(&r.metadata, ds.uid().as_deref()) && revision::is(r, data));
        if ours {
            return Ok(());
        }
        let mut status = ds.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(ds, status).await
    }

    /// Deletes revisions beyond the limit that no pod is of.
    async fn prune(
        &self,
        ds: &DaemonSet,
        history: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
        hash: &str,
    ) -> Result<(), Error> {
        let limit = ds.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        let live: BTreeMap<_, _> = pods
            .iter()
            .map(|pod| (revision::hash_label(&pod.metadata), ()))
            .collect();
        let old: Vec<_> = history
            .iter()
            .filter(|revision| {
                let hash_of = revision::hash_of(revision);
                hash_of != hash && !live.contains_key(&Some(hash_of))
            })
            .collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for revision in old.into_iter().take(surplus) {
            let api = self
                .context
                .api::<ControllerRevision>(&ds.namespace().unwrap_or_default());
            api.delete(&revision.name_any(), &DeleteParams::default())
                .await
                .if_there("delete an old ControllerRevision")?;
        }
        Ok(())
    }
}

/// Nodes by name.
type Nodes<'a> = BTreeMap<String, &'a Arc<Node>>;
