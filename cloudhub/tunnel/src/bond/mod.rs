//! The bond: one session's traffic over several bad paths, so that it looks like one good one. A state machine without sockets,
//! clock or tasks.
//!
//! ```text
//! send_message, send_datagram, write ─► queues by priority ─► poll_transmit(path) ─► one datagram of that path
//! poll_event, read ◄─ once, in order within a bound ◄─ handle_input(path) ◄─ one datagram of that path
//! ```
//!
//! - [`Bond`]: owns everything below; its driver brings time, packets and paths, and pulls
//!   - `frame`: what a packet looks like; `acks`: what arrived where, when to say so; `ranges`: sets and windows of numbers
//!   - `path`: what is out on a path, its round trip, rate, loss, and whether it is alive
//!   - `schedule`: which path carries what next; `policy`: what each may carry and what it costs
//!   - `intake`, `flow`, `datagrams`, `reorder`: packets of the IP tunnel: how many may wait, queues by flow, repair, order
//!   - `messages`: messages in copies or pieces; `streams`: byte streams with credit
//!
//! Time is CLOCK_BOOTTIME (`wire::Now::boottime`), so a suspended machine knows how long it slept.
//!
//! The driver's loop: after any call, `poll_event` until None, then for each path that has room `poll_transmit` until None or no
//! room; sleep until `poll_timeout`, a packet, room or something to send; then `handle_timeout`, `handle_input`, …
//!
//! On failure: a path that does not answer is suspect, what it carried goes over the others, and it is probed until it answers. With no
//! live path, messages and streams wait, packets of the tunnel expire. A peer that breaks the rules gets a [`Violation`]: close the
//! session with it; nothing it sends takes unbounded memory or work before that.

mod acks;
mod codel;
mod datagrams;
mod faults;
mod flow;
mod frame;
mod input;
mod intake;
mod messages;
mod path;
mod playout;
mod policy;
mod ranges;
mod reorder;
mod rtt;
mod schedule;
mod stats;
mod streams;
mod violation;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

pub use self::faults::Faults;
pub use self::flow::MAX_FLOWS;
pub use self::frame::FrameError;
pub use self::path::{PathConfig, PathId, PathState};
pub use self::policy::{Carries, Policy};
pub use self::stats::{PathStats, SessionStats};
pub use self::streams::{Read, StreamId};
pub use self::violation::Violation;

use self::acks::Acks;
use self::datagrams::{Datagrams, LIFETIME};
use self::messages::{Inbox, Outbox};
use self::path::Path;
use self::reorder::Reorder;
use self::streams::{Rules, Streams};
use crate::MAX_MESSAGE;
use crate::types::Priority;

/// Paths of one session: a robot has three or four.
pub const MAX_PATHS: usize = 8;
/// A timeout that comes so late means that this end slept.
const OVERSLEPT: Duration = Duration::from_millis(200);
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// When something was declined, the paths are to be asked again after so long.
const RECONSIDER: Duration = Duration::from_millis(4);
/// Small messages that neither of the two best paths may bring, as a share: with more, the best carries another copy, at most so many.
const FEW_LATE: f64 = 0.002;
const MAX_AGAIN: u32 = 2;
/// A quarter of its round trip lies between them, within these bounds: a burst of losses should have passed.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(10));

/// When small urgent and interactive messages go over several paths at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplication {
    /// Always over all live paths.
    Full,
    /// Over all live paths, but over the best alone while it loses less than 0.5 % and another is not much slower.
    Adaptive,
    /// As many copies as the sender asks for.
    AsAsked,
}

/// What an end allows and spends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// This end is the hub: it opens streams with odd numbers.
    pub is_hub: bool,
    /// This end keeps idle paths alive (one end is enough).
    pub keep_alive: bool,
    /// Copies of small messages.
    pub duplication: Duplication,
    /// Streams that this end may have open.
    pub max_streams: usize,
    /// Streams that the peer may have open.
    pub max_peer_streams: usize,
    /// Credit of one stream at most, bytes.
    pub stream_window: u64,
    /// Credit of all streams beyond 16 KiB each, bytes; twice as much where streams that wait hold it.
    pub stream_budget: u64,
    /// Tunnel packets that wait for those before them, bytes.
    pub reorder_budget: usize,
    /// Switched on by tests only.
    pub faults: Faults,
}

