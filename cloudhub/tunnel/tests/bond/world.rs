//! Two bonds over links: end 0 is the edge, end 1 the hub. Each path is a connection as in `transport` with our own congestion
//! controller, over two directions of linkem's model. Probes of a suspect path leave even when its window is full.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use linkem::{Direction, DirectionSpec, Fate};
use tunnel::bond::{Bond, Config, Event, PathConfig, PathId, PathState, Policy, Violation};
use tunnel::congestion::Congestion;

use crate::ms;
use crate::transport::{Receiver, Room, Sender};

/// QUIC, UDP and IPv4 headers around a datagram, bytes.
pub(crate) const AROUND: usize = 66;
/// quinn's largest datagram at the usual MTU.
pub(crate) const DATAGRAM: usize = 1414;

/// Who uses the bonds.
pub(crate) trait Owner {
    /// Does what is due and says when it is due next.
    fn act(&mut self, now: Duration, bonds: [&mut Bond; 2]) -> Option<Duration>;
    /// Something came out of an end.
    fn event(&mut self, now: Duration, end: usize, bond: &mut Bond, event: Event);
}

struct PathEnd {
    sender: Sender<Congestion>,
    receiver: Receiver,
    /// Connections that are gone had another.
    id: PathId,
}

pub(crate) struct End {
    pub(crate) bond: Bond,
    paths: Vec<Option<PathEnd>>,
    /// It neither reads nor writes until then.
    frozen: Duration,
}

/// A link: both directions, and the largest datagram of the path over it.
pub(crate) struct Link {
    /// From the edge, and to it.
    pub(crate) ways: [Direction; 2],
    pub(crate) datagram: usize,
    /// What both ends know of it.
    pub(crate) policy: Policy,
    /// The round trip of the handshake.
    pub(crate) rtt: Duration,
}

impl Link {
    pub(crate) fn new(up: &DirectionSpec, down: &DirectionSpec, seed: u64) -> Self {
        Self {
            ways: [Direction::new(up, seed), Direction::new(down, seed ^ 0xdead_beef)],
            datagram: DATAGRAM,
            policy: Policy::default(),
            rtt: Duration::from_nanos(up.delay + down.delay),
        }
    }
}

enum Thing {
    Packet(u64, Bytes),
    Ack(Vec<u64>),
}

struct Parcel {
    thing: Thing,
    /// Where it arrives.
    end: usize,
    path: usize,
    id: PathId,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) ends: [End; 2],
    pub(crate) links: Vec<Link>,
    air: BinaryHeap<Reverse<(u64, u64)>>,
    parcels: HashMap<u64, Parcel>,
    order: u64,
    connections: u8,
    pub(crate) violations: Vec<Violation>,
    /// The most bytes that either end ever held for what comes before.
    pub(crate) most_held: usize,
    /// What left: by end, link and whether no unmetered path lived there then.
    pub(crate) watched: Option<Watched>,
}

/// Bytes of each priority, and packets that carried nothing of any.
pub(crate) type Watched = BTreeMap<(usize, usize, bool), ([u64; 4], u64)>;

impl World {
    pub(crate) fn new(links: Vec<Link>, configs: [Config; 2]) -> Self {
        let now = Duration::from_secs(1);
        let ends = configs.map(|config| End {
            bond: Bond::new(now, config),
            paths: (0..links.len()).map(|_| None).collect(),
            frozen: Duration::ZERO,
        });
        let mut world = Self {
            now,
            ends,
            links,
            air: BinaryHeap::new(),
            parcels: HashMap::new(),
            order: 0,
            connections: 0,
            violations: Vec::new(),
            most_held: 0,
            watched: None,
        };
        for path in 0..world.links.len() {
            world.connect(path);
        }
        world
    }

    /// A new connection over a link, on both ends.
    pub(crate) fn connect(&mut self, path: usize) {
        self.disconnect(path);
        self.connections = self.connections.wrapping_add(1);
        let id = PathId(self.connections);
        let (datagram, rtt) = (self.links[path].datagram, self.links[path].rtt.max(ms(2)));
        for end in &mut self.ends {
            let config = PathConfig {
                max_datagram: datagram,
                rtt,
                policy: self.links[path].policy,
            };
            assert!(end.bond.add_path(self.now, id, config));
            end.paths[path] = Some(PathEnd {
                sender: Sender::new(self.now, Congestion::new(self.now, 1480), rtt, true),
                receiver: Receiver::default(),
                id,
            });
        }
    }

