//! Secrets and ConfigMaps that pods of served nodes name.
//!
//! - one watch by name for each, *as a node* whose pods name it, however many do: what a DaemonSet's thousand pods name is watched once
//! - every other reader asks the API the same, once and as itself: only what the Node authorizer lets a node read goes down to it, and what it
//!   gets is no older than its asking
//! - when the node as which it is watched has no use for it any more, or is refused [`REFUSALS`] times in a row, the next one's turn comes
//!
//! On failure: who is refused asks again, less and less often, for the authorizer may not have seen the pod yet; its view waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rand::Rng as _;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::kept::desired;
use super::list_watch::{self, BACKOFF_MAX, BACKOFF_MIN, Change, Target, version};
use super::view::{Desired, Kind, ObjectKey};
use super::{Registry, State};

/// Readers that ask at a time.
const AT_ONCE: usize = 16;
/// A node that was refused so often in a row is not the one to watch an object as, where there is another.
const REFUSALS: u32 = 3;
/// Views that are made anew under one lock.
const VIEWS_AT_ONCE: usize = 256;

/// One Secret or ConfigMap.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Nodes whose pods name it, with whether the API has let them read it.
    readers: BTreeMap<String, bool>,
    /// `None` before the first list, `Some(None)` = it is not there.
    value: Option<Option<Arc<Desired>>>,
    /// The resourceVersion at which it was that.
    at: u64,
    /// As whom it is watched.
    pub(super) reader: String,
    /// How often in a row that node was refused, and how often in a row another's turn came because of that.
    refusals: u32,
    moves: u32,
    /// It is to be watched as another.
    moved: Arc<Notify>,
    watch: Option<AbortHandle>,
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

impl Named {
    /// It is watched as another reader from now on, if there is one: as the next that was let in, else as the next.
    fn move_on(&mut self) -> bool {
        self.refusals = 0;
        let behind: (Bound<&str>, Bound<&str>) = (Bound::Excluded(&self.reader), Bound::Unbounded);
        let others = || {
            let all = self.readers.range::<str, _>(behind).chain(&self.readers);
            all.filter(|(node, _)| **node != self.reader)
        };
        let next = others().find(|(_, granted)| **granted).or_else(|| others().next());
        let Some(next) = next.map(|(node, _)| node.clone()) else {
            return false;
        };
        self.reader = next;
        self.moved.notify_one();
        true
    }
}

/// What the API has told of an object.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) found: Option<Arc<Desired>>,
    /// As of this resourceVersion.
    pub(super) at: u64,
    /// The watch has begun with it: it counts whatever was known.
    pub(super) anew: bool,
}

/// A node that wants to read what is watched as another.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) node: String,
    key: ObjectKey,
    refusals: u32,
}

/// As long as a list that was refused so often in a row waits.
fn pause(refusals: u32) -> Duration {
    let pause = BACKOFF_MIN * 2_u32.saturating_pow(refusals.min(10));
    pause.min(BACKOFF_MAX).mul_f64(rand::rng().random_range(0.5..1.0))
}

fn target(key: &ObjectKey, node: &str) -> Target {
    let plural = if key.kind == Kind::Secret {
        "secrets"
    } else {
        "configmaps"
    };
    Target {
        path: format!("/api/v1/namespaces/{}/{plural}", key.namespace),
        fields: format!("metadata.name={}", key.name),
        node: Some(node.to_owned()),
    }
}

impl Registry {
    /// Keeps a watch for each object that a served node's pods name.
    pub(super) async fn watch_named(&self) {
        let mut watches = JoinSet::new();
        let mut known: HashMap<String, BTreeSet<ObjectKey>> = HashMap::new();
        loop {
            let repodded = std::mem::take(&mut self.lock().repodded);
            for node in repodded {
                let mut state = self.lock();
                let needed = state.needed(&node);
                let before = known.remove(&node).unwrap_or_default();
                for key in before.difference(&needed) {
                    state.leave(&node, key);
                }
                for key in needed.difference(&before) {
                    if let Some(first) = state.enter(&node, key) {
                        first.watch = Some(watches.spawn(self.clone().watch_one(key.clone())));
                    }
                }
                if !needed.is_empty() {
                    known.insert(node, needed);
                }
            }
            self.applied.notify_one();
            while watches.try_join_next().is_some() {}
            self.repodded.notified().await;
        }
    }

    async fn watch_one(self, key: ObjectKey) {
        loop {
            let found = self.lock().named.get(&key).map(|named| {
                let who = (named.reader.clone(), named.moved.clone());
                (who, named.moves)
            });
            let Some(((reader, moved), moves)) = found else { return };
            if moves > 0 {
                tokio::time::sleep(pause(moves)).await;
            }
            let target = target(&key, &reader);
            tokio::select! {
                () = list_watch::run(&self.api, &target, |change| self.take_named(&key, &reader, change)) => {}
                () = moved.notified() => {}
            }
        }
    }

    fn take_named(&self, key: &ObjectKey, reader: &str, change: Change) {
        let (found, at, anew) = match change {
            Change::List(items, rv) => (items.into_iter().next(), rv, true),
            Change::Apply(object) => {
                let rv = version(&object);
                (Some(object), rv, false)
            }
            Change::Delete(object) => (None, version(&object), false),
            // What was known stands, what was not is waited for.
            Change::Refused(403) => {
                self.lock().refuse(key, reader);
                self.applied.notify_one();
                return;
            }
            Change::Bookmark(_) | Change::Refused(_) => return,
        };
        let found = found.map(|object: Value| Arc::new(desired(key.kind, &object)));
        let mut state = self.lock();
        // A watch that has just been put to an end may be in the middle of this.
        if state.named.get(key).is_some_and(|named| named.reader == reader) {
            let readers = state.tell(key, reader, Told { found, at, anew });
            drop(state);
            self.publish_all(&readers);
        }
    }

