//! How big each ReplicaSet of a Deployment should be now: pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::revision;
use crate::pods;

/// A ReplicaSet and the size that it should get.
#[derive(Debug, Clone)]
pub(super) struct Size {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) to: i32,
}

pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn replicas_of(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub(super) fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
}

pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// maxSurge and maxUnavailable in pods; never both zero.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let total = replicas(deployment);
    let quarter = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String("25%".into());
    let surge = pods::portion(rolling.max_surge.as_ref().unwrap_or(&quarter), total, true);
    let unavailable = pods::portion(rolling.max_unavailable.as_ref().unwrap_or(&quarter), total, false);
    if surge == 0 && unavailable == 0 {
        return (0, 1);
    }
    (surge, unavailable)
}

pub(super) fn surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    if replicas(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(replicas(deployment))
}

fn total(sets: &[Arc<ReplicaSet>]) -> i32 {
    sets.iter().map(|rs| replicas_of(rs)).sum()
}

/// The size that a ReplicaSet which is made now begins with.
pub(super) fn first_size(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> i32 {
    grown(deployment, 0, total(old))
}

/// The size of the new ReplicaSet that `max_surge` allows, from `now` up.
fn grown(deployment: &Deployment, now: i32, others: i32) -> i32 {
    let wanted = replicas(deployment);
    if recreates(deployment) {
        return wanted;
    }
    let room = wanted + surge(deployment) - others - now;
    now + room.clamp(0, (wanted - now).max(0))
}

/// The next sizes of the ReplicaSets; those that are right already are left out.
pub(super) fn sizes(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Vec<Size> {
    if let Some(scaled) = scaled(deployment, new, old) {
        return scaled;
    }
    let Some(new) = new else {
        return to_zero(old);
    };
    if recreates(deployment) {
        let down = to_zero(old);
        if !down.is_empty() {
            return down;
        }
    }
    let now = replicas_of(new);
    let others = total(old);
    let wanted = replicas(deployment);
    let to = if now > wanted {
        wanted
    } else {
        grown(deployment, now, others)
    };
    if to != now {
        let set = Arc::new(new.clone());
        return vec![Size { set, to }];
    }
    shrink_old(deployment, new, old)
}

fn to_zero(old: &[Arc<ReplicaSet>]) -> Vec<Size> {
    old.iter()
        .filter(|rs| replicas_of(rs) > 0)
        .map(|rs| Size {
            set: Arc::clone(rs),
            to: 0,
        })
        .collect()
}

/// Takes from the old ReplicaSets what may be unavailable: pods that are not available first.
fn shrink_old(deployment: &Deployment, new: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Vec<Size> {
    let others = total(old);
    if others == 0 {
        return Vec::new();
    }
    let least = replicas(deployment) - max_unavailable(deployment);
    let new_missing = replicas_of(new) - available(new);
    let mut may = others + replicas_of(new) - least - new_missing;
    if may <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = old.iter().map(|rs| replicas_of(rs)).collect();
    for (rs, size) in old.iter().zip(&mut sizes) {
        let broken = (*size - available(rs)).max(0).min(may);
        *size -= broken;
        may -= broken;
    }
    let up: i32 = old.iter().map(|rs| available(rs)).sum::<i32>() + available(new);
    let mut spare = (up - least).max(0);
    for size in &mut sizes {
        let down = (*size).min(spare);
        *size -= down;
        spare -= down;
    }
    old.iter()
        .zip(sizes)
        .filter(|(rs, size)| replicas_of(rs) != *size)
        .map(|(set, to)| Size {
            set: Arc::clone(set),
            to,
        })
        .collect()
}

/// When `spec.replicas` changed since the ReplicaSets were sized: their new sizes, in proportion. `None` when it did not.
pub(super) fn scaled(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Option<Vec<Size>> {
    let wanted = replicas(deployment);
    let mut active: Vec<Arc<ReplicaSet>> = old.iter().filter(|rs| replicas_of(rs) > 0).cloned().collect();
    let new = new.map(|rs| Arc::new(rs.clone()));
    active.extend(new.iter().filter(|rs| replicas_of(rs) > 0).cloned());
    let changed = |rs: &Arc<ReplicaSet>| revision::desired(rs).is_some_and(|desired| desired != wanted);
    if !active.iter().any(changed) {
        // From zero, nothing is active: the one that was last is brought up.
        let latest = new.filter(|rs| replicas_of(rs) == 0 && changed(rs) && active.is_empty())?;
        return Some(vec![Size {
            set: latest,
            to: wanted,
        }]);
    }
    if let [only] = active.as_slice() {
        return Some(vec![Size {
            set: Arc::clone(only),
            to: wanted,
        }]);
    }
    Some(proportional(deployment, active))
}

fn proportional(deployment: &Deployment, mut active: Vec<Arc<ReplicaSet>>) -> Vec<Size> {
    let wanted = replicas(deployment);
    let allowed = if wanted > 0 { wanted + surge(deployment) } else { 0 };
    let add = allowed - total(&active);
    active.sort_by_key(|rs| {
        (
            std::cmp::Reverse(replicas_of(rs)),
            std::cmp::Reverse(pods::created(&rs.metadata)),
        )
    });
    let mut left = add;
    let mut sizes = Vec::new();
    for set in active {
        let size = replicas_of(&set);
        let share = if add == 0 {
            0
        } else {
            let basis = revision::max(&set).filter(|max| *max > 0).unwrap_or(wanted);
            let exact = f64::from(size) * f64::from(allowed) / f64::from(basis.max(1));
            #[expect(
                clippy::cast_possible_truncation,
                reason = "sizes are i32 and the quotient of two of them is small"
            )]
            let part = exact.round() as i32 - size;
            if add > 0 {
                part.clamp(0, left.max(0))
            } else {
                part.clamp(left.min(0), 0)
            }
        };
        left -= share;
        sizes.push(Size { set, to: size + share });
    }
    if let Some(first) = sizes.first_mut() {
        first.to = (first.to + left).max(0);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, strategy: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .expect("a Deployment")
    }

    fn rolling(surge: i32, unavailable: i32) -> Value {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
    }

    fn set(name: &str, replicas: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {"deployment.kubernetes.io/desired-replicas": desired.to_string()}},
            "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "availableReplicas": available},
        }))
        .map(Arc::new)
        .expect("a ReplicaSet")
    }

    fn named(sizes: &[Size]) -> Vec<(String, i32)> {
        sizes
            .iter()
            .map(|size| (size.set.metadata.name.clone().unwrap_or_default(), size.to))
            .collect()
    }

    #[test]
    fn a_new_set_begins_within_the_surge() {
        let d = deployment(3, rolling(1, 0));
        assert_eq!(first_size(&d, &[]), 3);
        assert_eq!(first_size(&d, &[set("old", 3, 3, 3)]), 1);
    }

    #[test]
    fn an_old_pod_goes_only_when_a_new_one_is_available() {
        let d = deployment(3, rolling(1, 0));
        assert!(sizes(&d, Some(&set("new", 1, 0, 3)), &[set("old", 3, 3, 3)]).is_empty());
        let next = sizes(&d, Some(&set("new", 1, 1, 3)), &[set("old", 3, 3, 3)]);
        assert_eq!(named(&next), [("old".into(), 2)]);
        let next = sizes(&d, Some(&set("new", 1, 1, 3)), &[set("old", 2, 2, 3)]);
        assert_eq!(named(&next), [("new".into(), 2)]);
    }

    #[test]
    fn broken_old_pods_go_first() {
        let d = deployment(3, rolling(1, 1));
        let next = sizes(&d, Some(&set("new", 1, 0, 3)), &[set("old", 3, 1, 3)]);
        assert_eq!(named(&next), [("old".into(), 2)]);
    }

    #[test]
    fn recreate_empties_the_old_first() {
        let d = deployment(2, json!({"type": "Recreate"}));
        assert_eq!(named(&sizes(&d, None, &[set("old", 2, 2, 2)])), [("old".into(), 0)]);
        assert_eq!(first_size(&d, &[set("old", 0, 0, 2)]), 2);
    }

    #[test]
    fn scaling_keeps_proportions_during_a_rollout() {
        let d = deployment(20, rolling(0, 1));
        let with_max = |name: &str, replicas: i32| {
            let mut rs = (*set(name, replicas, replicas, 10)).clone();
            rs.metadata
                .annotations
                .as_mut()
                .expect("annotations")
                .insert("deployment.kubernetes.io/max-replicas".into(), "10".into());
            Arc::new(rs)
        };
        let scaled = scaled(&d, Some(&with_max("new", 4)), &[with_max("old", 6)]).expect("a scaling");
        let mut named = named(&scaled);
        named.sort();
        assert_eq!(named, [("new".into(), 8), ("old".into(), 12)]);
    }

    #[test]
    fn scaling_one_set_is_direct_also_to_and_from_zero() {
        let to =
            |wanted: i32, set_: Arc<ReplicaSet>| named(&sizes(&deployment(wanted, rolling(1, 0)), Some(&set_), &[]));
        assert_eq!(to(5, set("new", 3, 3, 3)), [("new".into(), 5)]);
        assert_eq!(to(0, set("new", 3, 3, 3)), [("new".into(), 0)]);
        assert_eq!(to(2, set("new", 0, 0, 0)), [("new".into(), 2)]);
        assert!(to(3, set("new", 3, 3, 3)).is_empty());
    }

    /// A rollout in which pods become available one at a time ends, and never passes the limits.
    #[test]
    fn a_rollout_ends_within_its_limits() {
        for (replicas, surge, unavailable) in [(1, 1, 0), (3, 1, 0), (3, 0, 1), (10, 3, 2), (4, 4, 0)] {
            let d = deployment(replicas, rolling(surge, unavailable));
            let (mut old, mut new) = ((replicas, replicas), (0, 0));
            new.0 = first_size(&d, &[set("old", old.0, old.1, replicas)]);
            for _ in 0..200 {
                let next = sizes(
                    &d,
                    Some(&set("new", new.0, new.1, replicas)),
                    &[set("old", old.0, old.1, replicas)],
                );
                for size in &next {
                    let which = if size.set.metadata.name.as_deref() == Some("new") {
                        &mut new
                    } else {
                        &mut old
                    };
                    *which = (size.to, which.1.min(size.to));
                }
                assert!(old.0 + new.0 <= replicas + surge, "{replicas}/{surge}: {old:?} {new:?}");
                assert!(
                    old.1 + new.1 >= replicas - unavailable,
                    "{replicas}/{unavailable}: {old:?} {new:?}"
                );
                if next.is_empty() && new.1 < new.0 {
                    new.1 += 1;
                }
            }
            assert_eq!((old.0, new.0, new.1), (0, replicas, replicas));
        }
    }
}
