//! What a run was: what each direction did, how late the emulator was, and whether the figures may be used.

use serde::Serialize;

use crate::Counters;

/// Above this lateness at p99 the delays are the machine's and not the scenario's.
pub(crate) const LATE: f64 = 1000.0;
/// Below this share of idle time what is measured is the machine.
pub(crate) const IDLE: f64 = 0.10;
/// Above this share of packets lost in the devices' own queues the losses are the machine's.
pub(crate) const MISSED: f64 = 0.001;

/// Of many durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// The median, in microseconds.
    pub p50_us: f64,
    /// In microseconds.
    pub p99_us: f64,
    /// The largest, in microseconds.
    pub max_us: f64,
}

/// A run, so far or whole.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Why the figures must not be used; empty when they may.
    pub invalid: Vec<String>,
    /// How long after it was due a packet was handed on.
    pub lateness: Quantiles,
    /// The share of this machine's CPU time that was idle.
    pub cpu_idle: f64,
    /// Whether the emulator's thread ran before all others.
    pub realtime: bool,
    /// In the scenario's order.
    pub links: Vec<LinkReport>,
    /// One for every 100 ms; of an hour at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

impl Report {
    /// Whether the figures may be used.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.invalid.is_empty()
    }

    /// The report of link `name`.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&LinkReport> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Fills in why the figures must not be used.
    pub(crate) fn judge(&mut self) {
        self.invalid.clear();
        if self.lateness.p99_us > LATE {
            self.invalid.push(format!(
                "lateness p99 {:.0} µs is above {LATE:.0}",
                self.lateness.p99_us
            ));
        }
        if self.cpu_idle < IDLE {
            self.invalid.push(format!(
                "CPU idle {:.1} % is below {:.0} %",
                self.cpu_idle * 100.0,
                IDLE * 100.0
            ));
        }
        for link in &self.links {
            for (way, report) in [("up", &link.up), ("down", &link.down)] {
                let offered = report.model.offered + report.missed;
                if report.missed as f64 > offered as f64 * MISSED {
                    self.invalid.push(format!(
                        "{} {way}: {} of {offered} packets were lost before the emulator read them",
                        link.name, report.missed
                    ));
                }
            }
        }
    }
}

/// One link.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkReport {
    /// Its name.
    pub name: String,
    /// From the edge to the hub.
    pub up: WayReport,
    /// From the hub to the edge.
    pub down: WayReport,
}

/// One way of a link.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WayReport {
    /// What the model decided.
    #[serde(flatten)]
    pub model: Counters,
    /// Packets handed to the device at the other end; copies count.
    pub arrived: u64,
    /// Their bytes.
    pub arrived_bytes: u64,
    /// Packets that the device at the other end did not take.
    pub refused: u64,
    /// Packets that the kernel dropped before the emulator could read them.
    pub missed: u64,
    /// How long packets waited in the queue.
    pub queue: Quantiles,
}

/// 100 ms.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// When they ended, in milliseconds since the scenario began.
    pub at: u64,
    /// How long after it was due a packet was handed on.
    pub lateness: Quantiles,
    /// Up and down of every link, in the scenario's order.
    pub links: Vec<[WaySample; 2]>,
}

/// One way of a link in 100 ms.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaySample {
    /// Packets offered.
    pub offered: u64,
    /// Packets handed on.
    pub arrived: u64,
    /// Their bytes.
    pub arrived_bytes: u64,
    /// Packets for which there was no room.
    pub dropped_queue: u64,
    /// Packets lost on the air.
    pub dropped_loss: u64,
    /// Packets swallowed by silence.
    pub dropped_blackout: u64,
    /// How long packets waited in the queue.
    pub queue: Quantiles,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_a_busy_or_a_lossy_machine_makes_a_run_invalid() {
        let good = || {
            let way = WayReport {
                model: Counters {
                    offered: 10_000,
                    ..Counters::default()
                },
                missed: 10,
                ..WayReport::default()
            };
            let link = LinkReport {
                name: "lte".into(),
                up: way,
                down: way,
            };
            Report {
                cpu_idle: 0.2,
                lateness: Quantiles {
                    p99_us: 900.0,
                    ..Quantiles::default()
                },
                links: vec![link],
                ..Report::default()
            }
        };
        let judged = |change: fn(&mut Report)| {
            let mut report = good();
            change(&mut report);
            report.judge();
            report.invalid.join("; ")
        };
        assert_eq!(judged(|_| {}), "");
        assert!(judged(|report| report.lateness.p99_us = 1001.0).contains("lateness p99 1001"));
        assert!(judged(|report| report.cpu_idle = 0.09).contains("CPU idle 9.0 %"));
        assert!(judged(|report| report.links[0].down.missed = 11).contains("lte down: 11 of 10011"));
    }
}
