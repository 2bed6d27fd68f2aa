//! One path: what was sent over it and is unanswered, its round-trip time, rate and loss, and whether it is alive.
//!
//! - a packet is lost when a later one of its path has arrived: a path is first in, first out. One that proves otherwise gets more
//!   patience: more later packets, or one that was sent later by more
//! - a path is *suspect* when packets are out and nothing has been acknowledged for max(100 ms, 1.5 RTT + 40 ms), at most max(150 ms,
//!   2 RTT); idle, when a keep-alive is not answered within 1 s. What it carried goes elsewhere, it carries probes only, and after two
//!   answers it is *live* again. In a long outage the edge asks, and the hub as often as it hears the edge: a hub may have thousands that
//!   are away
//!
//! The round trip is this path's way there and the best path's way back, since that is where acknowledgements travel.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::acks::Received;
use super::frame::{AckBlock, Part};
use super::policy::{Bucket, Policy};
use super::ranges::expand;
use super::rtt::Rtt;
use super::streams::{Control, StreamId};
use super::violation::Violation;

/// A path's number; both ends give it the same. A new connection over the same uplink has another: acknowledgements of the old one's
/// packets may still be on their way over other paths. 256 of them are enough to count round and round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u8);

/// Whether a path carries traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// It does.
    Live,
    /// It does not answer: it is probed.
    Suspect,
}

impl PathState {
    /// Its name for people and Prometheus.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "up",
            Self::Suspect => "suspect",
        }
    }
}

/// What is known of a path when it is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathConfig {
    /// The largest datagram that it takes now, bytes.
    pub max_datagram: usize,
    /// The round trip of its handshake.
    pub rtt: Duration,
    /// What it may carry and costs.
    pub policy: Policy,
}

/// What a packet carried, to be told when it arrived or was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Datagram(u64, Part),
    Message(u64, Range<u64>),
    Stream(StreamId, Range<u64>, bool),
    Control(StreamId, Control),
    Probe,
}

/// How something was lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss {
    pub(crate) now: Duration,
    pub(crate) path: PathId,
    /// The peer says so, of something that it could have received; else its path does not answer.
    pub(crate) reported: bool,
}

/// Packets that may be unanswered on one path: 100 Mbit/s for 900 ms.
const MAX_IN_FLIGHT: usize = 8192;
/// Packets of a suspect path that are remembered.
const MAX_PROBES: usize = 1024;
/// So many later packets that arrived, or one later by so much, prove a loss: a path is first in, first out until it shows otherwise.
const REORDER_PACKETS: u64 = 1;
const REORDER_TIME: Duration = Duration::from_millis(4);
/// A round trip that is older is no reason to leave a path alone.
const MEASURED: Duration = Duration::from_secs(1);
/// Silence after which the last packets of a burst are followed by a probe.
const TAIL: Duration = Duration::from_millis(10);
/// After so many of these probes without any answer each further one waits twice as long, so many times at most.
const PROMPT_PROBES: u32 = 2;
const DOUBLINGS: u32 = 6;
/// A keep-alive that has no answer is repeated.
const KEEP_ALIVE_REPEAT: Duration = Duration::from_millis(300);
/// Idle, no answer within this is suspect.
const IDLE_SUSPECT: Duration = Duration::from_secs(1);
/// Keep-alives on the best path and on others.
const KEEP_ALIVE_BEST: Duration = Duration::from_secs(8);
const KEEP_ALIVE_OTHER: Duration = Duration::from_secs(25);
/// The only live path may be silent for so long: on a slow link a burst both ways delays the first answer by its queue, and a hub that has
/// something for ten thousand edges at once answers the last of them after a second or two. Whoever suspects it then asks more than all of
/// them had to say, and is answered later still.
const ALONE_SUSPECT: Duration = Duration::from_secs(2);
/// Losses over so many buckets of so long are one minute.
const LOSS_BUCKETS: usize = 6;
const LOSS_BUCKET: Duration = Duration::from_secs(10);
/// After so many probes of a peer that has answered nothing lately this end asks too: one way may be dead.
const ASKED: u32 = 8;
/// How seldom the hub asks when it hears nothing: at first, after a second, after ten. The edge asks often enough for both, and whatever is
/// heard of it makes the hub ask at once; when a whole fleet falls silent, the hub's own probes would be most of what it does.
const UNASKED: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(10),
];
/// Answered probes that make a path live again, each within a second of the one before.
const READMIT: u32 = 2;

