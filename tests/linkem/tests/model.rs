//! The model against arithmetic: rate, order, loss, bursts, queue, and that a fate depends on nothing but the seed and the number.

use linkem::{
    Burst, Cause, Counters, DelayStep, Direction, DirectionSpec, Fate, Jitter, LinkSpec, Loss, Lte, MS, Queue, Rate,
    RateStep, SECOND, Trace, Window, Wire,
};
use proptest::prelude::*;

/// Offers `count` packets of `bytes`, one every `gap` ns, and says when each arrives.
fn arrivals(direction: &mut Direction, count: u64, gap: u64, bytes: usize) -> Vec<Option<u64>> {
    (0..count)
        .map(|k| match direction.offer(k * gap, bytes) {
            Fate::Deliver { at, .. } => Some(at),
            Fate::Drop(_) => None,
        })
        .collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND as f64
}

/// Three deviations of the number of successes among `n` of probability `p`, and a packet.
fn three_sigma(n: u64, p: f64) -> f64 {
    3.0 * (n as f64 * p * (1.0 - p)).sqrt() + 1.0
}

fn fixed(rate: u64) -> DirectionSpec {
    DirectionSpec {
        rate: Rate::Fixed(rate),
        ..DirectionSpec::default()
    }
}

#[test]
fn a_perfect_link_delivers_everything_at_once() {
    let mut direction = Direction::new(&DirectionSpec::default(), 1);
    assert_eq!(
        arrivals(&mut direction, 100, 7, 1500),
        (0..100).map(|k| Some(k * 7)).collect::<Vec<_>>()
    );
    let expected = Counters {
        offered: 100,
        offered_bytes: 150_000,
        delivered: 100,
        delivered_bytes: 150_000,
        ..Counters::default()
    };
    assert_eq!(*direction.stats(), expected);
}

#[test]
fn a_packet_takes_its_time_on_the_wire_and_the_delay() {
    let mut direction = Direction::new(
        &DirectionSpec {
            delay: 15 * MS,
            ..fixed(50_000_000)
        },
        1,
    );
    let expected = Fate::Deliver {
        at: 15 * MS + 240_000,
        duplicate: None,
        corrupt: false,
    };
    assert_eq!(direction.offer(0, 1500), expected);
    assert_eq!(
        direction.offer(SECOND, 0),
        Fate::Deliver {
            at: SECOND + 15 * MS,
            duplicate: None,
            corrupt: false
        }
    );
}

#[test]
fn a_queue_in_milliseconds_delays_by_as_much_and_no_more() {
    let spec = DirectionSpec {
        queue: Queue::Time(100 * MS),
        ..fixed(20_000_000)
    };
    let mut direction = Direction::new(&spec, 1);
    let late = arrivals(&mut direction, 20_000, 100_000, 1500);
    let worst = late
        .iter()
        .enumerate()
        .filter_map(|(k, at)| Some(at.as_ref()? - k as u64 * 100_000))
        .max();
    assert!((99 * MS..=100 * MS).contains(&worst.unwrap()), "{worst:?}");
    assert_eq!(direction.stats().queue_most, direction.limit() / 1500 * 1500);
}

#[test]
fn a_blackout_swallows_what_leaves_during_it_and_nothing_else() {
    let spec = DirectionSpec {
        blackouts: vec![Window {
            from: 2 * SECOND,
            to: 6 * SECOND,
        }],
        delay: 15 * MS,
        ..fixed(12_000_000)
    };
    let mut direction = Direction::new(&spec, 1);
    for k in 0..1000 {
        let now = k * 10 * MS;
        let gone = (2 * SECOND..6 * SECOND).contains(&(now + MS));
        assert_eq!(
            direction.offer(now, 1500) == Fate::Drop(Cause::Blackout),
            gone,
            "at {now}"
        );
    }
}

#[test]
fn silence_takes_what_waits_and_spares_what_is_on_the_air() {
    let spec = DirectionSpec {
        delay: 50 * MS,
        ..fixed(12_000_000)
    };
    let mut wire = Wire::new(Direction::new(&spec, 1), 1000);
    for packet in 0..100 {
        assert_eq!(wire.send(0, 1500, packet), None);
    }
    wire.direction().silence(30 * MS + 1, true);
    wire.direction().silence(70 * MS + 1, false);
    let mut got = Vec::new();
    while let Some(due) = wire.next_due() {
        got.extend(wire.poll(due).map(|arrival| arrival.packet));
    }
    assert_eq!(got, (0..30).chain(70..100).collect::<Vec<_>>());
    assert_eq!((wire.stats().delivered, wire.stats().dropped_blackout), (60, 40));
}

