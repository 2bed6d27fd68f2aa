//! The effects of a plan: each function does one [`super::plan::Action`] and says how it went. The worker runs them as tasks and is the only
//! one that remembers.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::ContainerStatus;

use super::act::{self, Answer, Target};
use super::api::{Container, Pod};
use super::env::{self, Facts};
use super::events::Severity;
use super::files::{self, PodDir};
use super::gate::Stage;
use super::images;
use super::memory::Waiting;
use super::observed::Observed;
use super::plan::{Kill, Start};
use super::registry::Shared;
use super::rows::local_prefix;
use super::spec::{self, Given};
use super::tokens;
use super::volumes::{self, Source, Tokens};

/// After the grace period a container has at least this long between SIGTERM and SIGKILL, as in kubelet.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// How soon a stop that the runtime could not do is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How a job went.
#[derive(Debug)]
pub enum Outcome {
    /// Volumes are there (with the time since 1970 at which a token is due), or why not.
    Volumes(Result<Option<Duration>, String>),
    /// Volumes were brought up to date.
    Refreshed(Option<Duration>),
    /// The sandbox is there, or why not.
    Sandbox(Result<(), String>),
    /// A container's image.
    Image(String, images::Outcome),
    /// A container runs: its name, its id, the reference of its image.
    Started(String, String, String),
    /// A container could not be made.
    NotStarted(String, Waiting),
    /// A container's postStart hook ended; false kills the container.
    Hooked(String, String, bool),
    /// A stop ended.
    Killed(String),
    /// The pod is cleaned up, or why not.
    Finished(bool, Result<(), String>),
}

impl Outcome {
    /// Whether the runtime may look different now. Reading it costs four calls.
    pub fn concerns_runtime(&self) -> bool {
        !matches!(self, Self::Volumes(_) | Self::Refreshed(_) | Self::Image(..))
    }
}

/// Where a pod's files are.
pub fn dir(shared: &Shared, pod: &Pod) -> PodDir {
    PodDir::new(&shared.config.root_dir, &shared.config.pod_logs_dir, pod)
}

/// What the downward API shows of a pod with these addresses.
pub fn facts(shared: &Shared, pod: &Pod, pod_ips: &[String]) -> Facts {
    let node = shared.node.borrow().clone();
    Facts {
        node_name: shared.config.node_name.clone(),
        pod_ips: if pod.spec.host_network {
            node.host_ips.clone()
        } else {
            pod_ips.to_vec()
        },
        host_ips: node.host_ips.clone(),
        allocatable: node.allocatable.clone(),
        api_host: shared.config.api_host.clone(),
        api_port: shared.config.api_port,
    }
}

/// Makes the pod's folders and volumes.
pub async fn set_up_volumes(shared: Arc<Shared>, pod: Arc<Pod>) -> Outcome {
    let (tokens, due) = tokens::ensure(&shared, &pod).await;
    let (shared2, pod2) = (shared.clone(), pod.clone());
    let made = tokio::task::spawn_blocking(move || {
        let dir = dir(&shared2, &pod2);
        make_folders(&dir).map_err(|e| format!("cannot make the pod's folders: {e}"))?;
        with_source(&shared2, &pod2, &tokens, |source| {
            source
                .setup()
                .map_err(|(volume, error)| format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}"))
        })
    })
    .await
    .unwrap_or_else(|error| Err(error.to_string()));
    if let Err(message) = &made {
        shared.event((&pod, None), Severity::Warning, "FailedMount", message);
    }
    Outcome::Volumes(made.map(|()| due))
}

/// Whether nothing is missing that the pod's volumes need.
pub fn is_whole(shared: &Shared, pod: &Pod) -> bool {
    with_source(shared, pod, &Tokens::new(), |source| source.is_whole())
}

/// Brings volumes with API content up to date.
pub async fn refresh_volumes(shared: Arc<Shared>, pod: Arc<Pod>) -> Outcome {
    let (tokens, due) = tokens::ensure(&shared, &pod).await;
    let refreshed = tokio::task::spawn_blocking(move || {
        for (volume, error) in with_source(&shared, &pod, &tokens, |source| source.refresh()) {
            tracing::warn!(pod = pod.full_name(), volume, %error, "the volume keeps what it has");
        }
    })
    .await;
    if let Err(error) = refreshed {
        tracing::error!(%error, "volume refresh ended early");
    }
    Outcome::Refreshed(due)
}

