//! Drives a session's [`Bond`]: its clock, its paths, whoever waits for it.
//!
//! - [`Driver`]: the bond behind a lock that is never held over an await; every call that changes it ends in [`Guard`]'s drop, which
//!   hands out what happened and wakes whoever can go on
//!   - [`Driver::run_path`]: one path, in the task of its connection: pulls datagrams out while the path has room, puts in what it brings
//!   - [`Driver::run_clock`]: the bond's timeouts, in the session's task
//!   - [`stream`]: byte streams, read and written by their owners' tasks; `packets`: the IP tunnel's, likewise
//!
//! - [`presence`]: whether any path answers
//!
//! On failure: a path that ends is taken out, and what it carried goes over the others. Without any path the session waits. A peer that knows
//! nothing of it any more, or a [`Violation`], is its end, which its owner is told by [`Over`].

mod packets;
mod presence;
pub(crate) mod stream;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{Notify, watch};

use crate::bond::{
    Bond, Config, Event, MAX_PATHS, PathConfig, PathId, PathState, PathStats, Policy, SendError, SessionStats,
    StreamId, Violation,
};
use crate::clock::boottime;
use crate::meter::{Carried, Traffic};
use crate::path::{Hint, PathControl, PathTransport, Transport};
use crate::queue::Queues;
use crate::types::{CloseReason, Presence, Priority};

/// Datagrams that are put in at a time: what a batch of the kernel brings.
const BATCH: usize = 32;
/// What a timer of tokio may be early.
const SLACK: Duration = Duration::from_millis(1);

thread_local! {
    /// Where a datagram is written before its size is known: what leaves this is one allocation.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Who a path is.
#[derive(Clone, Debug)]
pub(crate) struct PathInfo {
    /// Its number: both ends have the same, and no other path had it lately.
    pub(crate) id: PathId,
    /// Name of the uplink.
    pub(crate) uplink: String,
    /// How often the edge asks whether an idle path is there.
    pub(crate) ping_interval: Duration,
    /// What it may carry and costs.
    pub(crate) policy: Policy,
    /// Where what it carried is added up.
    pub(crate) traffic: Arc<Traffic>,
}

/// One path of a session, for people.
#[derive(Clone, Debug)]
pub struct PathReport {
    /// Name of the uplink.
    pub uplink: String,
    /// What carries it.
    pub transport: Transport,
    /// Where the peer is, as this end sees it.
    pub remote: SocketAddr,
    /// How long the path has been there.
    pub age: Duration,
    /// Since when the peer was not heard.
    pub silent_for: Duration,
    /// What the network has carried for it.
    pub carried: Carried,
    /// What the bond knows.
    pub stats: PathStats,
}

#[derive(Debug)]
struct Slot {
    info: PathInfo,
    control: Arc<dyn PathControl>,
    wake: Arc<Notify>,
    since: Duration,
    heard: Duration,
    silent: bool,
    /// The policy that the peer is to know.
    policy: watch::Sender<Policy>,
    /// What has been added up.
    counted: Carried,
}

/// Who waits for a stream.
#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The peer gave its direction up.
    reset: bool,
    /// A byte stream of this end: there may be [`Driver::max_own`] of them.
    own: bool,
}

#[derive(Debug)]
struct State {
    bond: Bond,
    paths: Vec<Slot>,
    streams: HashMap<StreamId, Waiting>,
    opened: VecDeque<StreamId>,
    packets: packets::Incoming,
    /// Streams that were there at the last look.
    open: usize,
    /// When [`Driver::run_clock`] looks again.
    armed: Option<Duration>,
    /// A path has begun or stopped to carry: what the session is has to be judged.
    unjudged: bool,
    over: bool,
}

/// What a path's end means for its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Others go on.
    PathOnly,
    /// The session is over.
    Session(CloseReason),
}

/// A bond with everything that it needs.
#[derive(Debug)]
pub(crate) struct Driver {
    state: Mutex<State>,
    /// Whether the other end is there.
    presence: watch::Sender<Presence>,
    /// Messages that arrived.
    pub(crate) inbox: Queues,
    timer: Notify,
    opened: Notify,
    packets_arrived: Notify,
    packet_room: Notify,
    /// A message or a stream more may be sent.
    room: Notify,
    /// Byte streams that this end may have open; lanes are not among them.
    max_own: usize,
    /// The hub, which obeys what the edge says of a path.
    is_hub: bool,
    /// What all paths have carried.
    traffic: Traffic,
}