impl Config {
    /// An edge: 3 MiB of packets + 2 MiB of streams + 16 KiB a stream + 1 MiB of messages, so 8 MiB of reordering with 128 streams.
    #[must_use]
    pub const fn edge() -> Self {
        Self {
            is_hub: false,
            keep_alive: true,
            duplication: Duplication::Full,
            max_streams: 8,
            max_peer_streams: 128,
            stream_window: 1 << 20,
            stream_budget: 1 << 20,
            reorder_budget: 3 << 20,
            faults: Faults {
                dedup_off: false,
                repair_off: false,
                order_off: false,
                suspect_never: false,
                readmit_never: false,
                refused_acked: false,
                memory_unbounded: false,
                policy_ignored: false,
            },
        }
    }

    /// The hub's end of one edge.
    #[must_use]
    pub const fn hub() -> Self {
        Self {
            is_hub: true,
            keep_alive: false,
            max_streams: 128,
            max_peer_streams: 8,
            stream_window: 512 * 1024,
            stream_budget: 512 * 1024,
            ..Self::edge()
        }
    }
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue is full: try again when the paths have carried some of it.
    #[error("the queue is full")]
    Busy,
    /// It is larger than a message or any packet may be.
    #[error("{size} bytes exceed the limit of {limit}")]
    TooLarge {
        /// Its size, bytes.
        size: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// Neither an IPv4 nor an IPv6 packet.
    #[error("not an IP packet")]
    NotIp,
    /// The stream is finished, reset or unknown.
    #[error("the stream takes nothing any more")]
    StreamOver,
}

/// What a bond tells its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message arrived: once, in any order.
    Message {
        /// How urgent it is.
        priority: Priority,
        /// What was sent.
        payload: Bytes,
    },
    /// A packet of the IP tunnel arrived: once, in the order of its flow within a bound.
    Datagram(Bytes),
    /// The peer opened a stream.
    StreamOpened {
        /// Its number.
        id: StreamId,
        /// How urgent it is.
        priority: Priority,
    },
    /// [`Bond::read`] has something.
    StreamReadable(StreamId),
    /// [`Bond::write`] has room after it took less than it was given.
    StreamWritable(StreamId),
    /// The peer gave its direction up.
    StreamReset {
        /// The stream.
        id: StreamId,
        /// Why, in the application's numbers.
        code: u32,
    },
    /// The peer wants no more: our direction is reset.
    StreamStopped {
        /// The stream.
        id: StreamId,
        /// Why, in the application's numbers.
        code: u32,
    },
    /// A path stopped or began to carry traffic.
    Path {
        /// The path.
        id: PathId,
        /// What it is now.
        state: PathState,
    },
}

/// One end of a session over its paths.
#[derive(Debug)]
pub struct Bond {
    config: Config,
    now: Duration,
    paths: Vec<Path>,
    acks: Acks,
    datagrams: Datagrams,
    reorder: Reorder,
    outbox: Outbox,
    inbox: Inbox,
    streams: Streams,
    events: VecDeque<Event>,
    /// Which kind of traffic is next in each priority.
    turns: [usize; 4],
    /// A path declined something since the last timeout.
    declined: bool,
    swept: Duration,
    refused: u64,
    reinjected: u64,
    stream_repairs: u64,
}

impl Bond {
    /// A bond without paths.
    #[must_use]
    pub fn new(now: Duration, config: Config) -> Self {
        let rules = Rules {
            odd: config.is_hub,
            max_open: config.max_streams,
            max_accepted: config.max_peer_streams,
            window: config.stream_window,
            budget: config.stream_budget,
        };
        Self {
            config,
            now,
            paths: Vec::new(),
            acks: Acks::default(),
            datagrams: Datagrams::default(),
            reorder: Reorder::new(config.reorder_budget, config.faults),
            outbox: Outbox::default(),
            inbox: Inbox::new(config.faults),
            streams: Streams::new(rules, config.faults),
            events: VecDeque::new(),
            turns: [0; 4],
            declined: false,
            swept: now,
            refused: 0,
            reinjected: 0,
            stream_repairs: 0,
        }
    }

    fn index(&self, id: PathId) -> Option<usize> {
        self.paths.iter().position(|path| path.id == id)
    }

    /// Adds a path whose connection is up, with a number that no path had lately. False when there are [`MAX_PATHS`].
    pub fn add_path(&mut self, now: Duration, id: PathId, config: PathConfig) -> bool {
        self.advance(now);
        self.remove_path(now, id);
        if self.paths.len() >= MAX_PATHS {
            return false;
        }
        // Most sessions have one, and there may be ten thousand of them.
        self.paths.reserve_exact(1);
        self.paths.push(Path::new(now, id, config));
        self.tell(id, PathState::Live);
        true
    }

