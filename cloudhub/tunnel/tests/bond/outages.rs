//! What happens to machines and links in the long run: a day without links, a machine that sleeps, a process that is stopped, new addresses,
//! clocks that jump.

use std::time::Duration;

use bytes::Bytes;
use linkem::Loss;
use tunnel::Priority;
use tunnel::bond::{Bond, Event, Faults, PathState, Read, StreamId};

use crate::inner::Flood;
use crate::ms;
use crate::scenarios::{configs, three};
use crate::world::{Owner, World};

/// Copies 3 MB from the edge to the hub over one stream, and knows when it is there.
struct Copy {
    id: Option<StreamId>,
    written: usize,
    read: usize,
    wrong: bool,
    done: Option<Duration>,
    paths: Vec<PathState>,
}

const SIZE: usize = 3_000_000;

fn byte(at: usize) -> u8 {
    (at * 31 + at / 257) as u8
}

impl Copy {
    fn new() -> Self {
        Self {
            id: None,
            written: 0,
            read: 0,
            wrong: false,
            done: None,
            paths: Vec::new(),
        }
    }

    fn write(&mut self, now: Duration, edge: &mut Bond) {
        let Some(id) = self.id.or_else(|| edge.open_stream(Priority::Bulk)) else {
            return;
        };
        self.id = Some(id);
        while self.written < SIZE {
            let chunk: Vec<u8> = (self.written..SIZE.min(self.written + 16_384)).map(byte).collect();
            let taken = edge.write(now, id, &chunk).expect("the stream is open");
            self.written += taken;
            if taken < chunk.len() {
                return;
            }
        }
        edge.finish(now, id);
    }
}

impl Owner for Copy {
    fn act(&mut self, now: Duration, [edge, _]: [&mut Bond; 2]) -> Option<Duration> {
        if self.id.is_none() {
            self.write(now, edge);
        }
        None
    }

    fn event(&mut self, now: Duration, end: usize, bond: &mut Bond, event: Event) {
        match event {
            Event::StreamWritable(_) if end == 0 => self.write(now, bond),
            Event::StreamReadable(id) => loop {
                match bond.read(id, 65_536) {
                    Read::Bytes(bytes) => {
                        self.wrong |= bytes.iter().enumerate().any(|(at, have)| *have != byte(self.read + at));
                        self.read += bytes.len();
                    }
                    Read::Blocked => break,
                    Read::End => {
                        self.done.get_or_insert(now);
                        break;
                    }
                }
            },
            Event::Path { state, .. } if end == 0 => self.paths.push(state),
            _ => {}
        }
    }
}

fn world() -> World {
    World::new(three(|_| Loss::Iid(0.02), 6), configs(Faults::default()))
}

fn finish(world: &mut World, copy: &mut Copy, within: Duration) {
    let end = world.now + within;
    while copy.done.is_none() && world.now < end {
        world.run(world.now + ms(100), copy);
    }
    let stats = world.ends[0].bond.path_stats();
    assert!(
        copy.done.is_some(),
        "{} of {SIZE} after {within:?}: {stats:?}",
        copy.read
    );
    assert!(!copy.wrong && copy.read == SIZE);
    assert_eq!(world.violations, []);
}

#[test]
fn a_copy_survives_the_death_of_each_link_in_turn_and_new_addresses() {
    let (mut world, mut copy) = (world(), Copy::new());
    for path in 0..3 {
        world.run(world.now + ms(60), &mut copy);
        world.silence(path, true, true);
        world.run(world.now + ms(400), &mut copy);
        // It comes back with another address: a new connection.
        world.silence(path, false, false);
        world.connect(path);
    }
    finish(&mut world, &mut copy, Duration::from_secs(10));
}

