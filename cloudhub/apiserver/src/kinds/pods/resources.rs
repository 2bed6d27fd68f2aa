//! What containers ask for: whether it makes sense, and the quality of service that follows from it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kinds::fields::{At, Quantity, is_qualified_name};
use crate::object::items;
use crate::status::Errors;

/// Names without a domain that a container may ask for; `hugepages-*` beside them.
const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Names without a domain that mean something somewhere, but not in a container.
const ELSEWHERE: [&str; 17] = [
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Kubernetes' own, as against a device plugin's.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more may be promised than there is.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && is_qualified_name(&format!("requests.{name}")).is_empty()
}

/// Checks the name of a resource that a container asks for.
fn container_name(errors: &mut Errors, at: &At, name: &str) {
    let complain = |errors: &mut Errors, words: &str| errors.invalid(&at.path, &json!(name), words);
    let wrong = is_qualified_name(name);
    let sound = wrong.is_empty();
    for words in wrong {
        complain(errors, &words);
    }
    if !name.contains('/') {
        let known = CONTAINER.contains(&name) || is_huge_pages(name);
        if sound && !known && !ELSEWHERE.contains(&name) && !name.starts_with("requests.hugepages-") {
            complain(errors, "must be a standard resource type or fully qualified");
        }
        if !known {
            complain(errors, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        complain(errors, "doesn't follow extended resource name standard");
    }
}

/// Checks the name of a resource that a whole pod asks for.
fn pod_name(errors: &mut Errors, at: &At, name: &str) {
    if !matches!(name, "cpu" | "memory") && !is_huge_pages(name) {
        errors.not_supported(&at.path, &json!(name), &["cpu", "hugepages-", "memory"]);
    }
}

fn quantity(errors: &mut Errors, at: &At, name: &str) -> Option<Quantity> {
    let quantity = match Quantity::from_json(at.value) {
        Ok(quantity) => quantity,
        Err(words) => {
            at.invalid(errors, words);
            return None;
        }
    };
    if quantity.is_negative() {
        at.invalid(errors, "must be greater than or equal to 0");
    }
    if is_extended(name) && !quantity.is_whole() {
        at.invalid(errors, "must be an integer");
    }
    if is_huge_pages(name) {
        let size = Quantity::parse(name.trim_start_matches("hugepages-")).ok();
        let divides = size.is_some_and(|s| s.units() > 0 && quantity.units() % s.units() == 0);
        if !divides {
            let words = format!("{} is not positive integer multiple of {name}", quantity.canonical());
            at.invalid(errors, &words);
        }
    }
    Some(quantity)
}

/// Checks the `resources` of a container (or of a pod as a whole).
pub(super) fn validate(errors: &mut Errors, at: &At, whole_pod: bool) {
    let check_name = if whole_pod { pod_name } else { container_name };
    let (limits_at, requests_at) = (at.child("limits"), at.child("requests"));
    let mut limits = BTreeMap::new();
    let mut names = Vec::new();
    for (name, amount) in limits_at.entries() {
        check_name(errors, &amount, name);
        names.push(name);
        if let Some(amount) = quantity(errors, &amount, name) {
            limits.insert(name, amount);
        }
    }
    for (name, amount) in requests_at.entries() {
        check_name(errors, &amount, name);
        names.push(name);
        let Some(request) = quantity(errors, &amount, name) else {
            continue;
        };
        request_within_limit(errors, (&requests_at, &limits_at), (name, &request), limits.get(name));
    }
    for claim in at.child("claims").items() {
        // Claims are of dynamic resource allocation, which is not served: no pod has any.
        let words = "must be one of the names in pod.spec.resourceClaims which is empty";
        errors.not_found_because(&claim.path, claim.child("name").value, words);
    }
    let base = names.iter().any(|n| matches!(*n, "cpu" | "memory"));
    if names.iter().any(|n| is_huge_pages(n)) && !base {
        at.forbidden(errors, "HugePages require cpu or memory");
    }
}

fn request_within_limit(
    errors: &mut Errors,
    (requests, limits): (&At, &At),
    (name, request): (&str, &Quantity),
    limit: Option<&Quantity>,
) {
    let said = json!(request.canonical());
    match limit {
        Some(limit) if request != limit && !may_overcommit(name) => {
            let words = format!("must be equal to {name} limit of {}", limit.canonical());
            errors.invalid(&requests.path, &said, &words);
        }
        Some(limit) if request > limit => {
            let words = format!("must be less than or equal to {name} limit of {}", limit.canonical());
            errors.invalid(&requests.path, &said, &words);
        }
        None if !may_overcommit(name) => limits.required(errors, "Limit must be set for non overcommitable resources"),
        _ => {}
    }
}

/// Checks `spec.overhead`.
pub(super) fn validate_overhead(errors: &mut Errors, at: &At) {
    for (name, amount) in at.entries() {
        container_name(errors, &amount, name);
        quantity(errors, &amount, name);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(super) fn qos_class(pod: &Value) -> &'static str {
    let of_pod = pod.pointer("/spec/resources").filter(|r| r.is_object());
    let lists: Vec<&Value> = match of_pod {
        Some(resources) => vec![resources],
        None => ["/spec/containers", "/spec/initContainers"]
            .iter()
            .flat_map(|list| items(pod, list))
            .filter_map(|container| container.get("resources").or(Some(&Value::Null)))
            .collect(),
    };
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    for resources in lists {
        add(&mut requests, resources.get("requests"));
        let limited = add(&mut limits, resources.get("limits"));
        // A pod's own resources need no limit to be guaranteed; a container's do.
        guaranteed &= limited == 2 || (of_pod.is_some() && resources.get("limits").is_none());
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds what of `list` counts for the quality of service; how many names did.
fn add(total: &mut BTreeMap<String, Quantity>, list: Option<&Value>) -> usize {
    let mut count = 0;
    for name in ["cpu", "memory"] {
        let amount = list.and_then(|l| l.get(name)).and_then(|v| Quantity::from_json(v).ok());
        let Some(amount) = amount.filter(|a| !a.is_zero() && !a.is_negative()) else {
            continue;
        };
        count += 1;
        match total.get_mut(name) {
            Some(sum) => *sum += &amount,
            None => {
                total.insert(name.into(), amount);
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(resources: Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&mut errors, &At::new(&resources, "r"), false);
        errors
            .causes()
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn a_request_may_not_exceed_its_limit() {
        let resources = json!({"limits": {"memory": "64Mi"}, "requests": {"memory": "128Mi"}});
        assert_eq!(
            faults(resources),
            ["r.requests: Invalid value: \"128Mi\": must be less than or equal to memory limit of 64Mi"]
        );
        assert!(faults(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})).is_empty());
    }

    #[test]
    fn unknown_names_and_wrong_quantities_are_named() {
        assert_eq!(
            faults(json!({"limits": {"gpu": "1"}})),
            [
                "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"
            ]
        );
        assert_eq!(
            faults(json!({"requests": {"nvidia.com/gpu": "1"}})),
            ["r.limits: Required value: Limit must be set for non overcommitable resources"]
        );
        assert!(faults(json!({"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}})).is_empty());
        assert_eq!(faults(json!({"limits": {"cpu": "-1"}})).len(), 1);
        assert_eq!(faults(json!({"limits": {"cpu": "lots"}})).len(), 1);
    }

    #[test]
    fn the_quality_of_service_follows_from_requests_and_limits() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let all = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({"requests": all, "limits": all}))), "Guaranteed");
        let mut two = pod(json!({"requests": all, "limits": all}));
        two["spec"]["initContainers"] = json!([{"resources": {}}]);
        assert_eq!(qos_class(&two), "Burstable");
    }
}
