//! The status of a pod as kubelet reports it: a function of (pod, observed, memory, now).
//!
//! * each container's newest instance gives state, the one before gives lastState; what the runtime has forgotten comes from the prior status;
//! * the phase follows from the container states, and never leaves Succeeded or Failed;
//! * a condition's transition time moves only with its status.

use std::time::Duration;

use super::api::{Container, Pod, RestartPolicy};
use super::memory::{Image, Memory, Now};
use super::observed::{Observed, Seen};
use super::report::{
    Condition, ContainerStatus, Ip, PodStatus, Resources, RunningState, State, TerminatedState, WaitingState, rfc3339,
    rfc3339_nanos,
};
use super::resources;

/// How long a failed pull is told as `ErrImagePull` before it is told as `ImagePullBackOff`; kubelet's next sync makes that change.
pub const PULL_ERROR_SHOWN: Duration = Duration::from_secs(3);

/// Everything that plan and status are functions of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What should be.
    pub pod: &'a Pod,
    /// What is.
    pub observed: &'a Observed,
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// The time.
    pub now: Now,
}

/// Computes the pod's status. `host_ips` are the node's addresses.
pub fn status(inputs: Inputs<'_>, host_ips: &[String]) -> PodStatus {
    let Inputs {
        pod, observed, memory, ..
    } = inputs;
    let prior = &memory.prior;
    let ips = |list: &[String]| list.iter().map(|ip| Ip { ip: ip.clone() }).collect::<Vec<_>>();
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        host_ip: host_ips.first().cloned().unwrap_or_default(),
        host_ips: ips(host_ips),
        start_time: memory.start_time.map(rfc3339),
        qos_class: resources::qos(pod).as_str().to_owned(),
        ..PodStatus::default()
    };
    if let Some(verdict) = &memory.verdict {
        status.reason.clone_from(&verdict.reason);
        status.message.clone_from(&verdict.message);
    }
    let pod_ips = match observed.ready_sandbox() {
        _ if pod.spec.host_network => host_ips.to_vec(),
        Some(sandbox) => sandbox.ips.clone(),
        None => Vec::new(),
    };
    if pod_ips.is_empty() && (prior.is_terminal() || memory.ending.is_some()) {
        // A pod that ended keeps showing where it was.
        status.pod_ip.clone_from(&prior.pod_ip);
        status.pod_ips.clone_from(&prior.pod_ips);
    } else {
        status.pod_ip = pod_ips.first().cloned().unwrap_or_default();
        status.pod_ips = ips(&pod_ips);
    }
    let rejected = memory.verdict.is_some() && observed.containers.is_empty() && prior.container_statuses.is_empty();
    if !rejected {
        let each = |list: &[Container]| list.iter().map(|c| container_status(inputs, c)).collect();
        status.init_container_statuses = each(&pod.spec.init_containers);
        status.container_statuses = each(&pod.spec.containers);
        status.ephemeral_container_statuses = each(&pod.spec.ephemeral_containers);
    }
    status.phase = phase(inputs, &status).to_owned();
    if status.is_terminal() {
        for c in status
            .container_statuses
            .iter_mut()
            .chain(&mut status.init_container_statuses)
        {
            c.ready &= c.state.terminated.is_some() && pod.is_init(&c.name);
            c.started = false;
        }
    }
    status.conditions = conditions(inputs, &status);
    status
}

/// Whether a container that ended is started again.
pub fn restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    if pod.spec.ephemeral_containers.iter().any(|c| c.name == container.name) {
        return false;
    }
    if pod.is_init(&container.name) {
        return exit_code != 0 && pod.spec.restart_policy != RestartPolicy::Never;
    }
    match pod.spec.restart_policy {
        _ if container.is_sidecar() => true,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// Whether all plain init containers ended well and all sidecars started, or the containers after them were made already.
pub fn is_initialized(inputs: Inputs<'_>) -> bool {
    if inputs.memory.prior.is_terminal() {
        return true;
    }
    has_initialized(inputs)
}

/// The same whatever was said before.
fn has_initialized(inputs: Inputs<'_>) -> bool {
    let Inputs {
        pod, observed, memory, ..
    } = inputs;
    if pod.spec.containers.iter().any(|c| observed.current(&c.name).is_some()) {
        return true;
    }
    pod.spec
        .init_containers
        .iter()
        .all(|c| match observed.current(&c.name) {
            Some(seen) if c.is_sidecar() => seen.is_running() && is_started(c, seen, memory),
            Some(seen) => seen.is_over() && seen.exit_code() == 0,
            None => false,
        })
}

/// Whether a running container passed its startup probe and its postStart hook.
pub fn is_started(container: &Container, seen: &Seen, memory: &Memory) -> bool {
    if !seen.is_running() || memory.hooks.contains(&seen.status.id) {
        return false;
    }
    if container.startup_probe.is_none() {
        return true;
    }
    let said = memory.probes.get(&seen.status.id).and_then(|p| p.started);
    said.unwrap_or_else(|| prior_of(memory, container, seen).is_some_and(|p| p.started))
}

fn is_ready(container: &Container, seen: &Seen, memory: &Memory) -> bool {
    if !is_started(container, seen, memory) {
        return false;
    }
    if container.readiness_probe.is_none() {
        return true;
    }
    let said = memory.probes.get(&seen.status.id).and_then(|p| p.ready);
    // Before the first result after edgecore's restart, the same container is what it was.
    said.unwrap_or_else(|| prior_of(memory, container, seen).is_some_and(|p| p.ready))
}

fn prior_of<'a>(memory: &'a Memory, container: &Container, seen: &Seen) -> Option<&'a ContainerStatus> {
    memory
        .prior
        .container(&container.name)
        .filter(|p| p.container_id == container_id(&seen.status.id))
}

