//! Every object, in memory and on the disk, and the log of changes that watches read.
//!
//! * a writer stages its change under the lock: the object must still be what the writer saw; it gets the next resourceVersion
//! * the committer ([`Committer`]) takes all that is staged, commits it as one batch of `metastore`, then makes it visible, in order
//! * reads and watches see only what is on the disk; the next writer of the same object sees what is staged
//!
//! A caller that goes away while it waits changes nothing: a staged change is committed whole. A failed commit ends the process
//! (`metastore`'s rule), for what was staged on top of it would be lost.
//!
//! The log of changes ([`log`]) is in memory and bounded: a watch from before it (also from before a restart) gets 410 and lists
//! again, as clients do after etcd's compaction.

mod log;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use metastore::{Batch, CommitError, OpenError};
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};

use crate::kinds;
use crate::object;
use log::Log;

/// Changes that may be staged at once; more wait for their turn outside.
const STAGED: usize = 1024;
const VERSION_KEY: &str = "version";
const OBJECT_PREFIX: &str = "o/";

/// Where an object is: storage prefix of its kind, namespace ("" for cluster-scoped), name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// [`kinds::Row::storage`].
    pub storage: &'static str,
    /// Namespace, or "".
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(storage: &'static str, namespace: &str, name: &str) -> Self {
        Self {
            storage,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn record(&self) -> String {
        format!("{OBJECT_PREFIX}{}/{}/{}", self.storage, self.namespace, self.name)
    }
}

/// An object as it is stored. Never changes.
#[derive(Debug)]
pub struct Stored {
    /// Where it is.
    pub key: Key,
    /// Its resourceVersion.
    pub resource_version: u64,
    /// JSON, with `metadata.resourceVersion`.
    pub bytes: Bytes,
    /// `metadata.labels`; an object's states share them while they stay as they are.
    pub labels: Arc<[(String, String)]>,
    /// Selectable fields beside name and namespace; shared too.
    pub fields: Arc<[(&'static str, String)]>,
}

impl Stored {
    fn new(key: Key, resource_version: u64, mut value: Value) -> Self {
        object::metadata(&mut value).insert("resourceVersion".into(), resource_version.to_string().into());
        let bytes = serde_json::to_vec(&value).expect("JSON values can be written");
        // What a vector has grown beyond its text would be kept as long as the object: a third of it.
        let bytes = Bytes::from(bytes.into_boxed_slice());
        Self::index(key, resource_version, &value, bytes)
    }

    fn index(key: Key, resource_version: u64, value: &Value, bytes: Bytes) -> Self {
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let labels = labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()));
        let row = kinds::rows().find(|r| r.storage == key.storage);
        let fields = row
            .into_iter()
            .flat_map(|r| r.selectable)
            .map(|(label, pointer)| (*label, field(value, label, pointer)));
        Self {
            labels: labels.collect(),
            fields: fields.collect(),
            key,
            resource_version,
            bytes,
        }
    }

    /// Takes what selectors look at from `previous` where it is the same; whether all of it is.
    fn share(&mut self, previous: &Self) -> bool {
        let (labels, fields) = (self.labels == previous.labels, self.fields == previous.fields);
        if labels {
            self.labels = previous.labels.clone();
        }
        if fields {
            self.fields = previous.fields.clone();
        }
        labels && fields
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("written by us and checksummed")
    }

    /// A selectable field; None when this kind has no such field.
    pub fn field(&self, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(&self.key.name),
            "metadata.namespace" => Some(&self.key.namespace),
            _ => self.fields.iter().find(|(l, _)| *l == label).map(|(_, v)| v.as_str()),
        }
    }
}

/// A field as a selector compares it: booleans as words, absent as "" or, for a boolean, as `false`.
fn field(value: &Value, label: &str, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(label, "spec.hostNetwork" | "spec.unschedulable") => "false".into(),
        _ => String::new(),
    }
}

