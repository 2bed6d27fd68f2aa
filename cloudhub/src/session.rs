//! The hub's end of a node's session: one task each.
//!
//! - registry's view of the node → [`relay::Source`] → [`relay::Link`] → tunnel → edge
//! - edge → tunnel → [`relay::Link`] → [`Reports`]; what must not be lost is acknowledged when the API has it
//! - streams that the edge opens → [`crate::node_api`]
//!
//! State: [`Task`], owned by the task; it ends with its tunnel session and then says so to [`Reports`], which also hear when the session is
//! dormant and when it goes on ([`tell_presence`]): nothing else here changes by that. Reports that must not
//! be lost are written beside the loop, one of a class at a time ([`Lane`]): a slow API holds up neither statuses nor what goes
//! down. One that cannot be written is tried again in order; later ones of its class wait.
//!
//! The hub never answers a Hello from a view older than what the edge has: it lists anew first. Where the API itself is
//! older, or is another one, the answer starts over with Begin and the edge judges; no Delete is made of the difference.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use relay::{Event, Faults, Item, Link, Outgoing, Push, Source};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tunnel::{CloseReason, Presence, Session};
use wire::proto::{Adopt, Down, Hello, down, up};
use wire::{ClassId, Now, Priority};

use crate::registry::Registry;
use crate::registry::view::{ApiIdentity, Kind, NodeView};
use crate::reports::{Departure, PodRef, ReportError, Reports, SessionInfo};

/// Marks alone are sent this often: they keep a later hub from believing an older backup, and cost bytes.
const MARKS: Duration = Duration::from_secs(300);
/// A report that the API did not take is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Messages that are taken in one turn at most.
const AT_ONCE: usize = 64;
/// While a Hello waits for a view that is not older than its edge, it is looked at again this often.
const CATCH_UP: Duration = Duration::from_millis(200);
/// Annotation of a Node by which `kedge adopt` says which API is the truth.
pub const ADOPT_ANNOTATION: &str = "kedge.dev/adopt";

