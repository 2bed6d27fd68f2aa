//! bonding.md §8 in virtual time: S1, S2, S4, S5, S7, and what happens in the long run. Each prints its figures.

use std::time::Duration;

use linkem::{DirectionSpec, Loss, Lte, Queue, Rate};
use tunnel::bond::{Config, Duplication, Faults};

use crate::echo::Echo;
use crate::inner::{Flood, MTU, Tcp};
use crate::world::{AROUND, Link, World};
use crate::{ms, percentile};

/// The three links of bonding.md §3.2: Mbit/s and one-way delay in ms.
const LINKS: [(u64, u64); 3] = [(50, 15), (30, 30), (20, 8)];
/// "Lossy".
const LOSSY: [f64; 3] = [0.05, 0.02, 0.08];
/// Inner bytes of each byte on the wire.
const GOOD: f64 = MTU as f64 / (MTU + 16 + AROUND) as f64;

pub(crate) fn way(mbits: u64, delay: u64, loss: Loss) -> DirectionSpec {
    DirectionSpec {
        rate: Rate::Fixed(mbits * 1_000_000),
        queue: Queue::Time(100 * linkem::MS),
        delay: delay * linkem::MS,
        loss,
        ..DirectionSpec::default()
    }
}

pub(crate) fn three(loss: impl Fn(usize) -> Loss, seed: u64) -> Vec<Link> {
    let each = LINKS.iter().enumerate();
    each.map(|(at, (rate, delay))| {
        let spec = way(*rate, *delay, loss(at));
        Link::new(&spec, &spec, seed * 10 + at as u64)
    })
    .collect()
}

pub(crate) fn configs(faults: Faults) -> [Config; 2] {
    [Config::edge(), Config::hub()].map(|config| Config { faults, ..config })
}

fn world(loss: impl Fn(usize) -> Loss, seed: u64) -> World {
    World::new(three(loss, seed), configs(Faults::default()))
}

/// What the links can carry of inner bytes, Mbit/s.
fn limit(loss: [f64; 3]) -> f64 {
    LINKS
        .iter()
        .zip(loss)
        .map(|((rate, _), loss)| *rate as f64 * (1.0 - loss))
        .sum::<f64>()
        * GOOD
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(1 + seconds)
}

/// Inner bytes of a TCP segment's payload.
const SEGMENT: f64 = (MTU - 40) as f64 / MTU as f64;

/// Prints and returns the share of the limit that an inner CUBIC gets on average over 30 s, and from 10 s on.
fn inner_cubic(world: &mut World, limit: f64) -> (f64, f64) {
    let mut tcp = Tcp::new(seconds(0));
    world.run(seconds(30), &mut tcp);
    let share = |from, to| tcp.rate(seconds(from), seconds(to)) / SEGMENT / limit;
    let (average, steady) = (share(0, 30), share(12, 30));
    let stats = world.ends[1].bond.stats();
    println!(
        "    inner CUBIC: {average:.3} over 30 s, {steady:.3} from 12 s on; repeated {}, dropped early {}, at the queue's end {}, skipped {}, late {}",
        tcp.repeated,
        world.ends[0].bond.stats().packets_dropped_early,
        world.ends[0].bond.stats().packets_overflowed,
        stats.skipped,
        stats.late
    );
    assert_eq!(world.violations, []);
    assert_eq!(stats.skipped, 0, "no loss is visible inside");
    (average, steady)
}

#[test]
fn s1_three_clean_links_are_one() {
    let limit = limit([0.0; 3]);
    let mut clean = world(|_| Loss::None, 1);
    let mut flood = Flood::new(17, 0);
    clean.run(seconds(10), &mut flood);
    let datagrams = flood.rate(seconds(0), seconds(10)) / limit;
    println!("S1: datagrams {datagrams:.3} of {limit:.1} Mbit/s");
    let (_, steady) = inner_cubic(&mut world(|_| Loss::None, 1), limit);
    assert!(datagrams >= 0.97, "{datagrams}");
    assert!(steady >= 0.92, "{steady}");
}