/// One change.
#[derive(Debug)]
pub struct Change {
    /// Its resourceVersion.
    pub resource_version: u64,
    /// What the object was.
    pub before: Before,
    /// What it is now; for a deletion, its last state with the deletion's resourceVersion.
    pub object: Arc<Stored>,
    /// Whether this deleted it.
    pub deleted: bool,
}

/// What an object was before a change: no more than a watch needs to tell what came into its sight and what went out of it.
#[derive(Debug)]
pub enum Before {
    /// It is new.
    Absent,
    /// What selectors look at was what it is now.
    Alike,
    /// This.
    Other(Arc<Stored>),
}

impl Change {
    /// What selectors saw before it; None: there was nothing.
    pub fn before(&self) -> Option<&Stored> {
        match &self.before {
            Before::Absent => None,
            Before::Alike => Some(&self.object),
            Before::Other(stored) => Some(stored),
        }
    }
}

/// What a writer believes the object to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It is not there.
    Absent,
    /// It has this resourceVersion.
    Version(u64),
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object is not what the writer believed.
    #[error("the object has been modified")]
    Conflict,
    /// Too many changes are waiting for the disk.
    #[error("too many changes are waiting for the disk")]
    Busy,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

struct Staged {
    object: Arc<Stored>,
    before: Before,
    deleted: bool,
    done: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    /// The last resourceVersion given.
    given: u64,
    /// The last one that is visible.
    visible: u64,
    objects: BTreeMap<Key, Arc<Stored>>,
    /// What the next writer of a key must see: None = deleted.
    staged_objects: HashMap<Key, Option<Arc<Stored>>>,
    staged: Vec<Staged>,
    log: Log,
}

impl State {
    fn latest(&self, key: &Key) -> Option<&Arc<Stored>> {
        match self.staged_objects.get(key) {
            Some(staged) => staged.as_ref(),
            None => self.objects.get(key),
        }
    }

    fn publish(&mut self, staged: Staged) {
        let Staged {
            object,
            before,
            deleted,
            done,
        } = staged;
        self.visible = object.resource_version;
        if deleted {
            self.objects.remove(&object.key);
        } else {
            self.objects.insert(object.key.clone(), object.clone());
        }
        let last = self.staged_objects.get(&object.key);
        let is_last = match last {
            Some(Some(latest)) => Arc::ptr_eq(latest, &object),
            Some(None) => deleted,
            None => false,
        };
        if is_last {
            self.staged_objects.remove(&object.key);
        }
        self.log.push(Change {
            resource_version: object.resource_version,
            before,
            object,
            deleted,
        });
        // The caller may have gone away: the change stands.
        let _ = done.send(());
    }
}

struct Shared {
    state: Mutex<State>,
    disk: metastore::Store,
    work: Notify,
}

/// A handle; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Commits what is staged; must run as a task while the store is used.
#[derive(Debug)]
pub struct Committer {
    store: Store,
}