#[derive(Debug)]
struct Sent {
    at: Duration,
    bytes: u32,
    contents: Vec<Content>,
    /// It went elsewhere too when the path became suspect.
    retired: bool,
    probe: bool,
    /// Sent while nothing was heard: its loss is no surprise.
    blind: bool,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    since: Duration,
    answered: u32,
    answered_at: Duration,
    next_probe: Duration,
    probed_at: Duration,
    /// How long after a probe the next one may follow.
    pause: Duration,
}

/// What an acknowledgement told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) arrived: Vec<Content>,
    /// With whether the peer could have received it.
    pub(crate) lost: Vec<(Content, bool)>,
    pub(crate) readmitted: bool,
}

/// One path.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) id: PathId,
    pub(crate) max_datagram: usize,
    pub(crate) policy: Policy,
    pub(crate) bucket: Bucket,
    pub(crate) received: Received,
    pub(crate) rtt: Rtt,
    pub(crate) pulled: Duration,
    next: u64,
    base: u64,
    sent: VecDeque<Option<Sent>>,
    /// Packets that are out, and those of them that carry more than a probe.
    pub(crate) in_flight: usize,
    traffic: usize,
    largest_acked: Option<(u64, Duration)>,
    /// Last acknowledgement of something new, or the first packet out after all were answered.
    progress: Duration,
    last_sent: Duration,
    tail_probes: u32,
    /// Probes since it answered anything.
    unanswered_probes: u32,
    /// When this end slept last.
    woke: Duration,
    /// Probes of the peer, one soon after the other, since it answered anything of ours.
    asked: u32,
    suspicion: Option<Suspicion>,
    reorder_packets: u64,
    reorder_time: Duration,
    lost_lately: VecDeque<u64>,
    losses: [(u32, u32); LOSS_BUCKETS],
    losses_since: Duration,
    rate: u64,
    rate_bytes: u64,
    rate_since: Duration,
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) acked_bytes: u64,
    pub(crate) lost_packets: u64,
    pub(crate) suspicions: u64,
}

impl Path {
    pub(crate) fn new(now: Duration, id: PathId, config: PathConfig) -> Self {
        Self {
            id,
            max_datagram: config.max_datagram,
            policy: config.policy,
            bucket: Bucket::new(now),
            received: Received::default(),
            rtt: Rtt::new(now, config.rtt),
            pulled: now,
            next: 0,
            base: 0,
            sent: VecDeque::new(),
            in_flight: 0,
            traffic: 0,
            largest_acked: None,
            progress: now,
            last_sent: now,
            tail_probes: 0,
            unanswered_probes: 0,
            woke: Duration::ZERO,
            asked: 0,
            suspicion: None,
            reorder_packets: REORDER_PACKETS,
            reorder_time: REORDER_TIME,
            lost_lately: VecDeque::new(),
            losses: [(0, 0); LOSS_BUCKETS],
            losses_since: now,
            rate: 0,
            rate_bytes: 0,
            rate_since: now,
            sent_packets: 0,
            sent_bytes: 0,
            acked_bytes: 0,
            lost_packets: 0,
            suspicions: 0,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.suspicion.is_none()
    }

    pub(crate) fn state(&self) -> PathState {
        if self.is_live() {
            PathState::Live
        } else {
            PathState::Suspect
        }
    }

    /// Since when it is suspect.
    pub(crate) fn suspect_since(&self) -> Option<Duration> {
        self.suspicion.map(|suspicion| suspicion.since)
    }

    /// Whether it takes more packets.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < MAX_IN_FLIGHT && self.sent.len() < 2 * MAX_IN_FLIGHT
    }

