//! The hub's side of the desired state: what an edge should hold against what it was sent.
//!
//! Level-triggered: a view replaces the last one, and only the difference to what the edge has is sent. An object that
//! changes again before it is sent is sent once.
//!
//! Marks go down *before* the changes that they cover: an edge that has committed an object has committed a mark that is
//! not below it, so that no backup from between can look complete to it. The place in the life of the API's database goes
//! with them, and covers what has no mark of its kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use wire::proto::{Apply, Begin, Delete, Down, Hello, Mark, Marks, Place, SnapshotSent, down};

use crate::digest::{self, Digest, Entry, wire_key};
use crate::lineage::Lineage;

/// Kind, namespace (empty when it has none), name.
pub type Key = (String, String, String);

/// An object as it goes to the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceObject {
    /// metadata.uid.
    pub uid: String,
    /// SHA-256 of `bytes`.
    pub version: Digest,
    /// JSON.
    pub bytes: Bytes,
}

impl SourceObject {
    fn entry(&self) -> Entry {
        Entry {
            uid: self.uid.clone(),
            version: self.version,
        }
    }
}

/// All that an edge should hold.
#[derive(Debug, Clone, Default)]
pub struct SourceView {
    /// uid of namespace kube-system.
    pub identity: String,
    /// How old it is at least: resourceVersion a kind.
    pub marks: BTreeMap<String, u64>,
    /// The highest resourceVersion of any kind that was seen: not below any object's.
    pub revision: u64,
    /// The life of the API's database.
    pub lineage: Arc<Lineage>,
    /// The objects. Whoever makes views shares both halves between them: a hub keeps two trees of them for each edge.
    pub objects: BTreeMap<Arc<Key>, Arc<SourceObject>>,
}

impl SourceView {
    fn place(&self) -> Place {
        self.lineage.place(self.revision)
    }
}

/// The state of one edge's replica as the hub knows it.
#[derive(Debug)]
pub struct Source {
    view: SourceView,
    /// What the edge holds once it has all that was sent.
    sent: BTreeMap<Arc<Key>, Arc<SourceObject>>,
    /// Hashes of Hello that no object of the view has matched.
    unmatched: BTreeSet<u64>,
    pending: BTreeSet<Arc<Key>>,
    begin: bool,
    snapshot: bool,
    marks_sent: BTreeMap<String, u64>,
    place_sent: Place,
    marks_due: bool,
    /// The point of the lineage that the edge has seen.
    asked: u64,
}

impl Source {
    /// Starts with what the edge says it has.
    #[must_use]
    pub fn new(hello: &Hello, view: SourceView) -> Self {
        let asked = hello.place.map_or(0, |place| place.number);
        Self::with(hello.have.iter().copied().collect(), view, asked)
    }

    /// Starts over with a view that does not continue the last one (the API behind the hub is another one or went back in
    /// time): what is missing in it is no deletion that anybody saw. The edge judges it, as at the start of a session.
    pub fn restart(&mut self, view: SourceView) {
        let sent = self
            .sent
            .iter()
            .map(|(key, object)| digest::short(key, &object.entry()));
        let asked = if self.begin { self.asked } else { self.place_sent.number };
        *self = Self::with(sent.chain(self.unmatched.iter().copied()).collect(), view, asked);
    }

    fn with(mut unmatched: BTreeSet<u64>, view: SourceView, asked: u64) -> Self {
        let mut sent = BTreeMap::new();
        for (key, object) in &view.objects {
            if unmatched.remove(&digest::short(key, &object.entry())) {
                sent.insert(key.clone(), object.clone());
            }
        }
        let mut source = Self {
            marks_sent: view.marks.clone(),
            place_sent: view.place(),
            asked,
            view,
            sent,
            unmatched,
            pending: BTreeSet::new(),
            begin: true,
            snapshot: true,
            marks_due: false,
        };
        source.find_pending();
        source
    }

    /// Replaces the view by a later one of the same API. Marks alone are sent only when `marks_due`: they cost bytes and
    /// move all the time.
    ///
    /// Returns whether there is something to send.
    pub fn set_view(&mut self, view: SourceView, marks_due: bool) -> bool {
        self.view = view;
        self.find_pending();
        self.marks_due |= marks_due || !self.pending.is_empty();
        !self.pending.is_empty() || (self.marks_due && self.marks_moved())
    }

    fn marks_moved(&self) -> bool {
        self.marks_sent != self.view.marks || self.place_sent != self.view.place()
    }

    fn find_pending(&mut self) {
        self.pending.clear();
        for (key, object) in &self.view.objects {
            if self
                .sent
                .get(key)
                .is_none_or(|s| s.uid != object.uid || s.version != object.version)
            {
                self.pending.insert(key.clone());
            }
        }
        let gone = self
            .sent
            .keys()
            .filter(|key| !self.view.objects.contains_key(*key))
            .cloned();
        self.pending.extend(gone);
    }

    /// Whether the edge has been sent everything.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.begin && !self.snapshot && self.pending.is_empty()
    }

    /// The next item for class `desired`, with its key.
    pub fn poll(&mut self) -> Option<(String, Down)> {
        let (key, body) = self.next()?;
        Some((key, Down { body: Some(body) }))
    }

    fn next(&mut self) -> Option<(String, down::Body)> {
        if std::mem::take(&mut self.begin) {
            let begin = Begin {
                identity: self.view.identity.clone(),
                marks: self.marks(),
                place: Some(self.view.place()),
                descent: Some(self.view.lineage.descent(self.asked)),
            };
            return Some((String::new(), down::Body::Begin(begin)));
        }
        if std::mem::take(&mut self.marks_due) && self.marks_moved() {
            let marks = Marks {
                marks: self.marks(),
                place: Some(self.place_sent),
            };
            return Some((String::new(), down::Body::Marks(marks)));
        }
        if let Some(key) = self.pending.pop_first() {
            return Some((format!("{}/{}/{}", key.0, key.1, key.2), self.change(key)));
        }
        if std::mem::take(&mut self.snapshot) {
            return Some((String::new(), down::Body::SnapshotSent(self.snapshot_sent())));
        }
        None
    }

    fn change(&mut self, key: Arc<Key>) -> down::Body {
        if let Some(object) = self.view.objects.get(&key) {
            // It went back to what the edge had at Hello: that is no leftover any more.
            self.unmatched.remove(&digest::short(&key, &object.entry()));
            self.sent.insert(key.clone(), object.clone());
            return down::Body::Apply(Apply {
                key: Some(wire_key(&key)),
                uid: object.uid.clone(),
                version: object.version.to_vec().into(),
                object: object.bytes.clone(),
            });
        }
        let uid = self.sent.remove(&key).map(|object| object.uid.clone());
        down::Body::Delete(Delete {
            key: Some(wire_key(&key)),
            uid: uid.unwrap_or_default(),
        })
    }

    fn snapshot_sent(&mut self) -> SnapshotSent {
        let sent = self.sent.iter().map(|(key, object)| (&**key, object.entry()));
        let digest = digest::set(sent);
        SnapshotSent {
            marks: self.marks(),
            identity: self.view.identity.clone(),
            count: self.sent.len() as u64,
            digest: digest.to_vec().into(),
            drop: std::mem::take(&mut self.unmatched).into_iter().collect(),
            place: Some(self.place_sent),
        }
    }

    fn marks(&mut self) -> Vec<Mark> {
        self.marks_sent.clone_from(&self.view.marks);
        self.place_sent = self.view.place();
        self.view
            .marks
            .iter()
            .map(|(kind, rv)| Mark {
                kind: kind.clone(),
                resource_version: *rv,
            })
            .collect()
    }
}