#[test]
fn s2_three_lossy_links_hide_their_losses() {
    let limit = limit(LOSSY);
    for bursts in [false, true] {
        let loss = |at: usize| match bursts {
            false => Loss::Iid(LOSSY[at]),
            true => Loss::in_bursts(LOSSY[at], 4.0),
        };
        let mut lossy = world(loss, 2);
        let mut flood = Flood::new(17, 0);
        lossy.run(seconds(10), &mut flood);
        let datagrams = flood.rate(seconds(0), seconds(10)) / limit;
        let sent = lossy.ends[0].bond.path_stats();
        let bytes: u64 = sent.iter().map(|path| path.sent_bytes).sum();
        let lost = sent.iter().map(|path| path.lost_packets).sum::<u64>() as f64
            / sent.iter().map(|path| path.sent_packets).sum::<u64>() as f64;
        let on_their_way = lossy.ends[0].bond.stats().kept_bytes;
        let wasted = 1.0 - (flood.arrivals.len() * (MTU + 16) + on_their_way) as f64 / bytes as f64;
        println!(
            "S2, loss in bursts {bursts}: datagrams {datagrams:.3} of {limit:.1} Mbit/s, wasted {wasted:.3} at {lost:.3} loss"
        );
        let (_, steady) = inner_cubic(&mut world(loss, 2), limit);
        assert!(datagrams >= 0.95, "{datagrams}");
        assert!(wasted <= lost + 0.03, "{wasted}");
        assert!(steady >= 0.88, "{steady}");
    }
}

#[test]
fn s4_the_silent_death_of_a_link_is_hardly_noticed() {
    let (mut unordered, mut ordered) = (Vec::new(), Vec::new());
    for (dead, seed) in [(0, 1), (1, 2), (2, 3), (0, 4), (1, 5), (2, 6)] {
        for (protocol, dscp, gaps) in [(17, 46, &mut unordered), (6, 0, &mut ordered)] {
            let mut three = world(|_| Loss::None, seed);
            let mut flood = Flood::new(protocol, dscp);
            three.run(seconds(3), &mut flood);
            three.silence(dead, true, true);
            three.run(seconds(7), &mut flood);
            three.silence(dead, false, false);
            three.run(seconds(10), &mut flood);
            let gap = flood.gap(seconds(2), seconds(10));
            gaps.push(gap.as_secs_f64() * 1000.0);
            let left: f64 = (0..3)
                .filter(|at| *at != dead)
                .map(|at| LINKS[at].0 as f64)
                .sum::<f64>()
                * GOOD;
            let during = flood.rate(seconds(4), seconds(7)) / left;
            let after = flood.rate(seconds(8), seconds(10)) / limit([0.0; 3]);
            let stats = three.ends[1].bond.stats();
            println!(
                "S4: link {dead} dead, ordered {}: gap {gap:.0?}, {during:.3} of what is left, {after:.3} from 1 s after return; skipped {}",
                protocol == 6,
                stats.skipped
            );
            assert_eq!((stats.skipped, three.ends[0].bond.stats().expired), (0, 0));
            assert_eq!(three.violations, []);
            assert!(during >= 0.95 && after >= 0.95, "{during} {after}");
        }
    }
    let (unordered, ordered) = (percentile(&mut unordered, 1.0), percentile(&mut ordered, 1.0));
    println!("S4: longest gap {unordered:.0} ms unordered, {ordered:.0} ms ordered");
    assert!(unordered <= 100.0, "{unordered}");
    assert!(ordered <= 300.0, "{ordered}");
}

#[test]
fn s4_a_tcp_inside_hardly_notices_the_death_of_a_link() {
    let mut gaps = Vec::new();
    for run in 0..6 {
        let dead = run % 3;
        let mut three = world(|_| Loss::None, 4);
        let mut tcp = Tcp::new(seconds(0));
        let left = LINKS.iter().enumerate().filter(|(at, _)| *at != dead);
        let left: f64 = left.map(|(_, link)| link.0 as f64).sum::<f64>() * GOOD * SEGMENT;
        for death in 0..6 {
            let [dies, returns, ends] = [5, 9, 13].map(|at| seconds(at + 8 * death) + ms(137 * run as u64));
            three.run(dies, &mut tcp);
            three.silence(dead, true, true);
            three.run(returns, &mut tcp);
            three.silence(dead, false, false);
            three.run(ends, &mut tcp);
            let gap = tcp.gap(dies, ends).as_secs_f64() * 1e3;
            let during = tcp.rate(dies + ms(1000), returns) / left;
            println!(
                "S4: link {dead} dead, inner CUBIC: gap {gap:.0} ms, {during:.3} of what is left; repeated {}, dropped early {}, at the queue's end {}",
                tcp.repeated,
                three.ends[0].bond.stats().packets_dropped_early,
                three.ends[0].bond.stats().packets_overflowed,
            );
            gaps.push(gap);
        }
    }
    let [p50, p95, most] = [0.5, 0.95, 1.0].map(|share| percentile(&mut gaps, share));
    println!("S4: inner CUBIC: gap p50 {p50:.0}, p95 {p95:.0}, longest {most:.0} ms");
    assert!(p95 <= 200.0 && most <= 300.0, "{p95} {most}");
}

