//! PodDisruptionBudget, and what an eviction must ask of it.
//!
//! The subresource `pods/eviction` goes: [`skips_budgets`]? → delete. Else the budgets of the namespace that [`covers`] the pod →
//! [`may_evict`] → store the budget that it gives, put the condition of [`mark_evicted`] on the pod, delete.

use serde_json::{Value, json};

use crate::kinds::fields::{At, label_selector};
use crate::kinds::pods::set_condition;
use crate::kinds::workloads::{at_most_all, number_or_percent};
use crate::kinds::{Row, Strategy, column, number};
use crate::object::{default, is_deleting, items, map, name, namespace, now, text, timestamp};
use crate::selector::Labels;
use crate::status::{Cause, Errors, Status};

pub(super) const ROWS: &[Row] = &[Row {
    group: "policy",
    version: "v1",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    categories: &[],
    namespaced: true,
    storage: "poddisruptionbudgets",
    status: true,
    scale: false,
    generation: true,
    selectable: &[],
    columns: &[
        column("Min Available"),
        column("Max Unavailable"),
        number("Allowed Disruptions"),
    ],
    strategy: &Budgets,
}];

/// Counts that a budget's status always has.
const COUNTS: [&str; 4] = ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"];

/// More evictions than this are not begun before the controller has confirmed some.
const MOST_DISRUPTED: usize = 2000;

const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

#[derive(Debug)]
struct Budgets;

impl Strategy for Budgets {
    fn default(&self, object: &mut Value) {
        map(object, "spec");
        let status = map(object, "status");
        COUNTS.iter().for_each(|count| default(status, count, 0));
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = COUNTS.iter().map(|count| ((*count).to_owned(), json!(0))).collect();
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = At::root(object).child("spec");
        let (least, most) = (spec.child("minAvailable"), spec.child("maxUnavailable"));
        if least.is_set() && most.is_set() {
            // Shown as the real server's own type has it.
            let shown = json!({"MinAvailable": least.value, "Selector": spec.child("selector").value, "MaxUnavailable": most.value,
                               "UnhealthyPodEvictionPolicy": spec.child("unhealthyPodEvictionPolicy").value});
            errors.invalid(&spec.path, &shown, "minAvailable and maxUnavailable cannot be both set");
        }
        for bound in [least, most].into_iter().filter(At::is_set) {
            number_or_percent(errors, &bound);
            at_most_all(errors, &bound);
        }
        let selector = spec.child("selector");
        label_selector(errors, &selector.path, selector.clone().set().map(|s| s.value));
        if let Some(policy) = spec.child("unhealthyPodEvictionPolicy").set() {
            policy.one_of(errors, &["AlwaysAllow", "IfHealthyBudget"]);
        }
    }

    fn validate_status(&self, object: &Value, _current: &Value, errors: &mut Errors) {
        let status = At::root(object).child("status");
        for count in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            status.child(count).non_negative(errors);
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let bound = |field: &str| match object.pointer(&format!("/spec/{field}")) {
            None | Some(Value::Null) => json!("N/A"),
            Some(Value::String(percent)) => json!(percent),
            Some(number) => json!(number.to_string()),
        };
        vec![
            bound("minAvailable"),
            bound("maxUnavailable"),
            json!(count(object, "disruptionsAllowed")),
        ]
    }
}

fn count(budget: &Value, field: &str) -> i64 {
    let pointer = format!("/status/{field}");
    budget.pointer(&pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// What a budget says to an eviction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Eviction {
    /// The pod may go once this budget, which counts it, is stored: if it was changed meanwhile, ask again. A dry run stores nothing.
    Counted(Box<Value>),
    /// The pod may go uncounted, because it is not ready; but only as it is: its resourceVersion is a precondition of the deletion,
    /// and where that fails the answer is [`still_processing`].
    Unready,
    /// It may not.
    Refused(Status),
}

/// Whether the pod may be deleted without asking a budget: it does not run yet, has ended, or is going already.
pub(crate) fn skips_budgets(pod: &Value) -> bool {
    is_deleting(pod) || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending")
}

/// Whether the budget is about this pod.
pub(crate) fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = Labels::of_object(budget.pointer("/spec/selector").unwrap_or(&Value::Null));
    namespace(budget) == namespace(pod) && selector.is_ok_and(|s| s.matches_map(pod.pointer("/metadata/labels")))
}

/// The refusal where more than one budget covers the pod.
pub(crate) fn too_many_budgets() -> Status {
    let words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    Status::new(500, "", words)
}

fn refusal(seconds: u32, words: String) -> Status {
    Status::too_many_requests(VIOLATES, seconds).with_causes(vec![Cause {
        reason: "DisruptionBudget",
        message: words,
        field: String::new(),
    }])
}

/// The refusal where the budget is not yet what it will be.
pub(crate) fn still_processing(budget: &Value) -> Status {
    let words = format!(
        "The disruption budget {} is still being processed by the server.",
        name(budget)
    );
    refusal(10, words)
}

