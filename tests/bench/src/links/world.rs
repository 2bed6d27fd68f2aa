//! The links of bonding.md §3.2 and what they can carry. Pure.

use linkem::run::{EdgeSpec, Scenario};
use linkem::{DirectionSpec, LinkSpec, Loss, Lte, MS, Queue, Rate, SECOND};

use super::inner;
use super::packet::{AROUND, MTU};

/// Device, bits a second, one-way delay in ms.
pub(crate) const LINKS: [(&str, u64, u64); 3] =
    [("g5", 50_000_000, 15), ("lte", 30_000_000, 30), ("wifi", 20_000_000, 8)];
/// The shortest round trip, ms.
pub(crate) const BEST_RTT: f64 = 16.0;
/// Mean rates of LTE's uplinks; its downlinks have twice as much.
const LTE_MEANS: [u64; 3] = [6_000_000, 4_000_000, 3_000_000];

/// What the air does to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Air {
    Clean,
    /// 5, 2 and 8 % are lost.
    Lossy,
    /// The same, four at a time on average.
    Bursts,
    /// 20, 10 and 20 % are lost.
    Heavy,
    /// Synthetic LTE of that number; 1, 5 and 5 % are lost where `lossy`.
    Lte {
        trace: u64,
        lossy: bool,
    },
    /// One link alone, 20 Mbit/s with 40 ms round trip, which somebody else uses too.
    Shared {
        queue: Queueing,
    },
}

/// What a router before a link keeps, in products of the link's rate and round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queueing {
    Half,
    One,
    Four,
}

/// The link of [`Air::Shared`].
const SHARED: (&str, u64, u64) = (LINKS[0].0, 20_000_000, 20);

impl Air {
    /// The edge's uplinks.
    pub(crate) fn links(self) -> &'static [(&'static str, u64, u64)] {
        match self {
            Self::Shared { .. } => &[SHARED],
            _ => &LINKS,
        }
    }

    /// What the queue before each link holds, ns.
    fn queue(self) -> u64 {
        let round_trip = 2 * SHARED.2 * MS;
        match self {
            Self::Shared { queue: Queueing::Half } => round_trip / 2,
            Self::Shared { queue: Queueing::One } => round_trip,
            Self::Shared { queue: Queueing::Four } => 4 * round_trip,
            _ => 100 * MS,
        }
    }

    pub(crate) fn losses(self) -> [f64; 3] {
        match self {
            Self::Clean | Self::Lte { lossy: false, .. } | Self::Shared { .. } => [0.0; 3],
            Self::Lossy | Self::Bursts => [0.05, 0.02, 0.08],
            Self::Heavy => [0.2, 0.1, 0.2],
            Self::Lte { lossy: true, .. } => [0.01, 0.05, 0.05],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clean => "no loss",
            Self::Lossy => "5/2/8 % loss",
            Self::Bursts => "5/2/8 % loss in bursts",
            Self::Heavy => "20/10/20 % loss",
            Self::Lte { lossy: false, .. } => "LTE",
            Self::Lte { lossy: true, .. } => "LTE, 1/5/5 % loss",
            Self::Shared { queue: Queueing::Half } => "one link, buffer 0.5 BDP",
            Self::Shared { queue: Queueing::One } => "one link, buffer 1 BDP",
            Self::Shared { queue: Queueing::Four } => "one link, buffer 4 BDP",
        }
    }
}

/// Which way the load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// The edge's uplinks: three, but for [`Air::Shared`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct World {
    pub(crate) air: Air,
    pub(crate) seed: u64,
    /// Of the rates.
    pub(crate) scale: f64,
}

impl World {
    pub(crate) fn new(air: Air, seed: u64) -> Self {
        Self { air, seed, scale: 1.0 }
    }

    fn rate(self, link: usize, way: Way) -> Rate {
        let scaled = |bits: u64| (bits as f64 * self.scale) as u64;
        let Air::Lte { trace, .. } = self.air else {
            return Rate::Fixed(scaled(self.air.links()[link].1));
        };
        let (factor, number) = match way {
            Way::Up => (1, 0),
            Way::Down => (2, 1),
        };
        Rate::Lte(Lte {
            seed: trace * 100 + link as u64 * 10 + number,
            mean: scaled(LTE_MEANS[link] * factor),
            ..Lte::default()
        })
    }

