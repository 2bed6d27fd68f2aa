//! What several controllers ask of pods, conditions and owners.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use rand::Rng;
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Error};

/// The reference of `meta`'s controller.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// Whether the controller of `meta` is the object with `uid`.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    uid.is_some() && controller_of(meta).map(|owner| owner.uid.as_str()) == uid
}

/// The reference by which `object` controls its children.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(&pod.metadata)
}

pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(crate) fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    pod_condition(pod, "Ready")
        .filter(|condition| condition.status == "True")?
        .last_transition_time
        .as_ref()
        .map(|time| time.0)
}

/// Ready for at least `min_ready` seconds.
pub(crate) fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    is_ready(pod) && (min_ready <= 0 || available_in(pod, min_ready, now).is_some_and(|left| left.is_zero()))
}

/// How long a ready pod needs until it is available; zero when it is.
pub(crate) fn available_in(pod: &Pod, min_ready: i32, now: Timestamp) -> Option<Duration> {
    let at = ready_since(pod)? + SignedDuration::from_secs(i64::from(min_ready));
    Some(until(at, now))
}

/// The time from `now` to `at`, zero when it has passed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.duration_since(now).max(SignedDuration::ZERO).unsigned_abs()
}

/// Seconds after which something is looked at again: the earliest of the two.
pub(crate) fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations()
        .get("controller.kubernetes.io/pod-deletion-cost")
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

/// Orders `pods` so that those which are to be deleted first come first
/// (ActivePodsWithRanks of k8s.io/kubernetes/pkg/controller).
pub(crate) fn sort_for_deletion<P: AsRef<Pod>>(pods: &mut [P]) {
    let mut on_node: HashMap<String, usize> = HashMap::new();
    for pod in pods.iter() {
        *on_node
            .entry(node_of(pod.as_ref()).unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    pods.sort_by_cached_key(|pod| {
        let pod = pod.as_ref();
        let order = match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        (
            node_of(pod).is_some(),
            order,
            is_ready(pod),
            deletion_cost(pod),
            Reverse(on_node.get(node_of(pod).unwrap_or_default()).copied()),
            Reverse(ready_since(pod)),
            Reverse(restarts(pod)),
            Reverse(created(&pod.metadata)),
        )
    });
}

/// When the object was made.
pub(crate) fn created(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.creation_timestamp.as_ref().map(|time| time.0)
}

/// A pod of `template` named `base` plus a random suffix, owned by `owner`.
pub(crate) fn from_template(template: &PodTemplateSpec, namespace: &str, base: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let base = base.get(..base.len().min(247)).unwrap_or(base);
    let base = format!("{base}-");
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{base}{}", suffix())),
            generate_name: Some(base),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The letters of generated names: none that spell words, as in apimachinery's rand.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

fn suffix() -> String {
    let mut rng = rand::rng();
    (0..5)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}

/// `number` in the letters of generated names.
pub(crate) fn safe(number: u32) -> String {
    number
        .to_string()
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}

/// The FNV-1a hash that names a template's ReplicaSet or ControllerRevision.
pub(crate) fn hash(text: &str, collisions: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |byte: u8| hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    text.bytes().for_each(&mut feed);
    if let Some(count) = collisions {
        count.to_le_bytes().into_iter().for_each(&mut feed);
    }
    safe(hash)
}

/// A whole or a percentage of `total` (`IntOrString`).
pub(crate) fn portion(
    value: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString,
    total: i32,
    round_up: bool,
) -> i32 {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match value {
        IntOrString::Int(whole) => *whole,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            let part = if round_up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}

/// `len` as the API counts.
pub(crate) fn count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

/// Whether setting `condition` would change `pod`, beside its time.
pub(crate) fn condition_changes(pod: &Pod, condition: &PodCondition) -> bool {
    pod_condition(pod, &condition.type_).is_none_or(|has| {
        has.status != condition.status || has.reason != condition.reason || has.message != condition.message
    })
}

/// Sets one condition of `pod`: by a strategic patch, so that the others, which kubelet owns, are left alone.
pub(crate) async fn set_condition(context: &Context, pod: &Pod, condition: PodCondition) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
    context
        .api::<Pod>(&pod.namespace().unwrap_or_default())
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .if_there("write a pod's condition")?;
    Ok(())
}

/// `DisruptionTarget`, set before a controller takes a pod away.
pub(crate) fn disruption(reason: &str, message: String, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    }
}

/// The labels of `meta`, never absent.
pub(crate) fn labels(meta: &ObjectMeta) -> BTreeMap<String, String> {
    meta.labels.clone().unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use serde_json::Value;

    /// A pod from JSON.
    pub(crate) fn pod(value: Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    /// A pod with a name, node, phase and whether it is ready.
    pub(crate) fn simple(name: &str, node: Option<&str>, phase: &str, ready: bool) -> Pod {
        pod(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
    }

    #[test]
    fn unassigned_then_pending_then_unready_pods_are_deleted_first() {
        let mut pods = vec![
            Box::new(simple("ready", Some("n1"), "Running", true)),
            Box::new(simple("unready", Some("n1"), "Running", false)),
            Box::new(simple("pending", Some("n1"), "Pending", false)),
            Box::new(simple("unassigned", None, "Pending", false)),
        ];
        sort_for_deletion(&mut pods);
        let names: Vec<_> = pods.iter().map(|p| p.name_any()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "ready"]);
    }

    #[test]
    fn of_ready_pods_the_one_on_the_fuller_node_goes_first() {
        let mut pods = vec![
            Box::new(simple("a", Some("n1"), "Running", true)),
            Box::new(simple("b", Some("n2"), "Running", true)),
            Box::new(simple("c", Some("n2"), "Running", true)),
        ];
        sort_for_deletion(&mut pods);
        assert_eq!(node_of(&pods[2]), Some("n1"));
    }

    #[test]
    fn a_pod_is_available_after_its_minimum_time() {
        let pod = simple("a", Some("n1"), "Running", true);
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert!(is_available(&pod, 0, at("2026-01-01T00:00:00Z")));
        assert!(!is_available(&pod, 10, at("2026-01-01T00:00:09Z")));
        assert!(is_available(&pod, 10, at("2026-01-01T00:00:10Z")));
        assert_eq!(
            available_in(&pod, 10, at("2026-01-01T00:00:04Z")),
            Some(Duration::from_secs(6))
        );
    }

    #[test]
    fn percentages_round_as_asked() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(portion(&quarter, 3, true), 1);
        assert_eq!(portion(&quarter, 3, false), 0);
        assert_eq!(portion(&IntOrString::Int(2), 3, false), 2);
    }

    #[test]
    fn a_hash_is_a_label_value_and_depends_on_collisions() {
        let first = hash("{}", None);
        assert!(!first.is_empty() && first.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert_ne!(first, hash("{}", Some(1)));
    }
}