    /// The connection over a link is given up, on both ends.
    pub(crate) fn disconnect(&mut self, path: usize) {
        for end in &mut self.ends {
            if let Some(gone) = end.paths[path].take() {
                end.bond.remove_path(self.now, gone.id);
            }
        }
    }

    /// The path's datagrams become smaller or larger, and both ends know.
    pub(crate) fn set_datagram(&mut self, path: usize, bytes: usize) {
        self.links[path].datagram = bytes;
        for end in &mut self.ends {
            if let Some(state) = &end.paths[path] {
                end.bond.set_max_datagram(state.id, bytes);
            }
        }
    }

    /// An end does nothing for a while; what arrives meanwhile waits in its sockets.
    pub(crate) fn freeze(&mut self, end: usize, time: Duration) {
        self.ends[end].frozen = self.now + time;
    }

    pub(crate) fn is_connected(&self, path: usize) -> bool {
        self.ends[0].paths[path].is_some()
    }

    /// Which link a path of an end runs over.
    pub(crate) fn link_of(&self, end: usize, id: PathId) -> Option<usize> {
        let paths = &self.ends[end].paths;
        paths
            .iter()
            .position(|path| path.as_ref().is_some_and(|path| path.id == id))
    }

    /// A link goes silent or comes back, each way.
    pub(crate) fn silence(&mut self, path: usize, up: bool, down: bool) {
        let nanos = self.now.as_nanos() as u64;
        self.links[path].ways[0].silence(nanos, up);
        self.links[path].ways[1].silence(nanos, down);
    }

    fn offer(&mut self, end: usize, path: usize, thing: Thing, bytes: usize) {
        let Some(state) = &self.ends[end].paths[path] else {
            return;
        };
        let id = state.id;
        let now = self.now.as_nanos() as u64;
        let Fate::Deliver { at, duplicate, corrupt } = self.links[path].ways[end].offer(now, bytes) else {
            return;
        };
        if corrupt {
            return;
        }
        let parcel = |thing| Parcel {
            thing,
            end: 1 - end,
            path,
            id,
        };
        if let Some(again) = duplicate
            && let Thing::Packet(number, packet) = &thing
        {
            let copy = Thing::Packet(*number, packet.clone());
            self.carry(again, parcel(copy));
        }
        self.carry(at, parcel(thing));
    }

    fn carry(&mut self, at: u64, parcel: Parcel) {
        self.order += 1;
        self.parcels.insert(self.order, parcel);
        self.air.push(Reverse((at, self.order)));
    }