/// The id as the API shows it.
pub fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn container_status(inputs: Inputs<'_>, container: &Container) -> ContainerStatus {
    let Inputs {
        pod, observed, memory, ..
    } = inputs;
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        ..ContainerStatus::default()
    };
    if !container.resources.limits.is_empty() || !container.resources.requests.is_empty() {
        status.allocated_resources.clone_from(&container.resources.requests);
        status.resources = Some(Resources {
            limits: container.resources.limits.clone(),
            requests: container.resources.requests.clone(),
        });
    }
    let mut instances = observed.named(&container.name);
    let prior = memory.prior.container(&container.name);
    let Some(newest) = instances.next() else {
        return never_seen(inputs, status, prior);
    };
    status.resources.get_or_insert_default();
    status.container_id = container_id(&newest.status.id);
    status.image_id.clone_from(&newest.status.image_ref);
    if !newest.status.image.is_empty() && !newest.status.image.starts_with("sha256:") {
        status.image.clone_from(&newest.status.image);
    }
    status.restart_count = newest.restarts();
    status.last_state = last_state(&status, newest, instances.find(|c| c.is_over()), (prior, memory));
    match newest.status.state {
        cri::ContainerState::Running => {
            status.state.running = Some(RunningState {
                started_at: rfc3339_nanos(newest.status.started_at).unwrap_or_default(),
            });
            status.started = is_started(container, newest, memory);
            status.ready = is_ready(container, newest, memory);
        }
        cri::ContainerState::Created => status.state.waiting = Some(waiting(inputs, container)),
        cri::ContainerState::Exited | cri::ContainerState::Unknown => {
            let over = terminated(newest, memory);
            let ending = pod.is_deleted() || memory.removed || memory.verdict.is_some() || memory.prior.is_terminal();
            let again = !ending && restarts(pod, container, newest.exit_code());
            match again.then(|| held_back(inputs, container, newest)).flatten() {
                Some(wait) => {
                    status.state.waiting = Some(wait);
                    status.last_state = over;
                }
                None => status.state = over,
            }
            status.ready = pod.is_init(&container.name) && newest.exit_code() == 0;
        }
    }
    status
}

/// How the instance before this one ended, from the runtime or from what was told before.
fn last_state(
    status: &ContainerStatus,
    newest: &Seen,
    before: Option<&Seen>,
    (prior, memory): (Option<&ContainerStatus>, &Memory),
) -> State {
    match (before, prior) {
        (Some(seen), _) => terminated(seen, memory),
        (None, Some(p)) if newest.restarts() > 0 && p.container_id == status.container_id => p.last_state.clone(),
        (None, Some(p)) if newest.restarts() > 0 => ended(p),
        _ => State::default(),
    }
}

/// The runtime has no instance: waiting, or what it was when we last saw it.
fn never_seen(inputs: Inputs<'_>, mut status: ContainerStatus, prior: Option<&ContainerStatus>) -> ContainerStatus {
    let Inputs { pod, memory, .. } = inputs;
    if let Some(p) = prior.filter(|p| has_run(p)) {
        let ending = memory.prior.is_terminal() || pod.is_deleted() || memory.removed || memory.verdict.is_some();
        if ending {
            let mut kept = p.clone();
            kept.ready = p.ready && p.state.terminated.is_some();
            kept.started = false;
            kept.state = ended(p);
            return kept;
        }
        status.restart_count = p.restart_count;
        status.last_state = ended(p);
        status.image_id.clone_from(&p.image_id);
    }
    let name = status.name.clone();
    status.state.waiting = pod.container(&name).map(|c| waiting(inputs, c));
    status
}

/// Whether a prior status tells of an instance.
pub fn has_run(prior: &ContainerStatus) -> bool {
    !prior.container_id.is_empty() || prior.restart_count > 0 || prior.last_state.terminated.is_some()
}

