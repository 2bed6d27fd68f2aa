//! What a pod's worker remembers between two plans, and cannot read from the runtime.
//!
//! Owned by the worker, plain data: `plan` and `status` are functions of (pod, observed, memory, now). After a restart of edgecore it starts
//! empty, but for what the pod's last published status says.

use std::collections::BTreeMap;
use std::time::Duration;

use super::observed::Observed;
use super::report::PodStatus;

/// Back-off after a crash or a failed pull: kubelet's 10 s, doubled up to 5 min, forgotten after 10 min.
pub const BACKOFF_START: Duration = Duration::from_secs(10);
/// The longest back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long a container has to run for its back-off to be forgotten.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);
/// How soon a step that failed (volume, sandbox, creation) is tried again, as kubelet's sync loop does.
pub const RETRY: Duration = Duration::from_secs(10);

/// A moment: time since boot (CLOCK_BOOTTIME) for waiting, time since 1970 for showing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since boot, suspend included.
    pub boottime: Duration,
    /// Since 1970.
    pub wall: Duration,
}

impl Now {
    /// Reads the machine's clocks.
    pub fn read() -> Self {
        let read = |id| nix::time::clock_gettime(id).map_or(Duration::ZERO, Duration::from);
        Self {
            boottime: read(nix::time::ClockId::CLOCK_BOOTTIME),
            wall: read(nix::time::ClockId::CLOCK_REALTIME),
        }
    }
}

/// Why a container does not run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The CamelCase word, such as `CreateContainerError`.
    pub reason: String,
    /// More.
    pub message: String,
}

/// Why the whole pod ended before its containers did, or never began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `OutOfcpu`, `DeadlineExceeded`, …
    pub reason: String,
    /// More.
    pub message: String,
}

/// A container's image, for its next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Being checked or pulled.
    Busy,
    /// Here; the runtime's reference.
    Ready(String),
    /// Not had.
    Failed {
        /// What it waits for.
        waiting: Waiting,
        /// When to try again, since boot.
        until: Duration,
        /// The delay that led there.
        delay: Duration,
    },
}

/// A container's restart back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// How long after an exit the next start has to wait.
    pub delay: Duration,
    /// When it was last prolonged, since boot.
    pub updated: Duration,
}

/// What probes said of one container. None: no result yet, or no such probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probed {
    /// The startup probe passed.
    pub started: Option<bool>,
    /// The readiness probe's last verdict.
    pub ready: Option<bool>,
    /// The liveness or startup probe's verdict: false restarts the container.
    pub live: Option<bool>,
}

/// A step that a pod needs before containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Step {
    /// Not done yet.
    #[default]
    Todo,
    /// Done.
    Done,
    /// Failed; tried again at that time since boot.
    Failed(Duration),
}

/// What the worker remembers. See the file's header.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// The object is gone from the store: end with what is known.
    pub removed: bool,
    /// Why the pod failed as a whole.
    pub verdict: Option<Verdict>,
    /// When the pod was first seen here (status.startTime), since 1970.
    pub start_time: Option<Duration>,
    /// Since boot; for the active deadline.
    pub started_at: Option<Duration>,
    /// Volumes.
    pub volumes: Step,
    /// The sandbox; `Failed` holds the next try.
    pub sandbox: Step,
    /// Whether volumes are being made.
    pub mounting: bool,
    /// Whether nothing that the volumes need is missing: then the sandbox need not wait for them.
    pub whole: bool,
    /// Whether a job is running that makes the sandbox or a container, or cleans up.
    pub busy: bool,
    /// Why containers could not be started.
    pub failures: BTreeMap<String, Waiting>,
    /// Not before this time since boot: containers whose creation failed.
    pub retry: BTreeMap<String, Duration>,
    /// Images by container.
    pub images: BTreeMap<String, Image>,
    /// Restart back-off by container.
    pub backoff: BTreeMap<String, Backoff>,
    /// When each container id was first seen to be over, since boot.
    pub exits: BTreeMap<String, Duration>,
    /// Containers being killed: id, grace and start since boot.
    pub killing: BTreeMap<String, (Duration, Duration)>,
    /// Probe verdicts by container id.
    pub probes: BTreeMap<String, Probed>,
    /// Containers whose postStart hook has not ended, by id.
    pub hooks: std::collections::BTreeSet<String>,
    /// Termination messages by container id.
    pub messages: BTreeMap<String, String>,
    /// When the pod's end began, since boot.
    pub ending: Option<Duration>,
    /// All is stopped and cleaned up: the second step of it, `true`, leaves nothing in the runtime.
    pub finished: Option<bool>,
    /// The status last published, here or before edgecore's restart.
    pub prior: PodStatus,
}

