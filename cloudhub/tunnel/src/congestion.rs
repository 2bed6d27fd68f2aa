//! The congestion controller of a path: delivery rate × round trip, deaf to random loss, with an ear for queues.
//!
//! [`Congestion`] is pure: it is fed what was acknowledged and lost, and says how much may be in flight. [`controller`] puts it behind
//! quinn's trait, which paces at 1.25 × window / smoothed RTT.
//!
//! - *rate*: one sample a round trip, the best of the last ten; samples of a path that had nothing to send count only when they are higher
//! - *base*: the round trip without a queue. Only a *drain* (half a window for a round) shows it, so one follows the start, one comes every
//!   10 s in which nothing as fast was seen, and one when rounds stay far above the base: then the path has changed, or somebody else
//!   keeps the queue, and waiting for less would starve us
//! - *window* = rate × base × gain / (1 - loss) + a few packets; gain 2.5 until three rounds bring less than 25 %, then 1.2, every eighth
//!   round 1.5. What is beyond rate × base is at most 25 ms of queue
//! - *loss* as such changes nothing but the divisor. Loss beyond the usual while the round trip has risen is a full buffer: a ceiling
//!   comes down to 0.7 of what was in flight, and rises again as CUBIC's window does (RFC 9438), which may be the neighbour's
//!
//! On failure: silence changes nothing; what comes after it is judged as a new round.

pub mod controller;

use std::collections::VecDeque;
use std::time::Duration;

/// Packets in flight before anything is known: quinn's pacing spreads them over a round trip.
const INITIAL_PACKETS: f64 = 32.0;
/// Packets in flight at least: fewer could not show a loss to the peer's third packet.
const MIN_PACKETS: f64 = 4.0;
/// Packets beyond the product, so that a new flow takes its share from an old one; at most what the path carries in 10 ms.
const EXTRA_PACKETS: f64 = 8.0;
const EXTRA_TIME: f64 = 0.010;
/// A round lasts at least so long: shorter ones measure the acknowledgements' rhythm.
const MIN_ROUND: Duration = Duration::from_millis(8);
/// Rounds over which the best sample counts.
const RATE_ROUNDS: usize = 10;
const STARTUP_GAIN: f64 = 2.5;
const CRUISE_GAIN: f64 = 1.2;
const PROBE_GAIN: f64 = 1.5;
const PROBE_EVERY: u64 = 8;
/// Queue that a window may add on purpose, seconds.
const MAX_QUEUE: f64 = 0.025;
/// The same in a probing round.
const MAX_PROBE_QUEUE: f64 = 0.040;
/// Share of the product that stays in flight in a drain.
const DRAIN_GAIN: f64 = 0.5;
/// A base that was not confirmed for so long is measured again.
const BASE_AGE: Duration = Duration::from_secs(10);
/// Drains because of a risen round trip follow each other no faster.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);
/// Packets of a drain that must have come back.
const DRAIN_PACKETS: u32 = 6;
/// Drains in a row, each of which found a much lower base.
const MAX_DRAINS: u32 = 4;
/// What is left of the window when a buffer was full, and how fast it comes back: RFC 9438's β and C (packets a second³), or by so many
/// packets a round where that is faster; by packets and not by shares, so that the smaller of two gains on the larger.
const FULL_LEAVES: f64 = 0.7;
const CUBIC: f64 = 0.4;
const RENO: f64 = 2.0;
/// No round trip counts as shorter: so long two processes take to be woken, to read and to answer, and what is in flight meanwhile is no
/// queue. On a cable the product would be a dozen packets, which are sent, and waited for, again and again.
const LEAST_BASE: f64 = 0.002;
/// Share of loss that is believed.
const MAX_LOSS: f64 = 0.5;

/// One acknowledged packet.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// Now.
    pub now: Duration,
    /// When the packet was sent.
    pub sent_at: Duration,
    /// Its bytes.
    pub bytes: u64,
    /// The smoothed round trip of the connection.
    pub rtt: Duration,
    /// The scheduler above has more than the path takes.
    pub backlogged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Cruise,
    Drain {
        since: Duration,
        packets: u32,
        least: Duration,
        /// What the base was before.
        before: Duration,
    },
}

#[derive(Debug, Clone)]
struct Round {
    /// A packet sent from here on ends it.
    sent: Duration,
    at: Duration,
    bytes: u64,
    lost: u64,
    least: Duration,
    acks: u32,
    backlogged: u32,
}

impl Round {
    fn new(now: Duration) -> Self {
        Self {
            sent: now,
            at: now,
            bytes: 0,
            lost: 0,
            least: Duration::MAX,
            acks: 0,
            backlogged: 0,
        }
    }
}

/// The most that may be in flight since a buffer was full, in bytes.
#[derive(Debug, Clone, Copy)]
struct Ceiling {
    now: f64,
    /// When it came down, from where, and the least that it has reached since.
    at: Duration,
    before: f64,
    reno: f64,
}

impl Ceiling {
    const NONE: Self = Self {
        now: f64::INFINITY,
        at: Duration::ZERO,
        before: f64::INFINITY,
        reno: f64::INFINITY,
    };