#[test]
fn s4_one_way_loss_and_a_link_that_goes_down() {
    for (up, down) in [(true, false), (false, true)] {
        let mut three = world(|_| Loss::None, 8);
        let mut flood = Flood::new(6, 0);
        three.run(seconds(3), &mut flood);
        three.silence(0, up, down);
        three.run(seconds(6), &mut flood);
        three.silence(0, false, false);
        three.run(seconds(9), &mut flood);
        let gap = flood.gap(seconds(2), seconds(9));
        println!("S4: silent up {up}, down {down}: gap {gap:.0?}");
        assert_eq!(three.ends[1].bond.stats().skipped, 0);
        assert!(gap <= ms(300), "{gap:?}");
    }
    let mut three = world(|_| Loss::None, 9);
    let mut flood = Flood::new(6, 0);
    three.run(seconds(3), &mut flood);
    three.silence(0, true, true);
    three.disconnect(0);
    three.run(seconds(6), &mut flood);
    three.silence(0, false, false);
    three.connect(0);
    three.run(seconds(9), &mut flood);
    let gap = flood.gap(seconds(2), seconds(9));
    let after = flood.rate(seconds(7), seconds(9)) / limit([0.0; 3]);
    println!("S4: link 0 goes down: gap {gap:.0?}, {after:.3} from 1 s after it is up");
    assert_eq!(three.ends[1].bond.stats().skipped, 0);
    assert!(gap <= ms(100) && after >= 0.95, "{gap:?} {after}");
}

fn echo(loss: [f64; 3], bulk: bool, duplication: Duplication, seed: u64) -> (Echo, f64) {
    let configs = configs(Faults::default()).map(|config| Config { duplication, ..config });
    let mut world = World::new(three(|at| Loss::Iid(loss[at]), seed), configs);
    let mut echo = Echo::new(bulk);
    world.run(seconds(40), &mut echo);
    assert_eq!(world.violations, []);
    assert_eq!(world.ends[0].bond.stats().overrun, 0);
    let stats = world.ends[0].bond.stats();
    (echo, stats.message_copies as f64 / stats.messages_sent as f64)
}

#[test]
fn s5_a_control_message_is_as_fast_as_physics_allows() {
    let cases = [
        ("5/2/8 %", LOSSY, false, Duplication::Full, 28.0),
        ("5/2/8 % beside bulk", LOSSY, true, Duplication::Full, 40.0),
        ("20/10/20 %", [0.2, 0.1, 0.2], false, Duplication::Full, 33.0),
        ("5/2/8 %, as asked", LOSSY, false, Duplication::AsAsked, 90.0),
        ("no loss, adaptive", [0.0; 3], false, Duplication::Adaptive, 35.0),
    ];
    for (name, loss, bulk, duplication, limit) in cases {
        let (mut echo, copies) = echo(loss, bulk, duplication, 3);
        let count = echo.times.len();
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| percentile(&mut echo.times, share));
        let spec = percentile(&mut echo.specs, 0.99);
        println!(
            "S5 {name}: RTT p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1} ms of {count}, {copies:.2} copies; 64 KiB spec p99 {spec:.0} ms of {}",
            echo.specs.len()
        );
        assert!(p99 <= limit, "{p99}");
        assert!(count > 1900 && echo.specs.len() >= 38);
        if duplication == Duplication::Adaptive {
            assert!(copies <= 1.3, "{copies}");
        }
    }
}

/// Synthetic LTE of that number, uplinks of 6, 4 and 3 Mbit/s and twice as much down, of which 1, 5 and 5 % are lost.
fn lte(trace: u64) -> Vec<Link> {
    let each = [(6_u64, 0.01), (4, 0.05), (3, 0.05)].into_iter().enumerate();
    each.map(|(at, (mbits, loss))| {
        let way = |factor: u64, number: u64| DirectionSpec {
            rate: Rate::Lte(Lte {
                seed: trace * 100 + at as u64 * 10 + number,
                mean: mbits * factor * 1_000_000,
                ..Lte::default()
            }),
            queue: Queue::Time(300 * linkem::MS),
            ..way(1, LINKS[at].1, Loss::Iid(loss))
        };
        Link::new(&way(1, 0), &way(2, 1), trace * 10 + at as u64)
    })
    .collect()
}

