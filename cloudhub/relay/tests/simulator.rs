//! Hub and edge in virtual time over a bad path: loss, duplicates, disorder, crashes and restarts of either end.
//!
//! The checker looks at every step (deletions, acknowledgements, expiry, order) and, when the chaos is over, at what must
//! have happened. Each named fault is switched on once to see that the checker finds it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use relay::{
    Change, Event, Faults, Held, Item, Key, Lineage, Link, Replica, ReplicaState, Source, SourceObject, SourceView,
    object_version,
};
use wire::proto::{Adopt, Down, Up, down, up};
use wire::{ClassId, Now, decode_down, decode_up, encode};

const STEP: Duration = Duration::from_millis(20);

#[derive(Clone, Default)]
struct World {
    identity: String,
    rv: u64,
    /// The mark of Pods; Secrets have none.
    mark: u64,
    lineage: Lineage,
    objects: BTreeMap<Key, Arc<SourceObject>>,
    deleted: BTreeSet<String>,
}

impl World {
    fn view(&self) -> SourceView {
        SourceView {
            identity: self.identity.clone(),
            marks: BTreeMap::from([("Pod".to_owned(), self.mark)]),
            revision: self.rv,
            lineage: Arc::new(self.lineage.clone()),
            objects: self
                .objects
                .iter()
                .map(|(key, object)| (Arc::new(key.clone()), object.clone()))
                .collect(),
        }
    }

    /// Its API starts, and says so in its first write.
    fn start(&mut self, rng: &mut StdRng) {
        self.count(1);
        self.lineage.grow(rng.random(), self.rv);
    }

    /// A hub above a cluster adds a point.
    fn point(&mut self, rng: &mut StdRng) {
        self.count(1);
        self.lineage.grow(rng.random(), 0);
    }

    fn count(&mut self, writes: u64) {
        self.rv += writes;
        self.mark = self.rv;
    }

    fn change(&mut self, rng: &mut StdRng) {
        let kind = if rng.random_range(0..3) == 0 { "Secret" } else { "Pod" };
        self.change_of(kind, rng);
    }

    fn change_of(&mut self, kind: &str, rng: &mut StdRng) {
        self.rv += 1;
        if kind == "Pod" {
            self.mark = self.rv;
        }
        let name = format!("{}-{}", kind.to_lowercase(), rng.random_range(0..6));
        let key = (kind.to_owned(), "default".to_owned(), name);
        match rng.random_range(0..4) {
            0 => {
                if let Some(old) = self.objects.remove(&key) {
                    self.deleted.insert(old.uid.clone());
                }
            }
            _ => {
                let uid = self
                    .objects
                    .get(&key)
                    .map_or_else(|| format!("uid-{}-{}", self.identity, self.rv), |o| o.uid.clone());
                let size = if rng.random_range(0..20) == 0 { 150_000 } else { 30 };
                let bytes = Bytes::from(format!("{uid} {} {}", self.rv, "x".repeat(size)));
                self.objects.insert(
                    key,
                    Arc::new(SourceObject {
                        uid,
                        version: object_version(&bytes),
                        bytes,
                    }),
                );
            }
        }
    }
}

/// The edge's disk.
#[derive(Clone, Default)]
struct Disk {
    state: ReplicaState,
    objects: BTreeMap<Key, (Held, Bytes)>,
}

struct Edge {
    link: Link,
    replica: Replica,
    /// Received but not committed: (seq, changes).
    uncommitted: VecDeque<(u64, Vec<Change>)>,
    committed: BTreeSet<u64>,
    /// What the last hub said that is waiting in class control.
    control: VecDeque<Bytes>,
}

struct Hub {
    link: Link,
    source: Option<Source>,
    token: u64,
}

