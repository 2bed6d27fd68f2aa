//! The edge's side of the desired state: what it holds, and what may change it.
//!
//! A deletion needs proof: a Delete that the hub saw, or absence from a snapshot that is complete (count and digest),
//! comes from the API that the objects came from, and is not older than what this edge has committed: not by its
//! resourceVersions, nor by the lineage of its database ([`crate::Lineage`]), which a backup cuts short. Else nothing is
//! touched and the edge is *suspect* until a person decides (`kedge adopt`), or until the API that it knows is back.
//!
//! An API that was older once has lost part of its history: its later resourceVersions prove nothing, however large. That
//! suspicion is durable ([`ReplicaState::forked`]) and only an adoption ends it. An edge that holds nothing has nothing to
//! lose and believes whoever comes.

use std::collections::{BTreeMap, BTreeSet};

use wire::proto::{Apply, Begin, Delete, Descent, Down, Hello, Mark, Place, SnapshotSent, Suspect, down};

use crate::digest::{self, Digest, Entry, triple};
use crate::faults::Faults;
use crate::lineage;
use crate::source::Key;

/// Names that a Suspect lists; more help nobody.
const STOPS: usize = 100;
/// Answers of one session that make no sense before the hub is doubted.
const MISMATCHES: u32 = 3;

/// What the edge's store says about an object.
pub type Held = Entry;

/// What the edge keeps durably beside the objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaState {
    /// uid of namespace kube-system of the API that the objects came from; empty on a new edge.
    pub identity: String,
    /// How old the objects are at least: resourceVersion a kind.
    pub marks: BTreeMap<String, u64>,
    /// Where in the life of the API's database that was. Its resourceVersion also covers what has no mark: Secrets and
    /// ConfigMaps.
    pub place: Place,
    /// Whether a snapshot has ever been completed.
    pub synced: bool,
    /// Why this API's resourceVersions prove nothing any more: it was seen older than this edge.
    pub forked: Option<String>,
}

/// A change that the owner commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Store the object.
    Put {
        /// Which.
        key: Key,
        /// JSON.
        object: bytes::Bytes,
    },
    /// Delete the object.
    Remove {
        /// Which.
        key: Key,
    },
    /// Store the state.
    State(ReplicaState),
}

/// What an item from the hub asks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effect {
    /// To be committed together, before the item is acknowledged.
    pub changes: Vec<Change>,
    /// To be sent in class `control`: a new Hello.
    pub hello: Option<Hello>,
    /// To be sent in class `control`, and shown: the edge does not believe the hub.
    pub suspect: Option<Suspect>,
}

/// The edge's replica.
#[derive(Debug)]
pub struct Replica {
    faults: Faults,
    state: ReplicaState,
    held: BTreeMap<Key, Entry>,
    /// Whether the hub has begun its answer to the last Hello.
    begun: bool,
    suspect: Option<String>,
    /// Times that an answer of the hub did not match in this session.
    mismatches: u32,
}

impl Replica {
    /// What the store holds: state and objects.
    #[must_use]
    pub fn new(state: ReplicaState, held: BTreeMap<Key, Held>, faults: Faults) -> Self {
        Self {
            faults,
            suspect: state.forked.clone(),
            state,
            held,
            begun: false,
            mismatches: 0,
        }
    }

    /// The first word of a session.
    pub fn hello(&mut self) -> Hello {
        self.begun = false;
        Hello {
            identity: self.state.identity.clone(),
            marks: marks(&self.state.marks),
            have: self.held.iter().map(|(key, entry)| digest::short(key, entry)).collect(),
            place: Some(self.state.place),
        }
    }

    /// Why the edge does not believe the hub, while it does not.
    #[must_use]
    pub fn suspicion(&self) -> Option<&str> {
        self.suspect.as_deref()
    }

    /// Whether this session's hub has been judged; until then what was thought of the last one stands.
    #[must_use]
    pub fn has_judged(&self) -> bool {
        self.begun
    }

    /// What it keeps durably.
    #[must_use]
    pub fn state(&self) -> &ReplicaState {
        &self.state
    }

