//! What to do next for a pod: a function of (pod, observed, memory, now), without effects.
//!
//! * ending (deleted, removed from the store, rejected, past its deadline, or all containers done): kill with grace, then clean up once;
//! * else volumes and sandbox, init containers one after the other, sidecars, containers, each gated on the step before. Where nothing that
//!   the volumes need is missing, sandbox, volumes (a token is a round trip away) and first images are seen to side by side;
//! * at most one action that makes a sandbox or a container ([`Action::Sandbox`], [`Action::Start`]) is asked for at a time; volumes, kills,
//!   pulls and removals run beside it.

use std::time::Duration;

use super::api::{Container, Pod, RestartPolicy};
use super::memory::{Image, Memory, Step};
use super::observed::Seen;
use super::status::{Inputs, PULL_ERROR_SHOWN, has_run, is_initialized, is_started, restarts};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Stop a container.
    Kill(Kill),
    /// Remove a container that is over and no longer told about.
    RemoveContainer(String),
    /// Remove a sandbox that nothing is told about.
    RemoveSandbox(String),
    /// Have a container's image here.
    Pull(String),
    /// Make the pod's folders and volumes.
    Volumes,
    /// Stop what is left of earlier sandboxes and make a new one with this attempt number.
    Sandbox(u32),
    /// Make and start a container.
    Start(Start),
    /// All is stopped. Unmount volumes and remove the cgroup; with `remove`, also sandboxes, containers, folders and rows.
    Finish {
        /// Leave nothing.
        remove: bool,
    },
}

/// Stop one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The runtime's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// From the preStop hook to SIGKILL.
    pub grace: Duration,
    /// For the event.
    pub message: String,
}

/// Start one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Its name.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
    /// The instance that ended, where there is one in this sandbox.
    pub after: Option<String>,
    /// The image's reference in the runtime.
    pub image_ref: String,
}

/// What to do, and when to look again without any news.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Removals first.
    pub actions: Vec<Action>,
    /// Since boot.
    pub wake: Option<Duration>,
    /// Containers that wait for their back-off now.
    pub backing_off: Vec<String>,
}