    /// A buffer was full with `window` bytes in flight; `least` remains.
    fn lower(&mut self, now: Duration, window: f64, least: f64) {
        let window = window.min(self.now);
        // Who has less than last time makes room for somebody new.
        self.before = if window < self.before && self.before.is_finite() {
            window * (1.0 + FULL_LEAVES) / 2.0
        } else {
            window
        };
        self.at = now;
        self.now = (window * FULL_LEAVES).max(least);
        self.reno = self.now;
    }

    /// A round without a full buffer has ended.
    fn rise(&mut self, now: Duration, packet: f64) {
        if self.now.is_infinite() {
            return;
        }
        self.reno += RENO * packet;
        let before = self.before / packet;
        let back = (before * (1.0 - FULL_LEAVES) / CUBIC).cbrt();
        let cubic = CUBIC * (now.saturating_sub(self.at).as_secs_f64() - back).powi(3) + before;
        self.now = self.now.max(self.reno).max(cubic * packet);
    }
}

/// The controller's state.
#[derive(Debug, Clone)]
pub struct Congestion {
    mtu: f64,
    phase: Phase,
    round: Round,
    rounds: u64,
    /// Bytes a second, the newest last.
    samples: VecDeque<f64>,
    rate: f64,
    base: Duration,
    base_at: Duration,
    loss: f64,
    last_ack: Option<Duration>,
    /// Rounds in a row without 25 % growth, and with a risen round trip.
    flat: u32,
    risen: u32,
    drained_at: Duration,
    drains: u32,
    /// What the last full buffer taught.
    ceiling: Ceiling,
    window: f64,
}

impl Congestion {
    /// At the start of a connection with datagrams of `mtu` bytes.
    #[must_use]
    pub fn new(now: Duration, mtu: u16) -> Self {
        Self {
            mtu: f64::from(mtu),
            phase: Phase::Startup,
            round: Round::new(now),
            rounds: 0,
            samples: VecDeque::with_capacity(RATE_ROUNDS),
            rate: 0.0,
            base: Duration::MAX,
            base_at: now,
            loss: 0.0,
            last_ack: None,
            flat: 0,
            risen: 0,
            drained_at: now,
            drains: 0,
            ceiling: Ceiling::NONE,
            window: f64::from(mtu) * INITIAL_PACKETS,
        }
    }

