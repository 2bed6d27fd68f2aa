//! What a link is told to be. The default of everything is a perfect link.

use serde::Deserialize;
use thiserror::Error;

use crate::draw::derive;
use crate::trace::{Lte, Trace};
use crate::{Direction, units};

/// A specification that contradicts itself.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SpecError {
    /// A probability outside [0, 1].
    #[error("{field} is {value}: a probability is from 0 to 1")]
    Probability {
        /// The field's name.
        field: &'static str,
        /// What was given.
        value: f64,
    },
    /// A number that is not finite, or negative.
    #[error("{field} is {value}: it must be finite and at least {least}")]
    Number {
        /// The field's name.
        field: &'static str,
        /// What was given.
        value: f64,
        /// The smallest that would be right.
        least: f64,
    },
    /// A rate of nothing, which never ends.
    #[error("{0}: a link that never sends again is a black hole: say that")]
    NoRate(&'static str),
    /// A list that must be in the order of time is not, or is empty.
    #[error("{0} must be in the order of time, and must not be empty")]
    Order(&'static str),
    /// A queue in milliseconds on a link without a rate.
    #[error("a queue given as a time needs a rate; say its bytes")]
    QueueWithoutRate,
}

/// One way of one link.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DirectionSpec {
    /// How fast it sends.
    pub rate: Rate,
    /// How much waits before it drops the newest.
    pub queue: Queue,
    /// Nanoseconds from the last bit sent to the packet's arrival.
    #[serde(deserialize_with = "units::de_duration")]
    pub delay: u64,
    /// What else the delay is from given times on; FIFO holds, so a shorter delay first lets the earlier ones arrive.
    pub delays: Vec<DelayStep>,
    /// Added to the delay, packet by packet.
    pub jitter: Jitter,
    /// Whether jitter may make packets overtake each other.
    pub reorder: bool,
    /// Which packets get lost on the way; they have used their share of the rate.
    pub loss: Loss,
    /// Probability that a bit of a packet is flipped.
    pub corrupt: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// When everything that is sent disappears without a sign.
    pub blackouts: Vec<Window>,
    /// Packets of more bytes than this disappear without a sign, as in an MTU black hole.
    pub largest: Option<u64>,
    /// When that is so for a time.
    pub narrows: Vec<Narrow>,
}

impl DirectionSpec {
    /// Refuses what cannot be a link.
    ///
    /// # Errors
    /// The first contradiction, with the field and its value.
    pub fn validate(&self) -> Result<(), SpecError> {
        probability("corrupt", self.corrupt)?;
        probability("duplicate", self.duplicate)?;
        self.loss.validate()?;
        self.jitter.validate()?;
        self.rate.validate()?;
        if !self.delays.is_sorted_by_key(|step| step.at) {
            return Err(SpecError::Order("delays"));
        }
        if self.blackouts.iter().any(|window| window.from >= window.to) {
            return Err(SpecError::Order("blackouts"));
        }
        if self.narrows.iter().any(|narrow| narrow.from >= narrow.to) {
            return Err(SpecError::Order("narrows"));
        }
        match (&self.queue, &self.rate) {
            (Queue::Time(_), Rate::Unlimited) => Err(SpecError::QueueWithoutRate),
            _ => Ok(()),
        }
    }
}

fn probability(field: &'static str, value: f64) -> Result<(), SpecError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(SpecError::Probability { field, value }),
    }
}

fn number(field: &'static str, value: f64, least: f64) -> Result<(), SpecError> {
    match value.is_finite() && value >= least {
        true => Ok(()),
        false => Err(SpecError::Number { field, value, least }),
    }
}

/// How fast a direction sends.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rate {
    /// At once.
    #[default]
    Unlimited,
    /// Bits a second.
    Fixed(#[serde(deserialize_with = "units::de_rate")] u64),
    /// Opportunities of 1500 bytes each, in mahimahi's format.
    Trace(Trace),
    /// A trace like LTE's, made from a seed.
    Lte(Lte),
    /// Another rate from each of these times on; the first begins at 0, and a rate of 0 is a pause, but for the last.
    Steps(Vec<RateStep>),
}

impl Rate {
    fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Fixed(0) => Err(SpecError::NoRate("rate")),
            Self::Unlimited | Self::Fixed(_) | Self::Trace(_) => Ok(()),
            Self::Lte(lte) => lte.validate(),
            Self::Steps(steps) => {
                let in_order = steps.is_sorted_by(|a, b| a.at < b.at);
                if !in_order || steps.first().is_none_or(|first| first.at != 0) {
                    return Err(SpecError::Order("rate.steps"));
                }
                match steps.last().is_some_and(|last| last.rate > 0) {
                    true => Ok(()),
                    false => Err(SpecError::NoRate("rate.steps")),
                }
            }
        }
    }
}