fn with_source<T>(shared: &Shared, pod: &Pod, tokens: &Tokens, run: impl FnOnce(&Source<'_>) -> T) -> T {
    let dir = dir(shared, pod);
    let facts = facts(shared, pod, &[]);
    run(&Source {
        pod,
        dir: &dir,
        objects: &shared.rows,
        facts: &facts,
        tokens,
    })
}

fn make_folders(dir: &PodDir) -> std::io::Result<()> {
    for folder in [
        &dir.root,
        &dir.root.join("volumes"),
        &dir.root.join("containers"),
        &dir.logs,
    ] {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(
            folder,
            std::fs::Permissions::from_mode(if folder == &dir.logs { 0o755 } else { 0o750 }),
        )?;
    }
    Ok(())
}

/// Makes a sandbox, after what is left of earlier ones gave back its address.
pub async fn run_sandbox(shared: Arc<Shared>, pod: Arc<Pod>, observed: Observed, attempt: u32) -> Outcome {
    let result = try_sandbox(&shared, &pod, &observed, attempt).await;
    if let Err(message) = &result {
        let text = format!("Failed to create pod sandbox: {message}");
        shared.event((&pod, None), Severity::Warning, "FailedCreatePodSandBox", &text);
    }
    Outcome::Sandbox(result)
}

async fn try_sandbox(shared: &Shared, pod: &Pod, observed: &Observed, attempt: u32) -> Result<(), String> {
    let _permit = shared.gate.enter(pod.spec.priority.unwrap_or(0), Stage::Sandbox).await;
    for id in observed.sandbox_ids() {
        shared.runtime.stop_sandbox(id).await.map_err(|e| e.message)?;
    }
    shared.cgroups.ensure(pod);
    std::fs::create_dir_all(dir(shared, pod).logs).map_err(|e| e.to_string())?;
    let handler = handler(shared, pod)?;
    if let Some(message) = spec::missing_dns(pod, &shared.config) {
        shared.event((pod, None), Severity::Warning, "DNSConfigForming", &message);
    }
    let config = spec::sandbox(pod, &shared.config, &shared.cgroups, attempt);
    match shared.runtime.run_sandbox(&config, &handler).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.rpc()),
    }
}

/// The RuntimeClass's handler; empty for the runtime's default.
fn handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let Some(class) = pod.spec.runtime_class_name.as_deref().filter(|c| !c.is_empty()) else {
        return Ok(String::new());
    };
    let row = shared
        .rows
        .get(&super::rows::object_key("RuntimeClass", "-", class))
        .map_err(|e| e.to_string())?;
    let row = row.ok_or_else(|| format!("failed to get sandbox runtime: RuntimeClass \"{class}\" not found"))?;
    let object: serde_json::Value = serde_json::from_slice(&row).map_err(|e| e.to_string())?;
    Ok(object["handler"].as_str().unwrap_or_default().to_owned())
}

/// Has a container's image here.
pub async fn image(shared: Arc<Shared>, pod: Arc<Pod>, name: String) -> Outcome {
    let outcome = match pod.container(&name) {
        Some(container) => images::ensure(&shared, &pod, container).await,
        None => images::Outcome::Failed(Waiting::default()),
    };
    Outcome::Image(name, outcome)
}

/// Makes and starts a container.
pub async fn start(shared: Arc<Shared>, pod: Arc<Pod>, observed: Observed, start: Start) -> Outcome {
    let name = start.name.clone();
    let _permit = shared
        .gate
        .enter(pod.spec.priority.unwrap_or(0), Stage::Container)
        .await;
    let Some(container) = pod.container(&name) else {
        return Outcome::NotStarted(name, Waiting::default());
    };
    match try_start(&shared, &pod, (container, &observed), &start).await {
        Ok(id) => Outcome::Started(name, id, start.image_ref),
        Err(waiting) => {
            let message = format!("Error: {}", waiting.message);
            shared.event((&pod, Some(container)), Severity::Warning, "Failed", &message);
            Outcome::NotStarted(name, waiting)
        }
    }
}