#[test]
fn a_day_without_any_link_loses_nothing() {
    let (mut world, mut copy) = (world(), Copy::new());
    world.run(world.now + ms(150), &mut copy);
    let before = copy.read;
    (0..3).for_each(|path| world.silence(path, true, true));
    world.run(world.now + Duration::from_secs(24 * 3600), &mut copy);
    assert!(copy.read < before + 1_000_000 && copy.done.is_none());
    let probes: u64 = world.ends[0]
        .bond
        .path_stats()
        .iter()
        .map(|path| path.sent_packets)
        .sum();
    println!("a day without links: {probes} packets sent in vain by the edge");
    assert!(probes < 400_000, "{probes}");
    (0..3).for_each(|path| world.silence(path, false, false));
    finish(&mut world, &mut copy, Duration::from_secs(15));
}

/// Packets that both ends have sent over all paths.
fn sent(world: &World) -> [u64; 2] {
    [0, 1].map(|end| {
        let paths = world.ends[end].bond.path_stats().into_iter();
        paths.map(|path| path.sent_packets).sum()
    })
}

#[test]
fn in_a_long_outage_the_edge_asks_and_the_hub_hardly() {
    let (mut world, mut copy) = (world(), Copy::new());
    world.run(world.now + ms(150), &mut copy);
    (0..3).for_each(|path| world.silence(path, true, true));
    let before = sent(&world);
    world.run(world.now + Duration::from_secs(600), &mut copy);
    let [edge, hub] = [0, 1].map(|end| sent(&world)[end] - before[end]);
    println!("ten minutes without links: {edge} packets of the edge, {hub} of the hub");
    assert!((6_000..12_000).contains(&edge) && hub < 3 * 250, "{edge}, {hub}");
    (0..3).for_each(|path| world.silence(path, false, false));
    world.run(world.now + Duration::from_secs(1), &mut copy);
    for end in &world.ends {
        let paths = end.bond.path_stats();
        assert!(paths.iter().all(|path| path.state == PathState::Live), "{paths:?}");
    }
    finish(&mut world, &mut copy, Duration::from_secs(10));
}

#[test]
fn a_hub_with_nothing_to_say_notices_that_it_is_not_heard() {
    let (mut world, mut copy) = (world(), Copy::new());
    copy.id = Some(StreamId(0));
    world.run(world.now + ms(150), &mut copy);
    (0..3).for_each(|path| world.silence(path, false, true));
    world.run(world.now + Duration::from_secs(40), &mut copy);
    let paths = world.ends[1].bond.path_stats();
    assert!(paths.iter().all(|path| path.state == PathState::Suspect), "{paths:?}");
}

#[test]
fn a_stopped_process_suspects_nobody_for_its_own_silence() {
    let (mut world, mut copy) = (world(), Copy::new());
    world.run(world.now + ms(150), &mut copy);
    copy.paths.clear();
    world.freeze(0, Duration::from_secs(30));
    world.run(world.now + Duration::from_secs(30) + ms(50), &mut copy);
    assert!(!copy.paths.contains(&PathState::Suspect), "{:?}", copy.paths);
    finish(&mut world, &mut copy, Duration::from_secs(10));
    let paths = world.ends[0].bond.path_stats();
    let fast = |rtt: Duration| rtt < Duration::from_millis(300);
    assert!(paths.iter().all(|path| fast(path.rtt)), "answers read late: {paths:?}");
}

#[test]
fn time_that_jumps_is_survived() {
    let path = tunnel::bond::PathConfig {
        max_datagram: 1400,
        rtt: ms(20),
        policy: tunnel::bond::Policy::default(),
    };
    let mut bond = Bond::new(Duration::from_secs(1000), tunnel::bond::Config::edge());
    let id = tunnel::bond::PathId(1);
    assert!(bond.add_path(Duration::from_secs(1000), id, path));
    let mut buffer = Vec::new();
    // Back, far ahead, and to the end of time.
    for now in [5, 1001, 1001 + 86_400 * 400, 3, u64::MAX / 4] {
        let now = Duration::from_secs(now);
        let _ = bond.send_message(now, Priority::Urgent, 1, Bytes::from_static(b"word"));
        let _ = bond.handle_input(now, id, Bytes::from_static(&[0x40, 0, 0, 0, 1, 0x31]));
        bond.handle_timeout(now);
        while bond.poll_transmit(now, id, 1400, &mut buffer).is_some() {}
        while bond.poll_event().is_some() {}
        let _ = bond.poll_timeout();
    }
    assert!(!buffer.is_empty());
}

