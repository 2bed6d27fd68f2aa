//! The times of a Node's conditions: when they were looked at last, and since when they are as they are.
//!
//! kubelet says every five minutes that it has looked, with nothing new (nodeStatusReportFrequency). A robot does not send that, which would be a third of what
//! an idle one costs: while its session answers, and it says nothing else, what it reported holds, and the hub says so for it.

use std::time::{Duration, SystemTime};

use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::node::{condition, condition_in, patch_status};
use super::{Writer, timestamp};
use crate::kube_api::ApiError;

/// kubelet's nodeStatusReportFrequency; here up to a fifth sooner.
const EVERY: Duration = Duration::from_secs(300);

/// When a node's conditions are due to be looked at.
pub(super) struct Heartbeat(Instant);

impl Heartbeat {
    /// For a session that begins. Those of a fleet that came back together spread out.
    pub(super) fn new() -> Self {
        Self(Instant::now() + EVERY.mul_f64(rand::rng().random_range(0.0..1.0)))
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.0
    }

    /// The API has been told.
    pub(super) fn told(&mut self) {
        self.0 = Instant::now() + EVERY.mul_f64(rand::rng().random_range(0.8..1.0));
    }
}

/// Says that what the node reported was looked at now.
pub(super) async fn tell(writer: &Writer, node: &str) -> Result<(), ApiError> {
    let report = writer.lock().get(node).and_then(|live| live.node.clone());
    let (Some(report), Some(actual)) = (report, writer.registry.node(node)) else {
        return Ok(());
    };
    let patch = looked_at(&report.value(), &actual.object.value(), &timestamp(SystemTime::now()));
    patch_status(writer, node, &patch).await.map(drop)
}

/// The strategic merge patch: of the conditions that both the report and the Node have, and of the hub's own. Other writers' are left alone.
fn looked_at(report: &Value, actual: &Value, now: &str) -> Value {
    let conditions = actual["status"]["conditions"].as_array().into_iter().flatten();
    let kinds = conditions.filter_map(|condition| condition["type"].as_str());
    let ours = kinds.filter(|kind| *kind == "EdgeConnected" || condition(report, kind).is_object());
    let times: Vec<Value> = ours
        .map(|kind| json!({"type": kind, "lastHeartbeatTime": now}))
        .collect();
    json!({"status": {"conditions": times}})
}

/// Gives conditions their times: when looked at, and when changed.
pub(super) fn stamp(status: &mut Value, actual: &Value) {
    let now = timestamp(SystemTime::now());
    for new in status["conditions"].as_array_mut().into_iter().flatten() {
        let kind = new["type"].as_str().unwrap_or_default().to_owned();
        let old = condition_in(actual, &kind);
        let since = if old["status"] == new["status"] {
            old["lastTransitionTime"].clone()
        } else {
            Value::Null
        };
        new["lastHeartbeatTime"] = now.clone().into();
        new["lastTransitionTime"] = if since.is_null() { now.clone().into() } else { since };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_of_what_the_robot_reports_and_the_hub_says_and_of_no_other_writers() {
        let of = |kinds: &[&str]| -> Value {
            let conditions = kinds.iter().map(|kind| json!({"type": kind, "status": "True"}));
            json!({"status": {"conditions": conditions.collect::<Vec<_>>()}})
        };
        let report = of(&["Ready", "ClockUntrusted"]);
        let actual = of(&["NetworkUnavailable", "Ready", "EdgeConnected"]);
        let times = |patch: Value| patch["status"]["conditions"].clone();
        assert_eq!(
            times(looked_at(&report, &actual, "T")),
            json!([{"type": "Ready", "lastHeartbeatTime": "T"}, {"type": "EdgeConnected", "lastHeartbeatTime": "T"}])
        );
        assert_eq!(times(looked_at(&json!({}), &json!({}), "T")), json!([]));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_due_every_five_minutes_at_most_and_not_for_a_whole_fleet_at_once() {
        let fleet: Vec<Heartbeat> = (0..100).map(|_| Heartbeat::new()).collect();
        let due = |fleet: &[Heartbeat]| fleet.iter().filter(|beat| beat.is_due()).count();
        tokio::time::advance(EVERY / 2).await;
        assert!((20..80).contains(&due(&fleet)), "{}", due(&fleet));
        tokio::time::advance(EVERY / 2).await;
        assert_eq!(due(&fleet), 100);
        let mut one = Heartbeat::new();
        one.told();
        tokio::time::advance(EVERY.mul_f64(0.79)).await;
        assert!(!one.is_due());
        tokio::time::advance(EVERY.mul_f64(0.21)).await;
        assert!(one.is_due());
    }
}
