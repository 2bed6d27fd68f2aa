//! One pod's worker: the only one that decides about this pod, from admission to the last row.
//!
//! Loop: read the runtime → note what changed → `plan` → start jobs → publish the status → wait for news (object, hint, job, probe, ConfigMaps
//! and Secrets, a time). Jobs run beside the loop, so a pull or a grace period never delays a deletion; at most one of them makes something.
//! What the worker knows dies with it, and is read back from the runtime and from the pod's last status.

mod publish;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::act::Target;
use super::api::Pod;
use super::events::Severity;
use super::jobs::{self, Outcome};
use super::memory::{Image, Memory, Now, RETRY, Step, Verdict, Waiting};
use super::observed::Observed;
use super::plan::{Action, Kill, Plan, is_ending, is_past_deadline, plan};
use super::probes::Probes;
use super::registry::Shared;
use super::report::{self, PodStatus};
use super::rows::{Change, status_key};
use super::status::{self, Inputs};
use super::{admission, files, images};

/// How long a pod is left alone when nothing happens; volumes are brought up to date at this pace too.
const RESYNC: Duration = Duration::from_secs(60);
/// When to look again after a hint: containerd tells of an exit before its CRI plugin has taken it in, and then tells nothing more.
const LOOK_AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_millis(1500),
];
/// The same after a start of ours. An exit that is told before the first look knows the container's id is heard by nobody.
const LOOK_AFTER_START: Duration = Duration::from_millis(300);
/// How long a status waits for the container that is being started: most start within it, and then one says what two would.
const HOLD: Duration = Duration::from_millis(300);
/// How soon a runtime that does not answer is asked again.
const RUNTIME_RETRY: Duration = Duration::from_secs(2);

/// What the manager wants of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod as last known.
    pub pod: Arc<Pod>,
    /// Its JSON; empty for an orphan.
    pub raw: Bytes,
    /// Its object is no longer in the store.
    pub removed: bool,
}

/// One pod's worker.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    desired: watch::Receiver<Desired>,
    hint: Arc<Notify>,
    pod: Arc<Pod>,
    raw: Bytes,
    memory: Memory,
    observed: Observed,
    /// The last look at the runtime failed.
    unread: bool,
    jobs: JoinSet<Outcome>,
    pulls: Vec<AbortHandle>,
    probes: Probes,
    volumes_due: Option<Duration>,
    refreshing: bool,
    judged: bool,
    told: BTreeMap<String, Duration>,
    published: Option<PodStatus>,
    /// Until when the status waits.
    hold: Option<Duration>,
    shown: bool,
    gone: bool,
    look_again: Vec<Duration>,
    finishing: bool,
    /// Rows for the next commit.
    rows: Vec<Change>,
}

enum News {
    Object,
    Objects,
    Look,
    Hint,
    Job(Box<Outcome>),
}

impl Worker {
    /// A worker for the pod that `desired` holds; `hint` wakes it.
    pub fn new(shared: Arc<Shared>, desired: watch::Receiver<Desired>, hint: Arc<Notify>) -> Self {
        let Desired { pod, raw, .. } = desired.borrow().clone();
        Self {
            shared,
            desired,
            hint,
            pod,
            raw,
            memory: Memory::default(),
            observed: Observed::default(),
            unread: false,
            jobs: JoinSet::new(),
            pulls: Vec::new(),
            probes: Probes::default(),
            volumes_due: None,
            refreshing: false,
            judged: false,
            told: BTreeMap::new(),
            published: None,
            hold: None,
            shown: false,
            gone: false,
            look_again: Vec::new(),
            finishing: false,
            rows: Vec::new(),
        }
    }