    /// The path's connection is gone: what it carried goes over the others.
    pub fn remove_path(&mut self, now: Duration, id: PathId) {
        self.advance(now);
        if let Some(at) = self.index(id) {
            let mut path = self.paths.swap_remove(at);
            let contents = path.unanswered();
            self.reinject(now, id, contents);
        }
    }

    /// The driver knows that a path is dead (its device went down): it is suspect at once.
    pub fn suspect_path(&mut self, now: Duration, id: PathId) {
        self.advance(now);
        if let Some(at) = self.index(id)
            && self.paths[at].is_live()
        {
            let contents = self.paths[at].suspect(now);
            self.tell(id, PathState::Suspect);
            self.reinject(now, id, contents);
        }
    }

    /// The largest datagram that a path takes has changed.
    pub fn set_max_datagram(&mut self, id: PathId, bytes: usize) {
        if let Some(at) = self.index(id) {
            self.paths[at].max_datagram = bytes;
        }
    }

    /// What a path may carry or costs has changed.
    pub fn set_policy(&mut self, id: PathId, policy: Policy) {
        if let Some(at) = self.index(id) {
            self.paths[at].policy = policy;
        }
    }

    /// Whether a path carries traffic; None when there is no such path.
    #[must_use]
    pub fn path_state(&self, id: PathId) -> Option<PathState> {
        self.index(id).map(|at| self.paths[at].state())
    }

    /// Since when a path does not answer; None when it does, or there is no such path.
    #[must_use]
    pub fn suspect_since(&self, id: PathId) -> Option<Duration> {
        self.paths[self.index(id)?].suspect_since()
    }

    fn tell(&mut self, id: PathId, state: PathState) {
        self.events.push_back(Event::Path { id, state });
    }

    /// Queues a message of at most [`MAX_MESSAGE`] bytes, for at least so many paths at once.
    ///
    /// # Errors
    /// [`SendError::Busy`] when the queue of this priority is full, [`SendError::TooLarge`].
    pub fn send_message(
        &mut self,
        now: Duration,
        priority: Priority,
        copies: u8,
        payload: Bytes,
    ) -> Result<(), SendError> {
        self.advance(now);
        if payload.len() > MAX_MESSAGE {
            return Err(SendError::TooLarge {
                size: payload.len(),
                limit: MAX_MESSAGE,
            });
        }
        if !self.outbox.push(now, priority, usize::from(copies), payload) {
            return Err(SendError::Busy);
        }
        Ok(())
    }

    /// Whether [`Self::send_message`] takes more of this priority.
    #[must_use]
    pub fn has_room_for_message(&self, priority: Priority) -> bool {
        self.outbox.has_room(priority)
    }

    /// Opens a byte stream; the peer sees it with the first byte. None when as many are open as the peer allows.
    pub fn open_stream(&mut self, priority: Priority) -> Option<StreamId> {
        self.streams.open(priority)
    }

    /// Writes what there is room for and returns how much that was; after less than everything, wait for
    /// [`Event::StreamWritable`].
    ///
    /// # Errors
    /// [`SendError::StreamOver`].
    pub fn write(&mut self, now: Duration, id: StreamId, bytes: &[u8]) -> Result<usize, SendError> {
        self.advance(now);
        self.streams.write(now, id, bytes).ok_or(SendError::StreamOver)
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self, now: Duration, id: StreamId) {
        self.advance(now);
        self.streams.finish(now, id);
    }

    /// Gives our direction up, and with it what the peer has not got yet.
    pub fn reset(&mut self, id: StreamId, code: u32) {
        self.streams.reset(id, code);
    }

    /// Wants no more of the peer's direction.
    pub fn stop(&mut self, id: StreamId, code: u32) {
        self.streams.stop(id, code);
    }

    /// Reads at most `limit` bytes of a stream; what is read gives the peer credit for more.
    pub fn read(&mut self, id: StreamId, limit: usize) -> Read {
        self.streams.read(id, limit)
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if let Some((priority, payload)) = self.inbox.poll() {
            return Some(Event::Message { priority, payload });
        }
        if let Some(event) = self.streams.events.pop_front() {
            return Some(match event {
                streams::Event::Opened(id, priority) => Event::StreamOpened { id, priority },
                streams::Event::Readable(id) => Event::StreamReadable(id),
                streams::Event::Writable(id) => Event::StreamWritable(id),
                streams::Event::Reset(id, code) => Event::StreamReset { id, code },
                streams::Event::Stopped(id, code) => Event::StreamStopped { id, code },
            });
        }
        self.reorder.poll().map(Event::Datagram)
    }