    fn direction(self, link: usize, way: Way) -> DirectionSpec {
        let loss = self.air.losses()[link];
        DirectionSpec {
            rate: self.rate(link, way),
            queue: Queue::Time(self.air.queue()),
            delay: self.air.links()[link].2 * MS,
            loss: match self.air {
                _ if loss == 0.0 => Loss::None,
                Air::Bursts => Loss::in_bursts(loss, 4.0),
                _ => Loss::Iid(loss),
            },
            ..DirectionSpec::default()
        }
    }

    /// For linkem; the edge's owner gave each uplink its rule.
    pub(crate) fn scenario(self) -> Scenario {
        let links = self.air.links().iter().enumerate().map(|(at, (name, ..))| LinkSpec {
            name: (*name).to_owned(),
            up: self.direction(at, Way::Up),
            down: self.direction(at, Way::Down),
            ..LinkSpec::default()
        });
        Scenario {
            name: self.air.name().to_owned(),
            seed: self.seed,
            edge: EdgeSpec {
                source_rules: true,
                ..EdgeSpec::default()
            },
            links: links.collect(),
            ..Scenario::default()
        }
    }

    /// What one link lets through, Mbit/s of IP packets, on average between two moments, in nanoseconds since the scenario began.
    pub(crate) fn link_limit(self, link: usize, way: Way, (from, to): (u64, u64)) -> f64 {
        let rate = match self.rate(link, way) {
            Rate::Lte(lte) => {
                let bits = lte.trace().capacity(from, to) as f64 * 8.0;
                bits / ((to - from) as f64 / SECOND as f64)
            }
            Rate::Fixed(rate) => rate as f64,
            _ => 0.0,
        };
        rate * (1.0 - self.air.losses()[link]) / 1e6
    }

    /// The same of all.
    pub(crate) fn limit(self, way: Way, window: (u64, u64)) -> f64 {
        let links = 0..self.air.links().len();
        links.map(|link| self.link_limit(link, way, window)).sum()
    }
}

/// What is a payload of each byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// A QUIC datagram's: inner IP packets, our own header beside them.
    Datagram,
    /// TCP's with timestamps, or with MPTCP's mapping.
    Tcp { multipath: bool },
    /// TCP's inside of inner IP packets.
    Inner,
}

impl Payload {
    pub(crate) fn share(self) -> f64 {
        match self {
            Self::Datagram => MTU as f64 / (MTU + AROUND) as f64,
            Self::Tcp { multipath: false } => 1448.0 / 1500.0,
            Self::Tcp { multipath: true } => 1428.0 / 1500.0,
            Self::Inner => (inner::MTU - 52) as f64 / (inner::MTU + AROUND) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_the_reference() {
        let limit = |air| World::new(air, 1).limit(Way::Up, (0, SECOND)) * Payload::Datagram.share();
        assert!((limit(Air::Clean) - 95.4).abs() < 0.1, "{}", limit(Air::Clean));
        assert!((limit(Air::Lossy) - 91.0).abs() < 0.2, "{}", limit(Air::Lossy));
        let half = World {
            scale: 0.5,
            ..World::new(Air::Clean, 1)
        };
        assert_eq!(half.limit(Way::Down, (0, SECOND)), 50.0);
    }

    #[test]
    fn lte_carries_its_mean_and_another_trace_is_another() {
        let world = |trace| World::new(Air::Lte { trace, lossy: false }, 1);
        let whole = (0, 120 * SECOND);
        assert!((world(1).limit(Way::Up, whole) - 13.0).abs() < 0.2);
        assert!((world(1).limit(Way::Down, whole) - 26.0).abs() < 0.4);
        assert_ne!(world(1).scenario().links, world(2).scenario().links);
    }

    #[test]
    fn every_scenario_is_one() {
        for air in [
            Air::Clean,
            Air::Lossy,
            Air::Bursts,
            Air::Heavy,
            Air::Lte { trace: 1, lossy: true },
            Air::Shared { queue: Queueing::Half },
        ] {
            World::new(air, 1).scenario().validate().unwrap();
        }
    }
}