impl Driver {
    /// `max_own`: byte streams that this end may have open; the limits of `config` hold for lanes too.
    pub(crate) fn new(config: Config, max_own: usize) -> Self {
        Self {
            max_own,
            is_hub: config.is_hub,
            traffic: Traffic::default(),
            state: Mutex::new(State {
                bond: Bond::new(boottime(), config),
                paths: Vec::new(),
                streams: HashMap::new(),
                opened: VecDeque::new(),
                packets: packets::Incoming::default(),
                open: 0,
                armed: None,
                unjudged: false,
                over: false,
            }),
            presence: watch::Sender::new(Presence::Here),
            inbox: Queues::default(),
            timer: Notify::new(),
            opened: Notify::new(),
            packets_arrived: Notify::new(),
            packet_room: Notify::new(),
            room: Notify::new(),
        }
    }

    fn peek(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a change: what follows from it is seen to when the guard is dropped.
    fn change(&self) -> Guard<'_> {
        Guard {
            driver: self,
            state: self.peek(),
        }
    }

    /// Adds a path before it is run; false when the session is over or has as many as it may.
    pub(crate) fn add_path(&self, info: PathInfo, control: Arc<dyn PathControl>) -> bool {
        let now = boottime();
        let mut state = self.change();
        let config = PathConfig {
            max_datagram: control.facts().max_datagram,
            rtt: control.counters().rtt,
            policy: info.policy,
        };
        if state.over {
            return false;
        }
        if !self.is_hub || state.paths.len() >= MAX_PATHS {
            state.replace_paths(now, &info, &*control);
        }
        if !state.bond.add_path(now, info.id, config) {
            return false;
        }
        state.paths.retain(|slot| slot.info.id != info.id);
        state.paths.reserve_exact(1);
        state.paths.push(Slot {
            policy: watch::Sender::new(info.policy),
            counted: Carried::default(),
            info,
            control,
            wake: Arc::default(),
            since: now,
            heard: now,
            silent: false,
        });
        true
    }

    /// Runs a path that was added until it ends, and takes it out.
    pub(crate) async fn run_path(&self, id: PathId, path: &impl PathTransport) -> Over {
        let told = |policy| self.take_policy(id, policy);
        let reason = tokio::select! {
            biased;
            reason = path.closed() => reason,
            reason = path.serve(&told) => reason,
            reason = self.receive(id, path) => reason,
            reason = self.send(id, path) => reason,
            reason = self.watch(id, path) => reason,
            reason = self.announce(id, path) => reason,
        };
        path.close(&reason);
        let mut state = self.change();
        self.count(&mut state, id, path.counters().carried);
        state.bond.remove_path(boottime(), id);
        state.paths.retain(|slot| slot.info.id != id);
        self.judge(&state);
        match reason {
            // A link may go, all of them for a while.
            CloseReason::LinkLost | CloseReason::Local => Over::PathOnly,
            // The peer may have given up this one alone.
            CloseReason::Forgotten if !state.paths.is_empty() => Over::PathOnly,
            // Whatever else ends a path was said of the session.
            reason => Over::Session(reason),
        }
    }

    /// Pulls.
    async fn send(&self, id: PathId, path: &impl PathTransport) -> CloseReason {
        let wake = self.peek().slot(id).map(|slot| slot.wake.clone());
        let Some(wake) = wake else {
            return CloseReason::LinkLost;
        };
        loop {
            match self.pull(id, path) {
                Some(datagram) => {
                    if let Err(reason) = path.send(datagram).await {
                        return reason;
                    }
                }
                None => wake.notified().await,
            }
        }
    }