impl Store {
    /// Opens the store in `path`. Blocks.
    ///
    /// # Errors
    /// When the disk store does not open.
    pub fn open(path: &Path) -> Result<(Self, Committer), OpenError> {
        let disk = metastore::Store::open(path, &metastore::Options::default())?;
        let read = |source| OpenError::Record {
            path: path.to_owned(),
            key: OBJECT_PREFIX.into(),
            source,
        };
        let mut state = State::default();
        if let Some(version) = disk.get(VERSION_KEY).map_err(read)? {
            state.given = str::from_utf8(&version)
                .ok()
                .and_then(|v| v.parse().ok())
                .unwrap_or_default();
        }
        for (record, bytes) in disk.scan(OBJECT_PREFIX).map_err(read)? {
            let Some(key) = key_of(&record) else {
                tracing::warn!(record, "an object of a kind that is not served is left alone");
                continue;
            };
            let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
                tracing::warn!(record, "an object that is no JSON is left alone");
                continue;
            };
            let version = object::text(&value, "/metadata/resourceVersion")
                .parse()
                .unwrap_or_default();
            state.given = state.given.max(version);
            state
                .objects
                .insert(key.clone(), Arc::new(Stored::index(key, version, &value, bytes)));
        }
        // resourceVersion 0 means "any" to clients.
        state.given = state.given.max(1);
        state.visible = state.given;
        state.log = Log::new(state.given);
        let shared = Shared {
            state: Mutex::new(state),
            disk,
            work: Notify::new(),
        };
        let store = Self {
            shared: Arc::new(shared),
        };
        Ok((store.clone(), Committer { store }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resourceVersion up to which everything is visible.
    pub fn version(&self) -> u64 {
        self.state().visible
    }

    /// An object that is on the disk.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.state().objects.get(key).cloned()
    }

    /// What the next writer of `key` must start from: it may not be on the disk yet.
    pub fn latest(&self, key: &Key) -> Option<Arc<Stored>> {
        self.state().latest(key).cloned()
    }

    /// Objects of one kind in key order, of one namespace or of all, with the resourceVersion of the list; at most `limit` after
    /// `after`.
    pub fn list(
        &self,
        storage: &'static str,
        namespace: Option<&str>,
        after: Option<&Key>,
        limit: usize,
    ) -> (u64, Vec<Arc<Stored>>) {
        let state = self.state();
        let first = Key::new(storage, namespace.unwrap_or_default(), "");
        let start = match after {
            Some(key) if *key > first => Bound::Excluded(key.clone()),
            _ => Bound::Included(first),
        };
        let inside = |key: &Key| key.storage == storage && namespace.is_none_or(|n| key.namespace == n);
        let found = state
            .objects
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| inside(key));
        (
            state.visible,
            found.take(limit).map(|(_, object)| object.clone()).collect(),
        )
    }

    /// Puts `value` at `key` when it is what `expect` says there; returns what is stored, when it is on the disk.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when it is something else.
    pub async fn put(&self, key: Key, expect: Expect, value: Value) -> Result<Arc<Stored>, WriteError> {
        let staged = self.stage(key, expect, value, false)?;
        self.committed(staged).await
    }

    /// Deletes `key` when it is what `expect` says; `last` is its last state as watches will see it.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, key: Key, expect: Expect, last: Option<Value>) -> Result<Arc<Stored>, WriteError> {
        let last = last.or_else(|| self.latest(&key).map(|object| object.value()));
        let Some(last) = last else {
            return Err(WriteError::Conflict);
        };
        let staged = self.stage(key, expect, last, true)?;
        self.committed(staged).await
    }

    async fn committed(&self, staged: (Arc<Stored>, oneshot::Receiver<()>)) -> Result<Arc<Stored>, WriteError> {
        let (object, done) = staged;
        done.await.map_err(|_| WriteError::Closed)?;
        Ok(object)
    }

    fn stage(
        &self,
        key: Key,
        expect: Expect,
        value: Value,
        deleted: bool,
    ) -> Result<(Arc<Stored>, oneshot::Receiver<()>), WriteError> {
        let (done, committed) = oneshot::channel();
        let mut state = self.state();
        let previous = state.latest(&key).cloned();
        let matches = match (expect, &previous) {
            (Expect::Absent, None) => true,
            (Expect::Version(wanted), Some(object)) => object.resource_version == wanted,
            _ => false,
        };
        if !matches {
            return Err(WriteError::Conflict);
        }
        if state.staged.len() >= STAGED {
            return Err(WriteError::Busy);
        }
        state.given += 1;
        let mut object = Stored::new(key.clone(), state.given, value);
        let before = match previous {
            None => Before::Absent,
            Some(previous) if object.share(&previous) => Before::Alike,
            Some(previous) => Before::Other(previous),
        };
        let object = Arc::new(object);
        state.staged_objects.insert(key, (!deleted).then(|| object.clone()));
        state.staged.push(Staged {
            object: object.clone(),
            before,
            deleted,
            done,
        });
        drop(state);
        self.shared.work.notify_one();
        Ok((object, committed))
    }

    /// Whether all changes of a kind after `version` are still known.
    pub fn remembers(&self, storage: &'static str, version: u64) -> bool {
        self.state().log.remembers(storage, version)
    }

    /// As if changes up to `version` had been pushed out of the log.
    #[cfg(test)]
    pub(crate) fn forget_log(&self, version: u64) {
        self.state().log.forget(version);
    }

    /// Follows changes of one kind from after `version`.
    ///
    /// # Errors
    /// None when that is too long ago: list again. A version of the future waits for it.
    pub fn watch(&self, storage: &'static str, namespace: Option<&str>, version: u64) -> Option<Watch> {
        let mut state = self.state();
        if !state.log.remembers(storage, version) {
            return None;
        }
        let versions = state.log.subscribe(storage);
        drop(state);
        let namespace = namespace.map(str::to_owned);
        Some(Watch {
            store: self.clone(),
            storage,
            namespace,
            seen: version,
            versions,
        })
    }
}