/// A prior status as an ended state: what ran and is gone counts as lost.
fn ended(prior: &ContainerStatus) -> State {
    if prior.state.terminated.is_some() {
        return prior.state.clone();
    }
    let Some(running) = &prior.state.running else {
        return prior.last_state.clone();
    };
    State {
        terminated: Some(TerminatedState {
            exit_code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was terminated or restarted".to_owned(),
            started_at: Some(running.started_at.clone()),
            container_id: prior.container_id.clone(),
            ..TerminatedState::default()
        }),
        ..State::default()
    }
}

fn terminated(seen: &Seen, memory: &Memory) -> State {
    let s = &seen.status;
    let code = seen.exit_code();
    let reason = match s.reason.as_str() {
        _ if s.state == cri::ContainerState::Unknown => "ContainerStatusUnknown",
        "" if code == 0 => "Completed",
        "" => "Error",
        given => given,
    };
    let message = memory.messages.get(&s.id).unwrap_or(&s.message);
    State {
        terminated: Some(TerminatedState {
            exit_code: code,
            reason: reason.to_owned(),
            message: message.clone(),
            started_at: rfc3339_nanos(s.started_at),
            finished_at: rfc3339_nanos(s.finished_at),
            container_id: container_id(&s.id),
        }),
        ..State::default()
    }
}

