//! Quantities, and what a pod asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name, in thousandths.
pub(crate) type Amounts = BTreeMap<String, i128>;

/// `quantity` in thousandths, rounded up; what cannot be read counts as nothing.
pub(crate) fn milli(quantity: &Quantity) -> i128 {
    parse(&quantity.0).unwrap_or(0)
}

fn parse(text: &str) -> Option<i128> {
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|(_, c)| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .map_or(text.len(), |(index, _)| index);
    let (number, unit) = text.split_at(end);
    // (numerator, denominator) of one unit in thousandths
    let (up, down): (i128, i128) = match unit {
        "" => (1000, 1),
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        "Ei" => (1000 << 60, 1),
        other => {
            let exponent: u32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10_i128.checked_pow(exponent.checked_add(3)?)?, 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let value = digits.checked_mul(up)?;
    let divisor = down.checked_mul(scale)?;
    Some(value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0))
}

/// Every quantity of `map` in thousandths.
pub(crate) fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    map.into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), milli(quantity)))
        .collect()
}

/// Adds `more` to `sum`.
pub(crate) fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

fn max(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = most.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let mut amounts = amounts(resources.and_then(|r| r.limits.as_ref()));
    amounts.extend(self::amounts(resources.and_then(|r| r.requests.as_ref())));
    amounts
}

/// What `pod` asks of a node: its containers and sidecars together, or its hungriest init container, plus overhead and one
/// of the node's `pods`.
pub(crate) fn of_pod(pod: &Pod) -> Amounts {
    let mut total = Amounts::new();
    let Some(spec) = &pod.spec else {
        return total;
    };
    for container in &spec.containers {
        add(&mut total, &requests(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            max(&mut peak, &sidecars);
        } else {
            let mut during = sidecars.clone();
            add(&mut during, &own);
            max(&mut peak, &during);
        }
    }
    add(&mut total, &sidecars);
    max(&mut total, &peak);
    total.extend(amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref())));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.insert("pods".into(), 1000);
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::json;

    #[test]
    fn quantities_of_every_form() {
        for (text, value) in [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("1500u", 2),
            ("nonsense", 0),
            ("", 0),
        ] {
            assert_eq!(milli(&Quantity(text.into())), value, "{text}");
        }
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_hungriest_init_container() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let cpu = |init: serde_json::Value| {
            let pod = pod(
                json!({"spec": {"containers": [container("1"), container("1")], "initContainers": init,
                                          "overhead": {"cpu": "100m"}}}),
            );
            of_pod(&pod)["cpu"]
        };
        assert_eq!(cpu(json!([])), 2100);
        assert_eq!(cpu(json!([container("3"), container("1")])), 3100);
        let mut sidecar = container("1");
        sidecar["restartPolicy"] = "Always".into();
        assert_eq!(cpu(json!([sidecar, container("3")])), 4100);
        assert_eq!(cpu(json!([sidecar])), 3100);
    }
}
