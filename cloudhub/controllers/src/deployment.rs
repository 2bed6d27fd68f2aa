//! Deployments: a ReplicaSet per pod template, and the way from one to the next.
//!
//! * Deployments, ReplicaSets, pods → queue (the Deployment's key) → claim ReplicaSets → the template's ReplicaSet, found or
//!   made, with its revision → [`plan`] (sizes) → patches → [`status`]
//!
//! As in kube-controller-manager: revisions and history are annotations of the ReplicaSets, `kubectl rollout undo` and
//! `restart` are changes of the template.

mod plan;
mod revision;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::Cache;
use crate::pods::{self, controller_of, is_controlled_by, is_deleting};
use crate::queue::{Key, Queue, Reconciled, work};
use crate::replicaset::reason;
use crate::selector;

use plan::Size;
use revision::HASH_LABEL;

/// Deployments reconciled at once.
const WORKERS: usize = 4;
/// Old ReplicaSets that are kept when the spec does not say.
const HISTORY: usize = 10;
/// A ReplicaSet that we just wrote shows in the watch within this; until then its Deployment is left alone.
const SETTLE: Duration = Duration::from_millis(500);

struct Controller {
    context: Arc<Context>,
}

/// A Deployment with its ReplicaSets, oldest first.
struct Rollout {
    deployment: Arc<Deployment>,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Rollout {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let to = Arc::clone(&queue);
    informers.deployments.on(move |change| to.add(Key::of(change.object())));
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.replica_sets.on(move |change| {
        for rs in [Some(change.object()), change.before()].into_iter().flatten() {
            owners_of(&by, rs).into_iter().for_each(|key| to.add(key));
        }
    });
    // A Recreate rollout waits for the old pods' end, which the ReplicaSets do not show.
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.pods.on(move |change| {
        let pod = change.object();
        let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        let key = Key::new(pod.namespace().unwrap_or_default(), &owner.name);
        if let Some(rs) = by.replica_sets.by_key(&key)
            && (is_deleting(&pod.metadata) || pods::is_finished(pod))
        {
            owners_of(&by, &rs).into_iter().for_each(|key| to.add(key));
        }
    });
    let controller = Arc::new(Controller {
        context: Arc::clone(context),
    });
    tasks.add(
        "deployment",
        work("deployment", queue, WORKERS, move |key| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        }),
    );
}