/// What a session needs of the hub.
#[derive(Clone)]
pub struct Deps {
    /// What nodes should hold.
    pub registry: Registry,
    /// Takes what they report.
    pub reports: Arc<dyn Reports>,
    /// Answers the streams that they open.
    pub node_api: crate::node_api::NodeApi,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

/// Accepts sessions until the tunnel is shut down.
pub async fn accept(hub: Arc<tunnel::Hub>, deps: Deps) {
    let mut tasks = JoinSet::new();
    while let Some(session) = hub.accept().await {
        tasks.spawn(run(session, deps.clone()));
        while tasks.try_join_next().is_some() {}
    }
}

async fn run(session: Session, deps: Deps) {
    let peer = session.peer().clone();
    let info = SessionInfo {
        incarnation: peer.incarnation,
        epoch: peer.epoch,
        boot_id: peer.boot_id.clone(),
        agent: peer.agent.clone(),
        remote: Some(peer.remote),
    };
    tracing::info!(node = peer.node, epoch = peer.epoch, remote = %peer.remote, "session up");
    deps.reports.session_up(&peer.node, info.clone()).await;
    let view = deps.registry.view(&peer.node);
    let mut task = Task {
        node: peer.node.clone(),
        link: Link::new(Faults::default()),
        outgoing: Outgoing::default(),
        source: None,
        shown: (None, 0),
        taken: Arc::default(),
        marks_wait: false,
        waiting_hello: None,
        registry: deps.registry.clone(),
        marks_at: Instant::now(),
        reports: deps.reports.clone(),
        lanes: BTreeMap::new(),
        writes: JoinSet::new(),
        adopted: String::new(),
        suspect: false,
    };
    let reason = tokio::select! {
        reason = task.drive(&session, view) => reason,
        reason = streams(&session, &deps) => reason,
        never = tell_presence(&session, &deps, &info) => match never {},
    };
    tracing::info!(node = peer.node, epoch = peer.epoch, %reason, "session over");
    let why = match reason {
        CloseReason::PeerGoodbye { text } => Departure::AgentStopped { text },
        // Whoever has it now tells of it.
        CloseReason::Replaced | CloseReason::Redirected { .. } => Departure::Replaced,
        CloseReason::Revoked | CloseReason::Refused { .. } => Departure::Revoked,
        CloseReason::Local => Departure::HubStopping,
        CloseReason::LinkLost | CloseReason::Forgotten | CloseReason::Violation { .. } => Departure::LinkLost,
    };
    deps.reports
        .session_down(&peer.node, &info, why, SystemTime::now())
        .await;
}

/// Says when no uplink answers any more, and when one does again.
async fn tell_presence(session: &Session, deps: &Deps, info: &SessionInfo) -> Infallible {
    let node = &session.peer().node;
    let mut presence = session.presence();
    // An API that does not answer must not delay the word that the node is back.
    let mut told = FuturesUnordered::new();
    let mut known = Presence::Here;
    loop {
        let now = *presence.borrow_and_update();
        if now != known {
            known = now;
            told.push(async move {
                match now {
                    Presence::Away => deps.reports.session_away(node, info, SystemTime::now()).await,
                    Presence::Here => deps.reports.session_back(node, info).await,
                }
            });
        }
        tokio::select! {
            changed = presence.changed() => if changed.is_err() {
                // It is over, as its owner is about to hear.
                std::future::pending::<()>().await;
            },
            Some(()) = told.next() => {}
        }
    }
}

/// Serves the streams that the edge opens.
async fn streams(session: &Session, deps: &Deps) -> CloseReason {
    let mut tasks = JoinSet::new();
    loop {
        match session.accept_stream().await {
            Ok(stream) => {
                tasks.spawn(deps.node_api.clone().serve(session.peer().node.clone(), stream));
                while tasks.try_join_next().is_some() {}
            }
            Err(closed) => return closed.reason,
        }
    }
}

/// Reports of one class that must not be lost, in their order.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<(u64, up::Body)>,
    /// The first of them is being written.
    busy: bool,
    /// The first of them could not be written; when to try again.
    retry_at: Option<Instant>,
}

/// A Hello that is not answered yet.
struct WaitingHello {
    hello: Hello,
    /// The list of pods that began after the Hello has at least this number.
    list: Option<u64>,
}

struct Task {
    node: String,
    link: Link,
    outgoing: Outgoing,
    source: Option<Source>,
    /// From which API, in which era, the source's view is.
    shown: (Option<ApiIdentity>, u64),
    /// The view that the source has, and whether its marks alone wait for their time.
    taken: Arc<NodeView>,
    marks_wait: bool,
    /// A Hello that came before there was a view to answer it from.
    waiting_hello: Option<WaitingHello>,
    registry: Registry,
    marks_at: Instant,
    reports: Arc<dyn Reports>,
    lanes: BTreeMap<ClassId, Lane>,
    /// What is being written: whose class, and how it went.
    writes: JoinSet<(ClassId, Result<(), ReportError>)>,
    /// The identity that a person adopted and that was sent.
    adopted: String,
    suspect: bool,
}

impl Task {
    async fn drive(&mut self, session: &Session, mut view: watch::Receiver<Arc<NodeView>>) -> CloseReason {
        let mut current = view.borrow_and_update().clone();
        loop {
            self.take_view(&current);
            self.handle_events(&current).await;
            self.write_waiting();
            self.fill();
            let blocked = match self.transmit(session) {
                Ok(all) => !all,
                Err(closed) => return closed,
            };
            let timeout = self.next_timeout();
            tokio::select! {
                biased;
                message = session.recv() => match message {
                    Ok(message) => self.take(session, message),
                    Err(closed) => return closed.reason,
                },
                changed = view.changed() => {
                    if changed.is_err() {
                        return CloseReason::Local;
                    }
                    current = view.borrow_and_update().clone();
                }
                Some(done) = self.writes.join_next(), if !self.writes.is_empty() => self.written(done),
                () = session.ready(), if blocked => {}
                () = tokio::time::sleep_until(timeout) => {}
            }
        }
    }

