//! The Node's conditions: a pure function of what was said before, what is seen now, and the time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Levels;
use super::quantity;

/// How long a pressure is told after it was last seen: kubelet's evictionPressureTransitionPeriod, so that pods do not bounce.
pub const PRESSURE_HOLD: Duration = Duration::from_secs(300);

/// v1.NodeCondition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// When it was last looked at.
    #[serde(default)]
    pub last_heartbeat_time: String,
    /// When its status changed.
    #[serde(default)]
    pub last_transition_time: String,
    /// Why, in CamelCase.
    #[serde(default)]
    pub reason: String,
    /// Why, in words.
    #[serde(default)]
    pub message: String,
}

/// What the runtime says of itself, or why it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeHealth {
    /// Can it run containers?
    pub runtime_ready: bool,
    /// Can it give them a network?
    pub network_ready: bool,
    /// What is not ready.
    pub message: String,
}

/// What the link to the hub knows and the Node tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubFlags {
    /// Nobody trustworthy has told the time yet.
    pub clock_untrusted: bool,
    /// Why what the hub sends is not believed; None where it is.
    pub desired_state_suspect: Option<String>,
    /// Which uplinks have carried what they may this month; None where none has.
    pub budget_exceeded: Option<String>,
}

/// Which pressures hold, with when each was last seen (CLOCK_BOOTTIME).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pressures {
    memory: Option<Duration>,
    disk: Option<Duration>,
    pid: Option<Duration>,
}

impl Pressures {
    /// Looks at the levels with `evictionHard`'s thresholds at time `now`.
    pub fn observe(&mut self, levels: &Levels, hard: &BTreeMap<String, String>, now: Duration) {
        let below = |signal: &str, total: u64, available: u64| {
            let limit = hard.get(signal).and_then(|text| quantity::threshold(text, total));
            total > 0 && limit.is_some_and(|limit| available < limit)
        };
        let memory = below("memory.available", levels.memory.total, levels.memory.available);
        let disk = below("nodefs.available", levels.disk.total, levels.disk.available)
            || below("nodefs.inodesFree", levels.inodes.total, levels.inodes.available);
        let pid = below("pid.available", levels.pids.total, levels.pids.available);
        for (seen, last) in [(memory, &mut self.memory), (disk, &mut self.disk), (pid, &mut self.pid)] {
            let held = last.is_some_and(|at| now.saturating_sub(at) < PRESSURE_HOLD);
            *last = if seen { Some(now) } else { last.filter(|_| held) };
        }
    }

    /// Memory is short.
    pub fn memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Disk or inodes are short.
    pub fn disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Process ids are short.
    pub fn pid(&self) -> bool {
        self.pid.is_some()
    }
}

/// What there is to say, before times.
struct Said(&'static str, bool, &'static str, String);

/// The conditions now. `previous` gives the transition times; `wall` is the time in RFC 3339.
pub fn conditions(
    previous: &[Condition],
    runtime: &RuntimeHealth,
    pressures: &Pressures,
    hub: &HubFlags,
    wall: &str,
) -> Vec<Condition> {
    let mut said = vec![
        pressure(
            "MemoryPressure",
            pressures.memory(),
            ["KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"],
            [
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ],
        ),
        pressure(
            "DiskPressure",
            pressures.disk(),
            ["KubeletHasDiskPressure", "KubeletHasNoDiskPressure"],
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            pressures.pid(),
            ["KubeletHasInsufficientPID", "KubeletHasSufficientPID"],
            [
                "kubelet has insufficient PID available",
                "kubelet has sufficient PID available",
            ],
        ),
        ready(runtime),
    ];
    said.extend(own(previous, hub));
    said.into_iter().map(|said| condition(previous, said, wall)).collect()
}

/// Kedge's own conditions: they are told once there is something to tell, and from then on.
fn own(previous: &[Condition], hub: &HubFlags) -> Vec<Said> {
    let mut said = Vec::new();
    let known = |kind: &str| previous.iter().any(|c| c.kind == kind);
    if hub.clock_untrusted || known("ClockUntrusted") {
        let (reason, message) = if hub.clock_untrusted {
            ("NoTimeSource", "nobody has told this node the time since it booted")
        } else {
            ("TimeKnown", "the clock agrees with the hub's")
        };
        said.push(Said("ClockUntrusted", hub.clock_untrusted, reason, message.to_owned()));
    }
    if hub.desired_state_suspect.is_some() || known("DesiredStateSuspect") {
        let suspect = hub.desired_state_suspect.clone();
        let reason = if suspect.is_some() {
            "UnprovenDeletion"
        } else {
            "StateProven"
        };
        let message = suspect.unwrap_or_else(|| "what the hub sends continues what this node has".to_owned());
        said.push(Said(
            "DesiredStateSuspect",
            hub.desired_state_suspect.is_some(),
            reason,
            message,
        ));
    }
    if hub.budget_exceeded.is_some() || known("UplinkBudgetExceeded") {
        let exceeded = hub.budget_exceeded.is_some();
        let reason = if exceeded { "MonthlyBudgetSpent" } else { "WithinBudget" };
        let message = hub.budget_exceeded.clone();
        let message = message.unwrap_or_else(|| "every uplink is within its monthly budget".to_owned());
        said.push(Said("UplinkBudgetExceeded", exceeded, reason, message));
    }
    said
}