    fn publish_all(&self, nodes: &[String]) {
        for some in nodes.chunks(VIEWS_AT_ONCE) {
            let state = self.lock();
            some.iter().for_each(|node| state.publish(node));
        }
    }

    /// Lets those read what is watched as another whom the API lets.
    pub(super) async fn admit_readers(&self) {
        let mut asking = FuturesUnordered::new();
        let mut refused = JoinSet::new();
        loop {
            while asking.len() < AT_ONCE {
                let Some(next) = self.lock().next_applicant() else {
                    break;
                };
                asking.push(self.ask(next));
            }
            tokio::select! {
                Some(again) = asking.next(), if !asking.is_empty() => if let Some(again) = again {
                    refused.spawn(async move {
                        tokio::time::sleep(pause(again.refusals)).await;
                        again
                    });
                },
                Some(Ok(again)) = refused.join_next(), if !refused.is_empty() => self.lock().applicants.push_back(again),
                () = self.applied.notified() => {}
            }
        }
    }

    /// Returns who is to ask again.
    async fn ask(&self, applicant: Applicant) -> Option<Applicant> {
        let Applicant { node, key, refusals } = applicant;
        match list_watch::list(&self.api, &target(&key, &node), &|_: Change| {}).await {
            Ok((items, at)) => {
                let found = items.first().map(|object| Arc::new(desired(key.kind, object)));
                let mut state = self.lock();
                let anew = false;
                let readers = state.tell(&key, &node, Told { found, at, anew });
                state.applying.remove(&(node, key));
                drop(state);
                self.publish_all(&readers);
                None
            }
            Err(error) => {
                tracing::debug!(node, %key, %error, "not to be read yet");
                let refusals = refusals + 1;
                Some(Applicant { node, key, refusals })
            }
        }
    }
}

impl State {
    /// A pod of the node names the object; what was begun, if nobody else's does.
    pub(super) fn enter(&mut self, node: &str, key: &ObjectKey) -> Option<&mut Named> {
        let is_first = !self.named.contains_key(key);
        if !is_first {
            self.queue(node, key);
        }
        let named = self.named.entry(key.clone()).or_default();
        named.readers.insert(node.to_owned(), false);
        if is_first {
            node.clone_into(&mut named.reader);
        }
        is_first.then_some(named)
    }

    /// The node is to ask for itself.
    fn queue(&mut self, node: &str, key: &ObjectKey) {
        let (node, key, refusals) = (node.to_owned(), key.clone(), 0);
        if self.applying.insert((node.clone(), key.clone())) {
            self.applicants.push_back(Applicant { node, key, refusals });
        }
    }

    /// The next that still wants to, and that the watch does not ask for.
    pub(super) fn next_applicant(&mut self) -> Option<Applicant> {
        while let Some(next) = self.applicants.pop_front() {
            let named = self.named.get(&next.key).filter(|named| named.reader != next.node);
            if named.is_some_and(|named| named.readers.get(&next.node) == Some(&false)) {
                return Some(next);
            }
            self.applying.remove(&(next.node, next.key));
        }
        // A whole fleet's is not kept.
        self.applicants = VecDeque::new();
        if self.applying.is_empty() {
            self.applying = HashSet::new();
        }
        None
    }

    /// No pod of the node names it any more.
    pub(super) fn leave(&mut self, node: &str, key: &ObjectKey) {
        let Some(named) = self.named.get_mut(key) else { return };
        named.readers.remove(node);
        if named.readers.is_empty() {
            self.named.remove(key);
        } else if named.reader == node {
            named.move_on();
        }
    }

    pub(super) fn refuse(&mut self, key: &ObjectKey, reader: &str) {
        let Some(named) = self.named.get_mut(key).filter(|named| named.reader == reader) else {
            return;
        };
        named.refusals += 1;
        if named.refusals >= REFUSALS && named.move_on() {
            named.moves += 1;
            if named.readers.get(reader) == Some(&false) {
                self.queue(reader, key);
            }
        }
    }

    /// The API has told `reader`, which may read it then; returns the nodes whose view may differ.
    pub(super) fn tell(&mut self, key: &ObjectKey, reader: &str, told: Told) -> Vec<String> {
        self.see(told.at);
        let Some(named) = self.named.get_mut(key) else {
            return Vec::new();
        };
        if named.reader == reader {
            (named.refusals, named.moves) = (0, 0);
        }
        if let Some(granted) = named.readers.get_mut(reader) {
            *granted = true;
        }
        let counts = told.anew || named.value.is_none() || told.at > named.at;
        if counts {
            named.at = told.at;
        }
        let found = Some(told.found);
        if !counts || named.value == found {
            return vec![reader.to_owned()];
        }
        named.value = found;
        let granted = named.readers.iter().filter(|(_, granted)| **granted);
        granted.map(|(node, _)| node.clone()).collect()
    }

    /// The object as the node may have it, `Some(None)` = it is not there; nothing while that is not known.
    pub(super) fn named(&self, node: &str, key: &ObjectKey) -> Option<Option<&Arc<Desired>>> {
        let named = self.named.get(key)?;
        let granted = *named.readers.get(node)?;
        named.value.as_ref().filter(|_| granted).map(Option::as_ref)
    }
}
