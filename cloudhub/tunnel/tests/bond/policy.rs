//! What a path may carry and costs: seen in what leaves over each link, packet by packet.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use linkem::{DirectionSpec, Rate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tunnel::Priority;
use tunnel::bond::{Bond, Carries, Duplication, Event, Faults, PathState, Policy, Read, StreamId};

use crate::ms;
use crate::properties::run_under;
use crate::scenarios::configs;
use crate::world::{AROUND, Link, Owner, World};

/// The priorities in a packet of the bond with their bytes, as `bond::frame` documents them. A packet of the tunnel is known by its DSCP;
/// its second half has none and is not counted.
pub(crate) fn carried(packet: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 5;
    let u16_at = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let varint = |at: &mut usize| {
        let length = 1 << (packet[*at] >> 6);
        *at += length;
    };
    while at < packet.len() {
        let kind = packet[at];
        at += 1;
        match kind {
            0x00..0x10 => {
                let inner = &packet[at + 10..];
                if (kind >> 2) & 2 == 0 || (kind >> 2) & 3 == 3 {
                    let dscp = inner[1] >> 2;
                    let priority = match dscp {
                        46 => Priority::Interactive,
                        8 => Priority::Bulk,
                        _ => Priority::Normal,
                    };
                    found.push((priority.index(), inner.len()));
                }
                return found;
            }
            0x10..0x14 => {
                let length = u16_at(at + 8);
                found.push((usize::from(kind & 3), length.max(1)));
                at += 10 + length;
            }
            0x20..0x28 => {
                varint(&mut at);
                varint(&mut at);
                let length = u16_at(at);
                found.push((usize::from((kind >> 1) & 3), length.max(1)));
                at += 2 + length;
            }
            0x30 => {
                let blocks = packet[at];
                at += 1;
                for _ in 0..blocks {
                    let further = packet[at + 7];
                    at += 8;
                    (0..1 + 2 * further).for_each(|_| varint(&mut at));
                }
            }
            0x31 => {}
            0x32 => (0..2).for_each(|_| varint(&mut at)),
            _ => {
                varint(&mut at);
                at += 4;
            }
        }
    }
    found
}

/// What left over a link that should not have.
pub(crate) fn broken(world: &World) -> Vec<String> {
    let mut violations = Vec::new();
    for ((end, path, alone), (bytes, _)) in world.watched.iter().flatten() {
        let policy = &world.links[*path].policy;
        let allowed = if policy.metered && *alone {
            policy.when_alone
        } else {
            policy.allow
        };
        for priority in Priority::ALL {
            let bytes = bytes[priority.index()];
            if bytes > 0 && !allowed.has(priority) {
                violations.push(format!(
                    "end {end} sent {bytes} bytes of {priority:?} over link {path}, alone: {alone}, allowed: {allowed:?}"
                ));
            }
        }
    }
    violations
}

fn metered(allow: Priority, when_alone: Priority) -> Policy {
    Policy {
        allow: Carries::from(allow),
        when_alone: Carries::from(when_alone),
        ..Policy::metered()
    }
}

/// One link that is free, and others of any kind.
fn some_policies(seed: u64) -> Vec<Policy> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut any = || Priority::ALL[rng.random_range(0..4)];
    let mut policies = vec![metered(any(), any()), Policy::default()];
    if any() > Priority::Interactive {
        policies.push(metered(any(), any()));
    }
    for policy in &mut policies {
        policy.priority = rng.random_range(-1..2);
        policy.rate = NonZeroU64::new(200_000).filter(|_| rng.random_bool(0.2));
    }
    policies
}

#[test]
fn a_path_never_carries_what_it_may_not_and_everything_arrives_whatever_the_links_do() {
    for seed in 0..300 {
        let policies = some_policies(seed);
        let violations = run_under(seed, Faults::default(), &policies);
        assert!(violations.is_empty(), "seed {seed}, {policies:?}: {violations:?}");
    }
}

#[test]
fn a_policy_that_is_ignored_is_seen() {
    let faults = Faults {
        policy_ignored: true,
        ..Faults::default()
    };
    let seen = (0..20).find_map(|seed| run_under(seed, faults, &some_policies(seed)).first().cloned());
    assert!(seen.is_some_and(|seen| seen.contains("over link")));
}

/// Sends messages of every priority and a stream of each but the urgent from the edge; knows what came.
#[derive(Default)]
struct Load {
    sent: [u32; 4],
    came: [u32; 4],
    /// Messages of each priority that are still to be sent, one each `pause`.
    left: [u32; 4],
    pause: Duration,
    next: Duration,
    streams: BTreeMap<StreamId, Priority>,
    read: [usize; 4],
    /// Bytes of each priority's stream that are still to be written.
    bytes: [usize; 4],
}