async fn try_start(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    (container, observed): (&Container, &Observed),
    start: &Start,
) -> Result<String, Waiting> {
    let say = |reason: &'static str| {
        move |message: String| Waiting {
            reason: reason.to_owned(),
            message,
        }
    };
    let sandbox = observed
        .ready_sandbox()
        .ok_or_else(|| say("CreateContainerError")("the sandbox is gone".to_owned()))?;
    let mut given = given(shared, pod, container, (observed, start))
        .await
        .map_err(say("CreateContainerConfigError"))?;
    given.target_id = observed
        .current(&container.target_container_name)
        .map(|s| s.status.id.clone());
    let config = spec::container(pod, container, &shared.config, (start, given))
        .map_err(|e| say("CreateContainerConfigError")(e.to_string()))?;
    let sandbox_config = spec::sandbox(pod, &shared.config, &shared.cgroups, sandbox.metadata.attempt);
    let id = shared
        .runtime
        .create_container(&sandbox.id, &config, &sandbox_config)
        .await
        .map_err(|e| say("CreateContainerError")(e.message))?;
    shared.event((pod, Some(container)), Severity::Normal, "Created", "Container created");
    shared
        .runtime
        .start_container(&id)
        .await
        .map_err(|e| say("RunContainerError")(e.message))?;
    shared.event((pod, Some(container)), Severity::Normal, "Started", "Container started");
    link_log(shared, pod, container, (&id, start.attempt));
    Ok(id)
}

async fn given(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    container: &Container,
    (observed, start): (&Observed, &Start),
) -> Result<Given, String> {
    let ips = observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
    let facts = facts(shared, pod, &ips);
    let env = env::build(pod, container, &facts, &shared.rows).map_err(|e| e.to_string())?;
    let image = shared
        .runtime
        .image_status(&start.image_ref)
        .await
        .map_err(|e| e.message)?;
    let (shared2, pod2, container2) = (shared.clone(), pod.clone(), container.clone());
    let attempt = start.attempt;
    let (env, made) = tokio::task::spawn_blocking(move || {
        let made = make_files(&shared2, &pod2, &container2, (&env, &facts, attempt));
        (env, made)
    })
    .await
    .map_err(|e| e.to_string())?;
    let (mounts, devices, message_file) = made.map_err(|e| e.to_string())?;
    let memory = shared.node.borrow().memory_bytes();
    Ok(Given {
        env,
        mounts,
        devices,
        message_file,
        image: image.unwrap_or_default(),
        node_memory: memory,
        target_id: None,
    })
}

type Files = (Vec<cri::Mount>, Vec<cri::Device>, String);

fn make_files(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    (env, facts, attempt): (&[(String, String)], &Facts, u32),
) -> std::io::Result<Files> {
    let dir = dir(shared, pod);
    make_folders(&dir)?;
    std::fs::create_dir_all(dir.logs.join(&container.name))?;
    let (mut mounts, devices) = volumes::container_mounts(pod, container, &dir, env)?;
    let mut add = |container_path: &str, host_path: &std::path::Path| {
        if !mounts.iter().any(|m| m.container_path == container_path) {
            mounts.push(cri::Mount {
                container_path: container_path.to_owned(),
                host_path: host_path.display().to_string(),
                ..cri::Mount::default()
            });
        }
    };
    let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let hosts = files::hosts(pod, facts, &shared.config.cluster_domain, &node);
    // In place: containers that run have this very file mounted.
    std::fs::write(dir.etc_hosts(), hosts)?;
    std::fs::set_permissions(dir.etc_hosts(), std::fs::Permissions::from_mode(0o644))?;
    add("/etc/hosts", &dir.etc_hosts());
    let message = files::make_message_file(&dir, container, attempt)?;
    add(container.message_path(), &message);
    Ok((mounts, devices, message.display().to_string()))
}

/// `<logs>/../containers/<pod>_<namespace>_<container>-<id>.log`, which log shippers read.
fn link_log(shared: &Shared, pod: &Pod, container: &Container, (id, attempt): (&str, u32)) {
    let Some(folder) = &shared.config.container_logs_dir else {
        return;
    };
    let log = dir(shared, pod)
        .logs
        .join(&container.name)
        .join(format!("{attempt}.log"));
    let name = format!(
        "{}_{}_{}-{id}.log",
        pod.metadata.name, pod.metadata.namespace, container.name
    );
    let linked = std::fs::create_dir_all(folder).and_then(|()| std::os::unix::fs::symlink(log, folder.join(name)));
    if let Err(error) = linked {
        tracing::debug!(pod = pod.full_name(), %error, "no link to the container's log");
    }
}

/// Runs a container's postStart hook.
pub async fn post_start(shared: Arc<Shared>, pod: Arc<Pod>, target: Target) -> Outcome {
    let name = target.container.name.clone();
    let handler = target
        .container
        .lifecycle
        .clone()
        .and_then(|l| l.post_start)
        .unwrap_or_default();
    // kubelet waits for ever; a hook that outlives a day is not coming back.
    let limit = Duration::from_secs(24 * 3600);
    let good = match act::hook(&*shared.runtime, &target, &handler, limit).await {
        Answer::Success => true,
        Answer::Failure(text) | Answer::Error(text) => {
            // What it said may be a secret: not for the event.
            tracing::warn!(
                pod = pod.full_name(),
                container = target.container.name,
                text,
                "PostStartHook failed"
            );
            shared.event(
                (&pod, Some(&target.container)),
                Severity::Warning,
                "FailedPostStartHook",
                "PostStartHook failed",
            );
            false
        }
    };
    Outcome::Hooked(name, target.id, good)
}