    /// Bytes that may be in flight.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window as u64
    }

    /// The window before anything is known, bytes.
    #[must_use]
    pub fn initial_window(&self) -> u64 {
        (self.mtu * INITIAL_PACKETS) as u64
    }

    /// Bytes a second that the path is believed to carry.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// The round trip without a queue; zero before the first acknowledgement.
    #[must_use]
    pub fn base_rtt(&self) -> Duration {
        if self.base == Duration::MAX {
            Duration::ZERO
        } else {
            self.base
        }
    }

    /// The largest datagram has changed.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
    }

    /// A packet was acknowledged.
    pub fn on_ack(&mut self, ack: &Ack) {
        let now = ack.now;
        let sample = now.saturating_sub(ack.sent_at).max(Duration::from_micros(50));
        let silence = self.last_ack.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        if silence > 2 * ack.rtt + Duration::from_millis(50) {
            // After silence: what was not sent says nothing of the path.
            self.round = Round::new(now);
            self.round.sent = ack.sent_at;
        }
        self.last_ack = Some(now);
        self.note_round_trip(now, sample, ack.sent_at);
        let round = &mut self.round;
        round.bytes += ack.bytes;
        round.least = round.least.min(sample);
        round.acks += 1;
        round.backlogged += u32::from(ack.backlogged);
        if ack.sent_at >= round.sent && now.saturating_sub(round.at) >= MIN_ROUND {
            self.end_round(now);
        }
        self.set_window();
    }

    /// Bytes were lost, sent at `sent_at`; `outage`: so many that it was silence and no loss.
    pub fn on_loss(&mut self, bytes: u64, sent_at: Duration, outage: bool) {
        // What was on its way when a buffer was found full is part of that lesson, and no other.
        if !outage && sent_at >= self.ceiling.at {
            self.round.lost += bytes;
        }
    }

    fn note_round_trip(&mut self, now: Duration, sample: Duration, sent_at: Duration) {
        if sample <= self.base.saturating_add(self.base / 20) {
            self.base_at = now;
        }
        self.base = self.base.min(sample);
        if let Phase::Drain {
            since,
            packets,
            least,
            before,
        } = &mut self.phase
            && sent_at >= *since
        {
            *packets += 1;
            *least = (*least).min(sample);
            if *packets >= DRAIN_PACKETS {
                let (least, before) = (*least, *before);
                self.end_drain(now, least, before);
            }
        }
    }

    fn start_drain(&mut self, now: Duration) {
        self.phase = Phase::Drain {
            since: now,
            packets: 0,
            least: Duration::MAX,
            before: self.base,
        };
    }

    fn end_drain(&mut self, now: Duration, least: Duration, before: Duration) {
        self.base = least;
        self.base_at = now;
        self.drained_at = now;
        self.risen = 0;
        self.drains += 1;
        self.phase = Phase::Cruise;
        if least < before.mul_f64(0.85) && self.drains < MAX_DRAINS {
            // Half of what was too much may still be a queue.
            self.start_drain(now);
        } else {
            self.drains = 0;
            // The drain's own rounds are no sample of anything.
            self.round = Round::new(now);
        }
    }

    fn end_round(&mut self, now: Duration) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        self.rounds += 1;
        let elapsed = now.saturating_sub(round.at).as_secs_f64().max(0.001);
        let sample = round.bytes as f64 / elapsed;
        let limited = round.backlogged * 2 < round.acks || matches!(self.phase, Phase::Drain { .. });
        let before = self.rate;
        if !limited || sample > self.rate {
            if self.samples.len() >= RATE_ROUNDS {
                self.samples.pop_front();
            }
            self.samples.push_back(sample);
            self.rate = self.samples.iter().copied().fold(0.0, f64::max);
        }
        self.judge_loss(now, &round);
        self.judge_queue(now, &round, limited);
        if self.phase == Phase::Startup && !limited {
            self.flat = if self.rate < before * 1.25 { self.flat + 1 } else { 0 };
            if self.flat >= 3 {
                self.start_drain(now);
            }
        }
    }

    fn queue(&self, round: &Round) -> Duration {
        round.least.saturating_sub(self.base)
    }

    /// Usual loss is learnt; unusual loss with a queue is a full buffer.
    fn judge_loss(&mut self, now: Duration, round: &Round) {
        let total = (round.bytes + round.lost) as f64;
        let share = round.lost as f64 / total.max(1.0);
        let queued = self.queue(round) > (self.base * 3 / 10).max(Duration::from_millis(4));
        let full = queued && share > self.loss * 2.0 + 0.02 && round.lost as f64 >= 2.0 * self.mtu && self.rounds > 4;
        if full {
            let in_flight = self.rate * self.base.as_secs_f64();
            self.ceiling.lower(now, self.window, in_flight * 0.5);
            if self.phase == Phase::Startup {
                self.flat = 3;
            }
        } else {
            self.ceiling.rise(now, self.mtu);
        }
        if share < 0.9 && !full {
            // More than usual that a queue has to do with is hardly learnt: else a full buffer would soon be usual.
            let weight = match (self.rounds, queued && share > self.loss) {
                (..8, _) => 0.4,
                (_, false) => 0.1,
                (_, true) => 0.02,
            };
            self.loss = (self.loss * (1.0 - weight) + share * weight).min(MAX_LOSS);
        }
    }

    /// A round trip that stays far above the base, or a base that nothing has confirmed, is looked into.
    fn judge_queue(&mut self, now: Duration, round: &Round, limited: bool) {
        if self.phase != Phase::Cruise {
            return;
        }
        let risen = self.queue(round) > (self.base * 3 / 4).max(Duration::from_millis(10));
        self.risen = if risen { self.risen + 1 } else { 0 };
        let since = now.saturating_sub(self.drained_at);
        if self.risen >= 2 && since >= DRAIN_PAUSE {
            // The path may carry less than it did: only the newest samples count.
            while self.samples.len() > 2 {
                self.samples.pop_front();
            }
            self.rate = self.samples.iter().copied().fold(0.0, f64::max);
            self.start_drain(now);
        } else if now.saturating_sub(self.base_at) >= BASE_AGE && since >= BASE_AGE && !limited {
            self.start_drain(now);
        }
    }

    fn set_window(&mut self) {
        if self.rate == 0.0 || self.base == Duration::MAX {
            return;
        }
        let (base, least) = (self.base.as_secs_f64().max(LEAST_BASE), self.mtu * MIN_PACKETS);
        let product = self.rate * base;
        let (gain, queue) = match self.phase {
            Phase::Drain { .. } => {
                self.window = (product * DRAIN_GAIN).max(least);
                return;
            }
            Phase::Startup => {
                // Also before the rate has followed, the window never shrinks here.
                let wanted = product * STARTUP_GAIN + EXTRA_PACKETS * self.mtu;
                self.window = self.window.max(wanted).min(self.ceiling.now.max(least));
                return;
            }
            Phase::Cruise if self.rounds.is_multiple_of(PROBE_EVERY) => (PROBE_GAIN, MAX_PROBE_QUEUE),
            Phase::Cruise => (CRUISE_GAIN, MAX_QUEUE),
        };
        let extra = (EXTRA_PACKETS * self.mtu).min((self.rate * EXTRA_TIME).max(2.0 * self.mtu));
        let beyond = (product * (gain - 1.0) + extra).min((self.rate * queue).max(2.0 * self.mtu));
        let wanted = (product + beyond) / (1.0 - self.loss);
        self.window = wanted.min(self.ceiling.now).max(least);
        // A ceiling far above teaches nothing.
        if self.ceiling.now > 2.0 * wanted {
            self.ceiling = Ceiling {
                at: self.ceiling.at,
                ..Ceiling::NONE
            };
        }
    }
}
