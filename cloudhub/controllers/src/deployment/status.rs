//! A Deployment's status and its conditions Available, Progressing and ReplicaFailure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::{Rollout, plan};
use crate::pods;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// What the reconciliation did, as far as the status tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that counts as progress.
    Unchanged,
    /// A step, or a look, of the rollout.
    Rollout,
    /// This ReplicaSet was made.
    Created(String),
    /// The new ReplicaSet's name belongs to another.
    Collided,
    /// The ReplicaSet was refused.
    Refused(String),
}

fn sum(sets: &[Arc<ReplicaSet>], of: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32) -> i32 {
    sets.iter().filter_map(|rs| rs.status.as_ref()).map(of).sum()
}

/// The counters and the condition Available.
pub(super) fn count(deployment: &Deployment, new: Option<&ReplicaSet>, all: &[Arc<ReplicaSet>]) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    let available = sum(all, |s| s.available_replicas.unwrap_or(0));
    let asked: i32 = all.iter().map(|rs| plan::replicas_of(rs)).sum();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(all, |s| s.replicas)),
        updated_replicas: some(new.and_then(|rs| rs.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: some(sum(all, |s| s.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((asked - available).max(0)),
        terminating_replicas: Some(sum(all, |s| s.terminating_replicas.unwrap_or(0))),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let enough = available >= plan::replicas(deployment) - plan::max_unavailable(deployment);
    let now = Timestamp::now();
    set(
        &mut status,
        if enough {
            condition(
                AVAILABLE,
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                now,
            )
        } else {
            let text = "Deployment does not have minimum availability.";
            condition(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
        },
    );
    status
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// Sets a condition; one of the same status and reason stays as it is, one of the same status keeps its transition time.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(old) = get(status, &condition.type_) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn deadline_of(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.progress_deadline_seconds)
        .filter(|seconds| *seconds != i32::MAX)
}

/// Whether every pod is of the new template and available, and no others are there.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(plan::replicas(deployment)).filter(|n| *n != 0);
    status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let n = |number: Option<i32>| number.unwrap_or(0);
    n(status.updated_replicas) > n(old.updated_replicas)
        || n(status.replicas) - n(status.updated_replicas) < n(old.replicas) - n(old.updated_replicas)
        || n(status.ready_replicas) > n(old.ready_replicas)
        || n(status.available_replicas) > n(old.available_replicas)
}

fn is_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(current) = get(status, PROGRESSING) else {
        return false;
    };
    match (
        current.reason.as_deref(),
        deadline_of(deployment),
        &current.last_update_time,
    ) {
        (Some(DONE), ..) => false,
        (Some(TIMED_OUT), ..) => true,
        (_, Some(seconds), Some(from)) => from.0 + SignedDuration::from_secs(i64::from(seconds)) < now,
        _ => false,
    }
}

/// When to look whether the progress deadline has passed.
pub(super) fn deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let current = get(status, PROGRESSING)?;
    if plan::is_paused(deployment) || is_complete(deployment, status) || current.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let from = current.last_update_time.as_ref()?.0;
    let at = from + SignedDuration::from_secs(i64::from(deadline_of(deployment)?));
    Some(pods::until(at, now) + Duration::from_secs(1))
}

/// `status` with the conditions that say how the rollout goes on.
pub(super) fn with_progress(
    rollout: &Rollout,
    mut status: DeploymentStatus,
    progress: &Progress,
    now: Timestamp,
) -> DeploymentStatus {
    let deployment = &*rollout.deployment;
    let progressing = |state: &str, reason: &str, text: &str| condition(PROGRESSING, state, reason, text, now);
    if deadline_of(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        match progress {
            Progress::Created(name) => {
                let text = format!("Created new replica set {name:?}");
                set(&mut status, progressing("True", "NewReplicaSetCreated", &text));
            }
            Progress::Refused(why) => set(&mut status, progressing("False", "ReplicaSetCreateError", why)),
            Progress::Rollout => roll(rollout, &mut status, now),
            Progress::Unchanged | Progress::Collided => {}
        }
        pause(deployment, &mut status, now);
    }
    if *progress == Progress::Collided {
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    }
    failures(rollout, &mut status);
    status
}

/// A pause stops the clock of the deadline.
fn pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    let reason = get(status, PROGRESSING).and_then(|c| c.reason.clone());
    if reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    let was = reason.as_deref() == Some("DeploymentPaused");
    if plan::is_paused(deployment) && !was {
        set(
            status,
            condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused", now),
        );
    } else if !plan::is_paused(deployment) && was {
        set(
            status,
            condition(
                PROGRESSING,
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed",
                now,
            ),
        );
    }
}

fn roll(rollout: &Rollout, status: &mut DeploymentStatus, now: Timestamp) {
    let deployment = &*rollout.deployment;
    let current = get(status, PROGRESSING).cloned();
    let settled = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(DONE));
    if settled {
        return;
    }
    let who = match &rollout.new {
        Some(rs) => format!("ReplicaSet {:?}", rs.name_any()),
        None => format!("Deployment {:?}", deployment.name_any()),
    };
    if is_complete(deployment, status) {
        let text = format!("{who} has successfully progressed.");
        set(status, condition(PROGRESSING, "True", DONE, &text, now));
    } else if has_progressed(deployment, status) {
        let text = format!("{who} is progressing.");
        let mut next = condition(PROGRESSING, "True", "ReplicaSetUpdated", &text, now);
        if let Some(current) = current {
            if current.status == "True" {
                next.last_transition_time = current.last_transition_time;
            }
            remove(status, PROGRESSING);
        }
        set(status, next);
    } else if is_timed_out(deployment, status, now) {
        let text = format!("{who} has timed out progressing.");
        set(status, condition(PROGRESSING, "False", TIMED_OUT, &text, now));
    } else if current.is_none() {
        let text = format!(
            "Found new replica set {:?}",
            rollout.new.as_ref().map(|rs| rs.name_any()).unwrap_or_default()
        );
        set(status, condition(PROGRESSING, "True", "FoundNewReplicaSet", &text, now));
    }
}

/// Copies the ReplicaSets' failure, the new one's first.
fn failures(rollout: &Rollout, status: &mut DeploymentStatus) {
    let sets = rollout.new.iter().chain(&rollout.old);
    let found = sets
        .filter_map(|rs| rs.status.as_ref()?.conditions.as_ref())
        .flatten()
        .find(|c| c.type_ == FAILURE);
    match found {
        Some(failure) => set(
            status,
            DeploymentCondition {
                type_: FAILURE.into(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time.clone(),
            },
        ),
        None => remove(status, FAILURE),
    }
}