/// The Deployments that must look at `rs`.
fn owners_of(context: &Context, rs: &ReplicaSet) -> Vec<Key> {
    let namespace = rs.namespace().unwrap_or_default();
    if let Some(owner) = controller_of(&rs.metadata) {
        let ours = owner.kind == "Deployment";
        return ours.then(|| Key::new(namespace, &owner.name)).into_iter().collect();
    }
    let labels = pods::labels(&rs.metadata);
    let deployments = context.deployments.in_namespace(&namespace);
    deployments
        .iter()
        .filter(|d| d.spec.as_ref().is_some_and(|s| selector::matches(&s.selector, &labels)))
        .map(|d| Key::of(&**d))
        .collect()
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Reconciled {
        let Some(deployment) = self.context.deployments.by_key(key) else {
            return Ok(None);
        };
        let sets = self.claim(&deployment).await?;
        let (new, old) = revision::split(&deployment, sets);
        let mut rollout = Rollout { deployment, new, old };
        if is_deleting(&rollout.deployment.metadata) {
            return self.write_status(&rollout, status::Progress::Unchanged).await;
        }
        if plan::is_paused(&rollout.deployment) {
            let progress = self.paused(&rollout).await?;
            return self.write_status(&rollout, progress).await;
        }
        if let Some(after) = self.prepare_new(&mut rollout).await? {
            return Ok(Some(after));
        }
        let mut sizes = plan::sizes(&rollout.deployment, rollout.new.as_deref(), &rollout.old);
        if plan::recreates(&rollout.deployment) && self.old_pods_remain(&rollout) {
            sizes.retain(|size| size.to < plan::replicas_of(&size.set));
        }
        if !sizes.is_empty() {
            self.resize(&rollout, sizes).await?;
        } else if status::is_complete(&rollout.deployment, &self.observed(&rollout)) {
            self.prune(&rollout).await?;
        }
        self.write_status(&rollout, status::Progress::Rollout).await
    }

    /// A paused Deployment is scaled but not rolled.
    async fn paused(&self, rollout: &Rollout) -> Result<status::Progress, Error> {
        let sizes = plan::scaled(&rollout.deployment, rollout.new.as_deref(), &rollout.old);
        self.resize(rollout, sizes.unwrap_or_default()).await?;
        Ok(status::Progress::Unchanged)
    }

    /// The ReplicaSets of `deployment`: adopts orphans that match, releases its own that match no more.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let Some(spec) = &deployment.spec else {
            return Ok(Vec::new());
        };
        let uid = deployment.uid();
        let mut claimed = Vec::new();
        for rs in self
            .context
            .replica_sets
            .in_namespace(&deployment.namespace().unwrap_or_default())
        {
            let matching =
                !selector::is_empty(&spec.selector) && selector::matches(&spec.selector, &pods::labels(&rs.metadata));
            let mut owners = rs.metadata.owner_references.clone().unwrap_or_default();
            if is_controlled_by(&rs.metadata, uid.as_deref()) {
                if matching || is_deleting(&deployment.metadata) {
                    claimed.push(rs);
                    continue;
                }
                owners.retain(|owner| Some(&owner.uid) != uid.as_ref());
                self.set_owners(&rs, &owners).await?;
            } else if matching
                && controller_of(&rs.metadata).is_none()
                && !is_deleting(&rs.metadata)
                && !is_deleting(&deployment.metadata)
            {
                owners.push(pods::reference(deployment));
                self.set_owners(&rs, &owners).await?;
                claimed.push(rs);
            }
        }
        claimed.sort_by_key(|rs| (pods::created(&rs.metadata), rs.name_any()));
        Ok(claimed)
    }

    async fn set_owners(
        &self,
        rs: &ReplicaSet,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
    ) -> Result<(), Error> {
        let patch = json!({"metadata": {
            "uid": rs.uid(),
            "resourceVersion": rs.resource_version(),
            "ownerReferences": owners,
        }});
        self.patch_set(rs, patch).await
    }

    async fn patch_set(&self, rs: &ReplicaSet, patch: serde_json::Value) -> Result<(), Error> {
        let api = self.context.api::<ReplicaSet>(&rs.namespace().unwrap_or_default());
        api.patch(&rs.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .if_there("patch a ReplicaSet")?;
        Ok(())
    }

    /// Makes the template's ReplicaSet or brings its annotations up to date. When something was written, says when to look
    /// again at the latest: the watch shows it sooner.
    async fn prepare_new(&self, rollout: &mut Rollout) -> Result<Option<Duration>, Error> {
        let deployment = &rollout.deployment;
        let revision = revision::highest(&rollout.old) + 1;
        let Some(new) = &rollout.new else {
            if plan::recreates(deployment) && self.old_pods_remain(rollout) {
                return Ok(None);
            }
            return self.create_new(rollout, revision).await.map(Some);
        };
        let annotations = revision::annotations(deployment, Some(new), revision);
        let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let has = new.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let current = revision::of(&annotations);
        if new.annotations() != &annotations || min_ready != has {
            let patch = json!({
                "metadata": {"annotations": revision::changes(new.annotations(), &annotations)},
                "spec": {"minReadySeconds": min_ready},
            });
            self.patch_set(new, patch).await?;
        }
        self.set_revision(deployment, current).await?;
        Ok(None)
    }

    async fn set_revision(&self, deployment: &Deployment, revision: i64) -> Result<(), Error> {
        let revision = revision.to_string();
        if deployment.annotations().get(revision::REVISION) == Some(&revision) {
            return Ok(());
        }
        let mut wanted = deployment.clone();
        wanted.annotations_mut().insert(revision::REVISION.into(), revision);
        let api = self
            .context
            .api::<Deployment>(&deployment.namespace().unwrap_or_default());
        api.replace(&deployment.name_any(), &PostParams::default(), &wanted)
            .await
            .if_there("write a Deployment's revision")?;
        Ok(())
    }

    /// Recreate: whether pods of old templates still run.
    fn old_pods_remain(&self, rollout: &Rollout) -> bool {
        let namespace = rollout.deployment.namespace().unwrap_or_default();
        let old: Vec<_> = rollout.old.iter().filter_map(|rs| rs.uid()).collect();
        let pods: Vec<Arc<Pod>> = self.context.pods.in_namespace(&namespace);
        pods.iter().any(|pod| {
            !pods::is_finished(pod) && controller_of(&pod.metadata).is_some_and(|owner| old.contains(&owner.uid))
        })
    }

    async fn create_new(&self, rollout: &Rollout, revision: i64) -> Result<Duration, Error> {
        let deployment = &rollout.deployment;
        let rs = new_set(rollout, revision);
        let name = rs.name_any();
        let api = self
            .context
            .api::<ReplicaSet>(&deployment.namespace().unwrap_or_default());
        let recorder = self.context.recorder.of("deployment-controller");
        match api.create(&PostParams::default(), &rs).await {
            Ok(made) => {
                let size = made.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                if size > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {size}");
                    recorder.normal(&**deployment, "ScalingReplicaSet", message);
                }
                self.write_status(rollout, status::Progress::Created(name)).await?;
                self.set_revision(deployment, revision).await?;
                Ok(SETTLE)
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
                let there = api.get_opt(&name).await.doing("get a ReplicaSet")?;
                let ours = there.is_some_and(|rs| {
                    is_controlled_by(&rs.metadata, deployment.uid().as_deref()) && revision::same(deployment, &rs)
                });
                if !ours {
                    self.write_status(rollout, status::Progress::Collided).await?;
                }
                Ok(SETTLE)
            }
            Err(error) => {
                let error = Err::<(), _>(error)
                    .doing("create a ReplicaSet")
                    .err()
                    .unwrap_or_else(unreachable);
                let message = format!("Failed to create new replica set {name:?}: {}", reason(&error));
                recorder.warning(&**deployment, "ReplicaSetCreateError", message);
                self.write_status(rollout, status::Progress::Refused(reason(&error)))
                    .await?;
                Err(error)
            }
        }
    }

    async fn resize(&self, rollout: &Rollout, sizes: Vec<Size>) -> Result<(), Error> {
        let deployment = &rollout.deployment;
        let recorder = self.context.recorder.of("deployment-controller");
        for size in sizes {
            let annotations = revision::size_annotations(deployment);
            // The version makes a decision on a cache that is behind fail instead of overshooting.
            let patch = json!({
                "metadata": {"annotations": annotations, "resourceVersion": size.set.resource_version()},
                "spec": {"replicas": size.to},
            });
            self.patch_set(&size.set, patch).await?;
            let from = plan::replicas_of(&size.set);
            if size.to != from {
                let way = if size.to > from { "up" } else { "down" };
                let message = format!(
                    "Scaled {way} replica set {} from {from} to {}",
                    size.set.name_any(),
                    size.to
                );
                recorder.normal(&**deployment, "ScalingReplicaSet", message);
            }
        }
        Ok(())
    }

    /// Deletes old ReplicaSets beyond the history limit.
    async fn prune(&self, rollout: &Rollout) -> Result<(), Error> {
        let limit = rollout.deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
        let limit = limit.map_or(HISTORY, |limit| usize::try_from(limit).unwrap_or(0));
        for rs in revision::beyond(&rollout.old, limit) {
            let api = self.context.api::<ReplicaSet>(&rs.namespace().unwrap_or_default());
            let params = DeleteParams::background().preconditions(Preconditions {
                uid: rs.uid(),
                resource_version: rs.resource_version(),
            });
            api.delete(&rs.name_any(), &params)
                .await
                .if_there("delete an old ReplicaSet")?;
        }
        Ok(())
    }

    fn observed(&self, rollout: &Rollout) -> DeploymentStatus {
        status::count(&rollout.deployment, rollout.new.as_deref(), &rollout.all())
    }

    async fn write_status(&self, rollout: &Rollout, progress: status::Progress) -> Reconciled {
        let deployment = &rollout.deployment;
        let now = Timestamp::now();
        let counted = self.observed(rollout);
        let status = status::with_progress(rollout, counted, &progress, now);
        let again = status::deadline(deployment, &status, now);
        if deployment.status.as_ref() != Some(&status) {
            let mut wanted = (**deployment).clone();
            wanted.status = Some(status);
            let api = self
                .context
                .api::<Deployment>(&deployment.namespace().unwrap_or_default());
            api.replace_status(&deployment.name_any(), &PostParams::default(), &wanted)
                .await
                .if_there("write a Deployment's status")?;
        }
        Ok(again)
    }
}

fn unreachable() -> Error {
    Error::Invalid("an error without an error".into())
}

/// The ReplicaSet of the Deployment's present template.
fn new_set(rollout: &Rollout, revision: i64) -> ReplicaSet {
    let deployment = &*rollout.deployment;
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = revision::hash(deployment);
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_with(ObjectMeta::default);
    meta.labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector: LabelSelector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let mut annotations = revision::annotations(deployment, None, revision);
    annotations.extend(revision::size_annotations(deployment));
    let name = deployment.name_any();
    let base = name.get(..name.len().min(252 - hash.len())).unwrap_or(&name);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{base}-{hash}")),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![pods::reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(plan::first_size(deployment, &rollout.old)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}