    /// Takes a message, and those that have arrived behind it; one that makes no sense ends the session.
    fn take(&mut self, session: &Session, message: Bytes) {
        let mut taken = 0;
        let mut next = Some(message);
        while let Some(message) = next {
            if let Err(error) = self.link.handle_message(now(), message) {
                tracing::warn!(node = self.node, %error, "a message makes no sense");
                let text = format!("a message makes no sense: {error}");
                session.close(CloseReason::PeerGoodbye { text });
                return;
            }
            taken += 1;
            let more = (taken < AT_ONCE).then(|| session.recv().now_or_never());
            next = more.flatten().and_then(Result::ok);
        }
    }

    fn next_timeout(&self) -> Instant {
        let waits = self
            .waiting_hello
            .as_ref()
            .is_some_and(|waiting| waiting.list.is_some());
        let later = Instant::now() + if waits { CATCH_UP } else { Duration::from_secs(60) };
        let link = self
            .outgoing
            .timeout(&self.link)
            .map(|at| Instant::now() + at.saturating_sub(now().boottime));
        let retries = self.lanes.values().filter_map(|lane| lane.retry_at);
        link.into_iter().chain(retries).fold(later, Instant::min)
    }

    /// Takes a new view; alone-standing marks wait.
    fn take_view(&mut self, view: &Arc<NodeView>) {
        if !view.synced || view.identity.is_none() || self.must_wait(view) {
            return;
        }
        let marks_due = self.marks_at.elapsed() > MARKS;
        // The loop comes here with each message.
        let is_known = Arc::ptr_eq(&self.taken, view) && !(marks_due && self.marks_wait);
        if is_known && self.waiting_hello.is_none() {
            return self.adopt(view);
        }
        let shown = (view.identity.clone(), view.era);
        if let Some(waiting) = self.waiting_hello.take() {
            self.source = Some(Source::new(&waiting.hello, (&**view).into()));
            self.shown = shown;
        } else if let Some(source) = &mut self.source {
            if self.shown != shown {
                tracing::warn!(
                    node = self.node,
                    "the API is another one or went back in time; the node will judge"
                );
                source.restart((&**view).into());
                self.shown = shown;
            } else if source.set_view((&**view).into(), marks_due) && marks_due {
                self.marks_at = Instant::now();
            }
        }
        self.taken = view.clone();
        self.marks_wait = !marks_due;
        self.adopt(view);
    }

    /// Whether the view is older than what the edge has only because this hub has not caught up.
    fn must_wait(&mut self, view: &NodeView) -> bool {
        let Some(waiting) = &mut self.waiting_hello else {
            return false;
        };
        if !is_behind(view, &waiting.hello) {
            return false;
        }
        let list = *waiting.list.get_or_insert_with(|| self.registry.list_pods_again());
        // A list that began after the Hello and is older than what the edge has: the API itself went back.
        view.pod_lists < list || !went_back(view, &waiting.hello)
    }

    /// Passes on what a person decided.
    fn adopt(&mut self, view: &NodeView) {
        if !self.suspect {
            return;
        }
        let Some(identity) = view.identity.as_ref().map(|i| i.0.clone()) else {
            return;
        };
        if self.adopted == identity || adopted_identity(view, &self.node) != Some(identity.clone()) {
            return;
        }
        let down = Down {
            body: Some(down::Body::Adopt(Adopt {
                identity: identity.clone(),
            })),
        };
        if self
            .link
            .send(now(), Item::new(ClassId::CONTROL, wire::encode(&down)))
            .is_ok()
        {
            tracing::info!(node = self.node, identity, "adopted by a person");
            self.adopted = identity;
        }
    }

