//! The edge's side of the desired state: what it holds, and what may change it.
//!
//! A deletion needs proof: a Delete that the hub saw, or absence from a snapshot that is complete (count and digest),
//! comes from the API that the objects came from, and is not older than what this edge has committed. Else nothing is
//! touched and the edge is *suspect* until a person decides (`kedge adopt`).

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
    /// The marks that this session's snapshot promises.
    begun: Option<ReplicaState>,
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
            state,
            held,
            begun: None,
            suspect: None,
            mismatches: 0,
        }
    }

    /// The first word of a session.
    pub fn hello(&mut self) -> Hello {
        self.begun = None;
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

    /// What it keeps durably.
    #[must_use]
    pub fn state(&self) -> &ReplicaState {
        &self.state
    }

    /// Takes an item of class `desired` (or an Adopt of class `control`).
    pub fn handle(&mut self, down: Down) -> Effect {
        match down.body {
            Some(down::Body::Begin(begin)) => self.begin(&begin.identity, &begin.marks),
            Some(down::Body::Apply(apply)) if self.believes() => self.apply(apply),
            Some(down::Body::Delete(delete)) if self.believes() => self.delete(&delete),
            Some(down::Body::SnapshotSent(snapshot)) if self.believes() => self.snapshot(snapshot),
            Some(down::Body::Marks(marks)) if self.believes() && self.state.synced => self.advance(&marks.marks),
            Some(down::Body::Adopt(adopt)) => self.adopt(adopt.identity),
            // What a suspect edge is sent is looked at again after the adoption's Hello.
            _ => Effect::default(),
        }
    }

    fn believes(&self) -> bool {
        self.begun.is_some() && self.suspect.is_none()
    }

    fn begin(&mut self, identity: &str, offered: &[Mark]) -> Effect {
        let offered: BTreeMap<_, _> = offered.iter().map(|m| (m.kind.clone(), m.resource_version)).collect();
        let older = self
            .state
            .marks
            .iter()
            .find(|(kind, have)| offered.get(*kind).is_none_or(|rv| rv < *have));
        let reason = if !self.state.identity.is_empty() && self.state.identity != identity {
            Some(format!(
                "the hub's API is another one: {identity} instead of {}",
                self.state.identity
            ))
        } else if let Some((kind, have)) = older.filter(|_| !self.faults.older_snapshot_accepted) {
            let rv = offered.get(kind).copied().unwrap_or_default();
            Some(format!(
                "the hub's API is older than this node: {kind} at {rv} instead of {have} or later"
            ))
        } else {
            None
        };
        self.begun = Some(ReplicaState {
            identity: identity.to_owned(),
            marks: offered,
            synced: true,
        });
        match reason {
            Some(reason) => self.doubt(reason),
            None => {
                self.suspect = None;
                Effect::default()
            }
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
        let mut changes = vec![Change::Put {
            key,
            object: apply.object,
        }];
        if self.state.identity.is_empty() {
            self.state.identity = self.begun.as_ref().map(|b| b.identity.clone()).unwrap_or_default();
            changes.push(Change::State(self.state.clone()));
        }
        Effect {
            changes,
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
        let rest: BTreeMap<_, _> = self
            .held
            .iter()
            .filter(|(key, entry)| !drop.contains(&digest::short(key, entry)))
            .collect();
        let complete = rest.len() as u64 == snapshot.count
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
        let offered: BTreeMap<_, _> = snapshot
            .marks
            .into_iter()
            .map(|m| (m.kind, m.resource_version))
            .collect();
        self.state = ReplicaState {
            identity: snapshot.identity,
            marks: offered,
            synced: true,
        };
        let mut changes: Vec<Change> = removed.into_iter().map(|key| Change::Remove { key }).collect();
        changes.push(Change::State(self.state.clone()));
        Effect {
            changes,
            ..Effect::default()
        }
    }

    fn advance(&mut self, offered: &[Mark]) -> Effect {
        let mut moved = false;
        for mark in offered {
            let have = self.state.marks.entry(mark.kind.clone()).or_default();
            if mark.resource_version > *have {
                *have = mark.resource_version;
                moved = true;
            }
        }
        let changes = if moved {
            vec![Change::State(self.state.clone())]
        } else {
            Vec::new()
        };
        Effect {
            changes,
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
