//! ReplicaSets: as many pods as asked for.
//!
//! * pods, ReplicaSets → queue (the ReplicaSet's key) → claim pods → [`plan`] → creations or deletions → status

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::expectations::Expectations;
use crate::informer::{Cache, Change};
use crate::pods::{self, controller_of, count, is_active, is_deleting};
use crate::queue::{Key, Queue, Reconciled, work};
use crate::selector;

/// ReplicaSets reconciled at once.
const WORKERS: usize = 4;
/// Pods that one reconciliation makes or deletes at most, as kube-controller-manager's burst.
const BURST: usize = 500;
/// Requests in flight for one ReplicaSet.
const PARALLEL: usize = 8;

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
    informers
        .replica_sets
        .on(move |change| to.add(Key::of(change.object())));
    let (to, by) = (Arc::clone(&queue), Arc::clone(&controller));
    informers.pods.on(move |change| {
        by.expectations
            .seen(change.object(), matches!(change, Change::Deleted(_)));
        for pod in [Some(change.object()), change.before()].into_iter().flatten() {
            by.owners_of(pod).into_iter().for_each(|key| to.add(key));
        }
    });
    tasks.add(
        "replicaset",
        work("replicaset", queue, WORKERS, move |key| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(&key).await }
        }),
    );
}

impl Controller {
    /// The ReplicaSets that must look at `pod`: its own, or those that may adopt it.
    fn owners_of(&self, pod: &Pod) -> Vec<Key> {
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(owner) = controller_of(&pod.metadata) {
            let ours = owner.kind == "ReplicaSet";
            return ours.then(|| Key::new(namespace, &owner.name)).into_iter().collect();
        }
        let labels = pods::labels(&pod.metadata);
        let sets = self.context.replica_sets.in_namespace(&namespace);
        sets.iter()
            .filter(|rs| {
                rs.spec
                    .as_ref()
                    .is_some_and(|s| selector::matches(&s.selector, &labels))
            })
            .map(|rs| Key::of(&**rs))
            .collect()
    }