impl Load {
    fn messages(left: [u32; 4], pause: Duration) -> Self {
        Self {
            left,
            pause,
            ..Self::default()
        }
    }

    fn write(&mut self, now: Duration, edge: &mut Bond) {
        for priority in Priority::ALL {
            let left = &mut self.bytes[priority.index()];
            if *left == 0 {
                continue;
            }
            let known = self.streams.iter().find(|(_, of)| **of == priority).map(|(id, _)| *id);
            let Some(id) = known.or_else(|| edge.open_stream(priority)) else {
                continue;
            };
            self.streams.insert(id, priority);
            let chunk = vec![7; (*left).min(64 * 1024)];
            *left -= edge.write(now, id, &chunk).expect("it is open");
        }
    }
}

impl Owner for Load {
    fn act(&mut self, now: Duration, [edge, _]: [&mut Bond; 2]) -> Option<Duration> {
        self.write(now, edge);
        if now < self.next {
            return Some(self.next);
        }
        self.next = now + self.pause.max(ms(1));
        for priority in Priority::ALL {
            let lane = priority.index();
            let message = Bytes::from(vec![lane as u8; 200]);
            if self.left[lane] > 0 && edge.send_message(now, priority, 1, message).is_ok() {
                self.left[lane] -= 1;
                self.sent[lane] += 1;
            }
        }
        Some(self.next)
    }

    fn event(&mut self, _: Duration, end: usize, bond: &mut Bond, event: Event) {
        match event {
            Event::Message { priority, .. } if end == 1 => self.came[priority.index()] += 1,
            Event::StreamOpened { id, priority } => {
                self.streams.insert(id, priority);
            }
            Event::StreamReadable(id) => {
                while let Read::Bytes(bytes) = bond.read(id, 64 * 1024) {
                    self.read[self.streams[&id].index()] += bytes.len();
                }
            }
            _ => {}
        }
    }
}

/// Two links of 10 Mbit/s: wifi, and lte with a policy.
fn wifi_and(lte: Policy) -> World {
    let spec = |millis: u64| DirectionSpec {
        rate: Rate::Fixed(10_000_000),
        delay: millis * linkem::MS,
        ..DirectionSpec::default()
    };
    let mut links = vec![Link::new(&spec(10), &spec(10), 1), Link::new(&spec(15), &spec(15), 2)];
    links[1].policy = lte;
    let mut world = World::new(links, configs(Faults::default()));
    world.watched = Some(BTreeMap::new());
    world
}

const WIFI: usize = 0;
const LTE: usize = 1;

/// Bytes of a priority that the edge sent over a link.
fn sent_over(world: &World, link: usize, priority: Priority) -> u64 {
    let watched = world.watched.iter().flatten();
    let own = watched.filter(|((end, path, _), _)| (*end, *path) == (0, link));
    own.map(|(_, (bytes, _))| bytes[priority.index()]).sum()
}

#[test]
fn what_is_not_allowed_waits_while_the_metered_path_is_alone_and_comes_after() {
    let mut world = wifi_and(Policy::metered());
    let mut load = Load::messages([20; 4], ms(5));
    load.bytes = [0, 50_000, 50_000, 50_000];
    world.silence(WIFI, true, true);
    // Until the bond has noticed, some of it leaves over wifi and is lost.
    world.run(world.now + ms(3000), &mut load);
    assert_eq!(load.came, [20, 0, 0, 0], "control alone comes");
    assert_eq!(load.read, [0; 4]);
    world.silence(WIFI, false, false);
    world.run(world.now + ms(3000), &mut load);
    assert_eq!((load.came, load.read), ([20; 4], [0, 50_000, 50_000, 50_000]));
    assert!(broken(&world).is_empty(), "{:?}", broken(&world));
}

#[test]
fn a_metered_path_that_may_carry_all_when_alone_carries_all() {
    let mut world = wifi_and(metered(Priority::Urgent, Priority::Bulk));
    let mut load = Load::messages([20; 4], ms(5));
    load.bytes = [0, 50_000, 50_000, 50_000];
    world.silence(WIFI, true, true);
    world.run(world.now + ms(3000), &mut load);
    assert_eq!((load.came, load.read), ([20; 4], [0, 50_000, 50_000, 50_000]));
}

#[test]
fn urgent_messages_go_on_however_long_others_wait() {
    let mut world = wifi_and(Policy::metered());
    // Interactive ones begin over wifi, which is silent from the start.
    let mut load = Load::messages([5000, 128, 0, 0], ms(2));
    world.silence(WIFI, true, true);
    world.run(world.now + Duration::from_secs(15), &mut load);
    assert_eq!(load.came[0], 5000, "{:?} sent", load.sent);
    world.silence(WIFI, false, false);
    world.run(world.now + Duration::from_secs(3), &mut load);
    assert_eq!(load.came[1], 128);
}

