//! The controller alone and with neighbours on one link, in virtual time. The neighbour is a model of CUBIC; the kernel's own is for a
//! test over sockets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use linkem::{DelayStep, Direction, DirectionSpec, Fate, Loss, Queue, Rate, RateStep};
use tunnel::congestion::{Ack, Congestion};

use crate::cubic::Cubic;
use crate::transport::{Controller, Receiver, Room, Sender};
use crate::{ms, percentile};

const PACKET: u64 = 1480;
const ACK: usize = 70;

/// One sender with its receiver, on a link that others may share.
struct Flow {
    sender: Sender<Box<dyn Controller>>,
    receiver: Receiver,
    /// It has something to send.
    active: Box<dyn Fn(Duration) -> bool>,
    starts: Duration,
    /// Bytes acknowledged, each 100 ms.
    history: Vec<u64>,
}

enum Thing {
    Packet(u64),
    Ack(Vec<u64>),
}

struct Bench {
    now: Duration,
    there: Direction,
    back: Direction,
    flows: Vec<Flow>,
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    things: std::collections::HashMap<u64, Thing>,
    order: u64,
    /// Time that packets spent in the queue: when and how long, milliseconds.
    queued: Vec<(Duration, f64)>,
}

impl Bench {
    fn new(spec: &DirectionSpec, seed: u64) -> Self {
        let back = DirectionSpec {
            delay: spec.delay,
            delays: spec.delays.clone(),
            ..DirectionSpec::default()
        };
        Self {
            now: Duration::ZERO,
            there: Direction::new(spec, seed),
            back: Direction::new(&back, seed + 1),
            flows: Vec::new(),
            heap: BinaryHeap::new(),
            things: std::collections::HashMap::new(),
            order: 0,
            queued: Vec::new(),
        }
    }

    fn ours(self) -> Self {
        self.ours_from(Duration::ZERO)
    }

    fn ours_from(self, starts: Duration) -> Self {
        self.ours_while(starts, |_| true)
    }

    fn ours_while(mut self, starts: Duration, active: impl Fn(Duration) -> bool + 'static) -> Self {
        let controller: Box<dyn Controller> = Box::new(Congestion::new(starts, PACKET as u16));
        self.flows.push(Flow {
            sender: Sender::new(starts, controller, ms(100), true),
            receiver: Receiver::default(),
            active: Box::new(active),
            starts,
            history: Vec::new(),
        });
        self
    }

    fn cubic(mut self, until: Duration) -> Self {
        let controller: Box<dyn Controller> = Box::new(Cubic::new(PACKET));
        self.flows.push(Flow {
            sender: Sender::new(Duration::ZERO, controller, ms(100), false).with_least_timeout(ms(200)),
            receiver: Receiver::default(),
            active: Box::new(move |now| now < until),
            starts: Duration::ZERO,
            history: Vec::new(),
        });
        self
    }

    fn push(&mut self, at: u64, flow: usize, thing: Thing) {
        self.order += 1;
        self.things.insert(self.order, thing);
        self.heap.push(Reverse((at, self.order, flow)));
    }

    fn send(&mut self, flow: usize) -> Option<Duration> {
        loop {
            let (now, state) = (self.now, &mut self.flows[flow]);
            if now < state.starts {
                return Some(state.starts);
            }
            if !(state.active)(now) && state.sender.credit == 0 {
                return None;
            }
            match state.sender.room(now) {
                Room::Full => return None,
                Room::At(at) => return Some(at),
                Room::Now => {}
            }
            let number = state.sender.on_sent(now, PACKET);
            let nanos = now.as_nanos() as u64;
            let fate = self.there.offer(nanos, PACKET as usize);
            if let Fate::Deliver { at, .. } = fate {
                let waited = self.there.left_at().saturating_sub(nanos);
                self.queued.push((now, waited as f64 / 1e6));
                self.push(at, flow, Thing::Packet(number));
            }
        }
    }

