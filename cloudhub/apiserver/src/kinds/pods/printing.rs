//! The cells of `kubectl get pods`.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::object::{self, is_deleting, items, text};
use crate::table::human;

/// Ready, Status, Restarts; then, for `-o wide`, IP, Node, Nominated Node, Readiness Gates.
pub(super) fn cells(pod: &Value, now: OffsetDateTime) -> Vec<Value> {
    let seen = Seen::of(pod);
    let restarts = match seen.last_restart {
        Some(at) if seen.restarts != 0 => format!("{} ({} ago)", seen.restarts, human(now - at)),
        _ => seen.restarts.to_string(),
    };
    let or_none = |text: &str| if text.is_empty() { json!("<none>") } else { json!(text) };
    vec![
        json!(format!("{}/{}", seen.ready, seen.total)),
        json!(seen.reason),
        json!(restarts),
        or_none(text(pod, "/status/podIPs/0/ip")),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        json!(readiness_gates(pod)),
    ]
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "/status/conditions")
        .iter()
        .find(|c| text(c, "/type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| text(c, "/status") == "True")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|g| is_true(pod, text(g, "/conditionType"))).count();
    format!("{open}/{}", gates.len())
}

/// What the statuses of the containers add up to.
#[derive(Default)]
struct Seen {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<OffsetDateTime>,
    /// The same of init containers that go on running.
    sidecar_restarts: i64,
    sidecar_last: Option<OffsetDateTime>,
}

impl Seen {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "/status/phase");
        let reason = text(pod, "/status/reason");
        let mut seen = Self {
            reason: if reason.is_empty() { phase } else { reason }.to_owned(),
            total: items(pod, "/spec/containers").len(),
            ..Self::default()
        };
        if condition(pod, "PodScheduled").is_some_and(|c| text(c, "/reason") == "SchedulingGated") {
            seen.reason = "SchedulingGated".into();
        }
        seen.total += items(pod, "/spec/initContainers")
            .iter()
            .filter(|c| is_sidecar(c))
            .count();
        let initializing = seen.init_containers(pod);
        if !initializing || is_true(pod, "Initialized") {
            seen.containers(pod);
        }
        if is_deleting(pod) {
            if reason == "NodeLost" {
                seen.reason = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                seen.reason = "Terminating".into();
            }
        }
        seen
    }

    /// Whether initialization is still going on, or failed.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let specs = items(pod, "/spec/initContainers");
        for (index, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
            let spec = specs.iter().find(|c| text(c, "/name") == text(status, "/name"));
            let sidecar = spec.is_some_and(is_sidecar);
            let (count, last) = (restart_count(status), last_end(status));
            self.restarts += count;
            self.last_restart = self.last_restart.max(last);
            if sidecar {
                self.sidecar_restarts += count;
                self.sidecar_last = self.sidecar_last.max(last);
            }
            let ended = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if ended.is_some_and(|t| exit_code(t) == 0) {
                continue;
            }
            if sidecar && status.get("started") == Some(&json!(true)) {
                self.ready += usize::from(is_ready(status));
                continue;
            }
            self.reason = match ended {
                Some(ended) => format!("Init:{}", end_reason(ended)),
                None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
                None => format!("Init:{index}/{}", specs.len()),
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        self.restarts = self.sidecar_restarts;
        self.last_restart = self.sidecar_last;
        let (mut running, mut error) = (false, None);
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            self.restarts += restart_count(status);
            self.last_restart = self.last_restart.max(last_end(status));
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(ended) = status.pointer("/state/terminated") {
                self.reason = end_reason(ended);
                if exit_code(ended) != 0 {
                    error = Some(self.reason.clone());
                }
            } else if is_ready(status) && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if running && is_true(pod, "Ready") {
                self.reason = "Running".into();
            } else if let Some(error) = error {
                self.reason = error;
            } else if running {
                self.reason = "NotReady".into();
            }
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn is_ready(status: &Value) -> bool {
    status.get("ready").and_then(Value::as_bool).unwrap_or_default()
}

fn restart_count(status: &Value) -> i64 {
    status.get("restartCount").and_then(Value::as_i64).unwrap_or_default()
}

fn exit_code(ended: &Value) -> i64 {
    ended.get("exitCode").and_then(Value::as_i64).unwrap_or_default()
}

fn last_end(status: &Value) -> Option<OffsetDateTime> {
    object::parse_time(text(status, "/lastState/terminated/finishedAt"))
}

fn end_reason(ended: &Value) -> String {
    let signal = ended.get("signal").and_then(Value::as_i64).unwrap_or_default();
    match text(ended, "/reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", exit_code(ended)),
        reason => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pod: &Value) -> (String, String, String) {
        let now = object::parse_time("2026-01-01T01:00:00Z").unwrap();
        let cells = cells(pod, now);
        let text = |i: usize| cells[i].as_str().unwrap().to_owned();
        (text(0), text(1), text(2))
    }

    fn is(pod: &Value, ready: &str, status: &str, restarts: &str) {
        assert_eq!(row(pod), (ready.into(), status.into(), restarts.into()));
    }

    #[test]
    fn a_running_pod_counts_its_ready_containers_and_restarts() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Running",
            "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}},
                 "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:55:00Z"}}},
                {"name": "b", "ready": false, "restartCount": 0, "state": {"running": {}}}]}});
        is(&pod, "1/2", "Running", "1 (5m ago)");
    }

    #[test]
    fn waiting_and_ended_containers_say_why() {
        let with = |state: Value| {
            json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running", "containerStatuses": [
                {"name": "a", "ready": false, "restartCount": 0, "state": state}]}})
        };
        is(
            &with(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            "0/1",
            "CrashLoopBackOff",
            "0",
        );
        is(&with(json!({"terminated": {"exitCode": 3}})), "0/1", "ExitCode:3", "0");
        is(
            &with(json!({"terminated": {"exitCode": 137, "signal": 9}})),
            "0/1",
            "Signal:9",
            "0",
        );
        is(
            &with(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
            "0/1",
            "Completed",
            "0",
        );
        let mut deleting = with(json!({"running": {}}));
        deleting["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        is(&deleting, "0/1", "Terminating", "0");
        deleting["status"]["reason"] = json!("NodeLost");
        is(&deleting, "0/1", "Unknown", "0");
    }

    #[test]
    fn init_containers_show_how_far_they_are() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                {"name": "j", "restartCount": 0, "state": {"running": {}}}]}});
        is(&pod, "0/1", "Init:1/2", "0");
        pod["status"]["initContainerStatuses"][1]["state"] = json!({"waiting": {"reason": "ErrImagePull"}});
        is(&pod, "0/1", "Init:ErrImagePull", "0");
        pod["status"]["initContainerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        is(&pod, "0/1", "Init:Error", "0");
    }
}