/// Stops a container: preStop hook, SIGTERM, what is left of the grace period, SIGKILL.
pub async fn kill(shared: Arc<Shared>, pod: Arc<Pod>, (kill, ip): (Kill, String)) -> Outcome {
    let container = pod.container(&kill.name);
    shared.event((&pod, container), Severity::Normal, "Killing", &kill.message);
    let mut left = kill.grace;
    let hook = container
        .and_then(|c| c.lifecycle.as_ref())
        .and_then(|l| l.pre_stop.clone());
    if let (Some(handler), Some(container)) = (hook, container)
        && !left.is_zero()
    {
        let started = tokio::time::Instant::now();
        let target = Target {
            id: kill.id.clone(),
            ip,
            container: container.clone(),
        };
        if let Answer::Failure(text) | Answer::Error(text) = act::hook(&*shared.runtime, &target, &handler, left).await
        {
            // What it said may be a secret: not for the event.
            tracing::warn!(
                pod = pod.full_name(),
                container = container.name,
                text,
                "PreStopHook failed"
            );
            shared.event(
                (&pod, Some(container)),
                Severity::Warning,
                "FailedPreStopHook",
                "PreStopHook failed",
            );
        }
        left = left.saturating_sub(started.elapsed());
    }
    if !kill.grace.is_zero() {
        left = left.max(MIN_GRACE);
    }
    while let Err(error) = shared.runtime.stop_container(&kill.id, left).await {
        tracing::warn!(pod = pod.full_name(), container = kill.name, %error, "stop failed; trying again");
        tokio::time::sleep(RETRY).await;
    }
    Outcome::Killed(kill.id)
}

/// Cleans up after the last container stopped.
pub async fn finish(shared: Arc<Shared>, pod: Arc<Pod>, observed: Observed, remove: bool) -> Outcome {
    let result = try_finish(&shared, &pod, &observed, remove).await;
    if let Err(message) = &result {
        tracing::warn!(pod = pod.full_name(), message, "clean-up is not complete; trying again");
        tokio::time::sleep(RETRY).await;
    }
    Outcome::Finished(remove, result)
}

async fn try_finish(shared: &Arc<Shared>, pod: &Arc<Pod>, observed: &Observed, remove: bool) -> Result<(), String> {
    for id in observed.sandbox_ids() {
        shared.runtime.stop_sandbox(id).await.map_err(|e| e.to_string())?;
    }
    if remove {
        for seen in &observed.containers {
            let ContainerStatus { id, .. } = &seen.status;
            shared.runtime.remove_container(id).await.map_err(|e| e.to_string())?;
        }
        for id in observed.sandbox_ids() {
            shared.runtime.remove_sandbox(id).await.map_err(|e| e.to_string())?;
        }
    }
    let (shared2, pod2) = (shared.clone(), pod.clone());
    tokio::task::spawn_blocking(move || clean_disk(&shared2, &pod2, remove))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    if remove {
        forget_rows(shared, pod).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn clean_disk(shared: &Shared, pod: &Pod, remove: bool) -> std::io::Result<()> {
    let dir = dir(shared, pod);
    shared.cgroups.remove(pod);
    if !remove {
        return volumes::mounts::unmount_below(&dir.root);
    }
    volumes::mounts::remove_all(&dir.root)?;
    if let Some(folder) = &shared.config.container_logs_dir
        && let Ok(entries) = std::fs::read_dir(folder)
    {
        for entry in entries.flatten() {
            if std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&dir.logs)) {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    match std::fs::remove_dir_all(&dir.logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn forget_rows(shared: &Shared, pod: &Pod) -> Result<(), super::rows::RowError> {
    let uid = &pod.metadata.uid;
    let mut changes: Vec<(String, Option<Bytes>)> = Vec::new();
    for prefix in [local_prefix(uid), format!("local/v1/token/{uid}/")] {
        changes.extend(shared.rows.scan(&prefix)?.into_iter().map(|(key, _)| (key, None)));
    }
    if changes.is_empty() {
        Ok(())
    } else {
        shared.rows.commit(changes).await
    }
}