/// kubelet's events for the conditions that changed. The first look at a new node tells all, as kubelet does.
pub fn events<'a>(previous: &'a [Condition], current: &'a [Condition]) -> impl Iterator<Item = &'static str> + 'a {
    let changed = |c: &&Condition| !previous.iter().any(|p| p.kind == c.kind && p.status == c.status);
    current.iter().filter(changed).filter_map(|c| {
        Some(match (c.kind.as_str(), c.status == "True") {
            ("Ready", true) => "NodeReady",
            ("Ready", false) => "NodeNotReady",
            ("MemoryPressure", true) => "NodeHasInsufficientMemory",
            ("MemoryPressure", false) => "NodeHasSufficientMemory",
            ("DiskPressure", true) => "NodeHasDiskPressure",
            ("DiskPressure", false) => "NodeHasNoDiskPressure",
            ("PIDPressure", true) => "NodeHasInsufficientPID",
            ("PIDPressure", false) => "NodeHasSufficientPID",
            _ => return None,
        })
    })
}

fn pressure(kind: &'static str, holds: bool, reasons: [&'static str; 2], messages: [&'static str; 2]) -> Said {
    let which = usize::from(!holds);
    Said(kind, holds, reasons[which], messages[which].to_owned())
}

fn ready(runtime: &RuntimeHealth) -> Said {
    if runtime.runtime_ready && runtime.network_ready {
        return Said(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        );
    }
    let what = if runtime.runtime_ready {
        "container runtime network not ready"
    } else {
        "container runtime is down"
    };
    Said(
        "Ready",
        false,
        "KubeletNotReady",
        format!("{what}: {}", runtime.message),
    )
}

fn condition(previous: &[Condition], Said(kind, status, reason, message): Said, wall: &str) -> Condition {
    let status = if status { "True" } else { "False" };
    let before = previous.iter().find(|c| c.kind == kind && c.status == status);
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        last_heartbeat_time: wall.to_owned(),
        last_transition_time: before.map_or_else(|| wall.to_owned(), |c| c.last_transition_time.clone()),
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::machine::Level;

    fn up() -> RuntimeHealth {
        RuntimeHealth {
            runtime_ready: true,
            network_ready: true,
            message: String::new(),
        }
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let pressures = Pressures::default();
        let first = conditions(&[], &up(), &pressures, &HubFlags::default(), "t1");
        let second = conditions(&first, &up(), &pressures, &HubFlags::default(), "t2");
        assert!(
            second
                .iter()
                .all(|c| c.last_transition_time == "t1" && c.last_heartbeat_time == "t2")
        );
        assert_eq!(events(&first, &second).count(), 0);
        let down = conditions(
            &second,
            &RuntimeHealth::default(),
            &pressures,
            &HubFlags::default(),
            "t3",
        );
        assert_eq!(events(&second, &down).collect::<Vec<_>>(), ["NodeNotReady"]);
        let ready = down.iter().find(|c| c.kind == "Ready").unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.last_transition_time.as_str()),
            ("False", "t3")
        );
        assert!(
            down.iter()
                .filter(|c| c.kind != "Ready")
                .all(|c| c.last_transition_time == "t1")
        );
    }

    #[test]
    fn a_pressure_is_held_for_five_minutes_after_it_was_seen() {
        let hard = BTreeMap::from([("memory.available".to_owned(), "100Mi".to_owned())]);
        let level = |available| Levels {
            memory: Level {
                total: 1 << 30,
                available,
            },
            ..Levels::default()
        };
        let mut pressures = Pressures::default();
        pressures.observe(&level(50 << 20), &hard, Duration::from_secs(10));
        assert!(pressures.memory() && !pressures.disk());
        pressures.observe(&level(500 << 20), &hard, Duration::from_secs(300));
        assert!(pressures.memory());
        pressures.observe(&level(500 << 20), &hard, Duration::from_secs(310));
        assert!(!pressures.memory());
    }

    #[test]
    fn kedges_own_conditions_appear_with_the_first_trouble_and_stay() {
        let none = conditions(&[], &up(), &Pressures::default(), &HubFlags::default(), "t1");
        assert_eq!(none.len(), 4);
        let flags = HubFlags {
            clock_untrusted: true,
            desired_state_suspect: Some("another identity".into()),
            budget_exceeded: Some("uplink lte".into()),
        };
        let trouble = conditions(&none, &up(), &Pressures::default(), &flags, "t2");
        assert_eq!(trouble.len(), 7);
        let over = conditions(&trouble, &up(), &Pressures::default(), &HubFlags::default(), "t3");
        assert!(
            over.iter()
                .skip(4)
                .all(|c| c.status == "False" && c.last_transition_time == "t3")
        );
    }
}