    fn answer(&mut self, flow: usize) {
        if let Some(numbers) = self.flows[flow].receiver.ack(self.now)
            && let Fate::Deliver { at, .. } = self.back.offer(self.now.as_nanos() as u64, ACK)
        {
            self.push(at, flow, Thing::Ack(numbers));
        }
    }

    fn run(mut self, seconds: u64) -> Self {
        let end = Duration::from_secs(seconds);
        let mut tick = ms(100);
        while self.now < end {
            let mut next = end.min(tick);
            for flow in 0..self.flows.len() {
                self.answer(flow);
                let sender = &mut self.flows[flow].sender;
                if sender.timeout().is_some_and(|at| at <= self.now) {
                    sender.on_timeout(self.now);
                }
                let resumed = self.send(flow);
                let state = &self.flows[flow];
                let timers = [resumed, state.sender.timeout(), state.receiver.due];
                next = timers.into_iter().flatten().fold(next, Duration::min);
            }
            if let Some(Reverse((at, ..))) = self.heap.peek() {
                next = next.min(Duration::from_nanos(*at));
            }
            self.now = self.now.max(next);
            if self.now >= tick {
                for flow in &mut self.flows {
                    flow.history.push(flow.sender.delivered);
                }
                tick += ms(100);
            }
            while let Some(Reverse((at, key, flow))) = self.heap.peek().copied()
                && at <= self.now.as_nanos() as u64
            {
                self.heap.pop();
                match self.things.remove(&key) {
                    Some(Thing::Packet(number)) => {
                        self.flows[flow].receiver.on_packet(self.now, number);
                        self.answer(flow);
                    }
                    Some(Thing::Ack(numbers)) => {
                        self.flows[flow].sender.on_ack(self.now, &numbers, true);
                    }
                    None => {}
                }
            }
        }
        self
    }

    /// Mbit/s of a flow from one moment to another, seconds.
    fn rate(&self, flow: usize, from: f64, to: f64) -> f64 {
        let at = |seconds: f64| {
            let place = ((seconds * 10.0) as usize).min(self.flows[flow].history.len());
            place.checked_sub(1).map_or(0, |place| self.flows[flow].history[place])
        };
        (at(to) - at(from)) as f64 * 8.0 / (to - from) / 1e6
    }

    /// Queueing delay from a moment on, milliseconds.
    fn queue(&self, from: u64, share: f64) -> f64 {
        let from = Duration::from_secs(from);
        let mut values: Vec<f64> = self
            .queued
            .iter()
            .filter(|(at, _)| *at >= from)
            .map(|(_, waited)| *waited)
            .collect();
        percentile(&mut values, share)
    }
}

/// A link of so many Mbit/s and a round trip in ms, with a queue in ms of that rate.
fn link(mbits: u64, rtt: u64, queue: u64) -> DirectionSpec {
    DirectionSpec {
        rate: Rate::Fixed(mbits * 1_000_000),
        queue: Queue::Size(mbits * 125 * queue),
        delay: rtt * 500_000,
        ..DirectionSpec::default()
    }
}

#[test]
fn it_reaches_nine_tenths_of_the_link_within_a_second_and_adds_little_queue() {
    for (mbits, rtt) in [(2, 40), (20, 40), (50, 30), (30, 60), (20, 16), (100, 100), (10, 200)] {
        let bench = Bench::new(&link(mbits, rtt, 200), 7).ours().run(30);
        let first = bench.rate(0, 1.0, 2.0) / mbits as f64;
        let rest = bench.rate(0, 2.0, 30.0) / mbits as f64;
        let queue = bench.queue(10, 0.95);
        println!("{mbits} Mbit/s, {rtt} ms: {first:.2} in the 2nd second, {rest:.3} after, queue p95 {queue:.1} ms");
        assert!(first >= 0.9, "{first}");
        assert!(rest >= 0.95, "{rest}");
        assert!(queue <= 50.0, "{queue}");
    }
}