struct Simulation {
    rng: StdRng,
    now: Duration,
    faults: Faults,
    world: World,
    backup: World,
    disk: Disk,
    edge: Edge,
    hub: Hub,
    /// (deliver at, to the hub, message)
    air: Vec<(Duration, bool, Bytes)>,
    loss: f64,
    status: BTreeMap<String, u64>,
    status_seen: BTreeMap<String, u64>,
    status_next: u64,
    commands: u64,
    commands_done: BTreeSet<u64>,
    deadlines: BTreeMap<u64, Duration>,
    suspicions: u64,
    /// Faults may damage what only the hub's side can do: it sends wrong counts.
    lie_about_count: bool,
    violations: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World {
            identity: "a".into(),
            rv: 1,
            mark: 1,
            ..World::default()
        };
        world.start(&mut rng);
        let disk = Disk::default();
        let mut simulation = Self {
            rng,
            now: Duration::from_secs(1),
            faults,
            backup: world.clone(),
            world,
            edge: Edge::start(&disk, faults),
            disk,
            hub: Hub::start(faults),
            air: Vec::new(),
            loss: 0.2,
            status: BTreeMap::new(),
            status_seen: BTreeMap::new(),
            status_next: 1,
            commands: 0,
            commands_done: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            suspicions: 0,
            lie_about_count: false,
            violations: Vec::new(),
        };
        simulation.session();
        simulation
    }

    fn at(&self) -> Now {
        Now::at(self.now)
    }

    /// A new tunnel session: both ends start their links anew; nothing of the old one arrives.
    fn session(&mut self) {
        self.air.clear();
        self.edge.link = Link::new(self.faults);
        self.edge.uncommitted.clear();
        self.edge.committed.clear();
        self.edge.control.clear();
        self.hub = Hub::start(self.faults);
        self.edge.replica = replica(&self.disk, self.faults);
        let hello = encode(&Up {
            body: Some(up::Body::Hello(self.edge.replica.hello())),
        });
        self.edge
            .link
            .send(self.at(), Item::new(ClassId::CONTROL, hello))
            .unwrap();
        self.status_seen.clear();
        for (key, value) in self.status.clone() {
            self.send_status(&key, value);
        }
    }

    fn send_status(&mut self, key: &str, value: u64) {
        let now = self.at();
        let _ = self.edge.link.send(
            now,
            Item {
                key: key.into(),
                token: value,
                ..Item::new(ClassId::STATUS, Bytes::from(value.to_string()))
            },
        );
    }

    fn step(&mut self, chaos: bool) {
        self.now += STEP;
        if chaos {
            self.disturb();
        }
        self.hub_side();
        self.edge_side();
        self.fly();
    }

    fn disturb(&mut self) {
        match self.rng.random_range(0..400) {
            0..40 => {
                self.world.change(&mut self.rng);
                self.show_world();
            }
            40..60 => {
                let key = format!("s{}", self.rng.random_range(0..3));
                let value = self.status_next;
                self.status_next += 1;
                self.status.insert(key.clone(), value);
                self.send_status(&key, value);
            }
            60..66 => {
                self.commands += 1;
                let (token, ttl) = (self.commands, Duration::from_millis(self.rng.random_range(100..2000)));
                let now = self.at();
                if self
                    .hub
                    .link
                    .send(
                        now,
                        Item {
                            token,
                            ttl: Some(ttl),
                            ..Item::new(ClassId::COMMAND, Bytes::from(token.to_string()))
                        },
                    )
                    .is_ok()
                {
                    self.deadlines.insert(token, self.now + ttl);
                }
            }
            66 => self.session(),
            69 => {
                self.world.start(&mut self.rng);
                self.session();
            }
            70 => {
                self.world.point(&mut self.rng);
                self.show_world();
            }
            68 => {
                // The hub lost track and starts over within the session.
                let view = self.world.view();
                if let Some(source) = &mut self.hub.source {
                    source.restart(view);
                }
            }
            67 => self.loss = [0.0, 0.2, 0.6, 1.0][self.rng.random_range(0..4)],
            _ => {}
        }
    }

    fn show_world(&mut self) {
        if let Some(source) = &mut self.hub.source {
            let marks_due = self.rng.random_bool(0.5);
            source.set_view(self.world.view(), marks_due);
        }
    }

    fn hub_side(&mut self) {
        let now = self.at();
        while let Some(event) = self.hub.link.poll_event() {
            match event {
                Event::Received {
                    class, seq, payload, ..
                } => self.hub_receives(class, seq, payload),
                Event::Acked {
                    class: ClassId::DESIRED,
                    token,
                } if !self.edge.committed.contains(&token) => {
                    self.violations
                        .push(format!("item {token} is acknowledged and not in the store"));
                }
                _ => {}
            }
        }
        while self.hub.link.has_room(ClassId::DESIRED)
            && let Some((key, mut down)) = self.hub.source.as_mut().and_then(Source::poll)
        {
            if let Some(down::Body::SnapshotSent(snapshot)) = &mut down.body
                && self.lie_about_count
            {
                snapshot.drop.extend(self.disk.objects.keys().take(1).map(|_| 0));
                snapshot.count += 1;
                snapshot.digest = vec![0; 32].into();
            }
            self.hub.token += 1;
            self.hub
                .link
                .send(
                    now,
                    Item {
                        key,
                        token: self.hub.token,
                        ..Item::new(ClassId::DESIRED, encode(&down))
                    },
                )
                .unwrap();
        }
    }

    fn hub_receives(&mut self, class: ClassId, seq: u64, payload: Bytes) {
        match class {
            ClassId::CONTROL => match decode_up(payload).unwrap() {
                Some(up::Body::Hello(hello)) => {
                    let mut view = self.world.view();
                    if self.lie_about_count {
                        view.objects.clear();
                    }
                    self.hub.source = Some(Source::new(&hello, view));
                }
                Some(up::Body::Suspect(_)) => self.suspicions += 1,
                _ => {}
            },
            ClassId::STATUS => {
                self.hub.link.commit(class, seq);
                let value: u64 = str::from_utf8(&payload).unwrap().parse().unwrap();
                let key = self.status.iter().find(|(_, v)| **v == value).map(|(k, _)| k.clone());
                if let Some(key) = key {
                    self.status_seen.insert(key, value);
                } else if self.status_seen.values().any(|seen| *seen > value) && self.faults.superseded_last {
                    // Seen below: an older value after a newer one of the same key.
                    self.violations.push(format!("status {value} came after a newer one"));
                }
            }
            _ => {}
        }
    }

    fn edge_side(&mut self) {
        while let Some(event) = self.edge.link.poll_event() {
            if let Event::Received {
                class, seq, payload, ..
            } = event
            {
                match class {
                    ClassId::DESIRED => self.edge_receives(seq, payload),
                    ClassId::CONTROL => self.edge.control.push_back(payload),
                    ClassId::COMMAND => {
                        self.edge_commanded(&payload);
                        self.edge.link.commit(class, seq);
                    }
                    _ => {}
                }
            }
        }
        while let Some(payload) = self.edge.control.pop_front() {
            let effect = self.edge.replica.handle(Down {
                body: decode_down(payload).unwrap(),
            });
            self.write(effect.changes.clone());
            self.answer(effect);
        }
        // The disk is sometimes slow.
        if self.rng.random_bool(0.7) {
            while let Some((seq, changes)) = self.edge.uncommitted.pop_front() {
                self.write(changes);
                self.edge.committed.insert(seq);
                self.edge.link.commit(ClassId::DESIRED, seq);
            }
        }
    }

    fn edge_receives(&mut self, seq: u64, payload: Bytes) {
        let effect = self.edge.replica.handle(Down {
            body: decode_down(payload).unwrap(),
        });
        self.edge.uncommitted.push_back((seq, effect.changes.clone()));
        self.answer(effect);
    }

    fn answer(&mut self, effect: relay::Effect) {
        let now = self.at();
        for body in effect
            .hello
            .map(up::Body::Hello)
            .into_iter()
            .chain(effect.suspect.map(up::Body::Suspect))
        {
            let _ = self
                .edge
                .link
                .send(now, Item::new(ClassId::CONTROL, encode(&Up { body: Some(body) })));
        }
    }

    fn edge_commanded(&mut self, payload: &Bytes) {
        let token: u64 = str::from_utf8(payload).unwrap().parse().unwrap();
        // A message is at most 200 ms on its way, and its time to live is counted from its arrival.
        if self.deadlines[&token] + Duration::from_millis(220) < self.now {
            self.violations
                .push(format!("command {token} is delivered after its deadline"));
        }
        if !self.commands_done.insert(token) {
            self.violations.push(format!("command {token} is delivered twice"));
        }
    }

    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put { key, object } => {
                    let uid = str::from_utf8(&object).unwrap().split(' ').next().unwrap().to_owned();
                    let held = Held {
                        uid,
                        version: object_version(&object),
                    };
                    if self.disk.objects.get(&key).is_some_and(|(have, _)| *have == held) {
                        self.violations.push(format!("{key:?} is applied twice"));
                    }
                    self.disk.objects.insert(key, (held, object));
                }
                Change::Remove { key } => {
                    let (held, _) = self.disk.objects.remove(&key).expect("what is removed was there");
                    if !self.world.deleted.contains(&held.uid) {
                        self.violations
                            .push(format!("{key:?} {} is removed without proof", held.uid));
                    }
                }
                Change::State(state) => self.disk.state = state,
            }
        }
    }

    fn fly(&mut self) {
        let now = self.at();
        for to_hub in [true, false] {
            loop {
                let link = if to_hub {
                    &mut self.edge.link
                } else {
                    &mut self.hub.link
                };
                let Some(transmit) = link.poll_transmit(now) else { break };
                assert!(transmit.message.len() <= wire::MAX_MESSAGE);
                for _ in 0..transmit.copies + u8::from(self.rng.random_bool(0.1)) {
                    if !self.rng.random_bool(self.loss) {
                        let delay = Duration::from_millis(self.rng.random_range(1..200));
                        self.air.push((self.now + delay, to_hub, transmit.message.clone()));
                    }
                }
            }
        }
        let (due, rest) = std::mem::take(&mut self.air)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| *at <= self.now);
        self.air = rest;
        for (_, to_hub, message) in due {
            let link = if to_hub {
                &mut self.hub.link
            } else {
                &mut self.edge.link
            };
            link.handle_message(now, message).unwrap();
        }
    }

    /// Chaos, then a whole path: everything must arrive in bounded time.
    fn run(&mut self) {
        for _ in 0..1500 {
            self.step(true);
        }
        self.settle();
        if self.suspicions > 0 {
            self.violations.push("an API that lost nothing is not believed".into());
        }
    }

    fn settle(&mut self) {
        self.loss = 0.05;
        self.show_world();
        for _ in 0..3000 {
            self.step(false);
            if self.is_settled() {
                break;
            }
        }
        let (have, want) = (self.disk_view(), self.world_view());
        if have != want {
            self.violations
                .push(format!("the edge holds {have:?} and not {want:?}"));
        }
        if self.status_seen != self.status {
            self.violations.push(format!(
                "the hub knows status {:?} and not {:?}",
                self.status_seen, self.status
            ));
        }
        if !self.hub.link.is_idle() || !self.edge.link.is_idle() {
            self.violations.push("something is never acknowledged".into());
        }
    }

    fn is_settled(&self) -> bool {
        self.disk_view() == self.world_view()
            && self.status_seen == self.status
            && self.hub.source.as_ref().is_some_and(Source::is_done)
            && self.hub.link.is_idle()
            && self.edge.link.is_idle()
    }

    fn disk_view(&self) -> BTreeMap<Key, String> {
        self.disk
            .objects
            .iter()
            .map(|(key, (held, object))| (key.clone(), format!("{} {}", held.uid, object.len())))
            .collect()
    }

    fn world_view(&self) -> BTreeMap<Key, String> {
        self.world
            .objects
            .iter()
            .map(|(key, o)| (key.clone(), format!("{} {}", o.uid, o.bytes.len())))
            .collect()
    }
}