    /// When to call [`Self::handle_timeout`]. What only waits for a path to have room is not repeated here.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let mut add = |at: Option<Duration>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |have| have.min(at)));
            }
        };
        let best = self.best(|_| true);
        for (at, path) in self.paths.iter().enumerate() {
            if !self.config.faults.suspect_never {
                add(path.suspect_at(self.is_irreplaceable(at)));
            }
            add(path.rate_timeout());
            let probe = path.probe_at(self.config.keep_alive, best == Some(at));
            add(probe.filter(|at| *at > self.now));
        }
        add(self.acks.timeout().filter(|at| *at > self.now));
        add(self.outbox.timeout());
        add(self.datagrams.timeout());
        add(self.reorder.timeout());
        if self.declined {
            add(Some(self.now + RECONSIDER));
        }
        if self.has_barred_datagrams() {
            add(Some(self.now + intake::QUEUE_TIME));
        }
        if self.datagrams.flows.len() > 0 {
            add(Some(self.swept + SWEEP));
        }
        next
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.advance(now);
        self.declined = false;
        for at in 0..self.paths.len() {
            self.paths[at].bucket.awaited = false;
            let (path, alone) = (&self.paths[at], self.is_irreplaceable(at));
            if path.suspect_at(alone).is_some_and(|due| due <= self.now) && !self.config.faults.suspect_never {
                let id = path.id;
                self.suspect_path(now, id);
            }
        }
        let now = self.now;
        self.outbox.handle_timeout(now);
        self.datagrams.expire(now);
        self.reorder.handle_timeout(now);
        let barred = if self.live() == 0 { [true; 4] } else { self.barred() };
        self.datagrams.expired += self.datagrams.flows.expire(now, LIFETIME, barred);
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.datagrams.flows.sweep(now);
            self.reorder.sweep(now);
        }
    }

    /// Time goes on, never back. When this end slept past its own timeouts, silence meanwhile is no sign of death.
    fn advance(&mut self, now: Duration) {
        if now <= self.now {
            return;
        }
        if now - self.now > OVERSLEPT && self.poll_timeout().is_some_and(|due| due + OVERSLEPT < now) {
            for path in &mut self.paths {
                path.forgive(now);
            }
        }
        self.now = now;
    }

    /// How many paths a small message of this priority takes at once.
    fn copies(&self, priority: Priority) -> usize {
        if priority > Priority::Interactive || self.config.duplication == Duplication::AsAsked {
            return 1;
        }
        let carrying = |at: &usize| self.may_carry(*at, priority);
        let live = (0..self.paths.len())
            .filter(|at| self.paths[*at].is_live() && carrying(at))
            .count();
        let Some(best) = self.best(|at| carrying(&at)) else {
            return 1;
        };
        let second = self.best(|at| at != best && carrying(&at));
        let near = second.is_some_and(|second| {
            self.paths[second].rtt.smoothed <= self.paths[best].rtt.smoothed * 2 + Duration::from_millis(20)
        });
        let calm = self.paths[best].loss() < 0.005 && near;
        if calm && self.config.duplication == Duplication::Adaptive {
            1
        } else {
            live.max(1)
        }
    }

    /// How often a path carries its copy of a small message again, and after how long. The best does, until few wait for the third best.
    fn again(&self, at: usize, priority: Priority) -> (u32, Duration) {
        let path = &self.paths[at];
        let carrying = |other: usize| self.may_carry(other, priority);
        let second = self.best(|other| other != at && carrying(other));
        let (Some(second), true) = (second, self.copies(priority) > 1 && !path.policy.metered) else {
            return (0, Duration::ZERO);
        };
        if self.best(carrying) != Some(at) {
            return (0, Duration::ZERO);
        }
        let mut late = path.loss() * self.paths[second].loss();
        let mut times = 0;
        while late > FEW_LATE && times < MAX_AGAIN {
            late *= path.loss();
            times += 1;
        }
        (times, (path.rtt.smoothed / 4).clamp(AGAIN_AFTER.0, AGAIN_AFTER.1))
    }

    /// How long a small message waits for its answer before another copy goes.
    fn resend_interval(&self) -> Duration {
        let best = self.best(|_| true).map(|at| self.paths[at].rtt.smoothed);
        let best = best.unwrap_or(Duration::from_millis(200));
        best * 5 / 4 + Duration::from_millis(5)
    }

    /// Streams that are not over.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether something waits for a path.
    fn waits(&self) -> bool {
        !self.outbox.is_idle() || self.datagrams.flows.total() > 0 || self.streams.len() > 0
    }
}