    /// The sequence of the next packet.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Notes a packet; one without contents asks for no answer.
    pub(crate) fn record(&mut self, now: Duration, bytes: usize, contents: Vec<Content>) {
        self.next += 1;
        self.sent_packets += 1;
        self.sent_bytes += bytes as u64;
        if contents.is_empty() {
            if self.sent.is_empty() {
                self.base = self.next;
            } else {
                self.sent.push_back(None);
            }
            return;
        }
        if self.in_flight == 0 {
            self.progress = now;
        }
        let probe = contents == [Content::Probe];
        self.last_sent = now;
        self.in_flight += 1;
        if probe {
            self.tail_probes += 1;
            self.unanswered_probes = self.unanswered_probes.saturating_add(1);
        } else {
            self.traffic += 1;
            self.tail_probes = 0;
        }
        self.sent.push_back(Some(Sent {
            at: now,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            contents,
            retired: false,
            probe,
            blind: self.suspicion.is_some(),
        }));
    }

    fn settle(&mut self, sent: &Sent) {
        if !sent.retired {
            self.in_flight -= 1;
            self.traffic -= usize::from(!sent.probe);
        }
    }

    /// Takes what the peer says of this path.
    pub(crate) fn handle_ack(&mut self, now: Duration, block: &AckBlock, told: &mut Told) -> Result<(), Violation> {
        let largest = expand(block.largest, self.largest_acked.map_or(0, |(largest, _)| largest));
        if largest >= self.next {
            return Err(Violation::AckOfNothing);
        }
        let mut newest: Option<(u64, Duration, bool)> = None;
        for range in &block.ranges {
            if range.end > largest + 1 {
                return Err(Violation::AckOfNothing);
            }
            let (first, end) = (largest + 1 - range.end, largest + 1 - range.start);
            self.find_spurious(first..end);
            for sequence in first.max(self.base)..end {
                let Some(sent) = self.take(sequence) else { continue };
                self.settle(&sent);
                self.acked_bytes += u64::from(sent.bytes);
                self.rate_bytes += u64::from(sent.bytes);
                self.losses[0].0 += 1;
                if newest.is_none_or(|(have, ..)| have < sequence) {
                    newest = Some((sequence, sent.at, sent.retired));
                }
                told.arrived.extend(sent.contents);
            }
        }
        if let Some((sequence, at, retired)) = newest {
            self.progress = now;
            (self.tail_probes, self.unanswered_probes, self.asked) = (0, 0, 0);
            // What was answered while this end slept was read late.
            if sequence == largest && at >= self.woke {
                let sample = now.saturating_sub(at).saturating_sub(block.delay);
                self.rtt.sample(now, sample.max(Duration::from_micros(100)));
            }
            if self.largest_acked.is_none_or(|(have, _)| have < sequence) {
                self.largest_acked = Some((sequence, at));
            }
            told.readmitted |= self.answered(now, retired);
        }
        self.find_lost(now, told);
        self.measure(now);
        Ok(())
    }

    fn take(&mut self, sequence: u64) -> Option<Sent> {
        let place = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let sent = self.sent.get_mut(place)?.take();
        self.trim();
        sent
    }