    fn pull(&self, id: PathId, path: &impl PathTransport) -> Option<Bytes> {
        let max = path.facts().max_datagram;
        let mut state = self.peek();
        state.bond.set_max_datagram(id, max);
        let datagram = SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            let length = state.bond.poll_transmit(boottime(), id, max, scratch)?;
            Some(Bytes::copy_from_slice(&scratch[..length]))
        });
        let hint = state.hint(id);
        self.arm(&mut state);
        self.offer_room(&mut state);
        drop(state);
        path.hint(hint);
        self.room.notify_waiters();
        datagram
    }

    /// Puts in.
    async fn receive(&self, id: PathId, path: &impl PathTransport) -> CloseReason {
        loop {
            let mut next = match path.receive().await {
                Ok(datagram) => Some(datagram),
                Err(reason) => return reason,
            };
            let mut state = self.change();
            for left in (0..=BATCH).rev() {
                let Some(datagram) = next else { break };
                if let Err(violation) = state.bond.handle_input(boottime(), id, datagram) {
                    return broken(violation);
                }
                // What was taken is put in, so the batch ends before the queue does.
                let more = || path.receive().now_or_never().and_then(Result::ok);
                next = (left > 0).then(more).flatten();
            }
        }
    }

    /// Tells the peer of each new policy.
    async fn announce(&self, id: PathId, path: &impl PathTransport) -> CloseReason {
        let policies = self.peek().slot(id).map(|slot| slot.policy.subscribe());
        let Some(mut policies) = policies else {
            return CloseReason::LinkLost;
        };
        while policies.changed().await.is_ok() {
            let policy = *policies.borrow_and_update();
            path.tell(policy).await;
        }
        CloseReason::LinkLost
    }

    /// A path's policy is another one: this end's bond obeys, and the peer is told.
    pub(crate) fn set_policy(&self, id: PathId, policy: Policy) {
        let mut state = self.change();
        let Some(slot) = state.slot(id) else { return };
        let changes = slot
            .policy
            .send_if_modified(|known| std::mem::replace(known, policy) != policy);
        if changes {
            state.bond.set_policy(id, policy);
        }
    }

    /// The peer says what a path of its may carry.
    fn take_policy(&self, id: PathId, policy: Policy) {
        if self.is_hub {
            self.change().bond.set_policy(id, policy);
        }
    }

    /// Adds up what a path has carried since the last look.
    fn count(&self, state: &mut State, id: PathId, carried: Carried) {
        if let Some(slot) = state.slot_mut(id) {
            let more = carried.since(slot.counted);
            slot.counted = carried;
            slot.info.traffic.add(more);
            self.traffic.add(more);
        }
    }

    /// What all paths have carried, to half a second.
    pub(crate) fn carried(&self) -> Carried {
        self.traffic.read()
    }

    /// The bond's timeouts; never returns.
    pub(crate) async fn run_clock(&self) {
        loop {
            let due = {
                let mut state = self.peek();
                state.armed = state.bond.poll_timeout();
                state.armed
            };
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep(due.saturating_sub(boottime()) + SLACK).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = wait => {
                    let mut state = self.change();
                    state.bond.handle_timeout(boottime());
                }
                () = self.timer.notified() => {}
            }
        }
    }

    /// Wakes the clock where it sleeps too long.
    fn arm(&self, state: &mut State) {
        let due = state.bond.poll_timeout();
        if let Some(due) = due
            && state.armed.is_none_or(|armed| due < armed)
        {
            state.armed = Some(due);
            self.timer.notify_one();
        }
    }

    /// Queues a message that goes by itself; waits while there is no room. Not cancel-safe.
    pub(crate) async fn send_message(&self, priority: Priority, message: Bytes) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let sent = self
                .change()
                .bond
                .send_message(boottime(), priority, 1, message.clone());
            match sent {
                Err(SendError::Busy) => room.await,
                // It is not larger than a message may be: that was looked at when it was taken.
                _ => return,
            }
        }
    }

    /// The next stream that the peer opens. For one caller at a time.
    pub(crate) async fn next_stream(&self) -> StreamId {
        loop {
            if let Some(id) = self.peek().opened.pop_front() {
                return id;
            }
            self.opened.notified().await;
        }
    }

    /// All paths.
    pub(crate) fn paths(&self) -> Vec<PathReport> {
        let state = self.peek();
        let now = boottime();
        let stats = state.bond.path_stats().into_iter();
        stats
            .filter_map(|stats| {
                let slot = state.slot(stats.id)?;
                Some(PathReport {
                    uplink: slot.info.uplink.clone(),
                    transport: slot.control.transport(),
                    remote: slot.control.remote(),
                    age: now.saturating_sub(slot.since),
                    silent_for: now.saturating_sub(slot.heard),
                    carried: slot.control.counters().carried,
                    stats,
                })
            })
            .collect()
    }

    /// Whether a live path over this uplink, of what `by` says, carries the session.
    pub(crate) fn is_carried(&self, uplink: &str, by: impl Fn(&Transport) -> bool) -> bool {
        let state = self.peek();
        let mut slots = state.paths.iter().filter(|slot| slot.info.uplink == uplink);
        slots.any(|slot| state.bond.path_state(slot.info.id) == Some(PathState::Live) && by(&slot.control.transport()))
    }

    /// The session over all paths.
    pub(crate) fn stats(&self) -> SessionStats {
        let state = self.peek();
        SessionStats {
            packets_dropped: state.packets.dropped(),
            ..state.bond.stats()
        }
    }

    /// Ways to the peer, for a challenge.
    pub(crate) fn controls(&self) -> Vec<Arc<dyn PathControl>> {
        self.peek().paths.iter().map(|slot| slot.control.clone()).collect()
    }

    /// Ends it: no path is added any more, those that are there close with the reason, and whoever waits for a stream learns it.
    pub(crate) fn close(&self, reason: &CloseReason) {
        let (controls, wakers) = {
            let mut state = self.peek();
            state.over = true;
            let controls: Vec<_> = state.paths.iter().map(|slot| slot.control.clone()).collect();
            let waiting = state.streams.values_mut();
            let wakers: Vec<_> = waiting
                .flat_map(|waiting| [waiting.reader.take(), waiting.writer.take()])
                .flatten()
                .collect();
            (controls, wakers)
        };
        for control in controls {
            control.close(reason);
        }
        wakers.into_iter().for_each(Waker::wake);
        self.packets_arrived.notify_one();
        self.packet_room.notify_waiters();
        self.room.notify_waiters();
    }
}

