//! v1.PodStatus as the node writes it (and reads it back after its restart).

use serde::{Deserialize, Serialize};

use super::api::Map;

macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$fmeta])* #[allow(missing_docs, reason = "Kubernetes' own field, documented there")] pub $field: $ty),* }
    };
}

fields!(
    /// v1.PodStatus.
    PodStatus {
        #[serde(skip_serializing_if = "Option::is_none")]
        observed_generation: Option<i64>,
        phase: String,
        conditions: Vec<Condition>,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
        #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
        host_ip: String,
        #[serde(rename = "hostIPs", skip_serializing_if = "Vec::is_empty")]
        host_ips: Vec<Ip>,
        #[serde(rename = "podIP", skip_serializing_if = "String::is_empty")]
        pod_ip: String,
        #[serde(rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
        pod_ips: Vec<Ip>,
        #[serde(skip_serializing_if = "Option::is_none")]
        start_time: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_container_statuses: Vec<ContainerStatus>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        container_statuses: Vec<ContainerStatus>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ephemeral_container_statuses: Vec<ContainerStatus>,
        #[serde(skip_serializing_if = "String::is_empty")]
        qos_class: String,
    }
);
fields!(
    /// v1.PodIP and v1.HostIP.
    Ip { ip: String }
);
fields!(
    /// v1.PodCondition.
    Condition {
        r#type: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        observed_generation: Option<i64>,
        status: String,
        last_probe_time: Option<String>,
        last_transition_time: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
    }
);
fields!(
    /// v1.ContainerStatus.
    ContainerStatus {
        name: String,
        state: State,
        last_state: State,
        ready: bool,
        restart_count: u32,
        image: String,
        #[serde(rename = "imageID")]
        image_id: String,
        #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
        container_id: String,
        started: bool,
        #[serde(skip_serializing_if = "Map::is_empty")]
        allocated_resources: Map,
        #[serde(skip_serializing_if = "Option::is_none")]
        resources: Option<Resources>,
    }
);
fields!(
    /// v1.ResourceRequirements.
    Resources {
        #[serde(skip_serializing_if = "Map::is_empty")]
        limits: Map,
        #[serde(skip_serializing_if = "Map::is_empty")]
        requests: Map,
    }
);
fields!(
    /// v1.ContainerState; one of the three, or none.
    State {
        #[serde(skip_serializing_if = "Option::is_none")]
        waiting: Option<WaitingState>,
        #[serde(skip_serializing_if = "Option::is_none")]
        running: Option<RunningState>,
        #[serde(skip_serializing_if = "Option::is_none")]
        terminated: Option<TerminatedState>,
    }
);
fields!(
    /// v1.ContainerStateWaiting.
    WaitingState {
        reason: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
    }
);
fields!(
    /// v1.ContainerStateRunning.
    RunningState { started_at: String }
);
fields!(
    /// v1.ContainerStateTerminated.
    TerminatedState {
        exit_code: i32,
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        started_at: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        finished_at: Option<String>,
        #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
        container_id: String,
    }
);

impl PodStatus {
    /// Whether the phase can never change again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The status of the container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.init_container_statuses
            .iter()
            .chain(&self.container_statuses)
            .chain(&self.ephemeral_container_statuses)
            .find(|c| c.name == name)
    }

    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.r#type == kind)
    }
}

/// RFC 3339 in whole seconds, as Kubernetes writes times.
pub fn rfc3339(wall: std::time::Duration) -> String {
    let seconds = i64::try_from(wall.as_secs()).unwrap_or(0);
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// The same for the runtime's nanoseconds since 1970; None for 0 (never).
pub fn rfc3339_nanos(nanos: i64) -> Option<String> {
    (nanos > 0).then(|| rfc3339(std::time::Duration::from_nanos(nanos.unsigned_abs())))
}

/// Reads an RFC 3339 time into time since 1970.
pub fn parse_time(text: &str) -> Option<std::time::Duration> {
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp())
        .ok()
        .map(std::time::Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        let at = std::time::Duration::from_secs(1_795_586_645);
        assert_eq!(rfc3339(at), "2026-11-25T06:04:05Z");
        assert_eq!(parse_time(&rfc3339(at)), Some(at));
        assert_eq!(rfc3339_nanos(0), None);
    }
}