/// What a container that is not there waits for.
fn waiting(inputs: Inputs<'_>, container: &Container) -> WaitingState {
    let say = |reason: &str, message: &str| WaitingState {
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    if let Some(w) = inputs.memory.failures.get(&container.name) {
        return say(&w.reason, &w.message);
    }
    if let Some(wait) = image_wait(inputs, &container.name) {
        return wait;
    }
    let is_app = inputs.pod.spec.containers.iter().any(|c| c.name == container.name);
    let initializing = !inputs.pod.spec.init_containers.is_empty() && !has_initialized(inputs);
    let first = inputs
        .pod
        .spec
        .init_containers
        .first()
        .is_some_and(|c| c.name == container.name);
    let reason = if initializing && (is_app || !first) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    say(reason, "")
}

fn image_wait(inputs: Inputs<'_>, name: &str) -> Option<WaitingState> {
    let Some(Image::Failed { waiting, .. }) = inputs.memory.images.get(name) else {
        return None;
    };
    Some(WaitingState {
        reason: waiting.reason.clone(),
        message: waiting.message.clone(),
    })
}

/// Why an ended container that will start again does not yet.
fn held_back(inputs: Inputs<'_>, container: &Container, over: &Seen) -> Option<WaitingState> {
    let Inputs { pod, memory, now, .. } = inputs;
    if memory.backoff_until(&container.name, &over.status.id, now).is_some() {
        return Some(WaitingState {
            reason: "CrashLoopBackOff".to_owned(),
            message: backoff_message(pod, container, memory),
        });
    }
    if memory.failures.contains_key(&container.name) {
        return Some(waiting(inputs, container));
    }
    image_wait(inputs, &container.name)
}

/// kubelet's text about a restart that waits.
pub fn backoff_message(pod: &Pod, container: &Container, memory: &Memory) -> String {
    let delay = memory
        .backoff
        .get(&container.name)
        .map_or(Duration::ZERO, |b| b.delay)
        .as_secs();
    let text = if delay >= 60 {
        format!("{}m{}s", delay / 60, delay % 60)
    } else {
        format!("{delay}s")
    };
    format!(
        "back-off {text} restarting failed container={} pod={}_{}({})",
        container.name, pod.metadata.name, pod.metadata.namespace, pod.metadata.uid
    )
}

/// Whether somebody deleted the pod.
fn is_leaving(inputs: Inputs<'_>) -> bool {
    inputs.pod.is_deleted() || inputs.memory.removed
}

/// The phase, from the states (kubelet's `getPhase`).
fn phase(inputs: Inputs<'_>, status: &PodStatus) -> &'static str {
    let Inputs { pod, memory, .. } = inputs;
    match memory.prior.phase.as_str() {
        "Succeeded" => return "Succeeded",
        "Failed" => return "Failed",
        _ => {}
    }
    if memory.verdict.is_some() {
        let live = status.container_statuses.iter().any(|c| c.state.running.is_some());
        return if live { "Running" } else { "Failed" };
    }
    let over = |c: &ContainerStatus| c.state.terminated.clone().or_else(|| c.last_state.terminated.clone());
    let plain_inits = || status.init_container_statuses.iter().filter(|c| pod.is_init(&c.name));
    let init_failed = plain_inits().any(|c| over(c).is_some_and(|t| t.exit_code != 0) && c.state.running.is_none());
    if init_failed && pod.spec.restart_policy == RestartPolicy::Never {
        return "Failed";
    }
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for c in &status.container_statuses {
        match (&c.state.running, over(c)) {
            (Some(_), _) => running += 1,
            (None, Some(t)) => {
                stopped += 1;
                succeeded += usize::from(t.exit_code == 0 && c.state.terminated.is_some());
            }
            (None, None) => waiting += 1,
        }
    }
    if waiting > 0 || (running == 0 && stopped == 0) {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    // Nothing is started again, whatever the policy says.
    if is_leaving(inputs) {
        return if succeeded == stopped { "Succeeded" } else { "Failed" };
    }
    if pod.spec.restart_policy == RestartPolicy::Always {
        return "Running";
    }
    if succeeded == stopped {
        return "Succeeded";
    }
    if pod.spec.restart_policy == RestartPolicy::Never {
        "Failed"
    } else {
        "Running"
    }
}

/// The five conditions that the node owns.
fn conditions(inputs: Inputs<'_>, status: &PodStatus) -> Vec<Condition> {
    let Inputs { pod, observed, .. } = inputs;
    let terminal = status.is_terminal();
    let done = match status.phase.as_str() {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    // The sandbox of a deleted pod is taken down once its containers have ended, and nothing is said after that.
    let goes = terminal && is_leaving(inputs);
    let sandbox = !goes && observed.ready_sandbox().is_some() && (pod.spec.host_network || !status.pod_ip.is_empty());
    let unready: Vec<String> = names(&status.container_statuses, |c| !c.ready)
        .into_iter()
        .chain(names(&status.init_container_statuses, |c| {
            !c.ready && pod.container(&c.name).is_some_and(Container::is_sidecar)
        }))
        .collect();
    let containers_ready = if terminal {
        (false, done.unwrap_or_default(), String::new())
    } else if unready.is_empty() && !status.container_statuses.is_empty() {
        (true, "", String::new())
    } else {
        (
            false,
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        )
    };
    let initialized = initialized(inputs, status);
    let ready = gated(pod, containers_ready.clone());
    let make = |kind: &str, value: (bool, &str, String)| condition(inputs, kind, value);
    vec![
        make("PodReadyToStartContainers", (sandbox, "", String::new())),
        make("Initialized", initialized),
        make("Ready", ready),
        make("ContainersReady", containers_ready),
        make("PodScheduled", (true, "", String::new())),
    ]
}

/// The condition Initialized (kubelet's `GeneratePodInitializedCondition`).
fn initialized(inputs: Inputs<'_>, status: &PodStatus) -> (bool, &'static str, String) {
    let Inputs { pod, memory, .. } = inputs;
    let unready = names(&status.init_container_statuses, |c| {
        let sidecar = pod.container(&c.name).is_some_and(Container::is_sidecar);
        if sidecar { !c.started } else { !c.ready }
    });
    let began = |c: &ContainerStatus| {
        let now = &c.state;
        now.running.is_some() || now.terminated.is_some() || c.last_state.terminated.is_some()
    };
    // What has ended has no sandbox to look into.
    let done = if status.is_terminal() {
        unready.is_empty() || status.container_statuses.iter().any(began)
    } else {
        has_initialized(inputs)
    };
    match status.phase.as_str() {
        "Succeeded" => (true, "PodCompleted", String::new()),
        _ if done && memory.verdict.is_none() => (true, "", String::new()),
        "Failed" if memory.verdict.is_some() => (false, "PodFailed", String::new()),
        _ => (
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", unready.join(" ")),
        ),
    }
}

/// Ready is ContainersReady behind the readiness gates. Their conditions are written by others and do not reach the node: they count as false.
fn gated(pod: &Pod, containers_ready: (bool, &'static str, String)) -> (bool, &'static str, String) {
    match pod.spec.readiness_gates.first() {
        Some(gate) if containers_ready.0 => (
            false,
            "ReadinessGatesNotReady",
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            ),
        ),
        _ => containers_ready,
    }
}

fn names(list: &[ContainerStatus], wanted: impl Fn(&ContainerStatus) -> bool) -> Vec<String> {
    list.iter().filter(|c| wanted(c)).map(|c| c.name.clone()).collect()
}

fn condition(inputs: Inputs<'_>, kind: &str, (value, reason, message): (bool, &str, String)) -> Condition {
    let word = if value { "True" } else { "False" };
    let since = match inputs.memory.prior.condition(kind) {
        Some(prior) if prior.status == word => prior.last_transition_time.clone(),
        _ => rfc3339(inputs.now.wall),
    };
    Condition {
        r#type: kind.to_owned(),
        observed_generation: inputs.pod.metadata.generation,
        status: word.to_owned(),
        last_probe_time: None,
        last_transition_time: since,
        reason: reason.to_owned(),
        message,
    }
}
