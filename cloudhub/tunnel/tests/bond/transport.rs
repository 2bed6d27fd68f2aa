//! One end of a connection as quinn runs it: congestion window, pacer, packet and time threshold, probe timeout. No payload:
//! packets are numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tunnel::congestion::{Ack, Congestion};

use crate::ms;

/// A congestion controller as the sender needs it.
pub(crate) trait Controller {
    fn on_ack(&mut self, ack: &Ack);
    fn on_loss(&mut self, now: Duration, sent_at: Duration, bytes: u64, outage: bool);
    fn on_timeout(&mut self) {}
    fn window(&self) -> u64;
}

impl Controller for Box<dyn Controller> {
    fn on_ack(&mut self, ack: &Ack) {
        self.as_mut().on_ack(ack);
    }

    fn on_loss(&mut self, now: Duration, sent_at: Duration, bytes: u64, outage: bool) {
        self.as_mut().on_loss(now, sent_at, bytes, outage);
    }

    fn on_timeout(&mut self) {
        self.as_mut().on_timeout();
    }

    fn window(&self) -> u64 {
        self.as_ref().window()
    }
}

impl Controller for Congestion {
    fn on_ack(&mut self, ack: &Ack) {
        Congestion::on_ack(self, ack);
    }

    fn on_loss(&mut self, _now: Duration, sent_at: Duration, bytes: u64, outage: bool) {
        Congestion::on_loss(self, bytes, sent_at, outage);
    }

    fn window(&self) -> u64 {
        Congestion::window(self)
    }
}

/// When the next packet may leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Room {
    Now,
    At(Duration),
    Full,
}

/// The sending side.
pub(crate) struct Sender<C> {
    pub(crate) controller: C,
    mtu: u64,
    paced: bool,
    pub(crate) smoothed: Duration,
    variance: Duration,
    latest: Duration,
    pub(crate) in_flight: u64,
    sent: BTreeMap<u64, (Duration, u64)>,
    next: u64,
    largest: Option<u64>,
    tokens: f64,
    tokens_at: Duration,
    last_sent: Duration,
    timeouts: u32,
    /// Least of a probe timeout: TCP's is 200 ms.
    least_timeout: Duration,
    /// Packets that may leave although the window is full.
    pub(crate) credit: u32,
    pub(crate) delivered: u64,
    pub(crate) lost_bytes: u64,
}

impl<C: Controller> Sender<C> {
    pub(crate) fn new(now: Duration, controller: C, rtt: Duration, paced: bool) -> Self {
        Self {
            controller,
            mtu: 1480,
            paced,
            smoothed: rtt,
            variance: rtt / 2,
            latest: rtt,
            in_flight: 0,
            sent: BTreeMap::new(),
            next: 0,
            largest: None,
            tokens: 10.0 * 1480.0,
            tokens_at: now,
            last_sent: now,
            timeouts: 0,
            least_timeout: ms(25),
            credit: 0,
            delivered: 0,
            lost_bytes: 0,
        }
    }

    /// As TCP has it.
    pub(crate) fn with_least_timeout(mut self, least: Duration) -> Self {
        self.least_timeout = least;
        self
    }

    /// quinn's pacer: 1.25 windows a round trip, bursts of 10 ms, at least 10 packets.
    fn refill(&mut self, now: Duration) -> f64 {
        let window = self.controller.window() as f64;
        let rate = 1.25 * window / self.smoothed.as_secs_f64().max(1e-4);
        let mtu = self.mtu as f64;
        let capacity = (window * 0.010 / self.smoothed.as_secs_f64().max(1e-4)).clamp(10.0 * mtu, 256.0 * mtu);
        let elapsed = now.saturating_sub(self.tokens_at).as_secs_f64();
        self.tokens = (self.tokens + rate * elapsed).min(capacity);
        self.tokens_at = now;
        rate
    }

    pub(crate) fn room(&mut self, now: Duration) -> Room {
        if self.credit > 0 {
            return Room::Now;
        }
        if self.in_flight + self.mtu > self.controller.window() {
            return Room::Full;
        }
        let rate = self.refill(now);
        let mtu = self.mtu as f64;
        if !self.paced || self.tokens >= mtu {
            return Room::Now;
        }
        Room::At(now + Duration::from_secs_f64((mtu - self.tokens) / rate) + Duration::from_micros(1))
    }

    pub(crate) fn on_sent(&mut self, now: Duration, bytes: u64) -> u64 {
        self.credit = self.credit.saturating_sub(1);
        let number = self.next;
        self.next += 1;
        self.sent.insert(number, (now, bytes));
        self.in_flight += bytes;
        self.tokens -= bytes as f64;
        self.last_sent = now;
        number
    }