    /// Works until nothing of the pod is left and its object is gone.
    pub async fn run(mut self) {
        self.read_prior();
        let mut verdicts = self.probes.subscribe();
        let mut objects = self.shared.objects_changed.clone();
        // What changed before is seen by the first look.
        objects.borrow_and_update();
        let mut look = true;
        loop {
            self.take_desired();
            let wake = match self.step(look).await {
                Ok(wake) => wake,
                Err(error) => {
                    tracing::debug!(pod = self.pod.full_name(), %error, "the runtime cannot be read");
                    Some((self.shared.clock)().boottime + RUNTIME_RETRY)
                }
            };
            if self.memory.removed && self.memory.finished == Some(true) {
                return self.forget().await;
            }
            let now = (self.shared.clock)().boottime;
            self.look_again.retain(|&at| at > now);
            let next = wake.into_iter().chain(self.look_again.first().copied()).min();
            let pause = next.map_or(RESYNC, |at| at.saturating_sub(now).min(RESYNC));
            let news = tokio::select! {
                biased;
                Ok(()) = self.desired.changed() => News::Object,
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => match done {
                    Ok(outcome) => News::Job(Box::new(outcome)),
                    Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                    Err(_) => News::Look,
                },
                () = self.hint.notified() => News::Hint,
                Ok(()) = verdicts.changed() => News::Look,
                Ok(()) = objects.changed() => News::Objects,
                () = tokio::time::sleep(pause) => News::Look,
            };
            self.memory.probes = verdicts.borrow_and_update().clone();
            look = !matches!(&news, News::Job(outcome) if !outcome.concerns_runtime());
            self.take(news);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Look => {}
            News::Hint => self.look_again(),
            News::Object => self.volumes_due = Some(Duration::ZERO),
            News::Objects => {
                // What was missing may be here now.
                self.memory.retry.clear();
                if let Step::Failed(_) = self.memory.volumes {
                    self.memory.volumes = Step::Todo;
                }
                if let Step::Failed(_) = self.memory.sandbox {
                    self.memory.sandbox = Step::Todo;
                }
                self.volumes_due = Some(Duration::ZERO);
            }
            News::Job(outcome) => self.take_outcome(*outcome),
        }
    }

    fn look_again(&mut self) {
        let now = (self.shared.clock)().boottime;
        self.look_again = LOOK_AGAIN.iter().map(|&after| now + after).collect();
    }