    /// Sends what the paths of an end have room for; returns when one has room again.
    fn pump(&mut self, end: usize) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        // Fair to all: one packet a path and turn.
        let mut open: Vec<usize> = (0..self.links.len()).collect();
        while !open.is_empty() {
            open.retain(|path| match self.pump_one(end, *path) {
                Ok(sent) => sent,
                Err(at) => {
                    next = Some(next.map_or(at, |have| have.min(at)));
                    false
                }
            });
        }
        for path in 0..self.links.len() {
            let now = self.now;
            let acked = self.ends[end].paths[path]
                .as_mut()
                .and_then(|state| state.receiver.ack(now));
            if let Some(numbers) = acked {
                self.offer(end, path, Thing::Ack(numbers), 70);
            }
        }
        next
    }

    /// Ok(whether a packet left); Err(when there is room again).
    fn pump_one(&mut self, end: usize, path: usize) -> Result<bool, Duration> {
        let now = self.now;
        let state = &mut self.ends[end];
        let Some(connection) = &mut state.paths[path] else {
            return Ok(false);
        };
        let id = connection.id;
        let suspect = state.bond.path_state(id) == Some(PathState::Suspect);
        match connection.sender.room(now) {
            Room::Now => {}
            _ if suspect => {}
            Room::At(at) => return Err(at),
            Room::Full => return Ok(false),
        }
        let mut packet = Vec::new();
        let budget = self.links[path].datagram;
        let forced = connection.sender.credit > 0;
        let Some(length) = state.bond.poll_transmit(now, id, budget, &mut packet) else {
            if forced {
                // A probe of the connection's own.
                let number = connection.sender.on_sent(now, 70);
                self.offer(end, path, Thing::Packet(number, Bytes::new()), 70);
            }
            return Ok(false);
        };
        assert!(length <= budget && length == packet.len(), "{length} of {budget}");
        self.watch(end, path, &packet);
        let Some(connection) = &mut self.ends[end].paths[path] else {
            return Ok(false);
        };
        let number = connection.sender.on_sent(now, (length + AROUND) as u64);
        self.offer(end, path, Thing::Packet(number, Bytes::from(packet)), length + AROUND);
        Ok(true)
    }

    fn watch(&mut self, end: usize, path: usize, packet: &[u8]) {
        let Some(watched) = &mut self.watched else { return };
        let (links, bond) = (&self.links, &self.ends[end].bond);
        let mut others = self.ends[end].paths.iter().zip(links);
        let alone = !others.any(|(state, link)| {
            let live = state.as_ref().map(|state| bond.path_state(state.id));
            !link.policy.metered && live == Some(Some(PathState::Live))
        });
        let (bytes, bare) = watched.entry((end, path, alone)).or_default();
        let carried = crate::policy::carried(packet);
        *bare += u64::from(carried.is_empty());
        for (priority, size) in carried {
            bytes[priority] += size as u64;
        }
    }

    /// Both ends learn what a link may carry.
    pub(crate) fn set_policy(&mut self, path: usize, policy: Policy) {
        self.links[path].policy = policy;
        for end in &mut self.ends {
            if let Some(state) = &end.paths[path] {
                end.bond.set_policy(state.id, policy);
            }
        }
    }

    fn arrive(&mut self, parcel: Parcel) {
        let (now, id) = (self.now, parcel.id);
        let end = &mut self.ends[parcel.end];
        let Some(connection) = end.paths[parcel.path].as_mut() else {
            return;
        };
        if connection.id != id {
            return;
        }
        match parcel.thing {
            Thing::Ack(numbers) => {
                let backlogged = end.bond.is_backlogged(id);
                connection.sender.on_ack(now, &numbers, backlogged);
            }
            Thing::Packet(number, packet) => {
                if connection.receiver.on_packet(now, number)
                    && !packet.is_empty()
                    && let Err(violation) = end.bond.handle_input(now, id, packet)
                {
                    self.violations.push(violation);
                }
            }
        }
    }

    fn timers(&mut self) {
        let now = self.now;
        for end in self.ends.iter_mut().filter(|end| end.frozen <= now) {
            if end.bond.poll_timeout().is_some_and(|at| at <= now) {
                end.bond.handle_timeout(now);
            }
            for connection in end.paths.iter_mut().flatten() {
                if connection.sender.timeout().is_some_and(|at| at <= now) {
                    connection.sender.on_timeout(now);
                }
            }
        }
    }

    fn next(&self, end: usize) -> Option<Duration> {
        let end = &self.ends[end];
        if end.frozen > self.now {
            return Some(end.frozen);
        }
        let paths = end.paths.iter().flatten();
        let timers = paths
            .flat_map(|path| [path.sender.timeout(), path.receiver.due])
            .flatten();
        timers.chain(end.bond.poll_timeout()).min()
    }

    /// Runs until a moment.
    pub(crate) fn run(&mut self, until: Duration, owner: &mut dyn Owner) {
        let mut stuck = 0;
        loop {
            let [edge, hub] = &mut self.ends;
            let mut next = until;
            let mut consider = |at: Option<Duration>| next = at.map_or(next, |at| next.min(at));
            consider(owner.act(self.now, [&mut edge.bond, &mut hub.bond]));
            for end in 0..2 {
                if self.ends[end].frozen <= self.now {
                    consider(self.pump(end));
                    while let Some(event) = self.ends[end].bond.poll_event() {
                        owner.event(self.now, end, &mut self.ends[end].bond, event);
                    }
                }
                consider(self.next(end));
                self.most_held = self.most_held.max(self.ends[end].bond.stats().held_bytes);
            }
            consider(self.air.peek().map(|Reverse((at, _))| Duration::from_nanos(*at)));
            if next >= until {
                self.now = until;
                return;
            }
            stuck = if next <= self.now { stuck + 1 } else { 0 };
            assert!(stuck < 10_000, "time stands still at {:?}", self.now);
            self.now = self.now.max(next);
            while let Some(Reverse((at, order))) = self.air.peek().copied()
                && at <= self.now.as_nanos() as u64
            {
                self.air.pop();
                if let Some(parcel) = self.parcels.remove(&order) {
                    let frozen = self.ends[parcel.end].frozen;
                    if frozen > self.now {
                        self.carry(frozen.as_nanos() as u64, parcel);
                    } else {
                        self.arrive(parcel);
                    }
                }
            }
            self.timers();
        }
    }
}