impl Plan {
    fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// Makes the plan.
pub fn plan(inputs: Inputs<'_>) -> Plan {
    let Inputs {
        pod,
        observed,
        memory,
        now,
    } = inputs;
    let mut plan = Plan::default();
    if let Some(started) = memory.started_at
        && let Some(limit) = pod.spec.active_deadline_seconds
    {
        plan.wake_at(started + Duration::from_secs(limit.max(0).unsigned_abs()));
        if plan.wake.is_some_and(|at| at <= now.boottime) {
            plan.wake = None;
        }
    }
    if is_ending(inputs) {
        end(inputs, &mut plan);
        return plan;
    }
    sweep(inputs, &mut plan);
    for seen in observed.containers.iter().filter(|c| c.is_running()) {
        kill_if_unfit(inputs, seen, &mut plan);
    }
    if prepare(inputs, &mut plan) {
        start_containers(inputs, &mut plan);
    }
    plan
}

/// Whether the pod has to end, or has ended.
pub fn is_ending(inputs: Inputs<'_>) -> bool {
    let m = inputs.memory;
    inputs.pod.is_deleted() || m.removed || m.verdict.is_some() || m.prior.is_terminal() || is_done(inputs)
}

/// Whether no container will run again although nobody asked for the end.
fn is_done(inputs: Inputs<'_>) -> bool {
    let Inputs { pod, observed, .. } = inputs;
    let newest = |c: &Container| observed.containers.iter().find(|s| s.status.metadata.name == c.name);
    let failed_init = pod.spec.restart_policy == RestartPolicy::Never
        && pod
            .spec
            .init_containers
            .iter()
            .filter(|c| !c.is_sidecar())
            .any(|c| newest(c).is_some_and(|s| s.is_over() && s.exit_code() != 0));
    failed_init
        || (!pod.spec.containers.is_empty()
            && pod
                .spec
                .containers
                .iter()
                .all(|c| newest(c).is_some_and(|s| s.is_over() && !restarts(pod, c, s.exit_code()))))
}

fn end(inputs: Inputs<'_>, plan: &mut Plan) {
    let Inputs {
        pod,
        observed,
        memory,
        now,
    } = inputs;
    let remove = pod.is_deleted() || memory.removed;
    let running: Vec<&Seen> = observed.containers.iter().filter(|c| c.is_running()).collect();
    if running.is_empty() {
        let done = match memory.finished {
            Some(removed) => removed || !remove,
            None => false,
        };
        if !memory.busy && !memory.mounting && (!done || (remove && observed.sandbox.is_some())) {
            plan.actions.push(Action::Finish { remove });
        }
        return;
    }
    let whole = Duration::from_secs(pod.grace_seconds().unsigned_abs());
    let elapsed = memory
        .ending
        .map_or(Duration::ZERO, |since| now.boottime.saturating_sub(since));
    // Sidecars go last, in reverse order; what is left of the grace period is theirs, but at least kubelet's 2 s.
    let left = if whole.is_zero() {
        whole
    } else {
        whole.saturating_sub(elapsed).max(Duration::from_secs(2))
    };
    let sidecar = |s: &Seen| {
        pod.container(&s.status.metadata.name)
            .is_some_and(Container::is_sidecar)
    };
    let mut targets: Vec<(&Seen, Duration)> = running.iter().filter(|s| !sidecar(s)).map(|s| (*s, whole)).collect();
    if targets.is_empty() {
        let order = |s: &&Seen| {
            pod.spec
                .init_containers
                .iter()
                .position(|c| c.name == s.status.metadata.name)
        };
        if let Some(last) = running.iter().max_by_key(|s| order(s)) {
            targets.push((last, left));
        }
    }
    for (seen, grace) in targets {
        let shorter = memory
            .killing
            .get(&seen.status.id)
            .is_none_or(|(asked, _)| grace < *asked && !sidecar(seen));
        if shorter {
            let message = format!("Stopping container {}", seen.status.metadata.name);
            push_kill(plan, seen, grace, message);
        }
    }
}

fn push_kill(plan: &mut Plan, seen: &Seen, grace: Duration, message: String) {
    plan.actions.push(Action::Kill(Kill {
        id: seen.status.id.clone(),
        name: seen.status.metadata.name.clone(),
        grace,
        message,
    }));
}

/// Dead containers beyond the newest one of each name, and sandboxes that hold none.
fn sweep(inputs: Inputs<'_>, plan: &mut Plan) {
    let observed = inputs.observed;
    let mut kept: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    let mut gone = std::collections::BTreeSet::new();
    for seen in observed.containers.iter().filter(|c| c.is_over()) {
        let count = kept.entry(seen.status.metadata.name.as_str()).or_default();
        *count += 1;
        // Of a container that is over now, the one before is still told about as lastState.
        let newest_over = observed
            .named(&seen.status.metadata.name)
            .next()
            .is_some_and(Seen::is_over);
        if *count > 1 + usize::from(newest_over) {
            gone.insert(seen.status.id.as_str());
            plan.actions.push(Action::RemoveContainer(seen.status.id.clone()));
        }
    }
    // Made but never started: an earlier run of ours was killed in between.
    if !inputs.memory.busy {
        for seen in observed
            .containers
            .iter()
            .filter(|c| c.status.state == cri::ContainerState::Created)
        {
            plan.actions.push(Action::RemoveContainer(seen.status.id.clone()));
        }
    }
    for sandbox in &observed.old_sandboxes {
        let used = observed
            .containers
            .iter()
            .any(|c| c.sandbox_id == sandbox.id && !gone.contains(c.status.id.as_str()));
        if !used {
            plan.actions.push(Action::RemoveSandbox(sandbox.id.clone()));
        }
    }
}

/// A running container is stopped when its probe failed, its definition changed, or its sandbox is not the one that counts.
fn kill_if_unfit(inputs: Inputs<'_>, seen: &Seen, plan: &mut Plan) {
    let Inputs {
        pod, observed, memory, ..
    } = inputs;
    let name = &seen.status.metadata.name;
    if memory.killing.contains_key(&seen.status.id) {
        return;
    }
    let mut grace = Duration::from_secs(pod.grace_seconds().unsigned_abs());
    let in_place = observed.ready_sandbox().is_some_and(|s| s.id == seen.sandbox_id);
    let Some(container) = pod.container(name).filter(|_| in_place) else {
        push_kill(plan, seen, grace, format!("Stopping container {name}"));
        return;
    };
    let hash = seen.status.annotations.get(super::observed::label::HASH);
    if hash.is_some_and(|h| h != &container.hash()) {
        push_kill(
            plan,
            seen,
            grace,
            format!("Container {name} definition changed, will be restarted"),
        );
        return;
    }
    let probed = memory.probes.get(&seen.status.id).copied().unwrap_or_default();
    if probed.live == Some(false) {
        let started = is_started(container, seen, memory);
        let (which, probe) = match (&container.startup_probe, started) {
            (Some(probe), false) => ("startup", Some(probe)),
            _ => ("liveness", container.liveness_probe.as_ref()),
        };
        if let Some(own) = probe.and_then(|p| p.termination_grace_period_seconds) {
            grace = Duration::from_secs(own.max(0).unsigned_abs());
        }
        push_kill(
            plan,
            seen,
            grace,
            format!("Container {name} failed {which} probe, will be restarted"),
        );
    }
}

/// Asks for volumes and sandbox, whichever is missing. True: they are there, containers may be started.
fn prepare(inputs: Inputs<'_>, plan: &mut Plan) -> bool {
    let Inputs {
        pod,
        observed,
        memory,
        now,
    } = inputs;
    let mut waits = |step: &Step| match step {
        Step::Failed(at) if *at > now.boottime => {
            plan.wake_at(*at);
            true
        }
        _ => false,
    };
    let mounted = memory.volumes == Step::Done;
    let mount = !mounted && !memory.mounting && !waits(&memory.volumes);
    let ready = observed.ready_sandbox().is_some();
    // A sandbox beside volumes only at the first try: where they failed, kubelet has no sandbox either.
    let early = memory.volumes == Step::Todo && memory.whole;
    // Containers of a sandbox that died are stopped first.
    let make = !ready
        && !memory.busy
        && (mounted || early)
        && !observed.containers.iter().any(Seen::is_running)
        && !waits(&memory.sandbox);
    if mount {
        plan.actions.push(Action::Volumes);
    }
    if make {
        plan.actions.push(Action::Sandbox(observed.next_attempt()));
        if early && observed.containers.is_empty() {
            let first = match pod.spec.init_containers.first() {
                Some(init) => std::slice::from_ref(init),
                None => &pod.spec.containers,
            };
            let wanted = first.iter().filter(|c| !memory.images.contains_key(&c.name));
            plan.actions.extend(wanted.map(|c| Action::Pull(c.name.clone())));
        }
    }
    mounted && ready && !memory.busy
}

fn start_containers(inputs: Inputs<'_>, plan: &mut Plan) {
    let Inputs { pod, memory, .. } = inputs;
    // A postStart hook holds up the containers after it.
    if !memory.hooks.is_empty() {
        return;
    }
    for c in &pod.spec.ephemeral_containers {
        if inputs.observed.current(&c.name).is_none() && start(inputs, c, plan) {
            return;
        }
    }
    if !start_init(inputs, plan) {
        return;
    }
    for c in &pod.spec.containers {
        let wanted = match inputs.observed.current(&c.name) {
            None => earlier_allows(inputs, c),
            Some(seen) => seen.is_over() && restarts(pod, c, seen.exit_code()),
        };
        if wanted && start(inputs, c, plan) {
            return;
        }
    }
}

/// In a new sandbox, what ended for good in an earlier one is not run again.
fn earlier_allows(inputs: Inputs<'_>, container: &Container) -> bool {
    match inputs.observed.named(&container.name).next() {
        Some(seen) if seen.is_over() => restarts(inputs.pod, container, seen.exit_code()),
        _ => true,
    }
}

/// Init containers and sidecars in order. True: the containers may go on.
fn start_init(inputs: Inputs<'_>, plan: &mut Plan) -> bool {
    let Inputs {
        pod, observed, memory, ..
    } = inputs;
    let initialized = is_initialized(inputs);
    for c in &pod.spec.init_containers {
        let current = observed.current(&c.name);
        if c.is_sidecar() {
            let up = current.is_some_and(|s| s.is_running() && is_started(c, s, memory));
            let absent = current.is_none_or(Seen::is_over);
            let asked = absent && start(inputs, c, plan);
            if asked || (!up && !initialized) {
                return false;
            }
            continue;
        }
        if initialized {
            continue;
        }
        match current {
            Some(seen) if seen.is_over() && seen.exit_code() == 0 => {}
            Some(seen) if !seen.is_over() => return false,
            _ => {
                start(inputs, c, plan);
                return false;
            }
        }
    }
    true
}

/// Asks for what a container's start needs next. True: nothing else may be made now.
fn start(inputs: Inputs<'_>, container: &Container, plan: &mut Plan) -> bool {
    let Inputs {
        observed, memory, now, ..
    } = inputs;
    let name = &container.name;
    let current = observed.current(name);
    if let Some(over) = current.filter(|s| s.is_over())
        && let Some(until) = memory.backoff_until(name, &over.status.id, now)
    {
        plan.backing_off.push(name.clone());
        plan.wake_at(until);
        return false;
    }
    if let Some(at) = memory.retry.get(name).filter(|at| **at > now.boottime) {
        plan.wake_at(*at);
        return false;
    }
    match memory.images.get(name) {
        Some(Image::Busy) => false,
        Some(Image::Failed { until, delay, .. }) if *until > now.boottime => {
            let told_again = until.saturating_sub(*delay) + PULL_ERROR_SHOWN;
            plan.wake_at(if told_again > now.boottime { told_again } else { *until });
            false
        }
        Some(Image::Ready(image_ref)) => {
            plan.actions.push(Action::Start(Start {
                name: name.clone(),
                attempt: next_attempt(memory, observed.named(name).next(), name),
                after: current.map(|s| s.status.id.clone()),
                image_ref: image_ref.clone(),
            }));
            true
        }
        _ => {
            plan.actions.push(Action::Pull(name.clone()));
            false
        }
    }
}

/// The restart count goes on where the newest instance, or the last published status, left it.
fn next_attempt(memory: &Memory, newest: Option<&Seen>, name: &str) -> u32 {
    let seen = newest.map(|s| s.restarts() + 1);
    let told = memory
        .prior
        .container(name)
        .filter(|p| has_run(p))
        .map(|p| p.restart_count + 1);
    seen.or(told).unwrap_or(0)
}

/// Whether the pod ran longer than it may.
pub fn is_past_deadline(pod: &Pod, memory: &Memory, now: super::memory::Now) -> bool {
    match (pod.spec.active_deadline_seconds, memory.started_at) {
        (Some(limit), Some(start)) => now.boottime >= start + Duration::from_secs(limit.max(0).unsigned_abs()),
        _ => false,
    }
}