    async fn handle_events(&mut self, view: &Arc<NodeView>) {
        while let Some(event) = self.link.poll_event() {
            let (class, seq, payload) = match event {
                Event::Received {
                    class, seq, payload, ..
                } => (class, seq, payload),
                Event::Acked { class, token } if class == ClassId::DESIRED && token != 0 => {
                    tracing::trace!(node = self.node, version = %short(token), "acknowledged");
                    continue;
                }
                _ => continue,
            };
            match wire::decode_up(payload) {
                Ok(Some(body)) => self.receive(class, seq, (body, view)).await,
                Ok(None) => self.link.commit(class, seq),
                Err(error) => {
                    tracing::warn!(node = self.node, %error, "a report makes no sense; it is dropped");
                    self.link.commit(class, seq);
                }
            }
        }
    }

    async fn receive(&mut self, class: ClassId, seq: u64, (body, view): (up::Body, &Arc<NodeView>)) {
        match body {
            up::Body::Hello(hello) => {
                tracing::debug!(
                    node = self.node,
                    objects = hello.have.len(),
                    synced = view.synced,
                    "hello"
                );
                self.suspect = false;
                self.source = None;
                self.waiting_hello = Some(WaitingHello { hello, list: None });
                self.take_view(view);
            }
            up::Body::Suspect(suspect) => {
                tracing::warn!(
                    node = self.node,
                    reason = suspect.reason,
                    "the node does not believe this hub's state"
                );
                self.suspect = true;
                self.adopt(view);
            }
            up::Body::Status(status) => {
                tracing::debug!(node = self.node, key = ?status.key, "status");
                let key = status.key.unwrap_or_default();
                if key.kind == "Node" {
                    self.reports.node_status(&self.node, status.object).await;
                } else {
                    let pod = PodRef {
                        namespace: key.namespace,
                        name: key.name,
                        uid: status.uid,
                    };
                    self.reports.pod_status(&self.node, pod, status.object).await;
                }
                self.link.commit(class, seq);
            }
            body => self.lanes.entry(class).or_default().waiting.push_back((seq, body)),
        }
    }

    /// Starts to write the first report of each class that has one and is not busy.
    fn write_waiting(&mut self) {
        for (class, lane) in &mut self.lanes {
            if lane.busy || lane.retry_at.is_some_and(|at| at > Instant::now()) {
                continue;
            }
            let Some((_, body)) = lane.waiting.front() else {
                continue;
            };
            lane.busy = true;
            lane.retry_at = None;
            let (class, body) = (*class, body.clone());
            let (reports, node) = (self.reports.clone(), self.node.clone());
            self.writes
                .spawn(async move { (class, write(&*reports, &node, body).await) });
        }
    }