    fn trim(&mut self) {
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.base += 1;
        }
    }

    /// What the peer has after all was not lost: it takes longer to believe the next loss.
    fn find_spurious(&mut self, range: Range<u64>) {
        let before = self.lost_lately.len();
        self.lost_lately.retain(|sequence| !range.contains(sequence));
        if self.lost_lately.len() < before {
            self.reorder_packets = (self.reorder_packets * 2).min(256);
            self.reorder_time = (self.reorder_time * 2).min(self.rtt.smoothed.max(REORDER_TIME));
        }
    }

    fn find_lost(&mut self, now: Duration, told: &mut Told) {
        let Some((largest, largest_at)) = self.largest_acked else {
            return;
        };
        for sequence in self.base..largest {
            let place = usize::try_from(sequence - self.base).unwrap_or(usize::MAX);
            let Some(Some(sent)) = self.sent.get(place) else {
                continue;
            };
            let late = largest - sequence >= self.reorder_packets || sent.at + self.reorder_time <= largest_at;
            if !late {
                break;
            }
            let Some(sent) = self.sent.get_mut(place).and_then(Option::take) else {
                continue;
            };
            self.settle(&sent);
            self.lost_packets += 1;
            self.losses[0].1 += 1;
            if self.lost_lately.len() >= 128 {
                self.lost_lately.pop_front();
            }
            self.lost_lately.push_back(sequence);
            if !sent.retired {
                told.lost
                    .extend(sent.contents.into_iter().map(|content| (content, !sent.blind)));
            }
        }
        self.trim();
        if now.saturating_sub(self.losses_since) > LOSS_BUCKET {
            self.losses.rotate_right(1);
            self.losses[0] = (0, 0);
            self.losses_since = now;
            // A path that was out of order once may be in order again.
            self.reorder_packets = (self.reorder_packets / 2).max(REORDER_PACKETS);
            self.reorder_time = (self.reorder_time / 2).max(REORDER_TIME);
        }
    }

    fn measure(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.rate_since);
        if elapsed < self.rtt.smoothed.max(Duration::from_millis(50)) {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let sample = self.rate_bytes.saturating_mul(1_000_000) / micros;
        self.rate = sample.max(self.rate / 10 * 9);
        (self.rate_bytes, self.rate_since) = (0, now);
    }

    /// Bytes a second that were acknowledged, as the best of the last moments.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Lost packets among those of the last minute, 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        let (acked, lost) = self
            .losses
            .iter()
            .fold((0, 0), |sum, bucket| (sum.0 + bucket.0, sum.1 + bucket.1));
        f64::from(lost) / f64::from((acked + lost).max(1))
    }

    /// An answer came; true when the path is live again.
    fn answered(&mut self, now: Duration, retired: bool) -> bool {
        let Some(suspicion) = &mut self.suspicion else {
            return false;
        };
        // What was sent before the suspicion answers late: the path lives, but one sign is not two.
        if retired && suspicion.answered > 0 {
            return false;
        }
        if now.saturating_sub(suspicion.answered_at) > Duration::from_secs(1) {
            suspicion.answered = 0;
        }
        suspicion.answered += 1;
        suspicion.answered_at = now;
        suspicion.next_probe = now;
        suspicion.answered >= READMIT
    }

    /// It carries traffic again.
    pub(crate) fn readmit(&mut self, now: Duration) {
        self.suspicion = None;
        self.progress = now;
        (self.tail_probes, self.unanswered_probes) = (0, 0);
    }

    /// It carries probes only from now on; returns what it carried.
    pub(crate) fn suspect(&mut self, now: Duration) -> Vec<Content> {
        if self.suspicion.is_some() {
            return Vec::new();
        }
        self.suspicions += 1;
        self.suspicion = Some(Suspicion {
            since: now,
            answered: 0,
            answered_at: now,
            next_probe: now,
            probed_at: now,
            pause: Duration::ZERO,
        });
        (self.in_flight, self.traffic, self.tail_probes) = (0, 0, 0);
        let mut contents = Vec::new();
        for sent in self.sent.iter_mut().flatten() {
            if !sent.retired {
                sent.retired = true;
                contents.extend(sent.contents.iter().cloned());
            }
        }
        contents
    }

    /// Everything that it carried and that is unanswered, when it goes away for good.
    pub(crate) fn unanswered(&mut self) -> Vec<Content> {
        let sent = std::mem::take(&mut self.sent).into_iter().flatten();
        sent.filter(|sent| !sent.retired)
            .flat_map(|sent| sent.contents)
            .collect()
    }

    /// How long without progress is too long. `alone`: no other path could take over, so a false alarm costs and a true one gains nothing.
    fn patience(&self, alone: bool) -> Duration {
        let rtt = self.rtt.smoothed;
        if self.traffic == 0 {
            let idle = if alone { ALONE_SUSPECT } else { IDLE_SUSPECT };
            return idle.max(rtt * 4);
        }
        let wanted = Duration::from_millis(100).max(rtt * 3 / 2 + Duration::from_millis(40));
        let wanted = wanted.min(Duration::from_millis(150).max(rtt * 2));
        if alone {
            wanted.max(ALONE_SUSPECT).max(rtt * 4)
        } else {
            wanted
        }
    }

    /// When it becomes suspect if nothing comes.
    pub(crate) fn suspect_at(&self, alone: bool) -> Option<Duration> {
        (self.is_live() && self.in_flight > 0).then(|| self.progress + self.patience(alone))
    }

    /// This end slept: what it could not have heard does not count.
    pub(crate) fn forgive(&mut self, now: Duration) {
        self.woke = now;
        if self.in_flight > 0 {
            self.progress = now;
        }
    }

    /// When the next probe is to be sent. `keep_alive`: this end keeps idle paths alive; `best`: more often, as the best path.
    pub(crate) fn probe_at(&self, keep_alive: bool, best: bool) -> Option<Duration> {
        if let Some(suspicion) = self.suspicion {
            return Some(suspicion.next_probe);
        }
        if self.traffic > 0 {
            let pause = match self.tail_probes {
                0 => TAIL.max(self.reorder_time),
                _ => self.rtt.smoothed * 5 / 4 + Duration::from_millis(5),
            };
            // A peer that has ten thousand others to answer must not get a hundred probes for one message.
            let doublings = self.unanswered_probes.saturating_sub(PROMPT_PROBES).min(DOUBLINGS);
            let pause = pause * 2_u32.pow(doublings);
            return Some(self.last_sent + pause);
        }
        if self.in_flight > 0 {
            return Some(self.last_sent + KEEP_ALIVE_REPEAT.max(self.rtt.smoothed * 5 / 4));
        }
        if self.asked >= ASKED {
            // It may hear nothing of us, which nobody would notice here.
            return self.received.heard;
        }
        let pause = if best { KEEP_ALIVE_BEST } else { KEEP_ALIVE_OTHER };
        keep_alive.then(|| self.last_sent + pause)
    }

    /// Whether nothing is out that would tell its round trip, and what is known of it is old.
    pub(crate) fn is_unmeasured(&self, now: Duration) -> bool {
        self.in_flight == 0 && self.rtt.is_older(now, MEASURED)
    }

    /// A packet came over it, a probe perhaps: one that is suspect is asked as soon as it may be.
    pub(crate) fn heard(&mut self, now: Duration, is_probe: bool) {
        let before = self.received.heard.replace(now).unwrap_or_default();
        if now.saturating_sub(before) > Duration::from_secs(1) {
            // Keep-alives ask seldom.
            self.asked = 0;
        }
        self.asked = self.asked.saturating_add(is_probe.into());
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.next_probe = suspicion.next_probe.min(suspicion.probed_at + suspicion.pause);
        }
    }

    /// A probe of a suspect path left: the next one follows in 50 ms, later and later in a long outage. `waiting`: something waits
    /// for any path to come back; `is_hub`: the peer asks too.
    pub(crate) fn probed(&mut self, now: Duration, waiting: bool, is_hub: bool) {
        let metered = self.policy.metered;
        if let Some(suspicion) = &mut self.suspicion {
            let outage = now.saturating_sub(suspicion.since).as_millis();
            let pause = match outage {
                0..500 => 50,
                500..10_000 => 100,
                10_000..150_000 => 200,
                150_000..3_600_000 if waiting && !metered => 200,
                _ if waiting => 1000,
                150_000..600_000 => 1000,
                _ => 25_000,
            };
            suspicion.probed_at = now;
            suspicion.pause = Duration::from_millis(pause);
            let unasked = match outage {
                _ if !is_hub => Duration::ZERO,
                0..1000 => UNASKED[0],
                1000..10_000 => UNASKED[1],
                _ => UNASKED[2],
            };
            suspicion.next_probe = now + suspicion.pause.max(unasked);
        }
        // A day of unanswered probes is not kept.
        while self.sent.len() > MAX_PROBES
            && let Some(oldest) = self.sent.pop_front()
        {
            self.base += 1;
            if let Some(oldest) = oldest {
                self.settle(&oldest);
            }
        }
    }
}