#[test]
fn a_round_trip_that_changes_is_followed_both_ways() {
    let spec = DirectionSpec {
        delay: 7_500_000,
        delays: vec![
            DelayStep {
                at: 10 * linkem::SECOND,
                delay: 30_000_000,
            },
            DelayStep {
                at: 25 * linkem::SECOND,
                delay: 7_500_000,
            },
        ],
        ..link(30, 15, 200)
    };
    let bench = Bench::new(&spec, 3).ours().run(40);
    let rates = [(5.0, 10.0), (12.0, 25.0), (27.0, 40.0)].map(|(from, to)| bench.rate(0, from, to) / 30.0);
    let queue = bench.queue(30, 0.95);
    println!("15-60-15 ms at 30 Mbit/s: {rates:.3?} of the link, queue p95 at the end {queue:.1} ms");
    assert!(rates.iter().all(|rate| *rate >= 0.9), "{rates:?}");
    assert!(queue <= 50.0, "{queue}");
}

#[test]
fn a_rate_that_changes_is_followed_both_ways() {
    let steps = vec![
        RateStep {
            at: 0,
            rate: 50_000_000,
        },
        RateStep {
            at: 10 * linkem::SECOND,
            rate: 10_000_000,
        },
        RateStep {
            at: 25 * linkem::SECOND,
            rate: 50_000_000,
        },
    ];
    let spec = DirectionSpec {
        rate: Rate::Steps(steps),
        ..link(50, 40, 200)
    };
    let bench = Bench::new(&spec, 5).ours().run(40);
    let less = bench.rate(0, 12.0, 25.0) / 10.0;
    let more = bench.rate(0, 28.0, 40.0) / 50.0;
    let mut queue: Vec<f64> = bench
        .queued
        .iter()
        .filter(|(at, _)| (13..25).contains(&at.as_secs()))
        .map(|(_, waited)| *waited)
        .collect();
    let queue = percentile(&mut queue, 0.95);
    println!("50-10-50 Mbit/s: {less:.3}, then {more:.3} of the link; queue p95 at 10 Mbit/s {queue:.1} ms");
    assert!(less >= 0.9 && more >= 0.9, "{less} {more}");
    assert!(queue <= 50.0, "{queue}");
}

#[test]
fn random_loss_does_not_reduce_the_rate() {
    for loss in [
        Loss::Iid(0.02),
        Loss::Iid(0.05),
        Loss::Iid(0.08),
        Loss::in_bursts(0.08, 4.0),
    ] {
        let spec = DirectionSpec {
            loss: loss.clone(),
            ..link(50, 30, 100)
        };
        let bench = Bench::new(&spec, 11).ours().run(20);
        let reached = bench.rate(0, 1.0, 20.0) / (50.0 * (1.0 - loss.mean()));
        let first = bench.rate(0, 1.0, 2.0) / (50.0 * (1.0 - loss.mean()));
        println!("{loss:?}: {reached:.3} of what gets through, {first:.3} in the 2nd second");
        assert!(reached >= 0.95, "{reached}");
    }
}

#[test]
fn a_full_buffer_reduces_what_is_in_flight() {
    // A neighbour that fills a short buffer: loss comes with a risen round trip.
    let bench = Bench::new(&link(20, 40, 20), 2)
        .ours()
        .cubic(Duration::from_secs(60))
        .run(60);
    let sent = bench.there.stats();
    let lost = sent.dropped_queue as f64 / sent.offered as f64;
    println!(
        "with CUBIC over half a BDP of buffer: {:.2} % of all packets dropped",
        lost * 100.0
    );
    assert!(lost <= 0.03, "{lost}");
}