    /// A report was written, or not.
    fn written(&mut self, done: Result<(ClassId, Result<(), ReportError>), JoinError>) {
        let (class, result) = match done {
            Ok(done) => done,
            Err(error) => resume_unwind(error.into_panic()),
        };
        let lane = self.lanes.entry(class).or_default();
        lane.busy = false;
        match result {
            Ok(()) => {
                if let Some((seq, _)) = lane.waiting.pop_front() {
                    self.link.commit(class, seq);
                }
            }
            Err(error) => {
                tracing::warn!(node = self.node, %error, "a report could not be written; trying again");
                lane.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Gives the link as much of the desired state as it has room for.
    fn fill(&mut self) {
        let Some(source) = &mut self.source else { return };
        while self.link.has_room(ClassId::DESIRED) {
            let Some((key, down)) = source.poll() else { return };
            let token = version_token(&down);
            if token != 0 {
                tracing::trace!(node = self.node, key, version = %short(token), "sent");
            }
            let item = Item {
                key,
                token,
                ..Item::new(ClassId::DESIRED, wire::encode(&down))
            };
            if let Err(error) = self.link.send(now(), item) {
                tracing::error!(node = self.node, %error, "an object cannot be sent");
            }
        }
    }

    /// Moves what the link has to send into the session; `Ok(false)` when something waits for room.
    fn transmit(&mut self, session: &Session) -> Result<bool, CloseReason> {
        self.outgoing.drain(&mut self.link, now(), |class, message| {
            match session.send(priority(class), message) {
                Ok(()) => Ok(Push::Taken),
                Err(tunnel::SendError::Busy) => Ok(Push::Busy),
                Err(tunnel::SendError::Closed(closed)) => Err(closed.reason),
                Err(error) => {
                    tracing::error!(%error, "a relay message is too large for the tunnel");
                    Ok(Push::Taken)
                }
            }
        })
    }
}

/// Writes one report that must not be lost.
async fn write(reports: &dyn Reports, node: &str, body: up::Body) -> Result<(), ReportError> {
    match body {
        up::Body::Gone(gone) => {
            let key = gone.key.unwrap_or_default();
            let pod = PodRef {
                namespace: key.namespace,
                name: key.name,
                uid: gone.uid,
            };
            reports.pod_gone(node, pod).await
        }
        up::Body::Event(event) => reports.event(node, event.object).await,
        // Of a class that a newer edge has: nothing to keep.
        _ => Ok(()),
    }
}

/// The beginning of an object's version, by which its acknowledgement is known; 0 for what is no object.
fn version_token(down: &Down) -> u64 {
    let Some(down::Body::Apply(apply)) = &down.body else {
        return 0;
    };
    apply
        .version
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// As edgecore's `/debug/objects` writes it.
fn short(version: u64) -> String {
    format!("{version:016x}")
}

/// Whether the view, of the API that the edge knows, is older than what the edge has.
fn is_behind(view: &NodeView, hello: &Hello) -> bool {
    let same = view
        .identity
        .as_ref()
        .is_some_and(|identity| identity.0 == hello.identity);
    let offered = |kind: &str| {
        kind.parse::<Kind>()
            .ok()
            .and_then(|kind| view.marks.get(&kind).copied())
    };
    let place = hello.place.unwrap_or_default();
    let marks = hello.marks.iter();
    let mut marks = marks.map(|mark| offered(&mark.kind).unwrap_or_default() < mark.resource_version);
    same && (marks.any(|behind| behind) || view.revision < place.revision || view.lineage.number() < place.number)
}

/// Whether the view's list of pods, just made, is older than what the edge has of anything (resourceVersions of one API
/// come from one counter), or the lineage, read after it, lacks the point that the edge has seen.
fn went_back(view: &NodeView, hello: &Hello) -> bool {
    let place = hello.place.unwrap_or_default();
    let marks = hello.marks.iter().map(|mark| mark.resource_version);
    let newest = marks.fold(place.revision, u64::max);
    view.marks.get(&Kind::Pod).is_none_or(|mark| *mark < newest) || view.lineage.number() < place.number
}

fn priority(priority: Priority) -> tunnel::Priority {
    match priority {
        Priority::Urgent => tunnel::Priority::Urgent,
        Priority::Interactive => tunnel::Priority::Interactive,
        Priority::Normal => tunnel::Priority::Normal,
        Priority::Bulk => tunnel::Priority::Bulk,
    }
}

/// The identity in the Node's adopt annotation.
fn adopted_identity(view: &NodeView, node: &str) -> Option<String> {
    let own = view
        .objects
        .iter()
        .find(|d| d.key.kind.as_str() == "Node" && d.key.name == node)?;
    let object: serde_json::Value = serde_json::from_slice(&own.object.bytes).ok()?;
    object["metadata"]["annotations"][ADOPT_ANNOTATION]
        .as_str()
        .map(str::to_owned)
}

/// CLOCK_BOOTTIME and wall clock of the hub.
fn now() -> Now {
    let boottime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default();
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        boottime,
        wall,
        wall_trusted: true,
    }
}

#[cfg(test)]
mod tests;