fn key_of(record: &str) -> Option<Key> {
    let mut parts = record.strip_prefix(OBJECT_PREFIX)?.splitn(3, '/');
    let (storage, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let row = kinds::rows().find(|r| r.storage == storage)?;
    Some(Key::new(row.storage, namespace, name))
}

impl Committer {
    /// Runs for ever; ends only when the disk store is closed.
    pub async fn run(self) {
        let shared = self.store.shared.clone();
        loop {
            let staged = std::mem::take(&mut self.store.state().staged);
            if staged.is_empty() {
                shared.work.notified().await;
                continue;
            }
            if let Err(error) = commit(&shared.disk, &staged).await {
                tracing::error!(%error, "the store takes no changes any more");
                return;
            }
            let kinds: BTreeSet<&'static str> = staged.iter().map(|change| change.object.key.storage).collect();
            let mut state = self.store.state();
            for change in staged {
                state.publish(change);
            }
            state.log.tell(kinds, state.visible);
        }
    }
}

async fn commit(disk: &metastore::Store, staged: &[Staged]) -> Result<(), CommitError> {
    let mut batch = Batch::default();
    for change in staged {
        let record = change.object.key.record();
        if change.deleted {
            batch.delete(record);
        } else {
            batch.put(record, change.object.bytes.clone());
        }
        let version = change.object.resource_version.to_string();
        batch.put(VERSION_KEY, version.into_bytes());
    }
    disk.commit(batch).await
}

/// Follows the changes of one kind.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    storage: &'static str,
    namespace: Option<String>,
    seen: u64,
    versions: watch::Receiver<u64>,
}

impl Watch {
    /// The resourceVersion up to which there is nothing that was not returned.
    pub fn seen(&self) -> u64 {
        let state = self.store.state();
        let waits = state.log.after(self.storage, self.seen).next().is_some();
        if waits { self.seen } else { self.seen.max(state.visible) }
    }

    /// The next changes, at least one; None when this watch has fallen behind the log and must list again. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<Arc<Change>>> {
        loop {
            let _ = *self.versions.borrow_and_update();
            let found = self.take()?;
            if !found.is_empty() {
                return Some(found);
            }
            self.versions.changed().await.ok()?;
        }
    }

    /// What is there now.
    fn take(&mut self) -> Option<Vec<Arc<Change>>> {
        let state = self.store.state();
        if !state.log.remembers(self.storage, self.seen) {
            return None;
        }
        let mine = |change: &&Arc<Change>| {
            let namespace = &change.object.key.namespace;
            self.namespace.as_ref().is_none_or(|mine| namespace == mine)
        };
        let found = state.log.after(self.storage, self.seen).filter(mine).cloned().collect();
        self.seen = self.seen.max(state.visible);
        Some(found)
    }
}

#[cfg(test)]
mod tests;