fn broken(violation: Violation) -> CloseReason {
    tracing::warn!(reason = violation.reason(), %violation, "the peer breaks the rules of the bond");
    CloseReason::Violation {
        text: violation.to_string(),
    }
}

impl State {
    fn slot(&self, id: PathId) -> Option<&Slot> {
        self.paths.iter().find(|slot| slot.info.id == id)
    }

    fn slot_mut(&mut self, id: PathId) -> Option<&mut Slot> {
        self.paths.iter_mut().find(|slot| slot.info.id == id)
    }

    fn hint(&self, id: PathId) -> Hint {
        Hint {
            backlogged: self.bond.is_backlogged(id),
            probing: self.bond.path_state(id) == Some(PathState::Suspect),
        }
    }

    fn take_event(&mut self, event: Event, inbox: &Queues) {
        match event {
            Event::Message { priority, payload } => {
                // A reader that is behind loses messages, which the contract allows: relay repeats them.
                if inbox.try_push(priority, payload).is_err() {
                    tracing::debug!(?priority, "a message is dropped: the session's reader is behind");
                }
            }
            Event::Datagram(packet) => self.packets.push(packet),
            Event::StreamOpened { id, .. } => {
                self.streams.insert(id, Waiting::default());
                self.opened.push_back(id);
            }
            Event::StreamReadable(id) => self.wake(id, |waiting| waiting.reader.take()),
            Event::StreamWritable(id) => self.wake(id, |waiting| waiting.writer.take()),
            Event::StreamReset { id, .. } => {
                if let Some(waiting) = self.streams.get_mut(&id) {
                    waiting.reset = true;
                }
                self.wake(id, |waiting| waiting.reader.take());
            }
            Event::StreamStopped { id, .. } => self.wake(id, |waiting| waiting.writer.take()),
            Event::Path { id, state } => {
                self.unjudged = true;
                let hint = self.hint(id);
                if let Some(slot) = self.slot_mut(id) {
                    slot.silent &= state == PathState::Suspect;
                    tracing::info!(uplink = slot.info.uplink, path = id.0, ?state, "path");
                    slot.control.hint(hint);
                }
            }
        }
    }

    fn wake(&mut self, id: StreamId, whom: impl Fn(&mut Waiting) -> Option<Waker>) {
        if let Some(waker) = self.streams.get_mut(&id).and_then(whom) {
            waker.wake();
        }
    }
}

/// The bond while it is changed.
struct Guard<'a> {
    driver: &'a Driver,
    state: MutexGuard<'a, State>,
}

impl std::ops::Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let driver = self.driver;
        let state = &mut *self.state;
        while let Some(event) = state.bond.poll_event() {
            state.take_event(event, &driver.inbox);
        }
        if std::mem::take(&mut state.unjudged) {
            driver.judge(state);
        }
        if !state.opened.is_empty() {
            driver.opened.notify_one();
        }
        if !state.packets.is_empty() {
            driver.packets_arrived.notify_one();
        }
        driver.offer_room(state);
        let open = state.bond.open_streams();
        if open < state.open {
            driver.room.notify_waiters();
        }
        state.open = open;
        for slot in &state.paths {
            slot.wake.notify_one();
        }
        driver.arm(state);
    }
}
