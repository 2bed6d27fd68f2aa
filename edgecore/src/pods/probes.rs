//! Probe loops: one task for each probe of a running container, owned by the pod's worker, verdicts in one table that the worker watches.
//!
//! startup holds the other two back until it passes; liveness and startup verdicts of `false` end the loop, since the container will be
//! replaced; readiness goes both ways for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::act::{self, Answer, Target};
use super::api::{Container, Pod, Probe};
use super::events::Severity;
use super::memory::Probed;
use super::registry::Shared;

/// Verdicts by container id.
pub type Table = BTreeMap<String, Probed>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// Counts results against thresholds.
#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    last: Option<bool>,
    run: u32,
}

impl Counter {
    /// The verdict that this result leads to, where it leads to one.
    fn count(&mut self, good: bool, probe: &Probe) -> Option<bool> {
        self.run = if self.last == Some(good) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(good);
        let needed = if good { probe.successes() } else { probe.failures() };
        (self.run >= needed).then_some(good)
    }
}

/// The probes of one pod's containers.
#[derive(Debug)]
pub struct Probes {
    table: Arc<watch::Sender<Table>>,
    tasks: JoinSet<()>,
    running: BTreeMap<String, Vec<AbortHandle>>,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            table: Arc::new(watch::channel(Table::new()).0),
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
        }
    }
}

impl Probes {
    /// Wakes when a verdict changed.
    pub fn subscribe(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Makes exactly these containers be probed. `targets` holds the age of each container.
    pub fn ensure(&mut self, shared: &Arc<Shared>, pod: &Arc<Pod>, targets: Vec<(Target, Duration)>) {
        self.running.retain(|id, handles| {
            let wanted = targets.iter().any(|(t, _)| &t.id == id);
            if !wanted {
                handles.iter().for_each(AbortHandle::abort);
            }
            wanted
        });
        self.table.send_if_modified(|table| {
            table.retain(|id, _| targets.iter().any(|(t, _)| &t.id == id));
            false
        });
        while self.tasks.try_join_next().is_some() {}
        for (target, age) in targets {
            if self.running.contains_key(&target.id) {
                continue;
            }
            let c = &target.container;
            let kinds = [
                (Kind::Startup, c.startup_probe.clone()),
                (Kind::Liveness, c.liveness_probe.clone()),
                (Kind::Readiness, c.readiness_probe.clone()),
            ];
            let mut handles = Vec::new();
            for (kind, probe) in kinds {
                let Some(probe) = probe else { continue };
                let task = Task {
                    shared: shared.clone(),
                    pod: pod.clone(),
                    target: target.clone(),
                    kind,
                    probe,
                    age,
                    table: self.table.clone(),
                };
                handles.push(self.tasks.spawn(task.run()));
            }
            self.running.insert(target.id, handles);
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    target: Target,
    kind: Kind,
    probe: Probe,
    age: Duration,
    table: Arc<watch::Sender<Table>>,
}

impl Task {
    async fn run(self) {
        let delay = Duration::from_secs(self.probe.initial_delay_seconds).saturating_sub(self.age);
        tokio::time::sleep(delay).await;
        let mut counter = Counter::default();
        let mut tick = tokio::time::interval(Duration::from_secs(self.probe.period()));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if self.kind != Kind::Startup && self.target.container.startup_probe.is_some() {
            self.startup_passed().await;
        }
        loop {
            tick.tick().await;
            let answer = act::probe(&*self.shared.runtime, &self.target, &self.probe).await;
            let good = answer == Answer::Success;
            if !good {
                self.tell(&answer);
            }
            // What could not be asked says nothing about the container.
            if matches!(answer, Answer::Error(_)) && self.kind != Kind::Readiness {
                continue;
            }
            if let Some(verdict) = counter.count(good, &self.probe)
                && self.publish(verdict)
            {
                return;
            }
        }
    }

    async fn startup_passed(&self) {
        let mut table = self.table.subscribe();
        let passed = |t: &Table| t.get(&self.target.id).is_some_and(|p| p.started == Some(true));
        if table.wait_for(passed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Writes the verdict; true when there is nothing more to find out.
    fn publish(&self, verdict: bool) -> bool {
        self.table.send_if_modified(|table| {
            let entry = table.entry(self.target.id.clone()).or_default();
            let before = *entry;
            match (self.kind, verdict) {
                (Kind::Startup, true) => entry.started = Some(true),
                (Kind::Startup | Kind::Liveness, false) => entry.live = Some(false),
                (Kind::Liveness, true) => entry.live = Some(true),
                (Kind::Readiness, _) => entry.ready = Some(verdict),
            }
            *entry != before
        });
        matches!((self.kind, verdict), (Kind::Startup, _) | (Kind::Liveness, false))
    }

    fn tell(&self, answer: &Answer) {
        let kind = match self.kind {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        };
        let message = match answer {
            Answer::Success => return,
            Answer::Failure(text) => format!("{kind} probe failed: {text}"),
            Answer::Error(text) => format!("{kind} probe errored and resulted in unknown state: {text}"),
        };
        let container: &Container = &self.target.container;
        self.shared
            .event((&self.pod, Some(container)), Severity::Warning, "Unhealthy", &message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        let mut counter = Counter::default();
        let verdicts: Vec<_> = [true, true, false, false, true, false, false, false]
            .map(|r| counter.count(r, &probe))
            .into_iter()
            .collect();
        assert_eq!(verdicts, [None, Some(true), None, None, None, None, None, Some(false)]);
    }
}