#[test]
fn what_happens_to_a_link_happens_to_the_ways_it_names() {
    let link: LinkSpec = serde_json::from_str(
        r#"{"name": "lte", "events": [{"at": "1s", "action": "blackHoleUp"}, {"at": "2s", "action": "restore"},
            {"at": "3s", "action": "blackHole"}, {"at": "4s", "action": "restore"}, {"at": "5s", "action": "down"}]}"#,
    )
    .unwrap();
    link.validate().unwrap();
    let (up, down) = link.directions(1);
    let silent = |way: &Direction| (0..7).map(|s| way.is_silent_at(s * SECOND)).collect::<Vec<_>>();
    assert_eq!(silent(&up), [false, true, false, true, false, true, true]);
    assert_eq!(silent(&down), [false, false, false, true, false, true, true]);
}

#[test]
fn an_mtu_black_hole_among_the_events_takes_large_packets_both_ways_while_it_lasts() {
    let link: LinkSpec = serde_json::from_str(
        r#"{"name": "lte", "events": [{"at": "1s", "action": {"largest": 1280}}, {"at": "3s", "action": {"largest": 1000}},
            {"at": "4s", "action": "restore"}]}"#,
    )
    .unwrap();
    let (up, down) = link.directions(1);
    for mut way in [up, down] {
        let mut dropped = |second: u64, bytes| way.offer(second * SECOND, bytes) == Fate::Drop(Cause::Size);
        let took = [(0, 1281), (1, 1280), (2, 1281), (3, 1001), (4, 1281)].map(|(at, bytes)| dropped(at, bytes));
        assert_eq!(took, [false, false, true, true, false]);
        assert_eq!(way.stats().dropped(), 2);
    }
}

#[test]
fn a_shorter_delay_keeps_the_order_and_a_longer_one_applies_at_once() {
    let delays = vec![
        DelayStep {
            at: SECOND,
            delay: 60 * MS,
        },
        DelayStep {
            at: 2 * SECOND,
            delay: 15 * MS,
        },
    ];
    let spec = DirectionSpec {
        delay: 15 * MS,
        delays,
        ..DirectionSpec::default()
    };
    let mut direction = Direction::new(&spec, 1);
    let at = arrivals(&mut direction, 3000, MS, 100);
    let delay = |k: usize| (at[k].unwrap() - k as u64 * MS) / MS;
    assert_eq!(
        (delay(999), delay(1000), delay(1999), delay(2000), delay(2045)),
        (15, 60, 60, 59, 15)
    );
    assert!(at.is_sorted());
}

#[test]
fn listed_packets_are_lost() {
    let loss = Loss::Bursts(vec![Burst { first: 3, count: 2 }, Burst { first: 9, count: 1 }]);
    let mut direction = Direction::new(
        &DirectionSpec {
            loss,
            ..DirectionSpec::default()
        },
        1,
    );
    let lost: Vec<usize> = arrivals(&mut direction, 12, 1, 1)
        .iter()
        .enumerate()
        .filter(|(_, at)| at.is_none())
        .map(|(k, _)| k)
        .collect();
    assert_eq!(lost, [3, 4, 9]);
}

#[test]
fn rate_steps_move_the_rate() {
    let steps =
        [(0, 20_000_000), (10, 4_000_000), (20, 100_000_000)].map(|(s, rate)| RateStep { at: s * SECOND, rate });
    let spec = DirectionSpec {
        rate: Rate::Steps(steps.to_vec()),
        queue: Queue::Size(64_000),
        ..DirectionSpec::default()
    };
    let mut direction = Direction::new(&spec, 1);
    let at = arrivals(&mut direction, 300_000, 100_000, 1500);
    let rate = |from: u64, to: u64| {
        let count = at
            .iter()
            .flatten()
            .filter(|at| (from * SECOND..to * SECOND).contains(at))
            .count();
        count as f64 * 12_000.0 / (to - from) as f64
    };
    for (got, wanted) in [(rate(0, 10), 20e6), (rate(11, 20), 4e6), (rate(21, 30), 100e6)] {
        assert!((got / wanted - 1.0).abs() < 0.01, "{got} for {wanted}");
    }
}

