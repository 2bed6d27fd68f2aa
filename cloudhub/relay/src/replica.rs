//! The edge's side of the desired state: what it holds, and what may change it.
//!
//! A deletion needs proof: a Delete that the hub saw, or absence from a snapshot that is complete (count and digest),
//! comes from the API that the objects came from, and is not older than what this edge has committed. Else nothing is
//! touched and the edge is *suspect* until a person decides (`kedge adopt`), or until the API that it knows is back.
//!
//! An API that was older once has lost part of its history: its later resourceVersions prove nothing, however large. That
//! suspicion is durable ([`ReplicaState::forked`]) and only an adoption ends it. An edge that holds nothing has nothing to
//! lose and believes whoever comes.

use std::collections::{BTreeMap, BTreeSet};

use wire::proto::{Apply, Delete, Down, Hello, Mark, SnapshotSent, Suspect, down};

use crate::digest::{self, Digest, Entry, triple};
use crate::faults::Faults;
use crate::source::Key;

/// Names that a Suspect lists; more help nobody.
const STOPS: usize = 100;

/// What the edge's store says about an object.
pub type Held = Entry;

/// What the edge keeps durably beside the objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaState {
    /// uid of namespace kube-system of the API that the objects came from; empty on a new edge.
    pub identity: String,
    /// How old the objects are at least: resourceVersion a kind.
    pub marks: BTreeMap<String, u64>,
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
    /// Times that a snapshot did not match in this session.
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
            Some(down::Body::Begin(begin)) => self.begin(begin.identity, begin.marks),
            Some(down::Body::Apply(apply)) if self.believes() => self.apply(apply),
            Some(down::Body::Delete(delete)) if self.believes() => self.delete(&delete),
            Some(down::Body::SnapshotSent(snapshot)) if self.believes() => self.snapshot(snapshot),
            Some(down::Body::Marks(marks)) if self.believes() => self.advance(marks.marks),
            Some(down::Body::Adopt(adopt)) => self.adopt(adopt.identity),
            // What a suspect edge is sent is looked at again after the adoption's Hello.
            _ => Effect::default(),
        }
    }

    fn believes(&self) -> bool {
        self.begun && self.suspect.is_none()
    }

    fn begin(&mut self, identity: String, marks: Vec<Mark>) -> Effect {
        self.begun = true;
        let offered = by_kind(marks);
        if self.held.is_empty() {
            self.state = ReplicaState {
                synced: self.state.synced && self.state.identity == identity,
                identity: identity.clone(),
                ..ReplicaState::default()
            };
        }
        if self.state.identity != identity {
            return self.doubt(format!(
                "the hub's API is another one: {identity} instead of {}",
                self.state.identity
            ));
        }
        if let Some(reason) = self.state.forked.clone() {
            return self.doubt(reason);
        }
        if let Some(reason) = self.older(&offered) {
            self.state.forked = Some(reason.clone());
            let mut effect = self.doubt(reason);
            effect.changes.push(Change::State(self.state.clone()));
            return effect;
        }
        self.suspect = None;
        self.raise(offered);
        // Before anything of this state is applied, its marks are durable.
        Effect {
            changes: vec![Change::State(self.state.clone())],
            ..Effect::default()
        }
    }

    /// Why `offered` is older than what this edge has.
    fn older(&self, offered: &BTreeMap<String, u64>) -> Option<String> {
        let is_older = |(kind, have): &(&String, &u64)| offered.get(*kind).is_none_or(|rv| rv < have);
        let (kind, have) = self.state.marks.iter().find(is_older)?;
        let rv = offered.get(kind).copied().unwrap_or_default();
        let reason = format!("the hub's API is older than this node: {kind} at {rv} instead of {have} or later");
        Some(reason).filter(|_| !self.faults.older_snapshot_accepted)
    }

    fn raise(&mut self, offered: BTreeMap<String, u64>) -> bool {
        let mut moved = false;
        for (kind, rv) in offered {
            let have = self.state.marks.entry(kind).or_default();
            moved |= rv > *have;
            *have = rv.max(*have);
        }
        moved
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
        let known = snapshot.identity == self.state.identity && self.older(&offered).is_none();
        let rest: BTreeMap<_, _> = self
            .held
            .iter()
            .filter(|(key, entry)| !drop.contains(&digest::short(key, entry)))
            .collect();
        let complete = known
            && rest.len() as u64 == snapshot.count
            && digest::set(rest.iter().map(|(k, e)| (*k, *e))).as_slice() == snapshot.digest.as_ref();
        if !complete && !self.faults.count_ignored {
            self.mismatches += 1;
            if self.mismatches > 3 {
                return self.doubt("the hub's snapshots are not complete".into());
            }
            return Effect {
                hello: Some(self.hello()),
                ..Effect::default()
            };
        }
        let rest: BTreeSet<Key> = rest.into_keys().cloned().collect();
        let removed: Vec<Key> = self.held.keys().filter(|key| !rest.contains(*key)).cloned().collect();
        self.held.retain(|key, _| rest.contains(key));
        self.raise(offered);
        self.state.synced = true;
        let mut changes: Vec<Change> = removed.into_iter().map(|key| Change::Remove { key }).collect();
        changes.push(Change::State(self.state.clone()));
        Effect {
            changes,
            ..Effect::default()
        }
    }

    fn advance(&mut self, offered: Vec<Mark>) -> Effect {
        let moved = self.raise(by_kind(offered));
        Effect {
            changes: moved.then(|| Change::State(self.state.clone())).into_iter().collect(),
            ..Effect::default()
        }
    }

    /// A person says that `identity` is the truth: the next Hello starts from no marks.
    fn adopt(&mut self, identity: String) -> Effect {
        self.suspect = None;
        self.mismatches = 0;
        self.state = ReplicaState {
            identity,
            marks: BTreeMap::new(),
            synced: self.state.synced,
            forked: None,
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