    /// Returns what arrived and what is lost.
    pub(crate) fn on_ack(&mut self, now: Duration, numbers: &[u64], backlogged: bool) -> (Vec<u64>, Vec<u64>) {
        let mut acked = Vec::new();
        for number in numbers {
            let Some((at, bytes)) = self.sent.remove(number) else {
                continue;
            };
            self.in_flight -= bytes;
            self.delivered += bytes;
            acked.push(*number);
            if Some(number) == numbers.last() && self.largest.is_none_or(|have| have < *number) {
                self.latest = now - at;
                self.variance = (self.variance * 3 + self.smoothed.abs_diff(self.latest)) / 4;
                self.smoothed = (self.smoothed * 7 + self.latest) / 8;
            }
            self.largest = self.largest.max(Some(*number));
            self.controller.on_ack(&Ack {
                now,
                sent_at: at,
                bytes,
                rtt: self.smoothed,
                backlogged,
            });
        }
        if !acked.is_empty() {
            self.timeouts = 0;
        }
        (acked, self.find_lost(now))
    }

    fn loss_delay(&self) -> Duration {
        (self.smoothed.max(self.latest) * 9 / 8).max(ms(1))
    }

    fn find_lost(&mut self, now: Duration) -> Vec<u64> {
        let Some(largest) = self.largest else {
            return Vec::new();
        };
        let delay = self.loss_delay();
        let late = |number: u64, at: Duration| largest >= number + 3 || now.saturating_sub(at) >= delay;
        let lost: Vec<u64> = self
            .sent
            .range(..largest)
            .filter(|(number, (at, _))| late(**number, *at))
            .map(|(number, _)| *number)
            .collect();
        let (mut bytes, mut first, mut newest) = (0, None, Duration::ZERO);
        for number in &lost {
            if let Some((at, size)) = self.sent.remove(number) {
                self.in_flight -= size;
                bytes += size;
                first.get_or_insert(at);
                newest = at;
            }
        }
        if let Some(first) = first {
            self.lost_bytes += bytes;
            let outage = newest.saturating_sub(first) > 3 * (self.smoothed + 4 * self.variance + ms(25));
            self.controller.on_loss(now, newest, bytes, outage);
        }
        lost
    }

    fn loss_at(&self) -> Option<Duration> {
        let largest = self.largest?;
        let (_, (at, _)) = self.sent.range(..largest).next()?;
        Some(*at + self.loss_delay())
    }

    fn probe_at(&self) -> Option<Duration> {
        if self.sent.is_empty() {
            return None;
        }
        let pause = (self.smoothed + 4 * self.variance + ms(25)).max(self.least_timeout);
        Some(self.last_sent + pause * (1 << self.timeouts.min(10)))
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.loss_at().into_iter().chain(self.probe_at()).min()
    }

    /// Returns what is lost.
    pub(crate) fn on_timeout(&mut self, now: Duration) -> Vec<u64> {
        let lost = if self.loss_at().is_some_and(|at| at <= now) {
            self.find_lost(now)
        } else {
            Vec::new()
        };
        if self.probe_at().is_some_and(|at| at <= now) {
            self.timeouts += 1;
            self.last_sent = now;
            self.credit = 1;
            if self.timeouts > 1 {
                // The first is a tail loss probe (RFC 8985 §7), which changes nothing.
                self.controller.on_timeout();
            }
        }
        lost
    }

    /// TCP's timeout: all that is out counts as lost.
    pub(crate) fn give_up(&mut self) -> Vec<u64> {
        let lost: Vec<u64> = std::mem::take(&mut self.sent).into_keys().collect();
        self.in_flight = 0;
        lost
    }

    pub(crate) fn timed_out(&self) -> bool {
        self.credit > 0
    }
}

/// The receiving side: an acknowledgement after every second packet, or after 25 ms.
pub(crate) struct Receiver {
    /// Numbers that an acknowledgement tells.
    memory: usize,
    recent: VecDeque<u64>,
    seen: BTreeSet<u64>,
    unanswered: u32,
    pub(crate) due: Option<Duration>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::with_memory(64)
    }
}

impl Receiver {
    /// `memory`: how many numbers an acknowledgement tells; TCP's is cumulative, so many.
    pub(crate) fn with_memory(memory: usize) -> Self {
        Self {
            memory,
            recent: VecDeque::new(),
            seen: BTreeSet::new(),
            unanswered: 0,
            due: None,
        }
    }

    /// False when it was seen before.
    pub(crate) fn on_packet(&mut self, now: Duration, number: u64) -> bool {
        if !self.seen.insert(number) {
            return false;
        }
        if self.seen.len() > 4096 {
            self.seen.pop_first();
        }
        if self.recent.len() >= self.memory {
            self.recent.pop_front();
        }
        let gap = self.recent.back().is_some_and(|last| last + 1 != number);
        self.recent.push_back(number);
        self.unanswered += 1;
        let due = if self.unanswered >= 2 || gap { now } else { now + ms(25) };
        self.due = Some(self.due.map_or(due, |have| have.min(due)));
        true
    }

    pub(crate) fn ack(&mut self, now: Duration) -> Option<Vec<u64>> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        (self.due, self.unanswered) = (None, 0);
        Some(self.recent.iter().copied().collect())
    }
}