#[test]
fn a_trace_gives_its_opportunities() {
    let lte = Lte {
        mean: 13_100_000,
        length: 20 * SECOND,
        outages: 6.0,
        ..Lte::default()
    };
    let trace: Trace = lte.trace();
    let spec = DirectionSpec {
        rate: Rate::Lte(lte),
        queue: Queue::Size(60_000),
        ..DirectionSpec::default()
    };
    let mut direction = Direction::new(&spec, 1);
    let at = arrivals(&mut direction, 250_000, 200_000, 1500);
    let got = at.iter().flatten().filter(|at| **at < 50 * SECOND).count() as u64 * 1500;
    let error = got as f64 / trace.capacity(0, 50 * SECOND) as f64 - 1.0;
    assert!(error.abs() < 0.01, "{error}");
}

#[test]
fn gilbert_and_elliott_lose_in_bursts_of_the_length_asked_for() {
    for (loss, burst) in [(0.05, 5.0), (0.02, 10.0), (0.2, 3.0)] {
        let spec = DirectionSpec {
            loss: Loss::in_bursts(loss, burst),
            ..DirectionSpec::default()
        };
        let count = 400_000;
        let at = arrivals(&mut Direction::new(&spec, 3), count, 1, 100);
        let lost = at.iter().filter(|at| at.is_none()).count() as f64;
        let bursts = at
            .windows(2)
            .filter(|pair| pair[0].is_some() && pair[1].is_none())
            .count() as f64;
        assert!((spec.loss.mean() - loss).abs() < 1e-9);
        // A burst's length is geometric: its mean over n bursts deviates by about burst / √n.
        let mean = lost / bursts;
        assert!(
            (mean - burst).abs() < 3.0 * burst / bursts.sqrt(),
            "bursts of {mean} for {burst}"
        );
        // Losses in bursts are fewer independent draws: (2 × burst - 1) times the variance.
        let allowed = three_sigma(count, loss) * (2.0 * burst).sqrt();
        assert!(
            (lost - loss * count as f64).abs() < allowed,
            "{lost} of {count} for {loss}"
        );
    }
}

#[test]
fn all_kinds_of_jitter_have_their_mean() {
    for (jitter, mean) in [
        (Jitter::Uniform(10 * MS), 5.0),
        (
            Jitter::Normal {
                mean: 10 * MS,
                deviation: 2 * MS,
            },
            10.0,
        ),
        (
            Jitter::Pareto {
                scale: 4 * MS,
                shape: 3.0,
            },
            2.0,
        ),
    ] {
        let spec = DirectionSpec {
            jitter,
            reorder: true,
            ..DirectionSpec::default()
        };
        let at = arrivals(&mut Direction::new(&spec, 5), 50_000, MS, 100);
        let sum: f64 = at
            .iter()
            .flatten()
            .enumerate()
            .map(|(k, at)| seconds(at - k as u64 * MS))
            .sum();
        let got = sum / 50_000.0 * 1000.0;
        assert!((got / mean - 1.0).abs() < 0.05, "{jitter:?}: {got} ms");
        assert!(
            !at.is_sorted(),
            "{jitter:?} with reorder never made one overtake another"
        );
    }
}