/// From `at` on the rate is `rate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateStep {
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub at: u64,
    /// Bits a second.
    #[serde(deserialize_with = "units::de_rate")]
    pub rate: u64,
}

/// From `at` on the delay is `delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelayStep {
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub at: u64,
    /// Nanoseconds.
    #[serde(deserialize_with = "units::de_duration")]
    pub delay: u64,
}

/// What waits to be sent; the packet being sent counts, and one packet always fits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Queue {
    /// No bound.
    #[default]
    Endless,
    /// Bytes.
    Size(#[serde(deserialize_with = "units::de_size")] u64),
    /// As many bytes as the link sends in so many nanoseconds: at its fixed rate, its trace's mean, or its first step.
    Time(#[serde(deserialize_with = "units::de_duration")] u64),
}

/// What is added to the delay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Jitter {
    /// Nothing.
    #[default]
    None,
    /// Between 0 and so many nanoseconds, all as likely.
    Uniform(#[serde(deserialize_with = "units::de_duration")] u64),
    /// Normal, cut at 0.
    #[serde(rename_all = "camelCase")]
    Normal {
        /// Nanoseconds.
        #[serde(deserialize_with = "units::de_duration")]
        mean: u64,
        /// Nanoseconds.
        #[serde(deserialize_with = "units::de_duration")]
        deviation: u64,
    },
    /// Pareto's, moved so that it begins at 0 (Lomax), cut at 1000 × scale.
    #[serde(rename_all = "camelCase")]
    Pareto {
        /// Nanoseconds; the mean is scale / (shape - 1).
        #[serde(deserialize_with = "units::de_duration")]
        scale: u64,
        /// Above 1; the larger, the thinner the tail.
        shape: f64,
    },
}

impl Jitter {
    fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Pareto { shape, .. } => number("jitter.pareto.shape", *shape, 1.01),
            Self::None | Self::Uniform(_) | Self::Normal { .. } => Ok(()),
        }
    }
}

/// Which packets get lost.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability, whatever happened to the others.
    Iid(f64),
    /// A chain of two states, good and bad, that moves once a packet (Gilbert 1960, Elliott 1963; as netem's `gemodel`).
    #[serde(rename_all = "camelCase")]
    GilbertElliott {
        /// Probability of turning bad.
        p: f64,
        /// Probability of turning good again.
        r: f64,
        /// Probability that a packet gets through while bad.
        #[serde(default)]
        h: f64,
        /// Probability that a packet gets through while good.
        #[serde(default = "certain")]
        k: f64,
    },
    /// These, counted from 0.
    Bursts(Vec<Burst>),
}

fn certain() -> f64 {
    1.0
}

impl Loss {
    /// Gilbert's chain that loses `loss` of all packets, in bursts of `burst` packets on average.
    #[must_use]
    pub fn in_bursts(loss: f64, burst: f64) -> Self {
        let r = 1.0 / burst;
        Self::GilbertElliott {
            p: loss * r / (1.0 - loss),
            r,
            h: 0.0,
            k: 1.0,
        }
    }

    /// The share of packets that gets lost in the long run; of a list, 0.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match self {
            Self::None | Self::Bursts(_) => 0.0,
            Self::Iid(loss) => *loss,
            Self::GilbertElliott { p, r, .. } if p + r == 0.0 => 0.0,
            Self::GilbertElliott { p, r, h, k } => (p * (1.0 - h) + r * (1.0 - k)) / (p + r),
        }
    }

    fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::None | Self::Bursts(_) => Ok(()),
            Self::Iid(loss) => probability("loss.iid", *loss),
            Self::GilbertElliott { p, r, h, k } => {
                probability("loss.gilbertElliott.p", *p)?;
                probability("loss.gilbertElliott.r", *r)?;
                probability("loss.gilbertElliott.h", *h)?;
                probability("loss.gilbertElliott.k", *k)
            }
        }
    }
}

/// Packets `first`, `first + 1`, … of the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Burst {
    /// Counted from 0.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// From `from` on, until just before `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub from: u64,
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub to: u64,
}

/// From `from` on, until just before `to`, packets of more than `largest` bytes disappear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Narrow {
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub from: u64,
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub to: u64,
    /// Bytes.
    pub largest: u64,
}