impl Edge {
    fn start(disk: &Disk, faults: Faults) -> Self {
        Self {
            link: Link::new(faults),
            replica: replica(disk, faults),
            uncommitted: VecDeque::new(),
            committed: BTreeSet::new(),
            control: VecDeque::new(),
        }
    }
}

fn replica(disk: &Disk, faults: Faults) -> Replica {
    let held = disk
        .objects
        .iter()
        .map(|(key, (held, _))| (key.clone(), held.clone()))
        .collect();
    Replica::new(disk.state.clone(), held, faults)
}

impl Hub {
    fn start(faults: Faults) -> Self {
        Self {
            link: Link::new(faults),
            source: None,
            token: 0,
        }
    }
}

fn run(seed: u64, faults: Faults) -> Vec<String> {
    let mut simulation = Simulation::new(seed, faults);
    simulation.run();
    simulation.violations
}

/// Seeds until one shows a violation.
fn caught(faults: Faults, check: impl Fn(u64, Faults) -> Vec<String>) -> Vec<String> {
    (0..200)
        .map(|seed| check(seed, faults))
        .find(|v| !v.is_empty())
        .unwrap_or_default()
}

#[test]
fn nothing_is_lost_doubled_or_deleted_without_proof_and_everything_arrives() {
    for seed in 0..300 {
        let violations = run(seed, Faults::default());
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

/// How the edge meets the API that was restored from a backup.
#[derive(Clone, Copy, PartialEq)]
enum Meets {
    /// In a new session.
    NewSession,
    /// In the session that is up.
    SameSession,
    /// In new sessions; the API has moved on past where it was.
    MovedOn,
    /// When the API, started anew, has counted past all that the edge saw.
    CountedPast,
    /// The same above a cluster, where no start writes anything first: after the backup a hub had added a point.
    PointLost,
}

/// Puts the backup back, and what the API does before the edge meets it.
fn restore(simulation: &mut Simulation, meets: Meets) {
    simulation.world = World {
        deleted: simulation.world.deleted.clone(),
        ..simulation.backup.clone()
    };
    match meets {
        Meets::CountedPast => {
            simulation.world.start(&mut simulation.rng);
            simulation.world.count(1000);
            simulation.world.start(&mut simulation.rng);
        }
        Meets::PointLost => {
            simulation.world.count(1000);
            simulation.world.point(&mut simulation.rng);
        }
        _ => {}
    }
}

/// A restored backup: an API that is the same and older, in which some objects are missing.
fn restored(seed: u64, faults: Faults, meets: Meets) -> Vec<String> {
    let mut simulation = Simulation::new(seed, faults);
    for _ in 0..5 {
        simulation.world.change(&mut simulation.rng);
    }
    // What comes after the backup arrives live, not in a snapshot.
    simulation.settle();
    simulation.backup = simulation.world.clone();
    if meets == Meets::PointLost {
        simulation.world.point(&mut simulation.rng);
    }
    while simulation.world.rv < simulation.backup.rv + 20
        || !simulation
            .world
            .objects
            .keys()
            .any(|key| !simulation.backup.objects.contains_key(key))
    {
        simulation.world.change(&mut simulation.rng);
    }
    simulation.settle();
    let before = simulation.disk_view();
    restore(&mut simulation, meets);
    if meets == Meets::SameSession {
        let view = simulation.world.view();
        simulation.hub.source.as_mut().unwrap().restart(view);
    } else {
        simulation.session();
    }
    for _ in 0..500 {
        simulation.step(false);
    }
    if meets == Meets::MovedOn {
        simulation.world.count(1000);
        simulation.show_world();
        for _ in 0..500 {
            simulation.step(false);
        }
        simulation.session();
        for _ in 0..500 {
            simulation.step(false);
        }
    }
    if simulation.disk_view() != before {
        simulation.violations.push("an older snapshot changed the edge".into());
    }
    if simulation.suspicions == 0 && simulation.faults == Faults::default() {
        simulation
            .violations
            .push("the edge does not say that it is suspect".into());
    }
    simulation.violations
}

#[test]
fn a_restored_api_changes_nothing_however_the_edge_meets_it() {
    for seed in 0..25 {
        for meets in [
            Meets::NewSession,
            Meets::SameSession,
            Meets::MovedOn,
            Meets::CountedPast,
            Meets::PointLost,
        ] {
            assert_eq!(
                restored(seed, Faults::default(), meets),
                Vec::<String>::new(),
                "seed {seed}"
            );
        }
    }
}

/// Only Secrets changed since the backup: no mark of their kind says so.
#[test]
fn a_restored_api_reverts_no_secret() {
    for seed in 0..25 {
        let mut simulation = Simulation::new(seed, Faults::default());
        for _ in 0..5 {
            simulation.world.change(&mut simulation.rng);
        }
        simulation.settle();
        simulation.backup = simulation.world.clone();
        while simulation.world.objects == simulation.backup.objects {
            simulation.world.change_of("Secret", &mut simulation.rng);
        }
        simulation.settle();
        let before = simulation.disk.objects.clone();
        simulation.world = World {
            deleted: simulation.world.deleted.clone(),
            ..simulation.backup.clone()
        };
        simulation.session();
        for _ in 0..500 {
            simulation.step(false);
        }
        assert!(simulation.disk.objects == before, "seed {seed}");
        assert!(
            simulation.suspicions > 0 && simulation.violations.is_empty(),
            "seed {seed}"
        );
    }
}

/// The last object that was applied before the session died and the API was restored was in no snapshot and after no mark.
#[test]
fn an_object_never_comes_without_the_mark_that_protects_it() {
    for seed in 0..60 {
        let mut simulation = Simulation::new(seed, Faults::default());
        simulation.world.change(&mut simulation.rng);
        simulation.settle();
        simulation.backup = simulation.world.clone();
        while simulation
            .world
            .objects
            .keys()
            .all(|key| simulation.backup.objects.contains_key(key))
        {
            simulation.world.change(&mut simulation.rng);
        }
        // In the middle of it the session dies: in half of the runs before the new snapshot, in half of them live.
        if seed % 2 == 0 {
            simulation.session();
        } else {
            simulation.show_world();
        }
        for _ in 0..simulation.rng.random_range(1..60) {
            simulation.step(false);
        }
        let before = simulation.disk_view();
        simulation.world = World {
            deleted: simulation.world.deleted.clone(),
            ..simulation.backup.clone()
        };
        simulation.session();
        for _ in 0..500 {
            simulation.step(false);
        }
        assert_eq!(
            simulation.violations,
            Vec::<String>::new(),
            "seed {seed}: had {before:?}"
        );
    }
}

#[test]
fn another_api_changes_nothing_until_it_is_adopted() {
    let mut simulation = Simulation::new(1, Faults::default());
    while simulation.world.objects.is_empty() {
        simulation.world.change(&mut simulation.rng);
    }
    simulation.settle();
    let before = simulation.disk_view();
    // A new and empty API.
    let deleted = simulation
        .disk
        .objects
        .values()
        .map(|(held, _)| held.uid.clone())
        .collect();
    simulation.world = World {
        identity: "b".into(),
        rv: 1,
        mark: 1,
        ..World::default()
    };
    simulation.session();
    for _ in 0..500 {
        simulation.step(false);
    }
    assert_eq!(simulation.disk_view(), before);
    assert!(simulation.edge.replica.suspicion().unwrap().contains("another one"));
    assert!(simulation.suspicions > 0 && simulation.violations.is_empty());
    // A person adopts it.
    simulation.world.deleted = deleted;
    let adopt = encode(&Down {
        body: Some(down::Body::Adopt(Adopt { identity: "b".into() })),
    });
    let now = simulation.at();
    simulation
        .hub
        .link
        .send(now, Item::new(ClassId::CONTROL, adopt))
        .unwrap();
    simulation.settle();
    assert_eq!(simulation.violations, Vec::<String>::new());
    assert!(
        simulation.disk_view().is_empty(),
        "an honest empty snapshot deletes the last one"
    );
}

/// A hub that sends an incomplete snapshot.
fn miscounted(seed: u64, faults: Faults) -> Vec<String> {
    let mut simulation = Simulation::new(seed, faults);
    for _ in 0..12 {
        simulation.world.change(&mut simulation.rng);
    }
    simulation.settle();
    let before = simulation.disk_view();
    simulation.lie_about_count = true;
    simulation.session();
    for _ in 0..500 {
        simulation.step(false);
    }
    if simulation.disk_view() != before {
        simulation
            .violations
            .push("an incomplete snapshot changed the edge".into());
    }
    simulation.violations
}

#[test]
fn an_incomplete_snapshot_deletes_nothing() {
    for seed in 0..20 {
        assert_eq!(miscounted(seed, Faults::default()), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn the_checker_catches_every_fault() {
    let faults = Faults {
        ack_before_commit: true,
        ..Faults::default()
    };
    assert!(caught(faults, run).iter().any(|v| v.contains("not in the store")));
    let faults = Faults {
        count_ignored: true,
        ..Faults::default()
    };
    assert!(
        caught(faults, miscounted)
            .iter()
            .any(|v| v.contains("without proof") || v.contains("incomplete snapshot"))
    );
    let faults = Faults {
        older_snapshot_accepted: true,
        ..Faults::default()
    };
    assert!(
        caught(faults, |seed, faults| restored(seed, faults, Meets::NewSession))
            .iter()
            .any(|v| v.contains("without proof") || v.contains("older snapshot"))
    );
    let faults = Faults {
        lineage_ignored: true,
        ..Faults::default()
    };
    for meets in [Meets::CountedPast, Meets::PointLost] {
        assert!(
            caught(faults, |seed, faults| restored(seed, faults, meets))
                .iter()
                .any(|v| v.contains("without proof") || v.contains("older snapshot"))
        );
    }
    let faults = Faults {
        expired_delivered: true,
        ..Faults::default()
    };
    assert!(caught(faults, run).iter().any(|v| v.contains("after its deadline")));
    let faults = Faults {
        superseded_last: true,
        ..Faults::default()
    };
    assert!(caught(faults, run).iter().any(|v| v.contains("status")));
}