/// Packets of a session with one path of 2 ms that has said one word and hears nothing: in the first two seconds, and from then until 10 s.
fn packets_without_an_answer(config: tunnel::bond::Config) -> [usize; 2] {
    let path = tunnel::bond::PathConfig {
        max_datagram: 1400,
        rtt: ms(2),
        policy: tunnel::bond::Policy::default(),
    };
    let start = Duration::from_secs(1000);
    let mut bond = Bond::new(start, config);
    let id = tunnel::bond::PathId(1);
    assert!(bond.add_path(start, id, path));
    let word = Bytes::from_static(b"word");
    bond.send_message(start, Priority::Normal, 1, word)
        .expect("there is room");
    let (mut sent, mut buffer, mut now) = ([0; 2], Vec::new(), start);
    while now < start + Duration::from_secs(10) {
        bond.handle_timeout(now);
        while bond.poll_transmit(now, id, 1400, &mut buffer).is_some() {
            sent[usize::from(now >= start + ms(2000))] += 1;
        }
        while bond.poll_event().is_some() {}
        now += ms(1);
    }
    sent
}

#[test]
fn a_peer_that_is_busy_is_not_flooded_with_questions() {
    let (hub, edge) = (tunnel::bond::Config::hub(), tunnel::bond::Config::edge());
    let (hub, edge) = (packets_without_an_answer(hub), packets_without_an_answer(edge));
    println!("one word without an answer: {hub:?} packets of the hub, {edge:?} of the edge");
    // Of ten thousand sessions at once, while a machine with many tasks is late by half a second.
    assert!(hub[0] <= 25 && edge[0] <= 25, "{hub:?}, {edge:?}");
    assert!(hub[1] <= 15 && edge[1] <= 100, "{hub:?}, {edge:?}");
}

#[test]
fn idle_paths_cost_a_keep_alive_and_a_dead_one_is_noticed() {
    let mut world = World::new(three(|_| Loss::None, 3), configs(Faults::default()));
    let mut copy = Copy::new();
    copy.id = Some(StreamId(0));
    world.run(world.now + Duration::from_secs(3600), &mut copy);
    let stats = world.ends[0].bond.path_stats();
    let sent: Vec<u64> = stats.iter().map(|path| path.sent_packets).collect();
    let heard: Vec<u64> = world.ends[1]
        .bond
        .path_stats()
        .iter()
        .map(|path| path.sent_packets)
        .collect();
    println!("an idle hour: {sent:?} packets up, {heard:?} down");
    // Every 8 s on the best, every 25 s on the others.
    assert!(sent.iter().sum::<u64>() <= 450 + 2 * 145 && sent.iter().all(|sent| *sent >= 140));
    copy.paths.clear();
    (0..3).for_each(|path| world.silence(path, true, true));
    world.run(world.now + Duration::from_secs(10), &mut copy);
    assert!(
        copy.paths.contains(&PathState::Suspect),
        "the best path is suspect within 10 s"
    );
    let held = world.ends[1].bond.stats();
    assert!(
        held.held_bytes + held.kept_bytes + held.queued_bytes <= 1024,
        "idle at the hub: {held:?}"
    );
}

#[test]
fn a_packet_larger_than_any_path_goes_in_halves() {
    let mut world = World::new(three(|_| Loss::Iid(0.03), 3), configs(Faults::default()));
    (0..3).for_each(|path| world.set_datagram(path, 1000));
    let mut flood = Flood::new(6, 0);
    world.run(world.now + Duration::from_secs(2), &mut flood);
    let stats = world.ends[1].bond.stats();
    println!(
        "1380 bytes over paths of 1000: {} delivered, {} skipped",
        flood.arrivals.len(),
        stats.skipped
    );
    assert_eq!((stats.skipped, stats.late), (0, 0));
    assert!(flood.arrivals.len() > 10_000);
    assert!(flood.arrivals.is_sorted_by_key(|(_, number)| *number));
}