/// Both ways of one link, and what happens to it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LinkSpec {
    /// What people call it: `wifi`, `lte`.
    pub name: String,
    /// From the edge to the hub.
    pub up: DirectionSpec,
    /// From the hub to the edge.
    pub down: DirectionSpec,
    /// In the order of time.
    pub events: Vec<LinkEvent>,
    /// Bytes of the largest packet that its devices take; they answer larger ones. Not of the model.
    pub mtu: u32,
    /// Which addresses its devices have. Not of the model.
    pub family: Family,
}

impl Default for LinkSpec {
    fn default() -> Self {
        let way = DirectionSpec::default;
        Self {
            name: String::new(),
            up: way(),
            down: way(),
            events: Vec::new(),
            mtu: 1500,
            family: Family::default(),
        }
    }
}

/// Addresses that an uplink has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// IPv4 only, behind a NAT.
    #[default]
    Ipv4,
    /// IPv6 only, routed.
    Ipv6,
    /// Both.
    Both,
}

impl Family {
    /// Whether it has IPv4.
    #[must_use]
    pub fn has_ipv4(self) -> bool {
        self != Self::Ipv6
    }

    /// Whether it has IPv6.
    #[must_use]
    pub fn has_ipv6(self) -> bool {
        self != Self::Ipv4
    }
}

/// Something that happens to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkEvent {
    /// Nanoseconds since the scenario began.
    #[serde(deserialize_with = "units::de_duration")]
    pub at: u64,
    /// What.
    pub action: Action,
}

/// What can happen to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Everything disappears, both ways, without a sign.
    BlackHole,
    /// What the edge sends disappears.
    BlackHoleUp,
    /// What the edge should receive disappears.
    BlackHoleDown,
    /// What has more bytes than this disappears, both ways: an MTU black hole.
    Largest(u64),
    /// The end of a black hole of any kind.
    Restore,
    /// The edge's device goes down: the edge is told.
    Down,
    /// The edge's device comes up again.
    Up,
    /// The router forgets its mappings and shows another address and other ports from now on.
    Rebind,
    /// The edge's device loses its IPv4 address and gets another, as by a new lease.
    Readdress,
}

impl LinkSpec {
    /// Refuses what cannot be a link.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.up.validate()?;
        self.down.validate()?;
        match self.events.is_sorted_by_key(|event| event.at) {
            true => Ok(()),
            false => Err(SpecError::Order("events")),
        }
    }

    /// The two ways, up first; black holes and times without a device among the events are blackouts of theirs.
    ///
    /// # Panics
    /// When [`LinkSpec::validate`] refuses it.
    #[must_use]
    pub fn directions(&self, seed: u64) -> (Direction, Direction) {
        let way = |spec: &DirectionSpec, number: u64, closes: fn(Action) -> bool| {
            let mut spec = spec.clone();
            spec.blackouts.extend(self.silences(closes));
            spec.narrows.extend(self.narrows());
            Direction::new(&spec, derive(seed, number))
        };
        (
            way(&self.up, 1, |action| {
                matches!(action, Action::BlackHole | Action::BlackHoleUp)
            }),
            way(&self.down, 2, |action| {
                matches!(action, Action::BlackHole | Action::BlackHoleDown)
            }),
        )
    }

    /// When only small packets pass, by the events.
    fn narrows(&self) -> Vec<Narrow> {
        let mut narrows = Vec::new();
        let mut open: Option<(u64, u64)> = None;
        let end = [LinkEvent {
            at: u64::MAX,
            action: Action::Restore,
        }];
        for event in self.events.iter().chain(&end) {
            let next = match event.action {
                Action::Largest(largest) => Some((event.at, largest)),
                Action::Restore => None,
                _ => continue,
            };
            let closed = std::mem::replace(&mut open, next);
            narrows.extend(closed.map(|(from, largest)| Narrow {
                from,
                to: event.at,
                largest,
            }));
        }
        narrows.retain(|narrow| narrow.from < narrow.to);
        narrows
    }

    /// When nothing passes, by the events: black holes that `closes` names, and the device being down.
    fn silences(&self, closes: fn(Action) -> bool) -> Vec<Window> {
        let mut windows = Vec::new();
        let (mut hole, mut down) = (None, None);
        for event in &self.events {
            let close = |open: &mut Option<u64>| open.take().map(|from| Window { from, to: event.at });
            match event.action {
                Action::Down => _ = down.get_or_insert(event.at),
                Action::Up => windows.extend(close(&mut down)),
                Action::Restore => windows.extend(close(&mut hole)),
                action if closes(action) => _ = hole.get_or_insert(event.at),
                _ => {}
            }
        }
        windows.extend(hole.into_iter().chain(down).map(|from| Window { from, to: u64::MAX }));
        windows.retain(|window| window.from < window.to);
        windows
    }
}