#[test]
fn bulk_over_another_path_costs_a_metered_one_next_to_nothing() {
    let mut world = wifi_and(Policy::metered());
    let mut load = Load::messages([0; 4], ms(100));
    load.bytes[3] = 10_000_000;
    world.run(world.now + Duration::from_secs(12), &mut load);
    assert_eq!(load.read[3], 10_000_000);
    let paths = world.ends.iter().map(|end| end.bond.path_stats()[LTE]);
    let packets: u64 = paths.map(|lte| lte.sent_packets).sum();
    // Each would be acknowledged over two paths else: some 1200.
    assert!(packets < 100, "{packets} packets over lte");
}

#[test]
fn a_path_of_lower_priority_helps_only_where_the_others_are_backlogged() {
    let second = Policy {
        priority: -1,
        ..Policy::default()
    };
    let mut world = wifi_and(second);
    // 0.8 Mbit/s of single messages: wifi takes ten times as much.
    let mut load = Load::messages([0, 0, 0, 1000], ms(2));
    world.run(world.now + ms(3000), &mut load);
    assert_eq!(load.came[3], 1000);
    // Some are repeated before their answer could come.
    let over_lte = sent_over(&world, LTE, Priority::Bulk);
    assert!(over_lte < 200_000 / 50, "{over_lte} of 200,000 bytes");
    load.bytes[3] = 4_000_000;
    world.run(world.now + ms(3000), &mut load);
    let (wifi, lte) = [WIFI, LTE].map(|link| sent_over(&world, link, Priority::Bulk)).into();
    assert!(lte > 1_000_000 && wifi > lte, "{wifi} and {lte}");
    // And where they are dead.
    world.silence(WIFI, true, true);
    let before = load.read[3];
    load.bytes[3] = 500_000;
    world.run(world.now + ms(2000), &mut load);
    assert!(load.read[3] >= before + 500_000, "{} read", load.read[3] - before);
}

#[test]
fn a_rate_is_kept_and_does_not_hold_urgent_messages() {
    let rate = 50_000;
    let slow = Policy {
        rate: NonZeroU64::new(rate),
        ..metered(Priority::Bulk, Priority::Bulk)
    };
    let mut world = wifi_and(slow);
    world.disconnect(WIFI);
    let mut load = Load::messages([90, 0, 0, 0], ms(100));
    load.bytes[3] = 10_000_000;
    let before = world.ends[0].bond.path_stats()[0];
    world.run(world.now + Duration::from_secs(10), &mut load);
    let after = world.ends[0].bond.path_stats()[0];
    let packets = after.sent_packets - before.sent_packets;
    let sent = after.sent_bytes - before.sent_bytes + packets * AROUND as u64;
    assert!((470_000..530_000).contains(&sent), "{sent} bytes in 10 s");
    assert_eq!((after.state, after.suspicions), (PathState::Live, 0));
    assert!(load.came[0] >= 88, "{} urgent ones", load.came[0]);
}

#[test]
fn a_spent_budget_leaves_urgent_messages_alone() {
    let lte = metered(Priority::Bulk, Priority::Bulk);
    let mut world = wifi_and(lte);
    world.disconnect(WIFI);
    let mut load = Load::messages([200; 4], ms(10));
    world.run(world.now + ms(500), &mut load);
    world.set_policy(LTE, lte.spent());
    world.run(world.now + ms(100), &mut load);
    let came = load.came;
    world.run(world.now + ms(1500), &mut load);
    assert!(
        load.came[0] > came[0] + 50 && came[1..] == load.came[1..],
        "{came:?}, then {:?}",
        load.came
    );
    world.set_policy(LTE, lte);
    world.run(world.now + ms(3000), &mut load);
    assert_eq!(load.came, [200; 4]);
}

#[test]
fn a_copy_of_what_is_not_allowed_does_not_go_over_a_metered_path() {
    let mut world = wifi_and(metered(Priority::Urgent, Priority::Bulk));
    let mut load = Load::messages([10, 10, 0, 0], ms(10));
    world.run(world.now + ms(1000), &mut load);
    assert_eq!(load.came, [10, 10, 0, 0]);
    assert!(
        sent_over(&world, LTE, Priority::Urgent) >= 2000,
        "urgent ones go over both"
    );
    assert_eq!(sent_over(&world, LTE, Priority::Interactive), 0);
    assert_eq!(configs(Faults::default())[0].duplication, Duplication::Full);
}