#[test]
fn s5_over_lte_the_links_own_pauses_are_most_of_it() {
    for (with_specs, limit) in [(false, 38.0), (true, 42.0)] {
        for trace in 1..=3 {
            let mut world = World::new(lte(trace), configs(Faults::default()));
            let mut echo = Echo::new(false);
            echo.with_specs = with_specs;
            world.run(seconds(60), &mut echo);
            let count = echo.times.len();
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| percentile(&mut echo.times, share));
            println!(
                "S5 LTE {trace}, specs {with_specs}: RTT p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1} ms of {count}"
            );
            assert!(p99 <= limit && count > 2900, "{p99} of {count}");
        }
    }
}

#[test]
fn s7_the_first_message_after_an_outage_of_all_links_comes_at_once() {
    for (outage, back) in [(10, 0), (10, 2), (60, 1), (120, 1), (600, 0)] {
        let mut three = world(|_| Loss::None, 5);
        let mut echo = Echo::new(false);
        three.run(seconds(5), &mut echo);
        (0..3).for_each(|path| three.silence(path, true, true));
        three.run(seconds(5 + outage), &mut echo);
        three.silence(back, false, false);
        let returned = three.now;
        three.run(seconds(5 + outage + 5), &mut echo);
        let first = echo
            .arrivals
            .iter()
            .find(|at| **at > returned)
            .expect("something arrives");
        let took = *first - returned;
        let allowed = ms(2 * 2 * LINKS[back].1 + 200);
        println!("S7: all dead for {outage} s, link {back} returns: first message after {took:.0?} of {allowed:.0?}");
        assert!(took <= allowed, "{took:?}");
        assert_eq!(three.violations, []);
    }
}

#[test]
fn a_path_whose_handshake_was_slow_is_asked_again() {
    // 8 Mbit/s, which the first path carries alone.
    let mut flood = Flood::new(17, 0).paced(Duration::from_micros(1400));
    let mut links = three(|_| Loss::None, 1);
    links.truncate(2);
    links.reverse();
    links[1].rtt = ms(460);
    let mut two = World::new(links, configs(Faults::default()));
    let rtts = |world: &World| {
        world.ends[0]
            .bond
            .path_stats()
            .into_iter()
            .map(|path| path.rtt)
            .collect::<Vec<_>>()
    };
    two.run(Duration::from_secs(1) + ms(200), &mut flood);
    let rtt = rtts(&two);
    assert!(rtt[1] < ms(60), "it was left alone with {rtt:?}");
    two.run(seconds(5), &mut flood);
    assert_eq!(two.violations, []);
    assert!(flood.rate(seconds(1), seconds(5)) > 7.8);
}

#[test]
fn a_thin_flow_takes_the_fastest_path() {
    for every in [300, 20] {
        let mut flood = Flood::new(6, 0).paced(ms(every));
        let mut three = world(|_| Loss::None, 1);
        three.run(seconds(20), &mut flood);
        let mut delays = flood.delays(seconds(1), seconds(20));
        let [median, most] = [0.5, 1.0].map(|q| percentile(&mut delays, q));
        println!("a packet in order each {every} ms takes {median:.1} ms, {most:.1} at most");
        // One way and its packet's time on the link; 15 and 30 ms over the others.
        assert!(most < 10.0, "each {every} ms: {most}");
        assert_eq!(three.violations, []);
    }
}

#[test]
fn a_busy_flow_is_even_and_a_thin_one_is_not_held_back() {
    let mut flood = Flood::new(6, 0).paced(ms(20));
    let mut three = world(|at| Loss::Iid(LOSSY[at]), 3);
    let median = |flood: &Flood, from, to| percentile(&mut flood.delays(from, to), 0.5);
    three.run(seconds(5), &mut flood);
    let thin = median(&flood, seconds(0), seconds(5));
    // 60 Mbit/s, in which nearly all wait for repairs.
    flood.every = Duration::from_micros(184);
    three.run(seconds(20), &mut flood);
    let busy = median(&flood, seconds(14), seconds(20));
    // As BBR looks for the least round trip: four packets at a time for a fifth of a second.
    flood.every = ms(10);
    three.run(seconds(20) + ms(300), &mut flood);
    let probed = flood.delays(seconds(20) + ms(100), seconds(20) + ms(300));
    let least = probed.iter().copied().fold(f64::MAX, f64::min);
    three.run(seconds(45), &mut flood);
    let after = median(&flood, seconds(40), seconds(45));
    println!(
        "in order, ms: thin {thin:.1}, busy {busy:.1}, least of some packets amid it {least:.1}, thin again {after:.1}"
    );
    assert!(
        thin < 20.0 && after < 20.0,
        "nothing is added to a flow that waits for nothing"
    );
    assert!(least > busy / 2.0, "a window of two such round trips is enough");
    assert_eq!(three.violations, []);
    assert_eq!(three.ends[1].bond.stats().skipped, 0);
}