/// Whether `budget`, which covers `pod`, lets it go.
pub(crate) fn may_evict(budget: &Value, pod: &Value) -> Eviction {
    let ready = items(pod, "/status/conditions").iter().any(|c| {
        let (kind, status) = (text(c, "/type"), text(c, "/status"));
        kind == "Ready" && status == "True"
    });
    let (healthy, wanted) = (count(budget, "currentHealthy"), count(budget, "desiredHealthy"));
    let always = text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
    if !ready && (always || healthy >= wanted && wanted > 0) {
        return Eviction::Unready;
    }
    let generation = budget.pointer("/metadata/generation").and_then(Value::as_i64);
    if count(budget, "observedGeneration") < generation.unwrap_or_default() {
        return Eviction::Refused(still_processing(budget));
    }
    let forbidden =
        |why: &str| Eviction::Refused(Status::forbidden("policy", "poddisruptionbudget", name(budget), why));
    let allowed = count(budget, "disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Eviction::Refused(refusal(0, none_allowed(budget)));
    }
    let mut counted = budget.clone();
    let status = map(&mut counted, "status");
    status.insert("disruptionsAllowed".into(), json!(allowed - 1));
    let pods = status.entry("disruptedPods").or_insert_with(|| json!({}));
    if !pods.is_object() {
        *pods = json!({});
    }
    pods[name(pod)] = json!(timestamp(now()));
    if allowed == 1 {
        insufficient(&mut counted);
    }
    Eviction::Counted(Box::new(counted))
}

fn none_allowed(budget: &Value) -> String {
    let conditions = items(budget, "/status/conditions");
    let condition = conditions.iter().find(|c| text(c, "/type") == "DisruptionAllowed");
    let (reason, message) = condition
        .filter(|c| text(c, "/status") == "False")
        .map_or(("", ""), |c| (text(c, "/reason"), text(c, "/message")));
    let (healthy, wanted) = (count(budget, "currentHealthy"), count(budget, "desiredHealthy"));
    let name = name(budget);
    if reason == "SyncFailed" && !message.is_empty() {
        let why = "does not allow evicting pods currently because it failed sync";
        format!("The disruption budget {name} {why}: {message}")
    } else if healthy <= wanted {
        format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently")
    } else if message.is_empty() {
        format!("The disruption budget {name} does not allow evicting pods currently")
    } else {
        format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {message}")
    }
}

/// The condition of a budget that allows nothing more.
fn insufficient(budget: &mut Value) {
    let generation = count(budget, "observedGeneration");
    let status = map(budget, "status");
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let mut condition = json!({"type": "DisruptionAllowed", "status": "False", "observedGeneration": generation,
        "lastTransitionTime": timestamp(now()), "reason": "InsufficientPods", "message": ""});
    match list.iter_mut().find(|c| text(c, "/type") == "DisruptionAllowed") {
        Some(before) => {
            if text(before, "/status") == "False" {
                condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
            }
            *before = condition;
        }
        None => list.push(condition),
    }
}

/// Says on the pod why it goes.
pub(crate) fn mark_evicted(pod: &mut Value) {
    set_condition(
        pod,
        json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
               "message": "Eviction API: evicting"}),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "namespace": "n", "generation": 1},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1}})
    }

    fn pod(ready: &str) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "web"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn a_budget_that_allows_nothing_refuses_in_the_real_words() {
        let Eviction::Refused(status) = may_evict(&budget(0), &pod("True")) else {
            panic!("it was let go")
        };
        let answer = status.to_json();
        assert_eq!(answer["code"], 429);
        assert_eq!(answer["message"], VIOLATES);
        assert_eq!(answer["details"]["causes"][0]["reason"], "DisruptionBudget");
        assert_eq!(
            answer["details"]["causes"][0]["message"],
            "The disruption budget b needs 1 healthy pods and has 1 currently"
        );
        let mut stale = budget(1);
        stale["metadata"]["generation"] = json!(2);
        assert_eq!(
            may_evict(&stale, &pod("True")),
            Eviction::Refused(still_processing(&stale))
        );
    }

    #[test]
    fn an_allowed_eviction_is_counted() {
        let Eviction::Counted(after) = may_evict(&budget(1), &pod("True")) else {
            panic!("it was not counted")
        };
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert!(after["status"]["disruptedPods"]["p"].is_string());
        assert_eq!(after["status"]["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_uncounted_from_a_healthy_application() {
        assert_eq!(may_evict(&budget(0), &pod("False")), Eviction::Unready);
        let mut ill = budget(0);
        ill["status"]["currentHealthy"] = json!(0);
        assert!(matches!(may_evict(&ill, &pod("False")), Eviction::Refused(_)));
        ill["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert_eq!(may_evict(&ill, &pod("False")), Eviction::Unready);
    }

    #[test]
    fn a_budget_covers_the_pods_that_it_selects() {
        assert!(covers(&budget(1), &pod("True")));
        let mut other = budget(1);
        other["metadata"]["namespace"] = json!("m");
        assert!(!covers(&other, &pod("True")));
        other = budget(1);
        other["spec"]["selector"] = json!({});
        assert!(covers(&other, &pod("True")), "an empty selector is about every pod");
        other["spec"].as_object_mut().unwrap().remove("selector");
        assert!(!covers(&other, &pod("True")), "none about no pod");
        assert!(!skips_budgets(&pod("True")));
    }

    #[test]
    fn a_budget_has_one_bound() {
        let both = json!({"spec": {"minAvailable": 1, "maxUnavailable": "150%"}});
        let mut errors = Errors::default();
        Budgets.validate(&both, &mut errors);
        let words: Vec<&str> = errors.causes().iter().map(|c| c.message.as_str()).collect();
        assert!(words[0].ends_with("minAvailable and maxUnavailable cannot be both set"));
        assert_eq!(words[1], "Invalid value: \"150%\": must not be greater than 100%");
        assert_eq!(Budgets.cells(&budget(2)), [json!("1"), json!("N/A"), json!(2)]);
    }
}