    async fn reconcile(&self, key: &Key) -> Reconciled {
        let Some(rs) = self.context.replica_sets.by_key(key) else {
            return Ok(None);
        };
        let owner = rs.uid().unwrap_or_default();
        let pods = self.claim(&rs).await?;
        let mut failure = None;
        let wait = self.expectations.wait(&owner);
        if is_deleting(&rs.metadata) {
            self.expectations.forget(&owner);
        } else if wait.is_none() {
            failure = self.execute(&rs, plan(&rs, &pods)).await.err();
        }
        let now = Timestamp::now();
        let status = status(&rs, &pods, failure.as_ref(), now);
        self.write_status(&rs, status).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(pods::sooner(wait, next_look(&rs, &pods, now))),
        }
    }

    /// The pods of `rs`: adopts orphans that match, releases its own that match no more.
    async fn claim(&self, rs: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
        let namespace = rs.namespace().unwrap_or_default();
        let uid = rs.uid();
        let mut claimed = Vec::new();
        for pod in self.context.pods.in_namespace(&namespace) {
            match claim_of(rs, &pod) {
                Claim::Ours => claimed.push(pod),
                Claim::Not => {}
                Claim::Adopt => {
                    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
                    owners.push(pods::reference(rs));
                    if self.set_owners(&pod, &owners).await? {
                        claimed.push(pod);
                    }
                }
                Claim::Release => {
                    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
                    owners.retain(|owner| Some(&owner.uid) != uid.as_ref());
                    self.set_owners(&pod, &owners).await?;
                }
            }
        }
        Ok(claimed)
    }

    /// Whether the pod was still there.
    async fn set_owners(
        &self,
        pod: &Pod,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
    ) -> Result<bool, Error> {
        let patch = json!({"metadata": {
            "uid": pod.uid(),
            "resourceVersion": pod.resource_version(),
            "ownerReferences": owners,
        }});
        let api = self.context.api::<Pod>(&pod.namespace().unwrap_or_default());
        let answer = api
            .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .if_there("adopt or release a pod")?;
        Ok(answer.is_some())
    }

    async fn execute(&self, rs: &ReplicaSet, plan: Plan) -> Result<(), Error> {
        let deletions = stream::iter(plan.delete).map(|pod| self.delete(rs, pod));
        let deleted: Vec<_> = deletions.buffer_unordered(PARALLEL).collect().await;
        deleted.into_iter().collect::<Result<(), _>>()?;
        // One first: a quota or an admission that refuses it would refuse the others too.
        if plan.create > 0 {
            self.create(rs).await?;
        }
        let creations = stream::iter(1..plan.create).map(|_| self.create(rs));
        let created: Vec<_> = creations.buffer_unordered(PARALLEL).collect().await;
        created.into_iter().collect()
    }

    async fn create(&self, rs: &ReplicaSet) -> Result<(), Error> {
        let namespace = rs.namespace().unwrap_or_default();
        let owner = rs.uid().unwrap_or_default();
        let template = rs
            .spec
            .as_ref()
            .and_then(|spec| spec.template.clone())
            .unwrap_or_default();
        let pod = pods::from_template(&template, &namespace, &rs.name_any(), pods::reference(rs));
        let name = pod.name_any();
        let recorder = self.context.recorder.of("replicaset-controller");
        self.expectations.creating(&owner, &name);
        let api = self.context.api::<Pod>(&namespace);
        match api.create(&PostParams::default(), &pod).await.doing("create a pod") {
            Ok(_) => {
                recorder.normal(rs, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.failed(&owner, &name);
                if self.is_terminating(&namespace) {
                    return Ok(());
                }
                recorder.warning(rs, "FailedCreate", format!("Error creating: {}", reason(&error)));
                Err(error)
            }
        }
    }

    fn is_terminating(&self, namespace: &str) -> bool {
        let found = self.context.namespaces.by_key(&Key::new("", namespace));
        found.is_none_or(|namespace| is_deleting(&namespace.metadata))
    }

    async fn delete(&self, rs: &ReplicaSet, pod: Arc<Pod>) -> Result<(), Error> {
        let (owner, uid) = (rs.uid().unwrap_or_default(), pod.uid().unwrap_or_default());
        self.expectations.deleting(&owner, &uid);
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        });
        let api = self.context.api::<Pod>(&rs.namespace().unwrap_or_default());
        let recorder = self.context.recorder.of("replicaset-controller");
        let name = pod.name_any();
        match api.delete(&name, &params).await.if_there("delete a pod") {
            Ok(_) => {
                recorder.normal(rs, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.failed(&owner, &uid);
                recorder.warning(rs, "FailedDelete", format!("Error deleting: {}", reason(&error)));
                Err(error)
            }
        }
    }

    async fn write_status(&self, rs: &ReplicaSet, status: ReplicaSetStatus) -> Result<(), Error> {
        if rs.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut wanted = rs.clone();
        wanted.status = Some(status);
        let api = self.context.api::<ReplicaSet>(&rs.namespace().unwrap_or_default());
        api.replace_status(&rs.name_any(), &PostParams::default(), &wanted)
            .await
            .if_there("write a ReplicaSet's status")?;
        Ok(())
    }
}

/// The API's own words for a refusal.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Api { source, .. } => match &**source {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        },
        other => other.chain(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    Adopt,
    Release,
    Not,
}

fn claim_of(rs: &ReplicaSet, pod: &Pod) -> Claim {
    let matching = rs.spec.as_ref().is_some_and(|spec| {
        !selector::is_empty(&spec.selector) && selector::matches(&spec.selector, &pods::labels(&pod.metadata))
    });
    match controller_of(&pod.metadata) {
        Some(owner) if Some(&owner.uid) == rs.metadata.uid.as_ref() => {
            if matching || is_deleting(&rs.metadata) {
                Claim::Ours
            } else {
                Claim::Release
            }
        }
        Some(_) => Claim::Not,
        None if matching && is_active(pod) && !is_deleting(&rs.metadata) => Claim::Adopt,
        None => Claim::Not,
    }
}

/// What to do about the number of pods.
#[derive(Debug, Default)]
struct Plan {
    create: usize,
    delete: Vec<Arc<Pod>>,
}

fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn min_ready(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

fn plan(rs: &ReplicaSet, pods: &[Arc<Pod>]) -> Plan {
    let mut active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let wanted = usize::try_from(replicas(rs)).unwrap_or(0);
    if active.len() <= wanted {
        return Plan {
            create: (wanted - active.len()).min(BURST),
            delete: Vec::new(),
        };
    }
    pods::sort_for_deletion(&mut active);
    let surplus = active.len() - wanted;
    active.truncate(surplus.min(BURST));
    Plan {
        create: 0,
        delete: active,
    }
}

/// When a ready pod becomes available by time alone.
fn next_look(rs: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let least = min_ready(rs);
    pods.iter()
        .filter(|pod| is_active(pod) && !pods::is_available(pod, least, now))
        .filter_map(|pod| pods::available_in(pod, least, now))
        .min()
}

fn status(rs: &ReplicaSet, pods: &[Arc<Pod>], failure: Option<&Error>, now: Timestamp) -> ReplicaSetStatus {
    let template = rs
        .spec
        .as_ref()
        .and_then(|s| s.template.as_ref())
        .and_then(|t| t.metadata.as_ref());
    let wanted = template.map(pods::labels).unwrap_or_default();
    let labelled = |pod: &Pod| {
        let labels = pods::labels(&pod.metadata);
        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).collect();
    let some = |number: usize| Some(count(number)).filter(|number| *number > 0);
    let terminating = pods
        .iter()
        .filter(|pod| is_deleting(&pod.metadata) && !pods::is_finished(pod))
        .count();
    let before = rs.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(active.iter().filter(|pod| labelled(pod)).count()),
        ready_replicas: some(active.iter().filter(|pod| pods::is_ready(pod)).count()),
        available_replicas: some(
            active
                .iter()
                .filter(|pod| pods::is_available(pod, min_ready(rs), now))
                .count(),
        ),
        terminating_replicas: Some(count(terminating)),
        observed_generation: rs.metadata.generation,
        conditions: conditions(before.conditions, failure, now),
    }
}

fn conditions(
    before: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Error>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = before.unwrap_or_default();
    let had = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(error) if !had => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(
                if matches!(
                    error,
                    Error::Api {
                        doing: "delete a pod",
                        ..
                    }
                ) {
                    "FailedDelete"
                } else {
                    "FailedCreate"
                }
                .into(),
            ),
            message: Some(reason(error)),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{pod, simple};
    use serde_json::Value;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .expect("a ReplicaSet")
    }

    fn shared(pods: Vec<Pod>) -> Vec<Arc<Pod>> {
        pods.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn finished_and_terminating_pods_are_replaced() {
        let mut terminating = simple("b", Some("n1"), "Running", true);
        terminating.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        let pods = shared(vec![
            simple("a", Some("n1"), "Running", true),
            terminating,
            simple("c", Some("n1"), "Failed", false),
        ]);
        assert_eq!(plan(&set(3), &pods).create, 2);
        let status = status(&set(3), &pods, None, Timestamp::now());
        assert_eq!((status.replicas, status.terminating_replicas), (1, Some(1)));
        assert_eq!(status.observed_generation, Some(3));
    }

    #[test]
    fn surplus_pods_go_unready_first() {
        let pods = shared(vec![
            simple("a", Some("n1"), "Running", true),
            simple("b", Some("n1"), "Running", false),
        ]);
        let plan = plan(&set(1), &pods);
        assert_eq!(plan.create, 0);
        assert_eq!(plan.delete.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn pods_are_adopted_and_released_by_label() {
        let owned = |labels: Value, owner: Option<&str>| {
            let owners: Vec<_> = owner
                .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true}))
                .into_iter()
                .collect();
            pod(json!({"metadata": {"name": "p", "labels": labels, "ownerReferences": owners}}))
        };
        let web = json!({"app": "web"});
        assert_eq!(claim_of(&set(1), &owned(web.clone(), Some("rs"))), Claim::Ours);
        assert_eq!(claim_of(&set(1), &owned(web.clone(), Some("other"))), Claim::Not);
        assert_eq!(claim_of(&set(1), &owned(web, None)), Claim::Adopt);
        assert_eq!(claim_of(&set(1), &owned(json!({}), Some("rs"))), Claim::Release);
        assert_eq!(claim_of(&set(1), &owned(json!({}), None)), Claim::Not);
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let error = Error::Invalid("no".into());
        let failed = conditions(None, Some(&error), Timestamp::now());
        assert_eq!(failed.as_ref().map(Vec::len), Some(1));
        assert_eq!(conditions(failed, None, Timestamp::now()), None);
    }
}