impl Memory {
    /// Notes what a new observation shows: exits since the last one; forgets containers that are gone.
    pub fn note(&mut self, observed: &Observed, now: Now) {
        let known = |id: &String| observed.containers.iter().any(|c| &c.status.id == id);
        self.exits.retain(|id, _| known(id));
        self.probes.retain(|id, _| known(id));
        self.hooks.retain(known);
        self.messages.retain(|id, _| known(id));
        for seen in observed.containers.iter().filter(|c| c.is_over()) {
            self.exits.entry(seen.status.id.clone()).or_insert(now.boottime);
            self.hooks.remove(&seen.status.id);
        }
        self.killing
            .retain(|id, _| observed.containers.iter().any(|c| &c.status.id == id && c.is_running()));
    }

    /// When the container of that name may start again after the exit of `id`; None: now.
    pub fn backoff_until(&self, name: &str, id: &str, now: Now) -> Option<Duration> {
        let backoff = self.backoff.get(name)?;
        let exit = self.exits.get(id).copied().unwrap_or(now.boottime);
        if exit.saturating_sub(backoff.updated) > BACKOFF_RESET {
            return None;
        }
        let until = exit + backoff.delay;
        (until > now.boottime).then_some(until)
    }

    /// Prolongs a container's back-off: it starts again after the exit of `id`.
    pub fn prolong_backoff(&mut self, name: &str, id: &str, now: Now) {
        let exit = self.exits.get(id).copied().unwrap_or(now.boottime);
        let delay = match self.backoff.get(name) {
            Some(b) if exit.saturating_sub(b.updated) <= BACKOFF_RESET => (b.delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_START,
        };
        self.backoff.insert(
            name.to_owned(),
            Backoff {
                delay,
                updated: now.boottime,
            },
        );
    }

    /// Notes that an image could not be had, and when to try again. Only registries are spared by a back-off that grows: whether an image is
    /// here by now costs nothing to ask.
    pub fn image_failed(&mut self, name: &str, waiting: Waiting, now: Now) {
        let delay = match self.images.get(name) {
            Some(Image::Failed { delay, .. }) if waiting.reason == "ErrImagePull" => (*delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_START,
        };
        let until = now.boottime + delay;
        self.images
            .insert(name.to_owned(), Image::Failed { waiting, until, delay });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Now {
        Now {
            boottime: Duration::from_secs(secs),
            wall: Duration::from_secs(secs),
        }
    }

    #[test]
    fn back_off_doubles_to_five_minutes_and_is_forgotten_after_ten() {
        let mut memory = Memory::default();
        let mut now = 1000;
        let mut delays = Vec::new();
        for n in 0..8 {
            let id = format!("c{n}");
            memory.exits.insert(id.clone(), at(now).boottime);
            if let Some(until) = memory.backoff_until("c", &id, at(now)) {
                delays.push(until.as_secs() - now);
                now = until.as_secs();
            }
            memory.prolong_backoff("c", &id, at(now));
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        memory.exits.insert("long".into(), at(now + 601).boottime);
        assert_eq!(memory.backoff_until("c", "long", at(now + 601)), None);
        memory.prolong_backoff("c", "long", at(now + 601));
        assert_eq!(memory.backoff["c"].delay, BACKOFF_START);
    }
}
