//! One way of one link: each packet that is offered gets its fate at once.
//!
//! ```text
//! offer ─► room in the queue? ─► sent at the rate ─► silence? ─► lost on the air? ─► delay + jitter, not before the last ─► delivered
//! ```

use std::collections::VecDeque;

use serde::Serialize;

use crate::draw::{Purpose, normal, unit};
use crate::rate::Sender;
use crate::spec::{DirectionSpec, Jitter, Loss, Queue, Window};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Deliver {
        /// Nanoseconds since the scenario began.
        at: u64,
        /// When a copy of it arrives, if there is one.
        duplicate: Option<u64>,
        /// Whether a bit of it is flipped on the way.
        corrupt: bool,
    },
    /// It does not.
    Drop(Cause),
}

/// Why a packet does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The queue was full.
    Queue,
    /// It was lost on the air.
    Loss,
    /// The direction was silent when the packet left the queue.
    Blackout,
    /// It was larger than what the direction lets through.
    Size,
}

/// What a direction has done, packets and bytes; each packet counts when it is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Packets offered.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets that arrive, copies not counted.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Copies that arrive besides.
    pub duplicated: u64,
    /// Packets that arrive with a flipped bit.
    pub corrupted: u64,
    /// Packets for which there was no room.
    pub dropped_queue: u64,
    /// Packets lost on the air.
    pub dropped_loss: u64,
    /// Packets swallowed by silence.
    pub dropped_blackout: u64,
    /// Packets larger than what gets through.
    pub dropped_size: u64,
    /// The most bytes that ever waited.
    pub queue_most: u64,
}

impl Counters {
    /// Packets that do not arrive, whatever the cause.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_queue + self.dropped_loss + self.dropped_blackout + self.dropped_size
    }
}

/// One way of one link.
#[derive(Debug)]
pub struct Direction {
    spec: DirectionSpec,
    seed: u64,
    sender: Sender,
    /// Bytes that may wait.
    limit: u64,
    /// What waits: when each packet has left, and its bytes.
    waiting: VecDeque<(u64, u64)>,
    backlog: u64,
    /// How many packets were offered.
    count: u64,
    /// Gilbert and Elliott's bad state.
    bad: bool,
    /// Since when it is silent by [`Direction::silence`], and when it was before.
    silent: Option<u64>,
    /// The largest that passes by [`Direction::narrow`].
    largest: Option<u64>,
    /// The clock's last value: it never goes back.
    now: u64,
    left_at: u64,
    last_due: u64,
    stats: Counters,
}

impl Direction {
    /// A direction as `spec` says, its random fates named by `seed`.
    ///
    /// # Panics
    /// When [`DirectionSpec::validate`] refuses `spec`.
    #[must_use]
    pub fn new(spec: &DirectionSpec, seed: u64) -> Self {
        if let Err(error) = spec.validate() {
            panic!("not a link: {error}");
        }
        let sender = Sender::new(&spec.rate);
        let limit = match spec.queue {
            Queue::Endless => u64::MAX,
            Queue::Size(bytes) => bytes,
            Queue::Time(time) => sender.nominal().map_or(u64::MAX, |rate| bytes_in(rate, time)),
        };
        Self {
            spec: spec.clone(),
            seed,
            sender,
            limit,
            waiting: VecDeque::new(),
            backlog: 0,
            count: 0,
            bad: false,
            silent: None,
            largest: None,
            now: 0,
            left_at: 0,
            last_due: 0,
            stats: Counters::default(),
        }
    }

    /// Offers a packet of `bytes` on the wire at `now`, nanoseconds since the scenario began.
    pub fn offer(&mut self, now: u64, bytes: usize) -> Fate {
        let bytes = bytes as u64;
        let backlog = self.backlog(now);
        let (now, k) = (self.now, self.count);
        self.count += 1;
        self.stats.offered += 1;
        self.stats.offered_bytes += bytes;
        let lost = self.is_lost(k);
        if backlog > 0 && backlog.saturating_add(bytes) > self.limit {
            self.stats.dropped_queue += 1;
            return Fate::Drop(Cause::Queue);
        }
        self.left_at = self.sender.send(now, bytes);
        if self.left_at > now {
            self.waiting.push_back((self.left_at, bytes));
            self.backlog += bytes;
            self.stats.queue_most = self.stats.queue_most.max(self.backlog);
        }
        if self.is_silent_at(self.left_at) {
            self.stats.dropped_blackout += 1;
            return Fate::Drop(Cause::Blackout);
        }
        if self.is_too_large(bytes) {
            self.stats.dropped_size += 1;
            return Fate::Drop(Cause::Size);
        }
        if lost {
            self.stats.dropped_loss += 1;
            return Fate::Drop(Cause::Loss);
        }
        self.stats.delivered += 1;
        self.stats.delivered_bytes += bytes;
        self.deliver(k)
    }