    /// Takes an item of class `desired` (or an Adopt of class `control`).
    pub fn handle(&mut self, down: Down) -> Effect {
        match down.body {
            Some(down::Body::Begin(begin)) => self.begin(begin),
            Some(down::Body::Apply(apply)) if self.believes() => self.apply(apply),
            Some(down::Body::Delete(delete)) if self.believes() => self.delete(&delete),
            Some(down::Body::SnapshotSent(snapshot)) if self.believes() => self.snapshot(snapshot),
            Some(down::Body::Marks(marks)) if self.believes() => self.advance(marks.marks, marks.place),
            Some(down::Body::Adopt(adopt)) => self.adopt(adopt.identity),
            // What a suspect edge is sent is looked at again after the adoption's Hello.
            _ => Effect::default(),
        }
    }

    fn believes(&self) -> bool {
        self.begun && self.suspect.is_none()
    }

    fn begin(&mut self, begin: Begin) -> Effect {
        self.begun = true;
        let offered = by_kind(begin.marks);
        let place = begin.place.unwrap_or_default();
        if self.held.is_empty() {
            self.state = ReplicaState {
                synced: self.state.synced && self.state.identity == begin.identity,
                identity: begin.identity.clone(),
                ..ReplicaState::default()
            };
        }
        if self.state.identity != begin.identity {
            return self.doubt(format!(
                "the hub's API is another one: {} instead of {}",
                begin.identity, self.state.identity
            ));
        }
        if let Some(reason) = self.state.forked.clone() {
            return self.doubt(reason);
        }
        let descent = begin.descent.unwrap_or_default();
        let mine = self.state.place.number;
        if mine != 0 && place.number != 0 && descent.number != mine {
            return self.ask_again("the hub does not say what became of the point that this node has seen");
        }
        if let Some(reason) = self.older(&offered, &place).or_else(|| self.parted(&place, &descent)) {
            self.state.forked = Some(reason.clone());
            let mut effect = self.doubt(reason);
            effect.changes.push(Change::State(self.state.clone()));
            return effect;
        }
        self.suspect = None;
        self.raise(offered, place);
        // Before anything of this state is applied, its marks are durable.
        Effect {
            changes: vec![Change::State(self.state.clone())],
            ..Effect::default()
        }
    }

    /// Why `offered`, or what was seen at `place`, is older than what this edge has.
    fn older(&self, offered: &BTreeMap<String, u64>, place: &Place) -> Option<String> {
        if self.faults.older_snapshot_accepted {
            return None;
        }
        let is_older = |(kind, have): &(&String, &u64)| offered.get(*kind).is_none_or(|rv| rv < have);
        let kind = self.state.marks.iter().find(is_older).map(|(kind, have)| {
            let rv = offered.get(kind).copied().unwrap_or_default();
            (kind.as_str(), rv, *have)
        });
        // A hub that tells no place says nothing of it.
        let seen = self.state.place.revision;
        let whole = (1..seen)
            .contains(&place.revision)
            .then_some(("everything", place.revision, seen));
        let (what, rv, have) = kind.or(whole)?;
        Some(format!(
            "the hub's API is older than this node: {what} at {rv} instead of {have} or later"
        ))
    }

    /// Why the API's database, of the same identity, is not what became of the one that this edge has seen.
    fn parted(&self, place: &Place, descent: &Descent) -> Option<String> {
        if self.faults.lineage_ignored {
            return None;
        }
        let seen = self.state.place;
        let newest = self.state.marks.values().copied().fold(seen.revision, u64::max);
        lineage::parted(&seen, newest, place, descent)
    }

    fn raise(&mut self, offered: BTreeMap<String, u64>, place: Place) -> bool {
        let before = self.state.place;
        let mut moved = false;
        for (kind, rv) in offered {
            let have = self.state.marks.entry(kind).or_default();
            moved |= rv > *have;
            *have = rv.max(*have);
        }
        if place.number != 0 {
            self.state.place = place;
        }
        self.state.place.revision = place.revision.max(before.revision);
        moved || self.state.place != before
    }