#[test]
fn what_a_start_drops_is_not_taken_for_usual() {
    // 20 Mbit/s in packets of 1250 bytes, 100 in 50 ms.
    let mut ours = Congestion::new(Duration::ZERO, 1250);
    let mut now = ms(100);
    // 50 ms, in whose middle some are lost.
    let mut pass = |ours: &mut Congestion, (rtt, backlogged): (u64, bool), (lost, sent_ago): (u64, u64)| {
        for packet in 0..100 {
            now += Duration::from_micros(500);
            let sent_at = now - ms(rtt);
            ours.on_ack(&Ack {
                now,
                sent_at,
                bytes: 1250,
                rtt: ms(rtt),
                backlogged,
            });
            if packet == 50 {
                ours.on_loss(1250 * lost, now - ms(sent_ago), false);
            }
        }
    };
    (0..4).for_each(|_| pass(&mut ours, (40, false), (0, 0)));
    // The buffer is full, and a third is lost; twice as much of what was sent then shows as lost when the queue has gone.
    pass(&mut ours, (59, true), (0, 0));
    pass(&mut ours, (59, true), (50, 20));
    pass(&mut ours, (41, true), (0, 0));
    pass(&mut ours, (41, true), (150, 120));
    pass(&mut ours, (41, true), (0, 0));
    let before = ours.window();
    // Now a neighbour fills it: if such losses were usual, it would have no part of the link.
    (0..5).for_each(|_| pass(&mut ours, (59, true), (8, 20)));
    let after = ours.window();
    assert!(after * 10 <= before * 8, "{before} bytes, then {after}");
}

#[test]
fn a_burst_after_an_idle_time_finds_the_rate_again() {
    let busy = |now: Duration| !(5..20).contains(&now.as_secs());
    let bench = Bench::new(&link(50, 40, 100), 9)
        .ours_while(Duration::ZERO, busy)
        .run(30);
    let again = bench.rate(0, 20.5, 21.5) / 50.0;
    let rest = bench.rate(0, 21.0, 30.0) / 50.0;
    println!("after 15 s idle: {again:.3} of the link from 0.5 s on, {rest:.3} later");
    assert!(again >= 0.9 && rest >= 0.95, "{again} {rest}");
}

#[test]
fn two_of_ours_share_fairly() {
    for (rtt, queue) in [(40, 100), (16, 100), (60, 30), (40, 200)] {
        let bench = Bench::new(&link(20, rtt, queue), 4)
            .ours()
            .ours_from(Duration::from_secs(5))
            .run(40);
        let shares = [0, 1].map(|flow| bench.rate(flow, 10.0, 40.0));
        let sum: f64 = shares.iter().sum();
        let jain = sum * sum / (2.0 * shares.iter().map(|share| share * share).sum::<f64>());
        let delay = bench.queue(15, 0.95);
        println!(
            "two of ours, {rtt} ms, {queue} ms queue: {shares:.2?} Mbit/s, Jain {jain:.3}, queue p95 {delay:.1} ms"
        );
        assert!(jain >= 0.9, "{jain}");
        assert!(sum >= 18.0, "{sum}");
    }
}

#[test]
fn each_side_of_cubic_and_ours_gets_its_part() {
    for (bdps, queue) in [(0.5, 20), (1.0, 40), (4.0, 160)] {
        // Whoever was there first.
        for (start, name) in [(0, "both at once"), (4, "ours later")] {
            let (start, long) = (Duration::from_secs(start), Duration::from_secs(100));
            let bench = Bench::new(&link(20, 40, queue), 1).ours_from(start).cubic(long).run(70);
            let (ours, theirs) = (bench.rate(0, 10.0, 70.0), bench.rate(1, 10.0, 70.0));
            println!(
                "beside CUBIC, {bdps} BDP of buffer, {name}: ours {ours:.2}, CUBIC {theirs:.2} Mbit/s of 20 (fair 10)"
            );
            assert!(ours >= 2.5 && theirs >= 2.5, "{ours} {theirs}");
        }
    }
}

#[test]
fn a_queue_that_was_there_first_does_not_stay() {
    // CUBIC has filled 4 BDP when ours joins, and leaves 2 s later.
    let bench = Bench::new(&link(20, 40, 160), 6)
        .cubic(Duration::from_secs(8))
        .ours_from(Duration::from_secs(6))
        .run(40);
    let queue = bench.queue(18, 0.95);
    let rate = bench.rate(1, 18.0, 40.0) / 20.0;
    println!("joining a standing queue: queue p95 from 10 s after it {queue:.1} ms, {rate:.3} of the link");
    assert!(queue <= 50.0, "{queue}");
    assert!(rate >= 0.95, "{rate}");
}