#[test]
fn scenarios_say_it_in_words_and_wrong_ones_are_refused_by_the_field() {
    let text = r#"{"rate": {"fixed": "50Mbit"}, "queue": {"time": "100ms"}, "delay": "15ms", "jitter": {"uniform": "2ms"},
                   "loss": {"gilbertElliott": {"p": 0.01, "r": 0.2}}}"#;
    let spec: DirectionSpec = serde_json::from_str(text).unwrap();
    let expected = DirectionSpec {
        delay: 15 * MS,
        queue: Queue::Time(100 * MS),
        jitter: Jitter::Uniform(2 * MS),
        loss: Loss::GilbertElliott {
            p: 0.01,
            r: 0.2,
            h: 0.0,
            k: 1.0,
        },
        ..fixed(50_000_000)
    };
    assert_eq!(spec, expected);
    for (text, words) in [
        (r#"{"rate": {"fixed": "50"}}"#, "Mbit"),
        (r#"{"lost": {"iid": 0.1}}"#, "lost"),
        (r#"{"loss": {"iid": 1.5}}"#, "loss.iid is 1.5"),
        (r#"{"queue": {"time": "1s"}}"#, "needs a rate"),
        (r#"{"rate": {"steps": [{"at": "0", "rate": "0"}]}}"#, "black hole"),
        (r#"{"rate": {"trace": "1\n\n0"}}"#, "line 3"),
        (
            r#"{"jitter": {"pareto": {"scale": "1ms", "shape": 0.5}}}"#,
            "pareto.shape is 0.5",
        ),
    ] {
        let error = match serde_json::from_str::<DirectionSpec>(text) {
            Err(error) => error.to_string(),
            Ok(spec) => spec.validate().unwrap_err().to_string(),
        };
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_packet_that_the_queue_drops_moves_no_other_fate() {
    let fates = |queue| {
        let spec = DirectionSpec {
            queue,
            loss: Loss::in_bursts(0.2, 4.0),
            ..fixed(1_000_000)
        };
        let mut direction = Direction::new(&spec, 9);
        (0..2000).map(|k| direction.offer(k * 6 * MS, 1500)).collect::<Vec<_>>()
    };
    let (all, some) = (fates(Queue::Endless), fates(Queue::Size(4500)));
    let kept = |fate: &&Fate| **fate != Fate::Drop(Cause::Queue);
    assert!((900..1100).contains(&some.iter().filter(kept).count()));
    for (one, other) in all.iter().zip(&some).filter(|(_, other)| kept(other)) {
        assert_eq!(*one == Fate::Drop(Cause::Loss), *other == Fate::Drop(Cause::Loss));
    }
}

#[test]
fn packets_too_large_disappear_and_others_do_not() {
    let mut direction = Direction::new(
        &DirectionSpec {
            largest: Some(1400),
            ..DirectionSpec::default()
        },
        1,
    );
    assert_eq!(direction.offer(0, 1401), Fate::Drop(Cause::Size));
    assert!(matches!(direction.offer(0, 1400), Fate::Deliver { .. }));
}

fn losses() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::None),
        (0.0..0.5).prop_map(Loss::Iid),
        (0.01..0.3, 1.0..20.0).prop_map(|(loss, burst)| Loss::in_bursts(loss, burst)),
    ]
}

fn jitters() -> impl Strategy<Value = Jitter> {
    prop_oneof![
        Just(Jitter::None),
        (0..20 * MS).prop_map(Jitter::Uniform),
        (0..20 * MS, 0..10 * MS).prop_map(|(mean, deviation)| Jitter::Normal { mean, deviation }),
        (0..10 * MS, 1.1..4.0).prop_map(|(scale, shape)| Jitter::Pareto { scale, shape }),
    ]
}

fn rates() -> impl Strategy<Value = Rate> {
    prop_oneof![
        (100_000_u64..500_000_000).prop_map(Rate::Fixed),
        (1_u64..50, 1_000_000_u64..40_000_000).prop_map(|(seed, mean)| {
            Rate::Lte(Lte {
                seed,
                mean,
                length: 5 * SECOND,
                outages: 20.0,
                ..Lte::default()
            })
        }),
        proptest::collection::vec((1..200 * MS, 0_u64..50_000_000), 0..8).prop_map(|gaps| {
            let mut at = 0;
            let mut steps = vec![RateStep { at, rate: 5_000_000 }];
            steps.extend(gaps.iter().map(|(gap, rate)| {
                at += gap;
                RateStep { at, rate: *rate }
            }));
            steps.push(RateStep {
                at: at + 1,
                rate: 1_000_000,
            });
            Rate::Steps(steps)
        }),
    ]
}

prop_compose! {
    fn specs()(
        rate in rates(), loss in losses(), jitter in jitters(), delay in 0..100 * MS, reorder in any::<bool>(),
        queue in prop_oneof![(1_u64..300_000).prop_map(Queue::Size), (1..300 * MS).prop_map(Queue::Time), Just(Queue::Endless)],
        corrupt in 0.0..0.1, duplicate in 0.0..0.1,
    ) -> DirectionSpec {
        DirectionSpec { rate, queue, delay, jitter, reorder, loss, corrupt, duplicate, ..DirectionSpec::default() }
    }
}

/// Times at which packets come, and their sizes.
fn traffic() -> impl Strategy<Value = Vec<(u64, usize)>> {
    proptest::collection::vec((0..3 * MS, 1_usize..3000), 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_bound_conservation_and_causality_hold(spec in specs(), traffic in traffic(), seed in any::<u64>()) {
        let mut wire = Wire::new(Direction::new(&spec, seed), 10_000);
        let (mut now, mut copies) = (0, 0);
        let mut sent = Vec::new();
        for (number, (gap, bytes)) in traffic.iter().enumerate() {
            now += gap;
            sent.push(now);
            wire.send(now, *bytes, number);
            let limit = wire.direction().limit().max(*bytes as u64).max(3000);
            prop_assert!(wire.direction().backlog(now) <= limit);
        }
        let (mut last, mut last_due) = (None, 0);
        let mut seen = vec![0; traffic.len()];
        while let Some(due) = wire.next_due() {
            let arrival = wire.poll(due).expect("there is no silence");
            prop_assert!(arrival.due >= sent[arrival.packet] + spec.delay && arrival.due >= last_due);
            if !spec.reorder {
                prop_assert!(last <= Some(arrival.packet), "{last:?} before {}", arrival.packet);
                last = Some(arrival.packet);
            }
            last_due = arrival.due;
            seen[arrival.packet] += 1;
            copies += u64::from(seen[arrival.packet] == 2);
            prop_assert!(seen[arrival.packet] <= 2);
        }
        let stats = *wire.stats();
        prop_assert_eq!(stats.offered, traffic.len() as u64);
        prop_assert_eq!(stats.delivered, seen.iter().filter(|n| **n > 0).count() as u64);
        prop_assert_eq!(stats.delivered + stats.dropped(), stats.offered);
        prop_assert_eq!(stats.duplicated, copies);
    }

    #[test]
    fn a_fate_depends_on_the_seed_and_the_number_and_not_on_the_timing(
        spec in specs(), traffic in traffic(), slower in 1_u64..50, seed in any::<u64>(),
    ) {
        // Without a queue's bound nothing but chance can drop a packet.
        let spec = DirectionSpec { queue: Queue::Endless, ..spec };
        let fates = |factor: u64, seed: u64| {
            let mut direction = Direction::new(&spec, seed);
            let mut now = 0;
            traffic.iter().map(|(gap, bytes)| {
                now += gap * factor;
                match direction.offer(now, *bytes) {
                    Fate::Deliver { duplicate, corrupt, .. } => (true, duplicate.is_some(), corrupt),
                    Fate::Drop(_) => (false, false, false),
                }
            }).collect::<Vec<_>>()
        };
        prop_assert_eq!(fates(1, seed), fates(slower, seed));
        let exact = |seed| {
            let mut direction = Direction::new(&spec, seed);
            traffic.iter().map(|(gap, bytes)| direction.offer(*gap, *bytes)).collect::<Vec<_>>()
        };
        prop_assert_eq!(exact(seed), exact(seed));
    }

    #[test]
    fn the_rate_is_kept_within_one_percent(rate in 200_000_u64..1_000_000_000, bytes in 60_usize..9000) {
        let spec = DirectionSpec { queue: Queue::Size(50 * bytes as u64), ..fixed(rate) };
        let mut direction = Direction::new(&spec, 1);
        // Twice as much as fits, for as long as 3000 packets take.
        let gap = (bytes as u64 * 8 * SECOND / rate / 2).max(1);
        let at = arrivals(&mut direction, 6000, gap, bytes);
        let arrived: Vec<u64> = at.into_iter().flatten().collect();
        let time = seconds(arrived[arrived.len() - 1] - arrived[0]);
        let got = (arrived.len() - 1) as f64 * bytes as f64 * 8.0 / time;
        prop_assert!((got / rate as f64 - 1.0).abs() < 0.01, "{got} for {rate}");
    }

    #[test]
    fn loss_is_within_three_sigma(loss in 0.001..0.5, seed in 0_u64..1000) {
        let spec = DirectionSpec { loss: Loss::Iid(loss), ..DirectionSpec::default() };
        let mut direction = Direction::new(&spec, seed);
        arrivals(&mut direction, 20_000, 1, 100);
        let lost = direction.stats().dropped_loss as f64;
        // Of 128 cases one may well be outside three deviations; outside six none is.
        prop_assert!((lost - 20_000.0 * loss).abs() < 2.0 * three_sigma(20_000, loss), "{lost} for {loss}");
    }
}

#[test]
fn three_sigma_hold_where_the_seed_is_given() {
    for loss in [0.02, 0.05, 0.08] {
        let spec = DirectionSpec {
            loss: Loss::Iid(loss),
            ..DirectionSpec::default()
        };
        let mut direction = Direction::new(&spec, 11);
        arrivals(&mut direction, 100_000, 1, 100);
        let lost = direction.stats().dropped_loss as f64;
        assert!(
            (lost - 100_000.0 * loss).abs() < three_sigma(100_000, loss),
            "{lost} for {loss}"
        );
    }
}