    fn read_prior(&mut self) {
        let m = &self.pod.metadata;
        let row = self
            .shared
            .rows
            .get(&status_key(&m.namespace, &m.name, &m.uid))
            .ok()
            .flatten();
        let prior = row.and_then(|bytes| {
            let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            serde_json::from_value(value.get("status")?.clone()).ok()
        });
        self.memory.prior = prior.unwrap_or_default();
        self.published = Some(self.memory.prior.clone()).filter(|p| !p.phase.is_empty());
        let now = (self.shared.clock)();
        let start = self
            .memory
            .prior
            .start_time
            .as_deref()
            .and_then(report::parse_time)
            .unwrap_or(now.wall);
        self.memory.start_time = Some(start);
        self.memory.started_at = Some(now.boottime.saturating_sub(now.wall.saturating_sub(start)));
    }

    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        if desired.removed && !self.memory.removed {
            self.memory.finished = self.memory.finished.filter(|removed| *removed);
        }
        if desired.pod.is_deleted() && !self.pod.is_deleted() {
            self.memory.finished = None;
        }
        self.memory.removed = desired.removed;
        self.pod = desired.pod;
        self.raw = desired.raw;
    }

    /// `look`: at the runtime first. What only the node's own files told leaves it as it was.
    async fn step(&mut self, look: bool) -> cri::Result<Option<Duration>> {
        if look || self.unread {
            let uid = self.pod.metadata.uid.clone();
            self.unread = true;
            self.observed = Observed::read(&*self.shared.runtime, &uid, &self.observed).await?;
            self.unread = false;
        }
        let now = (self.shared.clock)();
        self.memory.note(&self.observed, now);
        self.learn_ids();
        self.read_messages();
        self.judge(now);
        if self.memory.volumes == Step::Todo && !self.memory.mounting {
            self.memory.whole = jobs::is_whole(&self.shared, &self.pod);
        }
        let inputs = Inputs {
            pod: &self.pod,
            observed: &self.observed,
            memory: &self.memory,
            now,
        };
        let ending = is_ending(inputs);
        if ending && self.memory.ending.is_none() {
            self.memory.ending = Some(now.boottime);
            self.pulls.drain(..).for_each(|pull| pull.abort());
        }
        let inputs = Inputs {
            pod: &self.pod,
            observed: &self.observed,
            memory: &self.memory,
            now,
        };
        let plan = plan(inputs);
        self.tell_back_offs(&plan, now);
        let mut wake = plan.wake;
        for action in plan.actions {
            if self.dispatch(action, now).await {
                // Something went from the runtime: look again at once.
                wake = Some(now.boottime);
            }
        }
        self.keep_volumes(ending, now);
        self.keep_probes(ending, now);
        self.hold = self
            .hold
            .filter(|&until| self.memory.busy && !ending && until > now.boottime);
        if self.hold.is_none() || self.published.is_none() {
            self.publish(now).await;
        }
        // What stands in the way of a refresh ends with news of its own.
        let can_refresh = !ending && !self.refreshing && !self.memory.busy && self.memory.volumes == Step::Done;
        let due = self.volumes_due.map(|at| now.boottime + at.saturating_sub(now.wall));
        Ok([wake, due.filter(|_| can_refresh), self.hold]
            .into_iter()
            .flatten()
            .min())
    }

    /// Tells which pod an id belongs to, for hints.
    fn learn_ids(&self) {
        let uid = &self.pod.metadata.uid;
        let mut ids = self.shared.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|_, owner| owner != uid);
        let containers = self.observed.containers.iter().map(|c| &c.status.id);
        for id in containers.chain(self.observed.sandbox_ids()) {
            ids.insert(id.clone(), uid.clone());
        }
    }

    fn read_messages(&mut self) {
        for seen in self.observed.containers.iter().filter(|c| c.is_over()) {
            if !self.memory.messages.contains_key(&seen.status.id) {
                let own = files::termination_message(seen);
                let message = if own.is_empty() {
                    seen.status.message.clone()
                } else {
                    own
                };
                self.memory.messages.insert(seen.status.id.clone(), message);
            }
        }
    }

    /// Admission, once; the active deadline, always.
    fn judge(&mut self, now: Now) {
        if self.memory.verdict.is_none() && self.memory.prior.is_terminal() && !self.memory.prior.reason.is_empty() {
            let PodStatus { reason, message, .. } = self.memory.prior.clone();
            self.memory.verdict = Some(Verdict { reason, message });
        }
        if self.memory.removed || self.pod.is_deleted() || self.memory.prior.is_terminal() {
            return;
        }
        if is_past_deadline(&self.pod, &self.memory, now) && self.memory.verdict.is_none() {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.shared
                .event((&self.pod, None), Severity::Normal, "DeadlineExceeded", &message);
            self.memory.verdict = Some(Verdict {
                reason: "DeadlineExceeded".to_owned(),
                message,
            });
        }
        if self.judged {
            return;
        }
        self.judged = true;
        let uid = &self.pod.metadata.uid;
        let node = self.shared.node.borrow().clone();
        let mut admitted = self.shared.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = !self.memory.prior.phase.is_empty() || !self.observed.containers.is_empty();
        if !before {
            let others: Vec<&Pod> = admitted
                .iter()
                .filter(|(id, _)| *id != uid)
                .map(|(_, p)| &**p)
                .collect();
            if let Err(verdict) = admission::admit(&self.pod, &others, &node.allocatable, &node.labels) {
                drop(admitted);
                self.shared
                    .event((&self.pod, None), Severity::Warning, &verdict.reason, &verdict.message);
                self.memory.verdict = Some(verdict);
                return;
            }
        }
        admitted.insert(uid.clone(), self.pod.clone());
    }

    fn tell_back_offs(&mut self, plan: &Plan, now: Now) {
        for name in &plan.backing_off {
            let Some(container) = self.pod.container(name) else {
                continue;
            };
            let mark = self.memory.backoff.get(name).map_or(Duration::ZERO, |b| b.updated);
            if self.told.insert(name.clone(), mark) != Some(mark) {
                let m = &self.pod.metadata;
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    m.name, m.namespace, m.uid
                );
                self.shared
                    .event((&self.pod, Some(container)), Severity::Warning, "BackOff", &message);
            }
        }
        for (name, image) in &mut self.memory.images {
            let Image::Failed { waiting, until, delay } = image else {
                continue;
            };
            let since = now.boottime.saturating_sub(until.saturating_sub(*delay));
            if waiting.reason == "ErrImagePull" && since >= status::PULL_ERROR_SHOWN {
                let Some(container) = self.pod.container(name) else {
                    continue;
                };
                let text = format!("Back-off pulling image \"{}\"", container.image);
                self.shared
                    .event((&self.pod, Some(container)), Severity::Normal, "BackOff", &text);
                self.shared.event(
                    (&self.pod, Some(container)),
                    Severity::Warning,
                    "Failed",
                    "Error: ImagePullBackOff",
                );
                *waiting = Waiting {
                    reason: "ImagePullBackOff".to_owned(),
                    message: format!("{text}: {}: {}", waiting.reason, waiting.message),
                };
            }
        }
    }

    /// Starts an action. True: it is already done and the runtime looks different now.
    async fn dispatch(&mut self, action: Action, now: Now) -> bool {
        let (shared, pod, observed) = (self.shared.clone(), self.pod.clone(), self.observed.clone());
        match action {
            Action::RemoveContainer(id) => {
                return self.removed("container", &id, shared.runtime.remove_container(&id).await);
            }
            Action::RemoveSandbox(id) => return self.removed("sandbox", &id, shared.runtime.remove_sandbox(&id).await),
            Action::Kill(kill) => self.kill(kill, now),
            Action::Pull(name) => {
                if !matches!(self.memory.images.get(&name), Some(Image::Failed { .. })) {
                    self.memory.images.insert(name.clone(), Image::Busy);
                } else if let Some(Image::Failed { until, .. }) = self.memory.images.get_mut(&name) {
                    // Keeps its delay while it is tried again; nobody asks twice.
                    *until = Duration::MAX;
                }
                self.pulls.retain(|pull| !pull.is_finished());
                self.pulls.push(self.jobs.spawn(jobs::image(shared, pod, name)));
            }
            Action::Volumes => {
                self.memory.mounting = true;
                self.jobs.spawn(jobs::set_up_volumes(shared, pod));
            }
            Action::Sandbox(attempt) => {
                self.memory.busy = true;
                self.jobs.spawn(jobs::run_sandbox(shared, pod, observed, attempt));
            }
            Action::Start(start) => {
                self.memory.busy = true;
                self.hold.get_or_insert(now.boottime + HOLD);
                if let Some(over) = &start.after {
                    self.memory.prolong_backoff(&start.name, over, now);
                }
                self.jobs.spawn(jobs::start(shared, pod, observed, start));
            }
            Action::Finish { remove } => {
                self.memory.busy = true;
                if remove {
                    // The last word about its containers, before they go one by one.
                    self.memory.prior = self.status(now);
                    self.finishing = true;
                }
                self.jobs.spawn(jobs::finish(shared, pod, observed, remove));
            }
        }
        false
    }

    fn removed(&self, what: &str, id: &str, result: cri::Result<()>) -> bool {
        if let Err(error) = &result {
            tracing::warn!(pod = self.pod.full_name(), what, id, %error, "not removed");
        }
        result.is_ok()
    }

    fn kill(&mut self, kill: Kill, now: Now) {
        self.memory.killing.insert(kill.id.clone(), (kill.grace, now.boottime));
        let work = jobs::kill(self.shared.clone(), self.pod.clone(), (kill, self.ip()));
        self.jobs.spawn(work);
    }

    /// The pod's address, for probes and hooks.
    fn ip(&self) -> String {
        let ips = self.observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
        let node = self.shared.node.borrow();
        let hosts = if self.pod.spec.host_network {
            &node.host_ips
        } else {
            &ips
        };
        hosts.first().cloned().unwrap_or_else(|| "127.0.0.1".to_owned())
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        let now = (self.shared.clock)();
        let later = Step::Failed(now.boottime + RETRY);
        match outcome {
            Outcome::Volumes(result) => {
                self.memory.mounting = false;
                self.memory.volumes = if result.is_ok() { Step::Done } else { later };
                self.volumes_due = result.ok().flatten().or(self.volumes_due);
            }
            Outcome::Refreshed(due) => {
                self.refreshing = false;
                // News that came meanwhile (due = 0) are not forgotten.
                let resync = now.wall + RESYNC;
                if self.volumes_due.is_none() {
                    self.volumes_due = Some(due.map_or(resync, |d| d.min(resync)));
                }
            }
            Outcome::Sandbox(result) => {
                self.memory.busy = false;
                self.memory.sandbox = if result.is_ok() { Step::Done } else { later };
            }
            Outcome::Image(name, images::Outcome::Ready(reference)) => {
                self.memory.images.insert(name, Image::Ready(reference));
            }
            Outcome::Image(name, images::Outcome::Failed(waiting)) => self.memory.image_failed(&name, waiting, now),
            Outcome::Started(name, id, image_ref) => self.started(&name, id, &image_ref),
            Outcome::NotStarted(name, waiting) => {
                self.memory.busy = false;
                self.memory.images.remove(&name);
                self.memory.failures.insert(name.clone(), waiting);
                self.memory.retry.insert(name, now.boottime + RETRY);
            }
            Outcome::Hooked(name, id, good) => {
                self.memory.hooks.remove(&id);
                if !good {
                    let grace = Duration::from_secs(self.pod.grace_seconds().unsigned_abs());
                    let message = "FailedPostStartHook".to_owned();
                    let kill = Kill {
                        id,
                        name,
                        grace,
                        message,
                    };
                    self.kill(kill, now);
                }
            }
            Outcome::Killed(id) => {
                self.memory.killing.remove(&id);
            }
            Outcome::Finished(remove, result) => {
                self.memory.busy = false;
                self.finishing = false;
                if result.is_ok() {
                    self.memory.finished = Some(remove);
                    self.memory.volumes = Step::Todo;
                    self.gone = remove;
                    let mut admitted = self.shared.admitted.lock().unwrap_or_else(PoisonError::into_inner);
                    admitted.remove(&self.pod.metadata.uid);
                }
            }
        }
    }

    fn started(&mut self, name: &str, id: String, image_ref: &str) {
        self.memory.busy = false;
        self.look_again.push((self.shared.clock)().boottime + LOOK_AFTER_START);
        self.look_again.sort_unstable();
        self.memory.failures.remove(name);
        self.memory.retry.remove(name);
        // The next start asks for its image anew.
        self.memory.images.remove(name);
        let Some(container) = self.pod.container(name).cloned() else {
            return;
        };
        self.rows.push(images::record(&self.pod, &container, image_ref));
        if container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()) {
            self.memory.hooks.insert(id.clone());
            let target = Target {
                id,
                ip: self.ip(),
                container,
            };
            self.jobs
                .spawn(jobs::post_start(self.shared.clone(), self.pod.clone(), target));
        }
    }

    fn keep_volumes(&mut self, ending: bool, now: Now) {
        let due = self.volumes_due.is_some_and(|at| at <= now.wall);
        if ending || self.refreshing || self.memory.busy || self.memory.volumes != Step::Done || !due {
            return;
        }
        self.refreshing = true;
        self.volumes_due = None;
        self.jobs
            .spawn(jobs::refresh_volumes(self.shared.clone(), self.pod.clone()));
    }

    fn keep_probes(&mut self, ending: bool, now: Now) {
        let mut targets = Vec::new();
        for seen in self.observed.containers.iter().filter(|c| c.is_running() && !ending) {
            let killed = self.memory.killing.contains_key(&seen.status.id);
            let Some(container) = self.pod.container(&seen.status.metadata.name).filter(|_| !killed) else {
                continue;
            };
            let started = Duration::from_nanos(seen.status.started_at.max(0).unsigned_abs());
            let target = Target {
                id: seen.status.id.clone(),
                ip: self.ip(),
                container: container.clone(),
            };
            targets.push((target, now.wall.saturating_sub(started)));
        }
        self.probes.ensure(&self.shared, &self.pod, targets);
    }
}