    /// An answer does not match: a new Hello, and doubt when that does not help.
    fn ask_again(&mut self, reason: &str) -> Effect {
        self.mismatches += 1;
        if self.mismatches > MISMATCHES {
            return self.doubt(reason.into());
        }
        Effect {
            hello: Some(self.hello()),
            ..Effect::default()
        }
    }

    fn doubt(&mut self, reason: String) -> Effect {
        self.suspect = Some(reason.clone());
        let pods = self.held.keys().filter(|key| key.0 == "Pod").take(STOPS);
        let stops = pods.map(|key| format!("{}/{}", key.1, key.2)).collect();
        Effect {
            suspect: Some(Suspect { reason, stops }),
            ..Effect::default()
        }
    }

    fn apply(&mut self, apply: Apply) -> Effect {
        let (Some(key), Ok(version)) = (apply.key, Digest::try_from(apply.version.as_ref())) else {
            return Effect::default();
        };
        let (key, entry) = (
            triple(&key),
            Entry {
                uid: apply.uid,
                version,
            },
        );
        if self.held.get(&key) == Some(&entry) {
            return Effect::default();
        }
        self.held.insert(key.clone(), entry);
        Effect {
            changes: vec![Change::Put {
                key,
                object: apply.object,
            }],
            ..Effect::default()
        }
    }

    fn delete(&mut self, delete: &Delete) -> Effect {
        let Some(key) = delete.key.as_ref().map(triple) else {
            return Effect::default();
        };
        if self.held.get(&key).is_none_or(|entry| entry.uid != delete.uid) {
            return Effect::default();
        }
        self.held.remove(&key);
        Effect {
            changes: vec![Change::Remove { key }],
            ..Effect::default()
        }
    }

    fn snapshot(&mut self, snapshot: SnapshotSent) -> Effect {
        let drop: BTreeSet<u64> = snapshot.drop.into_iter().collect();
        let offered = by_kind(snapshot.marks);
        let place = snapshot.place.unwrap_or_default();
        let known = snapshot.identity == self.state.identity && self.older(&offered, &place).is_none();
        let rest: BTreeMap<_, _> = self
            .held
            .iter()
            .filter(|(key, entry)| !drop.contains(&digest::short(key, entry)))
            .collect();
        let complete = known
            && rest.len() as u64 == snapshot.count
            && digest::set(rest.iter().map(|(k, e)| (*k, *e))).as_slice() == snapshot.digest.as_ref();
        if !complete && !self.faults.count_ignored {
            return self.ask_again("the hub's snapshots are not complete");
        }
        let rest: BTreeSet<Key> = rest.into_keys().cloned().collect();
        let removed: Vec<Key> = self.held.keys().filter(|key| !rest.contains(*key)).cloned().collect();
        self.held.retain(|key, _| rest.contains(key));
        self.raise(offered, place);
        self.state.synced = true;
        let mut changes: Vec<Change> = removed.into_iter().map(|key| Change::Remove { key }).collect();
        changes.push(Change::State(self.state.clone()));
        Effect {
            changes,
            ..Effect::default()
        }
    }

    fn advance(&mut self, offered: Vec<Mark>, place: Option<Place>) -> Effect {
        let moved = self.raise(by_kind(offered), place.unwrap_or_default());
        Effect {
            changes: moved.then(|| Change::State(self.state.clone())).into_iter().collect(),
            ..Effect::default()
        }
    }

    /// A person says that `identity` is the truth: the next Hello starts from no marks and no place.
    fn adopt(&mut self, identity: String) -> Effect {
        self.suspect = None;
        self.mismatches = 0;
        self.state = ReplicaState {
            identity,
            synced: self.state.synced,
            ..ReplicaState::default()
        };
        let state = Change::State(self.state.clone());
        Effect {
            changes: vec![state],
            hello: Some(self.hello()),
            suspect: None,
        }
    }
}

fn marks(marks: &BTreeMap<String, u64>) -> Vec<Mark> {
    marks
        .iter()
        .map(|(kind, rv)| Mark {
            kind: kind.clone(),
            resource_version: *rv,
        })
        .collect()
}

fn by_kind(marks: Vec<Mark>) -> BTreeMap<String, u64> {
    marks.into_iter().map(|m| (m.kind, m.resource_version)).collect()
}