    fn deliver(&mut self, k: u64) -> Fate {
        let at = self.due(k, Purpose::Jitter, Purpose::Angle);
        let corrupt = unit(self.seed, k, Purpose::Corrupt) < self.spec.corrupt;
        let twice = unit(self.seed, k, Purpose::Duplicate) < self.spec.duplicate;
        let duplicate = twice.then(|| self.due(k, Purpose::Copy, Purpose::CopyAngle));
        self.stats.corrupted += u64::from(corrupt);
        self.stats.duplicated += u64::from(twice);
        Fate::Deliver { at, duplicate, corrupt }
    }

    /// When the packet that just left arrives.
    fn due(&mut self, k: u64, a: Purpose, b: Purpose) -> u64 {
        let jitter = self.jitter(unit(self.seed, k, a), || unit(self.seed, k, b));
        let due = self
            .left_at
            .saturating_add(self.delay_at(self.left_at))
            .saturating_add(jitter);
        if self.spec.reorder {
            return due;
        }
        self.last_due = self.last_due.max(due);
        self.last_due
    }

    fn delay_at(&self, at: u64) -> u64 {
        let passed = self.spec.delays.iter().rev().find(|step| step.at <= at);
        passed.map_or(self.spec.delay, |step| step.delay)
    }

    fn jitter(&self, a: f64, b: impl Fn() -> f64) -> u64 {
        let value = match self.spec.jitter {
            Jitter::None => 0.0,
            Jitter::Uniform(most) => a * most as f64,
            Jitter::Normal { mean, deviation } => mean as f64 + normal(a, b()) * deviation as f64,
            Jitter::Pareto { scale, shape } => scale as f64 * ((1.0 - a).powf(-1.0 / shape) - 1.0).min(1000.0),
        };
        value.max(0.0) as u64
    }

    /// Whether packet `k` is lost; the chain moves with every packet offered, so its timing does not matter.
    fn is_lost(&mut self, k: u64) -> bool {
        let draw = |purpose| unit(self.seed, k, purpose);
        match &self.spec.loss {
            Loss::None => false,
            Loss::Iid(loss) => draw(Purpose::Loss) < *loss,
            Loss::GilbertElliott { p, r, h, k: through } => {
                let change = if self.bad { *r } else { *p };
                self.bad ^= draw(Purpose::State) < change;
                draw(Purpose::Loss) >= if self.bad { *h } else { *through }
            }
            Loss::Bursts(bursts) => bursts
                .iter()
                .any(|burst| (burst.first..burst.first.saturating_add(burst.count)).contains(&k)),
        }
    }

    /// Makes the direction silent from `now` on, or ends that. Packets on the air arrive; those that still wait get lost when they leave.
    pub fn silence(&mut self, now: u64, silent: bool) {
        match (silent, self.silent) {
            (true, None) => self.silent = Some(now),
            (false, Some(from)) => {
                self.silent = None;
                if from < now {
                    self.spec.blackouts.push(Window { from, to: now });
                }
            }
            _ => {}
        }
    }

    /// Lets packets of more bytes than `largest` disappear among those offered from now on, or ends that.
    pub fn narrow(&mut self, largest: Option<u64>) {
        self.largest = largest;
    }

    /// Whether a packet that leaves the queue at `left_at` is larger than what passes then.
    fn is_too_large(&self, bytes: u64) -> bool {
        let narrows = self.spec.narrows.iter();
        let now = narrows.filter(|narrow| (narrow.from..narrow.to).contains(&self.left_at));
        let mut limits = now
            .map(|narrow| narrow.largest)
            .chain(self.spec.largest)
            .chain(self.largest);
        limits.any(|largest| bytes > largest)
    }

    /// Whether what leaves the queue at `at` gets lost in silence.
    #[must_use]
    pub fn is_silent_at(&self, at: u64) -> bool {
        self.silent.is_some_and(|from| from <= at) || self.spec.blackouts.iter().any(|w| w.from <= at && at < w.to)
    }

    /// Bytes that wait at `now`.
    pub fn backlog(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        while let Some((_, bytes)) = self.waiting.pop_front_if(|(left, _)| *left <= self.now) {
            self.backlog -= bytes;
        }
        self.backlog
    }

    /// When the packet that was offered last leaves, or has left, the queue.
    #[must_use]
    pub fn left_at(&self) -> u64 {
        self.left_at
    }

    /// Bytes that may wait; `u64::MAX` without a bound.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> &Counters {
        &self.stats
    }

    /// A packet counted as delivered is not, because silence came after it was offered.
    pub(crate) fn swallow(&mut self, bytes: u64) {
        self.stats.delivered -= 1;
        self.stats.delivered_bytes -= bytes;
        self.stats.dropped_blackout += 1;
    }

    /// A packet counted as delivered is not, because too many are on the way.
    pub(crate) fn overflow(&mut self, bytes: u64) {
        self.stats.delivered -= 1;
        self.stats.delivered_bytes -= bytes;
        self.stats.dropped_queue += 1;
    }
}

fn bytes_in(rate: u64, time: u64) -> u64 {
    let bytes = u128::from(rate) * u128::from(time) / u128::from(8 * crate::SECOND);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
